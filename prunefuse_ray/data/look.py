"""A look at the samples themselves: their digests, and what the heads of their files say; in tasks where they are many.

A pool that is large is looked at in part; the rest is looked at when it is scored. Nothing is decoded unless asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from prunefuse_ray.data.contents import digests
from prunefuse_ray.data.images import ImageForm, sample_values
from prunefuse_ray.data.index import Index, cut
from prunefuse_ray.data.pool import Source, groups, part
from prunefuse_ray.data.reading import canonical, canonical_rows, opened, tables
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.distributed import remote
from prunefuse_ray.errors import Rejected
from prunefuse_ray.schemas import DIGESTS

SOME = 2_000
"""Samples of a large pool that are looked at before a run."""
ALL_ROWS = 50_000
ALL_BYTES = 2**30
"""A pool of no more samples and bytes than these is looked at whole: seconds, beside minutes of scoring it once."""
FILES, ROWS_AT_ONCE = 4, 8
NAMED = 3


@dataclass(kw_only=True)
class Look:
    """What was seen, in figures: those of several looks add up."""

    looked: int = 0
    """Samples whose heads were read, or that were decoded."""
    conversions: Counter[str] = field(default_factory=Counter)
    """By kind."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """By reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Kind or reason -> the first few ids."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(height, width) -> images."""

    def add(self, other: Look) -> None:
        self.looked += other.looked
        for mine, theirs in ((self.conversions, other.conversions), (self.unreadable, other.unreadable)):
            mine.update(theirs)
        self.sizes.update(other.sizes)
        for kind, ids in other.examples.items():
            self._name(kind, ids)

    def see(self, id_: Any, value: Any, form: Form, decode: bool) -> None:
        """One sample: the head of its file, or all of it. Texts and tensors have no head to read."""
        self.looked += 1
        try:
            if isinstance(form, ImageForm) and isinstance(value, bytes):
                size, kinds = form.look(value)
                self.sizes[size] += 1
                kinds = form.read(value)[1] if decode else kinds
            else:
                kinds = form.read(value)[1]
        except Rejected as rejected:
            self.unreadable[str(rejected)] += 1
            self._name(str(rejected), [str(id_)])
            return
        for kind in kinds:
            self.conversions[kind] += 1
            self._name(kind, [str(id_)])

    def _name(self, kind: str, ids: Iterable[str]) -> None:
        shown = self.examples.setdefault(kind, [])
        shown += list(ids)[: NAMED - len(shown)]


def look(
    index: Index, form: Form, *, some: int | None, heads: int | None, decode: bool = False
) -> tuple[Look, Sequence[Any]]:
    """Look at a set of samples.

    Args:
        some: samples to look at, all over the set; None: all of them.
        heads: of them, so many have the heads of their files read; None: all.
        decode: decode them as well.

    Returns: what was seen, and tables (`DIGESTS`) of the samples looked at, or references to such.
    """
    pieces = _pieces(index, some)
    share = [None if n is None else -(-n // max(len(pieces), 1)) for n in (some, heads)]
    args: tuple[Any, ...] = (index.source, form, *share, decode)
    size = index.bytes * (1 if some is None else min(1.0, some / index.rows))
    if size <= remote.WORTH_A_TASK:
        with remote.plain_errors():
            here = [piece if isinstance(piece, pa.Table | Source) else ray.get(piece) for piece in pieces]
        answers: list[Any] = [_look(piece, *args) for piece in here]
        looks = [a[0] for a in answers]
    else:
        task = ray.remote(num_cpus=1 if decode else 0.5, num_returns=2)(_look)
        shared: list[Any] = [ray.put(arg) for arg in args]
        answers = [task.remote(piece, *shared) for piece in pieces]
        with remote.plain_errors():
            looks = ray.get([a[0] for a in answers])
    total = Look()
    for one in looks:
        total.add(one)
    return total, [a[1] for a in answers]


def _pieces(index: Index, some: int | None) -> list[Any]:
    """The set in pieces, each for a task: tables of an index's rows, or references to such, or files of a pool that is
    read as it lies."""
    if not index.parts:
        return list(groups(index.source))
    pieces: list[Any] = []
    for part_ in index.parts:
        if not isinstance(part_, pa.Table):
            pieces.append(part_)
        elif some is None or some >= part_.num_rows:
            pieces += cut(part_)
        else:
            pieces += cut(_spread(part_, some))
    return pieces


def _spread(rows: pa.Table, some: int) -> pa.Table:
    return rows.take(pa.array(np.unique(np.linspace(0, rows.num_rows - 1, some).astype(np.int64))))


def _look(
    piece: pa.Table | Source, source: Source, form: Form, some: int | None, heads: int | None, decode: bool
) -> tuple[Look, pa.Table]:
    seen, parts, ahead = Look(), [DIGESTS.empty_table()], heads if heads is not None else math.inf
    for rows in _rows(piece, source, some):
        values = sample_values(rows["sample"])
        ids = rows["id"].to_pylist()
        parts.append(pa.table({"id": [str(i) for i in ids], "digest": digests(values)}, schema=DIGESTS))
        for id_, value in zip(ids, values, strict=True):
            if seen.looked < ahead:
                seen.see(id_, value, form, decode)
    return seen, pa.concat_tables(parts)


def _rows(piece: pa.Table | Source, source: Source, some: int | None) -> Iterator[pa.Table]:
    """Rows (id, sample): all, or some from all over the piece."""
    if isinstance(piece, pa.Table):
        if not piece.num_rows:  # of a file without rows, whose table lacks the columns of others
            return
        chosen = piece if some is None or some >= piece.num_rows else _spread(piece, some)
        yield from opened(canonical_rows(chosen, source), source)
    elif some is None:
        for rows in canonical(piece):
            yield from opened(rows, source)
    else:
        yield from _some_rows(piece, some)


def _some_rows(source: Source, some: int) -> Iterator[pa.Table]:
    """Some rows of some of the files, from their middles."""
    numbers = np.unique(np.linspace(0, len(source.files) - 1, min(FILES, len(source.files))).astype(int))
    each = -(-some // len(numbers))
    for number in numbers.tolist():
        with source.fs.open_input_file(source.files[number]) as stream:
            groups_ = pq.read_metadata(stream).num_row_groups
        if groups_:
            taken = 0
            for table in tables(part(source, [number]), [source.id_column, source.sample_column], ROWS_AT_ONCE,
                                row_group=groups_ // 2):  # fmt: skip
                rows = canonical_rows(table.slice(0, each - taken), source)
                yield rows
                if (taken := taken + rows.num_rows) >= each:
                    break
