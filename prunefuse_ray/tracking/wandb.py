"""Weights & Biases: a run of its server, or offline in a folder (WANDB_MODE=offline)."""

from __future__ import annotations

import os
from typing import Any

from prunefuse_ray.registry import installed
from prunefuse_ray.tracking.tracker import LEARNING_CURVE, Figures, Status, TrackedRun, Tracker, short

PROJECT = "prunefuse_ray"
"""Where WANDB_PROJECT names none."""


class _Run:
    """Steps are rounds. What a round came to after its step was taken stands in the summary."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._metric = run.metric
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow",
            config={name: short(value) for name, value in run.parameters.items()},
        )
        self._run.define_metric(f"{LEARNING_CURVE}*", step_metric="labels")
        for figures in run.before:
            self.log(figures)

    def log(self, figures: Figures) -> None:
        values = {**figures.values, **figures.learning_curve(self._metric)}
        if figures.round < self._run.step:  # no step is taken again: what a round, or the run, came to after it
            self._run.summary.update(values)
        else:
            self._run.log(values, step=figures.round)

    def close(self, status: Status) -> None:
        self._run.finish(exit_code=int(status == "failed"))


def _callback(sweep: str) -> Any:
    if why := WANDB.lacks():
        raise ImportError(why)
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project=os.environ.get("WANDB_PROJECT", sweep))


WANDB = Tracker(
    name="wandb",
    about=f"WANDB_API_KEY or WANDB_MODE=offline, WANDB_PROJECT (default {PROJECT}; of a sweep its name)",
    open=_Run,
    callback=_callback,
    lacks=installed("wandb", "wandb"),
)
