"""What a run tells experiment trackers (`run.trackers`): its configuration once, its figures after every round.

A tracker is looked at, never needed: what it cannot take is told as a warning, and the run goes on. When the run is
taken up again, the rounds that are done are told again, for those that it has missed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from prunefuse_ray.config import Config
from prunefuse_ray.config.files import flatten, to_tree
from prunefuse_ray.errors import ConfigError, PlanError, without_secrets
from prunefuse_ray.method.steps import Step
from prunefuse_ray.networks.specs import first_line
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.result import result_of
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tracking import TRACKERS, Figures, Session, TrackedRun
from prunefuse_ray.tracking.tracker import Status

logger = logging.getLogger(__name__)


def check_trackers(config: Config) -> None:
    """PlanError where a tracker lacks something here."""
    for name in config.run.trackers:
        if lacking := TRACKERS[name].lacks():
            raise PlanError(f"run.trackers: {name}: {lacking}, or leave it out")


def figures_of(config: Config, ledger: Ledger) -> dict[int, Figures]:
    """Round -> its figures, of every round whose steps are done."""
    result, metric = result_of(config, ledger), TASKS[config.task].metric
    found = {}
    for row in result["rounds"]:
        if not ledger.round_done(config, row["round"]):
            continue
        values = {name: row[name] for name in (f"proxy_{metric.name}", f"fused_{metric.name}", "labels",
                                               "selection_macs", "dense_selection_macs", "training_macs")}  # fmt: skip
        values["seconds"] = sum(row["seconds"].values())
        values |= {f"seconds_of/{phase}": seconds for phase, seconds in row["seconds"].items()}
        found[row["round"]] = Figures(round=row["round"], labels=row["labels"], values=_known(values))
    return found


def closing_figures(config: Config, ledger: Ledger) -> Figures:
    """Those of the whole run: they stand with its last round."""
    result, name = result_of(config, ledger), f"baseline_{TASKS[config.task].metric.name}"
    values = {name: result[name], "rejected": result["rejected"], "run_seconds": result["seconds"]}
    last = result["rounds"][-1]
    return Figures(round=last["round"], labels=last["labels"], values=_known(values))


def _known(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def run_id(config: Config, ledger: Ledger) -> str:
    """Of this run directory: other runs of the same name elsewhere are other runs to a tracker."""
    place = f"{config.run.name}|{ledger.read_pool()['id_digest']}|{ledger.root.path}"
    return hashlib.sha256(place.encode()).hexdigest()[:16]


class Tracking:
    """The sessions of one driver."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        """ConfigError where a tracker cannot begin: the next phase has not begun then."""
        self._config, self._ledger = config, ledger
        self._sessions: dict[str, Session] = {}
        before = list(figures_of(config, ledger).values()) if config.run.trackers else []
        for name in config.run.trackers:
            told = TrackedRun(
                name=config.run.name,
                id=run_id(config, ledger),
                metric=TASKS[config.task].metric.name,
                parameters=flatten(to_tree(config)),
                keep=ledger.write_file,
                before=before,
            )
            try:
                self._sessions[name] = TRACKERS[name].open(told)
            except Exception as error:
                self.close("failed")
                raise ConfigError(
                    f"run.trackers: {name} cannot begin: {first_line(error)}; put it right, or leave it out"
                ) from error

    def done(self, step: Step) -> None:
        """After a step: the figures of the round, or of the run, that it completes."""
        if not self._sessions or not self._ledger.round_done(self._config, step.round):
            return
        if step.round < 0:
            figures = closing_figures(self._config, self._ledger)
        else:
            figures = figures_of(self._config, self._ledger)[step.round]
        for name, session in self._sessions.items():
            self._try(name, partial(session.log, figures))

    def close(self, status: Status) -> None:
        for name, session in self._sessions.items():
            self._try(name, partial(session.close, status))
        self._sessions = {}

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            logger.warning(
                "run.trackers: %s did not take the figures (%s); the run goes on, and sends those of its rounds again "
                "if it is restarted before its end",
                name, without_secrets(first_line(error)),
            )  # fmt: skip
