"""Experiment trackers: what shows runs to people beside the run directory. One file a tracker."""

from prunefuse_ray.registry import Registry
from prunefuse_ray.tracking.tracker import Figures, Session, TrackedRun, Tracker

TRACKERS: Registry[Tracker] = Registry(
    "tracker",
    "prunefuse_ray.tracking.tracker:Tracker",
    "prunefuse_ray.trackers",
    {
        "tensorboard": "prunefuse_ray.tracking.tensorboard:TENSORBOARD",
        "mlflow": "prunefuse_ray.tracking.mlflow:MLFLOW",
        "wandb": "prunefuse_ray.tracking.wandb:WANDB",
    },
)

__all__ = ["TRACKERS", "Figures", "Session", "TrackedRun", "Tracker"]
