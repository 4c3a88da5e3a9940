"""Labels by class: what a round's labels come to, and what is to be said of classes that have none."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pyarrow as pa

from prunefuse_ray.errors import few
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

NAMED = 10
"""Classes named in a warning."""


def class_counts(task: str, labels: pa.Table, classes: int) -> list[int]:
    """How many labels there are of each class."""
    return TASKS[task].counts(labels["label"], classes)


def without_labels(counts: Sequence[int], classes: Sequence[str]) -> list[str]:
    """Names of the classes that have none."""
    return [name for name, count in zip(classes, counts, strict=True) if not count]


def warn_of_missing(counts: Sequence[int], classes: Sequence[str], round_: int) -> None:
    """The network cannot learn a class of which it has no label, and uncertainty does not look for it."""
    if missing := without_labels(counts, classes):
        logger.warning(
            f"round {round_}: {len(missing)} of {len(classes)} classes have no label yet ({few(missing, NAMED)}): "
            "the network cannot learn these; select more, or begin another run with some in pool.known_labels"
        )
