"""What every pool comes down to, whatever its source: Parquet files of rows, and a fingerprint.

Parquet files are read where they lie. Of all else an index is made first (`index.py`), which is Parquet files too.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from prunefuse_ray import config as cfg
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.distributed.remote import GROUPS
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.storage import Place


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Where samples are kept as they were decoded, for later passes: see `prepared.py`."""

    place: Place
    name: str = ""
    """Of the pool: what is kept of others is removed where there is no room for all."""
    format: Literal["raw", "jpeg"] = "raw"
    share: float = 1.0
    """Of all chunks, those that there is room for."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Parquet files with an id column, and how to get from a row to its sample."""

    fs: pafs.FileSystem
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...] | None = None
    """Per file, what its rows' ids begin with; None where a column holds the ids."""
    id_column: str = "id"
    sample_column: str = "image"
    """Of an index the column of its files, where they have several; what an opener reads."""
    label_column: str | tuple[str, ...] | None = "label"
    """Several where they are one label together. None where the samples have no labels."""
    task: str = "classification"
    """`tasks.TASKS`: what its labels are."""
    class_names: tuple[str, ...] = ()
    """By which labels that are words are read; (): there are no names to read them by."""
    group_column: str | None = None
    """Handed on as the column `group`, of strings."""
    roots: tuple[Place, ...] = ()
    """Where the files of an index lie; empty where the samples stand in the files themselves."""
    text: bool = False
    """Whether an index's samples are texts."""
    opener: Callable[[pa.Table], pa.ChunkedArray] | None = None
    """Reads the samples of rows of an index whose files are no plain ones; None: they are ranges of bytes."""
    without: IdSet | None = None
    """Ids of rows that are none of its samples: the test set that was drawn from a pool. They are left out wherever
    rows are read with their ids."""
    spans: tuple[tuple[int, int], ...] | None = None
    """Per file, the rows that are meant (first, end); None: all of them. For `prepared.decoded` alone."""
    deleted: Mapping[str, np.ndarray] = field(default_factory=dict)
    """File -> the numbers of its rows that the table whose file it is has deleted, ascending: they are no samples."""
    prepared: Prepared | None = None
    """Where decoded samples are kept; None: nowhere."""
    copied: bool = False
    """Whether the files are an index of a run's own with copies of the samples: another run's are the same."""


@dataclass(frozen=True, kw_only=True)
class PoolInfo:
    """What was found in a pool: its fingerprint, and the facts that the configuration left open. `pool.json`."""

    source: str
    path: str
    """as configured; several with commas between"""
    rows: int
    """without a test set that was drawn from them"""
    bytes: int
    files: int
    listing_digest: str
    id_digest: str
    id_type: str
    classes: list[str]
    sample_size: tuple[int, ...]
    """(height, width) of images, (length,) of texts in what the network reads of them, and of vectors"""
    version: str | None = None
    """of a table, the one that was read"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> PoolInfo:
        try:
            return cls(**{**tree, "sample_size": tuple(tree["sample_size"])})
        except (TypeError, KeyError) as error:
            raise LedgerError(
                f"pool.json: is not what a run records of its pool ({error}); restore it from a copy, or start under "
                "another --run.name"
            ) from error


def groups(source: Source, count: int = GROUPS) -> list[Source]:
    """The source cut into at most `count` groups of files of about equal size."""
    count = min(count, len(source.files))
    order = sorted(range(len(source.files)), key=lambda i: -source.sizes[i])
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]  # a heap: the lightest first
    for i in order:
        load, lightest = loads[0]
        bins[lightest].append(i)
        heapq.heapreplace(loads, (load + source.sizes[i] + 1, lightest))
    return [part(source, sorted(b)) for b in bins]


def part(source: Source, numbers: Sequence[int]) -> Source:
    """The source with some of its files."""
    return replace(
        source,
        files=tuple(source.files[i] for i in numbers),
        sizes=tuple(source.sizes[i] for i in numbers),
        deleted={f: source.deleted[f] for f in (source.files[i] for i in numbers) if f in source.deleted},
        names=None if source.names is None else tuple(source.names[i] for i in numbers),
        spans=None if source.spans is None else tuple(source.spans[i] for i in numbers),
    )


def with_groups(source: Source, pool: cfg.Pool) -> Source:
    """The source with the column by which a selection is shared out, where the configuration names one."""
    return replace(source, group_column=pool.group_column)
