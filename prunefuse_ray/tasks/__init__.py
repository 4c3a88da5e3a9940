"""What a network is trained for: one file a task, in plain torch and numpy; what depends on it goes through it."""

from prunefuse_ray.registry import Registry
from prunefuse_ray.tasks.task import Evaluation, Metric, Task

TASKS: Registry[Task] = Registry(
    "task",
    "prunefuse_ray.tasks.task:Task",
    "prunefuse_ray.tasks",
    {
        "classification": "prunefuse_ray.tasks.classification:CLASSIFICATION",
        "multi_label": "prunefuse_ray.tasks.multi_label:MULTI_LABEL",
        "segmentation": "prunefuse_ray.tasks.segmentation:SEGMENTATION",
        "regression": "prunefuse_ray.tasks.regression:REGRESSION",
    },
)

__all__ = ["TASKS", "Evaluation", "Metric", "Task"]
