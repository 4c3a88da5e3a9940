"""Samples by their contents: digests of their bytes, those that are there several times, those that two sets share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from prunefuse_ray.data.images import sample_values
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import canonical, in_tasks
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.schemas import DIGESTS, HELD_OUT, MATCHES
from prunefuse_ray.storage import Place

ROWS_PER_BUCKET = 5_000_000
"""Samples whose digests one task compares."""
NAMED = 3


def digests(values: Iterable[Any]) -> list[int | None]:
    """A digest of each sample's bytes (64 bits, signed); None where there is no sample."""
    return [None if value is None else digest(value) for value in values]


def digest(value: Any) -> int:
    """Of encoded bytes, a text, or a tensor."""
    data = value.encode(errors="replace") if isinstance(value, str) else value
    if not isinstance(data, bytes):
        array = np.ascontiguousarray(data)
        if array.ndim == 1 and array.dtype.kind in "iuf":  # a vector: as it is read, whatever its column's type
            with np.errstate(over="ignore"):
                array = array.astype("<f4")
        data = f"{array.shape}{array.dtype}".encode() + array.tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


# --- the same sample several times ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Samples of one set that have the content of another one before them."""

    samples: int = 0
    examples: tuple[tuple[str, ...], ...] = ()
    """Ids of samples with the same content."""


def repeated(parts: Sequence[Any], rows: int) -> Repeated:
    """Of tables (`DIGESTS`), or references to such, of so many rows together."""
    buckets = max(1, -(-rows // ROWS_PER_BUCKET))
    if buckets > 1:
        split = ray.remote(num_cpus=0.5, num_returns=buckets)(_split)
        columns: list[Any] = [split.remote(part, buckets) for part in parts]
        groups = [[column[b] for column in columns] for b in range(buckets)]
    else:
        groups = [list(parts)]
    if all(isinstance(part, pa.Table) for group in groups for part in group):
        found = [_repeated(*group) for group in groups]
    else:
        task = ray.remote(num_cpus=0.5)(_repeated)
        with plain_errors():
            found = ray.get([task.remote(*group) for group in groups])
    examples = [example for one in found for example in one.examples]
    return Repeated(samples=sum(one.samples for one in found), examples=tuple(examples[:NAMED]))


def _split(table: pa.Table, buckets: int) -> tuple[pa.Table, ...]:
    bucket_N = pc.fill_null(table["digest"], 0).to_numpy().view(np.uint64) % np.uint64(buckets)
    return tuple(table.filter(pa.array(bucket_N == b)) for b in range(buckets))


def _repeated(*tables: pa.Table) -> Repeated:
    rows = pa.concat_tables(tables).drop_null() if tables else pa.table({"id": [], "digest": []})
    digest_N = rows["digest"].to_numpy()
    order = np.argsort(digest_N, kind="stable")
    again = np.flatnonzero(np.diff(digest_N[order]) == 0) + 1
    examples: dict[int, list[str]] = {}
    for at in again.tolist():
        key = int(digest_N[order[at]])
        if key not in examples and len(examples) == NAMED:
            break
        if len(ids := examples.setdefault(key, [rows["id"][int(order[at - 1])].as_py()])) < NAMED:
            ids.append(rows["id"][int(order[at])].as_py())
    return Repeated(samples=len(again), examples=tuple(tuple(ids) for ids in examples.values()))


def digests_of(samples: Source) -> pa.Table:
    """The digest of every sample of a source whose samples stand in its files: `DIGESTS`."""
    return pa.concat_tables([DIGESTS.empty_table(), *in_tasks(_digests_of, samples)])


def _digests_of(samples: Source) -> pa.Table:
    found = [DIGESTS.empty_table()]
    for rows in canonical(samples):
        own = pa.array(digests(sample_values(rows["sample"])), pa.int64())
        found.append(pa.table([rows["id"].cast(pa.string()), own], DIGESTS.names))
    return pa.concat_tables(found)


# --- the same sample in two sets ------------------------------------------------------------------------------------


class HeldOut:
    """The contents of the held-out sets, to look samples up in."""

    def __init__(self, table: pa.Table) -> None:
        """Args: table: `HELD_OUT`."""
        self.table = table.filter(pc.is_valid(table["digest"]))
        digest_N = self.table["digest"].to_numpy()
        self._order_N = np.argsort(digest_N, kind="stable")
        self._sorted_N = digest_N[self._order_N]

    @classmethod
    def at(cls, place: Place) -> HeldOut:
        return cls(place.read_table(HELD_OUT))

    def rows(self, digest_N: np.ndarray) -> np.ndarray:
        """The number of the row that has each digest (N,); -1 where none has."""
        if not len(self._sorted_N):
            return np.full(len(digest_N), -1)
        at_N = np.searchsorted(self._sorted_N, digest_N).clip(0, len(self._sorted_N) - 1)
        return np.where(self._sorted_N[at_N] == digest_N, self._order_N[at_N], -1)

    def column(self, digests_N: Sequence[int | None]) -> pa.Array:
        """The number of the row that has each sample's content; null where none has."""
        known_N = np.array([d is not None for d in digests_N], bool)
        row_N = self.rows(np.array([d or 0 for d in digests_N], np.int64))
        return pa.array(row_N, pa.int64(), mask=~known_N | (row_N < 0))


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Samples of the pool that have the content of one of a held-out set."""

    samples: int = 0
    """Of the pool."""
    held_out: int = 0
    """Of the held-out set, each counted once."""
    examples: tuple[tuple[str, str], ...] = ()
    """(id in the pool, id in the held-out set)"""


def overlaps(parts: Sequence[Any], held_out: HeldOut) -> dict[str, Overlap]:
    """Setting of a held-out set -> what of it the pool holds, by tables (`DIGESTS`) of the pool, or references."""
    if not held_out.table.num_rows:
        return {}
    if all(isinstance(part, pa.Table) for part in parts):
        found = [_matches(part, held_out) for part in parts]
    else:
        task, shared = ray.remote(num_cpus=0.5)(_matches), ray.put(held_out)
        with plain_errors():
            found = ray.get([task.remote(part, shared) for part in parts])
    return overlaps_of(pa.concat_tables(found), held_out.table)


def _matches(part: pa.Table, held_out: HeldOut) -> pa.Table:
    """(id, row): samples of the pool, and the row of the held-out sets that has their content."""
    known = part.drop_null()
    row_N = held_out.rows(known["digest"].to_numpy())
    return pa.table([known["id"], pa.array(row_N, pa.int64())], schema=MATCHES).filter(pa.array(row_N >= 0))


def matches_of(samples: Source, contents: Place) -> pa.Table:
    """(id, row): those of `samples` that have the content of a row of the held-out sets, kept at `contents`."""
    return pa.concat_tables([MATCHES.empty_table(), *in_tasks(_matches_of, samples, contents)])


def _matches_of(samples: Source, contents: Place) -> pa.Table:
    return _matches(_digests_of(samples), HeldOut.at(contents))


def overlaps_of(matches: pa.Table, held_out: pa.Table) -> dict[str, Overlap]:
    """What matches (id, row) say of each of the held-out sets."""
    rows = held_out.take(matches["row"])
    found = pa.table({"id": matches["id"], "row": matches["row"], "set": rows["set"], "other": rows["id"]})
    overlaps = {}
    for name in pc.unique(held_out["set"]).to_pylist():
        mine = found.filter(pc.equal(found["set"], name)).sort_by("id")
        shown = mine.slice(0, NAMED)
        overlaps[name] = Overlap(
            samples=mine.num_rows,
            held_out=len(pc.unique(mine["row"])),
            examples=tuple(zip(shown["id"].to_pylist(), shown["other"].to_pylist(), strict=True)),
        )
    return overlaps
