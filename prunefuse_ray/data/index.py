"""Indexes: what a source was found to hold, and, where its files are not Parquet, where each sample lies.

Such files are listed or scanned once; their index becomes Parquet files in the run directory, from which the stream
reads the samples. From then on all sources are the same thing: Parquet files with an id column.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from prunefuse_ray.data.ids import IdSet, id_digest, id_hashes, of_one_width
from prunefuse_ray.data.left_out import NAMES, LeftOut, LeftOuts, gathered, joined, told
from prunefuse_ray.data.paths import Listing
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import canonical, canonical_rows, in_tasks, opened, tables
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.errors import IdsError, PoolError, excerpt
from prunefuse_ray.schemas import INDEX
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import Task

INDEX_ROWS = 2_000  # rows of one index file: small enough that a few thousand images already feed several readers
INDEX_FILE = re.compile(r"index-\d+-\d+\.parquet")
HEAD_ROWS = 256  # rows that are looked at for what the configuration left open
HEAD_BYTES = 2**20  # of them, from one task: the driver gets those of each
SCANS = 256  # tasks that scan a pool's files, at most

HASHES_PER_BUCKET = 20_000_000  # ids whose hashes one task compares for duplicates (160 MB)


@dataclass(frozen=True, kw_only=True)
class Index:
    """What one set of samples was found to hold."""

    rows: int
    bytes: int
    files: int
    listing_digest: str
    id_digest: str
    id_type: str = "string"
    source: Source
    """How its rows are read: with its files where it is read as it lies, else without; `parts` become its files."""
    parts: Sequence[Any] = ()
    """Tables of rows (id, label, root, file, offset, bytes, or id, label, sample), or references to such in Ray's
    object store: a scan's never pass the driver."""
    head: pa.Table | None = None
    """The first rows of `parts`."""
    version: str | None = None
    """Of a table, the one that was looked through."""
    labels: Mapping[int, int] = field(default_factory=dict)
    """Class -> samples, where the samples are labeled and labels are classes."""
    left_out: LeftOuts = field(default_factory=LeftOuts)
    """What lies there and gives no sample."""


def indexed(
    rows: pa.Table, listing: Listing, source: Source, labels: Counter[int], new: Listing | None = None
) -> Index:
    """The index that these rows (`INDEX`), one for each file of the listing, with so many labels of each class, are."""
    return Index(
        rows=rows.num_rows,
        bytes=sum(listing.sizes),
        files=len(listing.names),
        listing_digest=listing.digest,
        id_digest=f"{id_digest(rows['id']):016x}",
        source=source,
        parts=[_of_files(rows, new)],
        head=rows.slice(0, HEAD_ROWS),
        labels=labels,
        left_out=gathered(listing.left_out),
    )


def label_counts(labels: pa.ChunkedArray, task: Task, classes: int) -> Counter[int]:
    """How many samples have each class."""
    return Counter({c: n for c, n in enumerate(task.counts(labels, classes)) if n})


# --- scanning in tasks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Found:
    """Samples of one file, as a scan finds them."""

    ids: Sequence[str]
    labels: Sequence[Any]
    """As they stand there: names or numbers of classes."""
    columns: Mapping[str, Any]
    """Where they lie in the file (`offset` and `bytes`), or they themselves (`sample`)."""
    left_out: Sequence[LeftOut] = ()
    untyped: bool = False
    """Labels come from a notation in which people write names of classes, too: a whole number may be one."""


Scan = Callable[..., Iterator[Found]]
"""scan(place of a file, its name, *columns): what the file holds. Ids begin with the name, so that they are unique."""


@dataclass(frozen=True, kw_only=True)
class _Scanned:
    """What one task found, without the rows themselves."""

    rows: int
    id_digest: int
    head: pa.Table
    labels: Counter[int]
    wrong: int = 0
    """Labels that are none."""
    bad_labels: list[str] = field(default_factory=list)
    """The first of them."""
    left_out: LeftOuts = field(default_factory=LeftOuts)
    """Counted, without the names."""


def scanned(
    scan: Scan,
    columns: tuple[Any, ...],
    samples: SampleSet,
    listing: Listing,
    source: Source,
    classes: Sequence[str],
    new: Listing | None = None,
) -> Index:
    """The index of files that hold many samples each: each file is scanned once, in tasks.

    Args:
        columns: handed to `scan`, after a file's place and name.
        new: those of the files that are new: the rows of them alone become parts, while figures are of all.

    Raises:
        PoolError: labels outside the classes, no samples, or what `scan` finds wrong with a file.
    """
    scan_files = ray.remote(num_cpus=0.5, num_returns=3)(_scan_files)
    step = -(-len(listing.names) // SCANS)
    shared = ray.put(listing)  # once, not once for every task
    answers: list[Any] = [
        scan_files.remote(samples, shared, range(i, min(i + step, len(listing.names))), scan, columns, classes, new)
        for i in range(0, len(listing.names), step)
    ]
    scans: list[_Scanned] = _results([a[0] for a in answers])
    if bad := [b for s in scans for b in s.bad_labels]:
        raise PoolError(
            f"{samples.field}: {sum(s.wrong for s in scans):,} labels that are "
            f"{samples.task.not_a_label(len(classes))}, e.g. {'; '.join(bad[:5])}; fix them, pool.label_column or "
            "pool.classes"
        )
    rows = sum(s.rows for s in scans)
    left_out = joined([gathered(listing.left_out), *(replace(s.left_out, parts=[a[2]] if s.left_out.total else [])
                                                     for s, a in zip(scans, answers, strict=True))])  # fmt: skip
    if not rows:
        there = f" (left out: {told(left_out)})" if left_out.total else ""
        raise PoolError(f"{samples.field}: holds no samples{there}; give a pool with samples in it")
    return Index(
        rows=rows,
        bytes=sum(listing.sizes),
        files=len(listing.names),
        listing_digest=listing.digest,
        id_digest=f"{sum(s.id_digest for s in scans) % 2**64:016x}",
        source=source,
        parts=[a[1] for a in answers],
        head=pa.concat_tables([s.head for s in scans if s.rows]).slice(0, HEAD_ROWS),
        labels=sum((s.labels for s in scans), Counter()),
        left_out=left_out,
    )


def _results(references: list[Any]) -> list[Any]:
    with plain_errors():
        return ray.get(references)


def _scan_files(
    samples: SampleSet,
    listing: Listing,
    numbers: range,
    scan: Scan,
    columns: tuple[Any, ...],
    classes: Sequence[str],
    new: Listing | None,
) -> tuple[_Scanned, pa.Table, pa.Table]:
    """Index the files of these numbers: figures, rows, and what was left out by name."""
    found_tables, bad, bad_rows, left_out = [], list[str](), 0, list[LeftOut]()
    task, paths = samples.task, listing.paths
    for n in numbers:
        name, path = listing.names[n], paths[n]
        for found in scan(Place(listing.fs, path), name, *columns):
            left_out += found.left_out
            as_numbers = partial(_unambiguous, task) if found.untyped else task.label
            read = task.label_of_cells if isinstance(samples.label_column, tuple) else as_numbers
            codes = [read(given, classes) if samples.labeled else None for given in found.labels]
            if samples.labeled:
                pairs = zip(found.ids, found.labels, codes, strict=True)
                wrong = [(i, given) for i, given, code in pairs if code is None]
                bad += [f"{_told(task, given, classes)} (id '{i}')" for i, given in wrong[:5]]
                bad_rows += len(wrong)
            found_tables.append(
                pa.table(
                    {
                        "id": pa.array(found.ids, pa.string()),
                        "label": pa.array(codes, task.label_type),
                        "root": pa.array([listing.root_numbers[n]] * len(codes), pa.int32()),
                        "file": pa.array([name] * len(codes), pa.string()),
                        **{
                            c: v if isinstance(v, pa.Array) else pa.array(v, _TYPES.get(c))
                            for c, v in found.columns.items()
                        },
                    }
                )
            )
    labeled = INDEX.set(INDEX.get_field_index("label"), pa.field("label", task.label_type))
    rows = pa.concat_tables(found_tables) if found_tables else labeled.empty_table()
    digest = id_digest(rows["id"]) if rows.num_rows else 0
    omitted = gathered(left_out)
    found_here = _Scanned(
        rows=rows.num_rows,
        id_digest=digest,
        head=_head(rows),
        labels=label_counts(rows["label"], task, len(classes)),
        wrong=bad_rows,
        bad_labels=bad[:5],
        left_out=replace(omitted, parts=()),
    )
    return found_here, _of_files(rows, new), pa.concat_tables([NAMES.empty_table(), *omitted.parts])


def _head(rows: pa.Table) -> pa.Table:
    """The first rows; of large samples fewer, and at least one."""
    fit = HEAD_BYTES * rows.num_rows // max(rows.nbytes, 1)
    return rows.slice(0, min(HEAD_ROWS, max(fit, 1)))


def _unambiguous(task: Task, given: Any, classes: Sequence[str]) -> Any:
    """A label as the task has it; None where it is none, or whole numbers that are the names of other classes."""
    found, several = task.label(given, classes), isinstance(given, list)
    if found is None or not all(type(one) is int for one in (given if several else [given])):
        return found
    by_name = task.label([str(one) for one in given] if several else str(given), classes)
    return found if by_name in (None, found) else None


def _told(task: Task, given: Any, classes: Sequence[str]) -> str:
    may_be = ", which may be the number of a class or the name of another (strings are names)"
    return f"{excerpt(repr(given))}{may_be if task.label(given, classes) is not None else ''}"


_TYPES = {"offset": pa.int64(), "bytes": pa.int64()}


def _of_files(rows: pa.Table, new: Listing | None) -> pa.Table:
    """The rows of these files; all where none are named."""
    return rows if new is None else rows.filter(pc.is_in(rows["file"], value_set=pa.array(new.names, pa.string())))


# --- written and read -----------------------------------------------------------------------------------------------


def write_index(index: Index, where: Place) -> None:
    """Write the rows of an index as Parquet files below `where`; nothing where the pool is read as it lies."""
    for file in where.files():  # of a driver that was killed before there was a run: the pool may have had more files
        if INDEX_FILE.fullmatch(file.base_name):
            Place(where.fs, file.path).delete()
    write = ray.remote(num_cpus=0.5)(_write_part)
    waiting = []
    for number, part in enumerate(index.parts):
        if isinstance(part, pa.Table):
            _write_part(part, where, number)
        else:
            waiting.append(write.remote(part, where, number))
    if waiting:
        _results(waiting)


def _write_part(table: pa.Table, where: Place, number: int) -> None:
    for n, rows in enumerate(cut(table)):
        (where / f"index-{number:05d}-{n:05d}.parquet").write_table(rows)


def cut(table: pa.Table) -> Iterator[pa.Table]:
    """Rows of an index, a file's worth at a time."""
    return (table.slice(start, INDEX_ROWS) for start in range(0, table.num_rows, INDEX_ROWS))


def new_rows(index: Index) -> Iterator[pa.Table]:
    """The rows of the parts, a file's worth at a time, in the driver."""
    for part in index.parts:
        yield from cut(part if isinstance(part, pa.Table) else _results([part])[0])


def written(where: Place, source: Source) -> Source:
    """`source` with the index files that lie below `where`."""
    found = where.written()
    paths, sizes = tuple(f.path for f in found), tuple(f.size for f in found)
    return replace(source, fs=where.fs, files=paths, sizes=sizes, copied=not source.roots)


# --- looked into before it is written -------------------------------------------------------------------------------


def first_samples(index: Index, rows: int = 16) -> Iterator[pa.ChunkedArray]:
    """The samples from the beginning of a set, so many at a time where each has to be opened."""
    if index.head is None:
        yield from (table["sample"] for table in canonical(index.source))
        return
    for start in range(0, index.head.num_rows, rows):
        part = canonical_rows(index.head.slice(start, rows), index.source)
        yield from (table["sample"] for table in opened(part, index.source))


def present(index: Index, wanted: pa.Array) -> pa.Array:
    """Those of the set's ids that `wanted` names; in the set's own spelling, where that is of another Unicode form."""
    if not index.parts:
        return present_in(index.source, wanted)
    task, looked_for = ray.remote(num_cpus=0.5)(_among), ray.put(IdSet.of(normal_ids(wanted)))
    return pa.concat_arrays([wanted[:0], *_results([task.remote(part, "id", looked_for) for part in index.parts])])


def present_in(source: Source, wanted: pa.Array) -> pa.Array:
    """See `present`."""
    return pa.concat_arrays([wanted[:0], *in_tasks(_ids_among, source, IdSet.of(normal_ids(wanted)))])


def normal_ids(ids: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Ids in the form in which they are compared (`paths.normal`)."""
    if not pa.types.is_string(ids.type) or pc.all(pc.string_is_ascii(ids)).as_py() in (True, None):
        return ids
    return pc.utf8_normalize(ids, "NFC")


def _ids_among(source: Source, wanted: IdSet) -> pa.Array:
    parts = [_among(t, source.id_column, wanted) for t in tables(source, [source.id_column])]
    return pa.concat_arrays([wanted.ids[:0], *parts])


def _among(rows: pa.Table, column: str, wanted: IdSet) -> pa.Array:
    ids = rows[column].cast(wanted.ids.type)
    return ids.filter(pa.array(wanted.holds(normal_ids(ids)))).combine_chunks()


def check_unique(index: Index, samples: SampleSet, column: str | None) -> None:
    """PoolError where two rows of a scan have the same id: of a column, or (None) one that the files' names give."""
    parts: list[Any] = list(index.parts)
    buckets = max(1, -(-index.rows // HASHES_PER_BUCKET))
    split = ray.remote(num_cpus=0.5, num_returns=buckets + 1)(_id_hashes)
    with plain_errors():
        twice = duplicates([split.remote(part, buckets) for part in parts])
    if not len(twice):
        return
    found = ray.remote(num_cpus=0.5)(_ids_of)
    ids = sum(_results([found.remote(part, twice) for part in parts]), Counter[str]())
    if names := sorted(i for i, count in ids.items() if count > 1):  # two ids may have the same hash
        where, remedy = (
            ("two files have", "rename or move one of them")
            if column is None
            else (f"column '{column}' has", "make ids unique, or set pool.id_column to null")
        )
        raise IdsError(f"{samples.field}: {where} duplicate ids, e.g. {', '.join(map(repr, names[:5]))}; {remedy}")


def _id_hashes(rows: pa.Table, buckets: int) -> tuple[Any, ...]:
    return None, *in_buckets(id_hashes(normal_ids(rows["id"])), buckets)


def in_buckets(hashes: np.ndarray, buckets: int) -> list[np.ndarray]:
    return [hashes[hashes % np.uint64(buckets) == b] for b in range(buckets)]


def duplicates(answers: Sequence[Any]) -> np.ndarray:
    """Hashes that are there twice. answers: of each part, references to something else and to its buckets; these stay
    where they were made."""
    find = ray.remote(num_cpus=0.5)(duplicate_hashes)
    _, *buckets = zip(*answers, strict=True)
    return np.concatenate(ray.get([find.remote(*bucket) for bucket in buckets]))


def duplicate_hashes(*parts: np.ndarray) -> np.ndarray:
    """Hashes that are there twice, the first thousand."""
    values, counts = np.unique(np.concatenate(parts), return_counts=True)
    return values[counts > 1][:1000]


def _ids_of(rows: pa.Table, hashes: np.ndarray) -> Counter[Any]:
    return ids_of(normal_ids(rows["id"]), hashes)


def ids_of(ids: pa.ChunkedArray, hashes: np.ndarray) -> Counter[Any]:
    """How often each id is there that has one of these hashes: one may be that of every row."""
    return Counter(ids.filter(pa.array(np.isin(id_hashes(normal_ids(ids)), hashes))).to_pylist())


def all_ids(index: Index) -> pa.ChunkedArray:
    """Every id of a set that is small enough for the driver."""
    if index.parts:
        return pa.chunked_array([c for part in new_rows(index) for c in part["id"].chunks])
    source = index.source
    found = (of_one_width(table[source.id_column]) for table in tables(source, [source.id_column]))
    return pa.chunked_array([chunk for ids in found for chunk in ids.chunks])
