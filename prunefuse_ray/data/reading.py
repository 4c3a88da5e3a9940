"""Rows of a pool: batches of its columns, ids made where there are none, samples of an index opened."""

from __future__ import annotations

import bisect
import errno
import itertools
import os
import posixpath
import re
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from prunefuse_ray.data.ids import IdSet, of_one_width
from prunefuse_ray.data.images import plain_samples
from prunefuse_ray.data.pool import Source, groups, part
from prunefuse_ray.distributed.remote import over
from prunefuse_ray.errors import PoolError
from prunefuse_ray.schemas import is_list
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS

BATCH_ROWS = 65_536


BATCH_BYTES = 4 * 2**20  # of samples that are read at once


LOADED_ROWS = 128  # samples of an index that are opened before they are handed on
LOADED_BYTES = 64 * 2**20
"""Of them together, as far as their sizes are known; one sample at least. 128 photographs would take a gigabyte in each
task, and once more when they are copied."""
HEAD_BYTES = 256 * 2**20
"""Of the samples of `head`."""


LOADER_THREADS = 8
STORE_THREADS = 24
"""Of an object store, which answers late, and many at a time: Arrow's client has 25 connections."""


def in_tasks(function: Any, source: Source, *args: Any) -> list[Any]:
    """function(part of the source, *args) of every part, in tasks where the source is large."""
    return list(over(function, groups(source), *args, size=sum(source.sizes)))


def tables(
    source: Source, columns: Sequence[str], rows: int | None = None, row_group: int | None = None
) -> Iterator[pa.Table]:
    """The named columns, in batches of at most `rows` rows (default: of some megabytes).

    The ids of a source without an id column are made here: FILE:ROW.

    Args:
        row_group: of each file that row group alone, read as little ahead as can be.
    """
    derived = source.names is not None and source.id_column in columns
    wanted = [c for c in columns if not (derived and c == source.id_column)]
    for number, file in enumerate(source.files):
        first = 0
        try:
            with source.fs.open_input_file(file) as stream:
                parquet = parquet_file(stream, wanted)
                only = None
                if row_group is not None:
                    first = sum(parquet.metadata.row_group(i).num_rows for i in range(row_group))
                    only = [row_group]
                for batch in parquet.iter_batches(
                    batch_size=rows or _batch_rows(parquet, wanted, only), row_groups=only, columns=wanted
                ):
                    table = pa.Table.from_batches([batch])
                    if derived:
                        ids = _derived_ids(source, number, first, batch.num_rows)
                        table = table.append_column(source.id_column, ids)
                    table = _checked(table, source, file)
                    if file in source.deleted:
                        table = table.filter(pa.array(live(source, number, first, batch.num_rows)))
                    first += batch.num_rows
                    yield own_rows(table, source)
        except (OSError, pa.ArrowException) as error:
            raise _named(error, file, first) from error


def live(source: Source, number: int, first: int, rows: int) -> np.ndarray:
    """Which of the rows from `first` on (rows,) the table has not deleted whose file this is."""
    gone = source.deleted.get(source.files[number], np.zeros(0, np.int64))
    mask_N = np.ones(rows, bool)
    mask_N[gone[np.searchsorted(gone, first) : np.searchsorted(gone, first + rows)] - first] = False
    return mask_N


def own_rows(table: pa.Table, source: Source) -> pa.Table:
    """The rows of a source's file that are its samples, of rows with their ids; all rows of others."""
    if source.without is None or source.id_column not in table.column_names:
        return table
    return table.filter(pa.array(~source.without.holds(table[source.id_column])))


def _named(error: Exception, file: str, first: int) -> Exception:
    """An error of reading a file from row `first` on; PoolError where the file is damaged."""
    return (
        PoolError(f"'{file}' is damaged from row {first} on ({error}); copy it again, or fix it")
        if _is_damage(error)
        else error
    )


def _checked(table: pa.Table, source: Source, file: str) -> pa.Table:
    """Rows as they were read, without pickled objects and with plain types."""
    refuse_pickles(table.schema, file)
    names = table.column_names
    return pa.table([_plain(table[name], name, source, file) for name in names], names)


def _is_damage(error: Exception) -> bool:
    """Whether what was read was wrong, and not the reading: storage that fails has its number, or says whose it is."""
    return not isinstance(error, OSError) or (error.errno is None and not STORES.search(str(error)))


STORES = re.compile(r"AWS|google|gcs|curl|http", re.IGNORECASE)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that values are read as: of a dictionary that of its values; strings of any kind are strings, bytes of
    any kind bytes, also in structs; flat lists of any size are lists."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind) and not isinstance(kind, pa.BaseExtensionType):
        return pa.struct([kind.field(i).with_type(plain_type(kind.field(i).type)) for i in range(kind.num_fields)])
    if is_list(kind) and not pa.types.is_nested(kind.value_type):  # as files of one pool have them side by side
        return pa.list_(plain_type(kind.value_type))
    return kind


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column with its values as `plain_type`; as it is where it has that already."""
    kind = plain_type(column.type)
    return column if kind == column.type else column.cast(kind)


def _plain(column: pa.ChunkedArray, name: str, source: Source, file: str) -> pa.ChunkedArray:
    """`plain_column`, of text that is UTF-8: where ids, labels or groups are not, nobody knows which ones they are."""
    plain = plain_column(column)
    if not pa.types.is_string(plain.type):
        return plain
    try:
        plain.validate(full=True)
    except pa.ArrowInvalid as error:
        if name != source.sample_column:
            raise PoolError(f"'{file}': column '{name}' holds text that is not UTF-8; write it anew") from error
        texts = plain.cast(pa.binary()).to_pylist()
        return pa.chunked_array([[None if t is None else t.decode(errors="replace") for t in texts]], pa.string())
    return plain


def _derived_ids(source: Source, number: int, first: int, rows: int) -> pa.Array:
    """The ids of rows of a source without an id column."""
    assert source.names is not None
    places = pa.array(np.arange(first, first + rows)).cast(pa.string())
    return pc.binary_join_element_wise(source.names[number], places, ":")


class FileRows:
    """Some columns of one of a source's files, a piece at a time and only forwards; what lies between two pieces is
    read no further than its row group demands."""

    def __init__(self, source: Source, number: int, columns: Sequence[str]) -> None:
        self._source, self._number, self._file = source, number, source.files[number]
        self._derived = source.names is not None and source.id_column in columns
        self._columns = [c for c in columns if not (self._derived and c == source.id_column)]
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._at, self._rest, self._opened = 0, pa.table({}), False

    def __enter__(self) -> FileRows:
        return self

    def __exit__(self, *_: object) -> None:
        if "_parquet" in vars(self):
            self._parquet.close(force=True)

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        """The file, opened when something of it is asked for."""
        try:
            return parquet_file(self._source.fs.open_input_file(self._file), self._columns)
        except (OSError, pa.ArrowException) as error:
            raise _named(error, self._file, 0) from error

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each row group, and the number of all rows."""
        metadata = self._parquet.metadata
        return [0, *itertools.accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))]

    @property
    def total(self) -> int:
        return self._starts[-1]

    @property
    def row_group_ends(self) -> list[int]:
        """The number of rows up to the end of each row group."""
        return self._starts[1:]

    def take(self, first: int, rows: int) -> pa.Table:
        """The rows from `first` on, at most so many."""
        rows = min(rows, self.total - first)
        parts: list[pa.Table] = []
        if self._columns and rows:
            self._seek(first)
            while self._at < first + rows:
                if not self._rest.num_rows:
                    self._rest = self._next()
                passed = min(self._rest.num_rows, max(0, first - self._at))
                piece = self._rest.slice(passed, first + rows - self._at - passed)
                parts += [piece] if piece.num_rows else []
                self._at += passed + piece.num_rows
                self._rest = self._rest.slice(passed + piece.num_rows)
        ids = _derived_ids(self._source, self._number, first, rows) if self._derived else None
        if not self._columns:
            return pa.table({self._source.id_column: ids})
        if not parts:
            empty = self._parquet.schema_arrow.empty_table().select(self._columns)
            parts = [_checked(empty, self._source, self._file)]
        table = pa.concat_tables(parts)
        return table if ids is None else table.append_column(self._source.id_column, ids)

    def _next(self) -> pa.Table:
        try:
            return _checked(pa.Table.from_batches([next(self._batches)]), self._source, self._file)
        except (OSError, pa.ArrowException) as error:
            raise _named(error, self._file, self._at) from error

    @property
    def few(self) -> int:
        """Rows of about LOADED_BYTES, LOADED_ROWS at most."""
        return min(LOADED_ROWS, _batch_rows(self._parquet, self._columns) * (LOADED_BYTES // BATCH_BYTES))

    def _seek(self, first: int) -> None:
        group = bisect.bisect_right(self._starts, first) - 1
        if not self._opened or self._starts[group] > self._at + self._rest.num_rows:
            self._opened, self._at, self._rest = True, self._starts[group], pa.table({})
            self._batches = self._parquet.iter_batches(
                batch_size=_batch_rows(self._parquet, self._columns),
                row_groups=range(group, len(self._starts) - 1),
                columns=self._columns,
            )


def parquet_file(stream: pa.NativeFile, columns: Sequence[str]) -> pq.ParquetFile:
    """A file of which these columns are read as they are used. By default pyarrow reads the chunks of columns whole,
    and holds all of them until the file is closed: of photographs gigabytes. What is small comes in one piece all the
    same, since an object store is asked for each by itself."""
    metadata, left = pq.read_metadata(stream), 4 * BATCH_BYTES
    for number in range(metadata.num_row_groups):
        if (left := left - _bytes_of(metadata.row_group(number), columns)) < 0:
            break
    small = left >= 0
    return pq.ParquetFile(stream, metadata=metadata, pre_buffer=small, buffer_size=0 if small else BATCH_BYTES)


def _bytes_of(group: Any, columns: Sequence[str]) -> int:
    """Uncompressed bytes of these columns in a row group."""
    held = [group.column(i) for i in range(group.num_columns)]
    paths = tuple(f"{column}." for column in columns)  # of a struct all that lies below; a name may have dots itself
    return sum(c.total_uncompressed_size for c in held if f"{c.path_in_schema}.".startswith(paths))


GROUPS_LOOKED_AT = 64


def _batch_rows(parquet: pq.ParquetFile, columns: Sequence[str], only: Sequence[int] | None = None) -> int:
    """How many rows of these columns make about BATCH_BYTES where they are largest, by the sizes of row groups all over
    the file: rows may be sorted by their length."""
    count = parquet.metadata.num_row_groups
    numbers = only or np.linspace(0, count - 1, min(count, GROUPS_LOOKED_AT)).astype(int).tolist()
    looked = [group for group in map(parquet.metadata.row_group, numbers) if group.num_rows]
    largest = max((_bytes_of(group, columns) / group.num_rows for group in looked), default=0)
    return int(np.clip(BATCH_BYTES // max(largest, 1), 1, BATCH_ROWS))


def footers(source: Source) -> list[tuple[int, int]]:
    """(rows, row groups) of each file; of many at a time, since an object store answers late."""

    def footer(file: str) -> tuple[int, int]:
        with source.fs.open_input_file(file) as stream:
            metadata = pq.read_metadata(stream)
        return metadata.num_rows, metadata.num_row_groups

    local = isinstance(source.fs, pafs.LocalFileSystem)
    with ThreadPoolExecutor(LOADER_THREADS if local else STORE_THREADS) as threads:
        return list(threads.map(footer, source.files))


def canonical(source: Source, *, only: pa.Array | IdSet | None = None, label: bool = False) -> Iterator[pa.Table]:
    """The rows as (id, sample[, group][, label]); of an index, with its PLACES instead of the sample.

    Args:
        only: ids of the rows that are wanted. Of a row group that has none of them no sample is read.
    """
    columns = canonical_columns(source, label=label)
    wanted = None if only is None else IdSet.of(only)
    if wanted is None or source.roots:
        found = (canonical_rows(table, source, label=label) for table in tables(source, columns))
        yield from found if wanted is None else (_of(rows, wanted) for rows in found)
        return
    for number in range(len(source.files)):
        one = part(source, [number])
        for group in _row_groups_with(one, wanted):
            for table in tables(one, columns, row_group=group):
                yield _of(canonical_rows(table, one, label=label), wanted)


def _of(rows: pa.Table, ids: IdSet) -> pa.Table:
    return rows.filter(pa.array(ids.holds(rows["id"])))


def _row_groups_with(source: Source, ids: IdSet) -> list[int]:
    """The row groups of a source's only file that hold any of these ids."""
    gone, source = source, replace(source, without=None, deleted={})  # places are those in the file
    column = source.id_column
    held = [ids.holds(table[column]) for table in tables(source, [column])]
    if not any(mask.any() for mask in held):
        return []
    with FileRows(source, 0, []) as file:
        ends = file.row_group_ends
    held_N = np.concatenate(held)
    places = np.flatnonzero(held_N & live(gone, 0, 0, len(held_N)))
    return sorted(set(np.searchsorted(ends, places, side="right").tolist()))


def canonical_columns(source: Source, *, label: bool = False, sample: bool = True) -> list[str]:
    """The columns of a source's files that make its canonical rows.

    Args:
        sample: with the samples where they stand in the files themselves.
    """
    columns = [source.id_column, *(PLACES if source.roots else [source.sample_column] if sample else [])]
    if label:
        columns += label_columns(source)
    if source.group_column is not None:
        columns.append(source.group_column)
    return list(dict.fromkeys(columns))


def canonical_rows(table: pa.Table, source: Source, *, label: bool = False, sample: bool = True) -> pa.Table:
    """Rows of a source's files under their canonical names; see `canonical`."""
    ids = table[source.id_column]
    rows = {"id": of_one_width(ids)}
    if source.roots:
        rows |= {name: table[name] for name in PLACES}
    elif sample:
        rows["sample"] = plain_samples(table[source.sample_column])
    if source.group_column is not None:
        rows["group"] = pc.fill_null(table[source.group_column].cast(pa.string()), "")
    if label:
        rows["label"] = labels_of(table, source)
    return pa.table(rows)


def label_columns(source: Source) -> tuple[str, ...]:
    """The columns of a labeled source that are its labels."""
    assert source.label_column is not None
    return (source.label_column,) if isinstance(source.label_column, str) else source.label_column


def raw_labels(table: pa.Table, source: Source) -> pa.ChunkedArray:
    """Labels as they stand in a source's columns. TypeError where several are given, and the task has them in one."""
    if isinstance(source.label_column, tuple):
        return TASKS[source.task].joined([table[column] for column in source.label_column])
    column = table[source.label_column]
    return _by_name(column, source.class_names) if source.class_names else column


def _by_name(column: pa.ChunkedArray, classes: tuple[str, ...]) -> pa.ChunkedArray:
    """Words, or lists of them, as the numbers of the classes that they name; null for those that name none. Other
    columns as they are."""
    number = partial(TASKS["classification"].label, classes=classes)
    words = plain_column(column)
    if pa.types.is_string(words.type):
        distinct = words.unique()
        numbers = pa.array([number(word) for word in distinct.to_pylist()], pa.int64())
        return pa.chunked_array([numbers.take(pc.index_in(c, distinct)) for c in words.chunks], pa.int64())
    if is_list(words.type) and pa.types.is_string(plain_type(words.type.value_type)):
        lists = (None if some is None else [number(word) for word in some] for some in words.to_pylist())
        return pa.chunked_array([pa.array(lists, pa.list_(pa.int64()))])
    return column


def labels_of(table: pa.Table, source: Source) -> pa.ChunkedArray:
    """Labels of rows that were found good, as a run keeps them: of `Task.label_type`."""
    return TASKS[source.task].values(raw_labels(table, source))


PLACES = ("root", "file", "offset", "bytes")


PICKLED = "ray.data.arrow_pickled_object"
"""Ray's extension type for columns of Python objects: to read a value of it is to run what it says."""


def refuse_pickles(schema: pa.Schema, file: str) -> None:
    """PoolError where a column holds pickled Python objects. A pool comes from elsewhere and must not run code."""
    for field in schema:
        # Where nothing has imported Ray Data the type is not known, and only the field says what its bytes are.
        if _is_pickled(field.type) or (field.metadata or {}).get(b"ARROW:extension:name") == PICKLED.encode():
            raise PoolError(
                f"{file}: column '{field.name}' holds pickled Python objects, which can run code when they are read: "
                "write it as bytes, strings, numbers or tensors"
            )


def _is_pickled(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name == PICKLED or _is_pickled(kind.storage_type)
    return any(_is_pickled(kind.field(i).type) for i in range(kind.num_fields))


def head(source: Source, rows: int) -> pa.Table:
    """The first rows (id, sample), at most so many, and fewer of large samples; the samples of an index opened."""
    parts, count, size = list[pa.Table](), 0, 0
    for table in canonical(source):
        for some in opened(table.slice(0, rows - count), source):
            parts.append(some)
            count, size = count + some.num_rows, size + some.nbytes
            if count >= rows or size >= HEAD_BYTES:
                return pa.concat_tables(parts, promote_options="permissive")
    return pa.concat_tables(parts, promote_options="permissive")


def opened(rows: pa.Table, source: Source) -> Iterator[pa.Table]:
    """Canonical rows with their samples, a few at a time where they have to be opened; null for an unreadable one."""
    if not source.roots:
        yield rows
        return
    for some in _at_once(rows, source):
        samples = pa.array(_load(some, source.roots), pa.binary()) if source.opener is None else source.opener(some)
        if source.text and source.opener is None:
            texts = [None if s is None else s.decode(errors="replace") for s in samples.to_pylist()]
            samples = pa.array(texts, pa.string())
        yield some.drop_columns(list(PLACES)).append_column("sample", samples)


def _at_once(rows: pa.Table, source: Source) -> Iterator[pa.Table]:
    """The rows, as many at a time as are opened at once; an empty table of none."""
    end_N = np.zeros(rows.num_rows, np.int64)
    if source.opener is None and rows.num_rows:  # else the sizes are those of whole files
        end_N = np.cumsum(pc.fill_null(rows["bytes"], 0).to_numpy())
    start = 0
    while not start or start < rows.num_rows:
        before = end_N[start - 1] if start else 0
        fit = int(np.searchsorted(end_N, before + LOADED_BYTES, side="right")) - start
        count = min(max(fit, 1), LOADED_ROWS)
        yield rows.slice(start, count)
        start += count


def _load(rows: pa.Table, roots: tuple[Place, ...]) -> list[bytes | None]:
    """The samples of index rows: whole files, or ranges of files that are opened once."""
    places = rows.select(PLACES).to_pylist()
    paths = [posixpath.join(roots[p["root"]].path, p["file"]) for p in places]
    fs = roots[0].fs
    within = [roots[n] for n in sorted({p["root"] for p in places})]

    def read(path: str) -> bytes | None:
        try:
            return Place(fs, path).read_bytes()
        except OSError as error:
            _raise_trouble(error)
            _check_there(within)
            return None

    def read_range(file: pa.NativeFile | None, at: dict[str, int]) -> bytes | None:
        try:
            return None if file is None else file.read_at(at["bytes"], at["offset"])
        except OSError as error:
            _raise_trouble(error)
            return None

    local = isinstance(fs, pafs.LocalFileSystem)
    with ThreadPoolExecutor(LOADER_THREADS if local else STORE_THREADS) as threads:
        if all(p["offset"] is None for p in places):
            return list(threads.map(read, paths))
        files = {path: _open(fs, path, within) for path in dict.fromkeys(paths)}
        try:
            return list(threads.map(read_range, [files[path] for path in paths], places))
        finally:
            for file in files.values():
                if file is not None:
                    file.close()


def _open(fs: pafs.FileSystem, path: str, within: Sequence[Place]) -> pa.NativeFile | None:
    try:
        return fs.open_input_file(path)
    except OSError as error:
        _raise_trouble(error)
        _check_there(within)
        return None


def _check_there(roots: Sequence[Place]) -> None:
    """PoolError where a folder of the pool is not on this machine: that says nothing of the samples in it."""
    if gone := [root.path for root in roots if root.local and not os.path.isdir(root.path or "/")]:
        raise PoolError(
            f"'{gone[0]}' is not there on {socket.gethostname()}: mount it on every node, or give storage that all of "
            "them reach (s3://, gs://); nothing is recorded of its samples"
        )


OF_A_FILE = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG
)  # fmt: skip


def _raise_trouble(error: OSError) -> None:
    """Of a disk or a store that fails: that says nothing of the sample, and ends the pass. A file that is gone, closed
    or cut is a sample that cannot be read."""
    if error.errno not in OF_A_FILE and not _is_damage(error):
        raise error
