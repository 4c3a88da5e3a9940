"""A pool as a Ray Data stream: of (id, sample[, label]) as they are, or of decoded samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from prunefuse_ray.data.contents import HeldOut
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.data.pool import Source, groups, part
from prunefuse_ray.data.prepared import Chunk, chunk_rows, decoded, fixed_column, fixed_values
from prunefuse_ray.data.reading import canonical, footers, opened
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.storage import Place

READING_CPUS = 0.5
"""Of a reading task, so that it always fits beside 1-CPU actors."""


def stream(source: Source, *, only: pa.Array | IdSet | None = None, label: bool = False) -> ray.data.Dataset:
    """The source as a Dataset of (id, sample[, group][, label]); rows but `only` are dropped before images are
    opened."""
    reading = partial(_rows, only=None if only is None else ray.put(IdSet.of(only)), label=label)
    return ray.data.read_datasource(_Files(source, lambda count: groups(source, count), reading), num_cpus=READING_CPUS)


def rows(source: Source, *, only: pa.Array | IdSet | None = None, label: bool = False) -> Iterator[pa.Table]:
    """What `stream` gives, read by this process, a few rows at a time."""
    for table in canonical(source, only=only, label=label):
        yield from opened(table, source)


def decoded_stream(
    source: Source,
    form: Form,
    *,
    exclude: pa.Array | IdSet | None = None,
    held_out: Place | None = None,
    block: int | None = None,
    tasks: int | None = None,
) -> ray.data.Dataset:
    """The source as a Dataset of (id, decoded, rejected, converted[, held_out][, group]), without the rows of
    `exclude`: decoded where the pool is read, or taken from the prepared pool.

    `decoded` is binary of one size (`decoded_values`). `rejected` says why a sample cannot be used, `converted` what
    was converted; both are null for ordinary ones.

    Args:
        held_out: contents of the held-out sets (`contents.HeldOut`); `held_out` is the row that has a sample's content.
        block: rows of a block, all but the last one of each reading task; default: as Ray cuts them, by their bytes.
        tasks: that read, at most; default: as many as Ray asks for.
    """
    # In Ray's store once, those of the test set, too: of reading tasks, which would each hold them, there are hundreds.
    both = [ids.ids if isinstance(ids, IdSet) else ids for ids in (exclude, source.without) if ids is not None]
    left_out = [ids for ids in both if len(ids)]
    excluded = ray.put(IdSet.of(pa.concat_arrays([i.cast(left_out[0].type) for i in left_out]))) if left_out else None
    source = replace(source, without=None)
    reading = partial(_decode, form=form, excluded=excluded, held_out=held_out, block=block)
    parts: Callable[[int], list[Source]] = partial(spans, source, chunk_rows(form))
    if tasks is not None:
        cut = parts(min(tasks, READ_TASKS))
        # Asked for more than these, Ray would split what they give once more.
        tasks, parts = max(1, len(cut)), lambda _: cut
    dataset = ray.data.read_datasource(_Files(source, parts, reading), override_num_blocks=tasks, num_cpus=READING_CPUS)
    if block is not None:
        # Ray hands on as it is what has more bytes than this, but not half as many again: about 1.2 times as many.
        dataset.context.target_max_block_size = int(0.8 * block * (math.prod(form.shape) + ROW_BYTES))
    return dataset


def decoded_values(rows: pa.Table, form: Form) -> np.ndarray:
    """The decoded samples of rows of `decoded_stream`: uint8 (N, *form.shape)."""
    return fixed_values(rows["decoded"].combine_chunks(), form)


ROW_BYTES = 64
"""Of a row of `decoded_stream` beside its sample, about."""
READ_TASKS = 1_024
"""At most. Ray asks for one for each block of 4 MiB: of 10 TB for millions, which the driver makes one by one."""


class _Files(Datasource):
    """The files of a source, read under their canonical names from the first step on.

    Ray's own Parquet reader gives no row numbers to make ids of, and its row checkpoints look for the id column right
    behind the reader, where it would still have the name that the user gave it.
    """

    def __init__(
        self,
        source: Source,
        parts: Callable[[int], list[Source]],
        read: Callable[[Source], Iterable[pa.Table]],
    ) -> None:
        super().__init__()
        self.source, self.parts, self.read = source, parts, read

    def get_name(self) -> str:
        return "Pool"

    def estimate_inmemory_data_size(self) -> int:
        return sum(self.source.sizes)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(self.read, one),
                BlockMetadata(num_rows=None, size_bytes=sum(one.sizes), input_files=one.files, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for one in self.parts(min(max(parallelism, 1), READ_TASKS))
        ]


PIECES = 16
"""Of a row group of samples, at most. For each it is read from its start: 8 times over for so many, and 500 times for
the 1,024 that a large one could be cut into."""


def spans(source: Source, chunk: int, count: int) -> list[Source]:
    """The source cut into at least `count` parts where it has as many chunks of so many rows, and row groups enough:
    groups of files, or parts of files, where these are fewer."""
    if len(source.files) >= count:
        return groups(source, count)
    parts = []
    for number, (rows, row_groups) in enumerate(footers(source)):
        chunks = math.ceil(rows / chunk)
        pieces = min(chunks, math.ceil(count / len(source.files)))
        if not source.roots:  # an index holds no samples
            pieces = min(pieces, PIECES * row_groups)
        edges = [min(rows, chunk * (chunks * i // pieces)) for i in range(pieces + 1)] if pieces else []
        parts += [replace(part(source, [number]), spans=(pair,)) for pair in itertools.pairwise(edges)]
    return parts


def _rows(source: Source, only: Any, label: bool) -> Iterator[pa.Table]:
    return rows(source, only=None if only is None else ray.get(only), label=label)


def _decode(source: Source, form: Form, excluded: Any, held_out: Place | None, block: int | None) -> Iterator[pa.Table]:
    contents = None if held_out is None else HeldOut.at(held_out)
    chunks = decoded(source, form, exclude=None if excluded is None else ray.get(excluded))
    found = (decoded_rows(chunk, contents) for chunk in chunks)
    yield from found if block is None else regrouped(found, block)


def regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The rows of some tables in tables of so many rows, the last one of what is left."""
    rest: pa.Table | None = None
    for table in tables:
        whole = table if rest is None else pa.concat_tables([rest, table])
        end = whole.num_rows - whole.num_rows % rows
        yield from (whole.slice(first, rows) for first in range(0, end, rows))
        rest = whole.slice(end) if end < whole.num_rows else None
    if rest is not None:
        yield rest


def decoded_rows(chunk: Chunk, held_out: HeldOut | None = None) -> pa.Table:
    """A chunk as rows of `decoded_stream`."""
    samples = chunk.samples
    columns = {
        "id": chunk.rows["id"],
        "decoded": fixed_column(samples.values_N),
        "rejected": pa.array(samples.rejected, pa.string()),
        "converted": pa.array(samples.converted, pa.string()),
    }
    if held_out is not None:
        columns["held_out"] = held_out.column(samples.digests)
    if "group" in chunk.rows.column_names:
        columns["group"] = chunk.rows["group"]
    return pa.table(columns)
