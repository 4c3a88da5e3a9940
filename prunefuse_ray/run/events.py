"""What a run tells those who watch it: a line of JSON per event, and gauges for Ray's dashboard and Prometheus.

`events.jsonl` in the run directory has every event of every driver that worked on the run. The same lines go to the
logger `prunefuse_ray.events`, which a submitted job prints.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from datetime import UTC, datetime
from typing import Any

import ray
from ray.util.metrics import Gauge

from prunefuse_ray.method.steps import Step
from prunefuse_ray.run.ledger import Commit, Ledger
from prunefuse_ray.tasks import Metric

EVENTS = "events.jsonl"
events_log = logging.getLogger("prunefuse_ray.events")


class Telemetry:
    """Events and gauges of one driver."""

    def __init__(self, ledger: Ledger, run: str, metric: Metric) -> None:
        self._ledger, self._metric = ledger, metric
        self._who: dict[str, Any] = {
            "run": run,
            "job": ray.get_runtime_context().get_job_id(),
            "host": socket.gethostname(),
            "process": os.getpid(),
        }
        self._gauges = {
            name: Gauge(f"prunefuse_{name}", description=text, tag_keys=("run",))
            for name, text in {
                "round": "Round that the run is in",
                "labels_bought": "Labels recorded so far, the initial set included",
                "samples_rejected": "Samples recorded as unusable so far",
                f"proxy_{metric.name}": f"{metric.title} of the last trained proxy on the test set",
            }.items()
        }

    def record(self, event: str, step: Step | None = None, **fields: Any) -> None:
        """Write one event: time, who, what, and its figures."""
        line: dict[str, Any] = {"time": datetime.now(UTC).isoformat("T", "milliseconds"), "event": event, **self._who}
        if step is not None:
            line |= {"round": step.round, "phase": step.phase}
        text = json.dumps(line | fields)
        self._ledger.append_line(EVENTS, text)
        events_log.info(text)

    def started(self, step: Step) -> None:
        if step.round >= 0:
            self._set("round", step.round)
        self.record("phase_started", step)

    def done(self, commit: Commit) -> None:
        """A phase's end, with those of its metrics that are single figures."""
        figures = {k: v for k, v in commit.metrics.items() if isinstance(v, int | float | str)}
        self._set("labels_bought", figures.get("labels") if commit.step.phase == "label" else None)
        self._set(
            f"proxy_{self._metric.name}", figures.get(self._metric.measured) if commit.step.phase == "train" else None
        )
        self._set("samples_rejected", self._ledger.rejected().num_rows if commit.step.phase == "score" else None)
        self.record("phase_done", commit.step, **figures)

    def _set(self, gauge: str, value: Any) -> None:
        if value is not None:
            self._gauges[gauge].set(float(value), tags={"run": self._who["run"]})
