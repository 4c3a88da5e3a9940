"""One function over many files: in tasks on the cluster, or in this process where the files are small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

WORTH_A_TASK = 16 * 2**20
"""Bytes of all files together below which no task is started: its worker's first imports take seconds."""


def over(function: Callable[..., Any], groups: Sequence[Any], *args: Any, size: float) -> Iterator[Any]:
    """function(group, *args) of every group, one after the other, so that not all answers need be held.

    Args:
        size: bytes of the files in all groups together.
    """
    if size <= WORTH_A_TASK:
        yield from (function(group, *args) for group in groups)
        return
    task = ray.remote(num_cpus=0.5)(function)
    answers = [task.remote(group, *args) for group in groups]
    while answers:
        yield ray.get(answers.pop(0))
