"""One function over many files: in tasks on the cluster, or in this process where the files are small."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayTaskError

from prunefuse_ray.errors import PruneFuseError
from prunefuse_ray.storage import Place

WORTH_A_TASK = 16 * 2**20
"""Bytes of all files together below which no task is started: its worker's first imports take seconds."""
RETRIES = re.compile(r"\nFailed to .* after \d+/\d+ attempts \(total backoff .*", re.DOTALL)
"""What Ray Data adds to the message of an error."""
GROUPS = 64
"""Tasks at most: files beyond so many share one."""


def over(function: Callable[..., Any], groups: Sequence[Any], *args: Any, size: float) -> Iterator[Any]:
    """function(group, *args) of every group, one after the other, so that not all answers need be held.

    Args:
        size: bytes of the files in all groups together.
    """
    if size <= WORTH_A_TASK:
        yield from (function(group, *args) for group in groups)
        return
    task = ray.remote(num_cpus=0.5)(function)
    shared = [ray.put(arg) for arg in args]  # once, not once for every task
    answers = [task.remote(group, *shared) for group in groups]
    while answers:
        with plain_errors():
            answer = ray.get(answers.pop(0))
        yield answer


def over_files(function: Callable[..., Any], files: Sequence[str], where: Place, *args: Any) -> Iterator[Any]:
    """function(some of the files, where, *args) of all files, which lie on the storage of `where`; see `over`."""
    step = -(-len(files) // GROUPS) or 1
    groups = [list(files[i : i + step]) for i in range(0, len(files), step)]
    return over(function, groups, where, *args, size=where.size_of(list(files)))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors for the user come out of an actor or task, or of one that it depended on, as they went in."""
    try:
        yield
    except RayTaskError as error:
        cause: Any = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, PruneFuseError):
            cause.args = tuple(RETRIES.sub("", arg) if isinstance(arg, str) else arg for arg in cause.args)
            raise cause from None
        raise
