"""A pool as a Ray Data stream of (id, sample[, label])."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from prunefuse_ray.data.pool import Source, groups
from prunefuse_ray.data.reading import canonical, opened


def stream(
    source: Source, *, exclude: pa.Array | None = None, only: pa.Array | None = None, label: bool = False
) -> ray.data.Dataset:
    """The source as a Dataset of (id, sample[, label]); rows of `exclude`, or all but `only`, dropped before images
    are opened. Reading takes half a CPU a task, so that it always fits beside 1-CPU actors."""
    dataset = ray.data.read_datasource(_Files(source, label), num_cpus=0.5)
    return dataset.map_batches(
        _Rows(source, ray.put(exclude) if exclude is not None else None, ray.put(only) if only is not None else None),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=0.5,
    )


class _Files(Datasource):
    """The files of a source, read under their canonical names from the first step on.

    Ray's own Parquet reader gives no row numbers to make ids of, and its row checkpoints look for the id column right
    behind the reader, where it would still have the name that the user gave it.
    """

    def __init__(self, source: Source, label: bool) -> None:
        super().__init__()
        self.source, self.label = source, label

    def get_name(self) -> str:
        return "Pool"

    def estimate_inmemory_data_size(self) -> int:
        return sum(self.source.sizes)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_read, group, self.label),
                BlockMetadata(num_rows=None, size_bytes=sum(group.sizes), input_files=group.files, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for group in groups(self.source, max(parallelism, 1))
        ]


def _read(source: Source, label: bool) -> Iterable[pa.Table]:
    return canonical(source, label=label)


class _Rows:
    """Unwanted rows dropped, samples of an index opened."""

    def __init__(self, source: Source, exclude: Any, only: Any) -> None:
        self.source, self.exclude, self.only = source, exclude, only

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        if self.only is not None:
            rows = rows.filter(pc.is_in(rows["id"], value_set=ray.get(self.only)))
        elif self.exclude is not None:
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=ray.get(self.exclude))))
        yield from opened(rows, self.source)
