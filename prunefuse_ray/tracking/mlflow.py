"""MLflow: a run of its tracking server, or of a folder."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

from prunefuse_ray.registry import installed
from prunefuse_ray.tracking.tracker import Figures, Status, TrackedRun, Tracker, short

EXPERIMENT = "prunefuse_ray"
"""Where MLFLOW_EXPERIMENT_NAME names none."""
TAG = "prunefuse_ray.run"
"""By which a run is found again."""
SWEEP = "prunefuse_ray.sweep"
"""The same for trials: their sweep's directory."""
MOST_PARAMETERS = 100
"""In one request."""
LONGEST = 500
"""Characters of a parameter that every server takes."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""About 14 seconds for a server that is away. MLflow's own are four minutes for each request, in which a run or a sweep
would stand still."""
ENDED: dict[Status, str] = {"done": "FINISHED", "failed": "FAILED"}


class _Run:
    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, ViewType

        _be_brief()
        self._client, self._metric = MlflowClient(), run.metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'", ViewType.ACTIVE_ONLY)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, run_name=run.name, tags={TAG: run.id}).info.run_id
        known_parameters = found[0].data.params if found else {}
        parameters = [Param(n, str(short(v))[:LONGEST]) for n, v in run.parameters.items() if n not in known_parameters]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + MOST_PARAMETERS])
        self._begun_before = bool(found)
        for figures in run.before:
            self.log(figures)

    def log(self, figures: Figures) -> None:
        """Of what an earlier driver has told, only what has changed: with other label budgets, a round ends again."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [(name, value, figures.round) for name, value in figures.values.items()]
        points += [(name, value, figures.labels) for name, value in figures.learning_curve(self._metric).items()]
        if self._begun_before:
            points = [p for p in points if p[1:] not in self._told(p[0])]
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value, step in points])

    def close(self, status: Status) -> None:
        if status in ENDED:
            self._client.set_terminated(self._id, ENDED[status])

    def _told(self, name: str) -> set[tuple[float, int]]:
        return {(point.value, point.step) for point in self._client.get_metric_history(self._id, name)}


def _be_brief() -> None:
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)


def _callback(sweep: str) -> Any:
    if why := MLFLOW.lacks():
        raise ImportError(why)
    _be_brief()
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Trials(MLflowLoggerCallback):
        """A trial that was interrupted goes on as the same MLflow run: Ray's own begins another one each time, and what
        it left stays RUNNING for good."""

        def log_trial_start(self, trial: Any) -> None:
            directory = hashlib.sha256(trial.storage.experiment_fs_path.encode()).hexdigest()[:16]
            self.tags = {**(self.tags or {}), SWEEP: directory}
            if trial not in self._trial_runs:
                client = self.mlflow_util._get_client()
                mine = f"tags.`{SWEEP}` = '{directory}' and tags.trial_name = '{trial}' and status != 'FINISHED'"
                if found := client.search_runs([self.mlflow_util.experiment_id], mine):
                    self._trial_runs[trial] = found[0].info.run_id
                    client.update_run(self._trial_runs[trial], status="RUNNING")
            super().log_trial_start(trial)

    return Trials(experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", sweep))


MLFLOW = Tracker(
    name="mlflow",
    about=f"MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (default {EXPERIMENT}; of a sweep its name)",
    open=_Run,
    callback=_callback,
    lacks=installed("mlflow", "mlflow"),
)
