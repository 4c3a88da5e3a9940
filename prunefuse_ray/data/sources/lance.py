"""Lance tables at one version: indexed once, then read row by row, which is what the format is made for.

An index row has the number of its row in that version (`offset`); the library reads such rows by their numbers, without
what lies between them. Deleted rows, changed schemas and where a column lies are the library's concern. Format:
https://lance.org/format/.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from prunefuse_ray import config as cfg
from prunefuse_ray.data.classes import check_order, features_names
from prunefuse_ray.data.images import plain_samples
from prunefuse_ray.data.index import Found, Index, check_unique, scanned, written
from prunefuse_ray.data.paths import Listing, TableVersion
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import plain_column, refuse_pickles
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.data.sources.lake import check_columns, one_table, opening, store_options, uri_of
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place

ROWS = 8_192
"""Of an index, made at once."""
FEW_BYTES = 4093
"""Of a fragment, that tell its files apart."""


@dataclass(frozen=True)
class LanceRows:
    """A table at a version, and how its rows are read by their numbers: `Source.opener`."""

    uri: str
    version: int | str | None
    options: tuple[tuple[str, str], ...]
    column: str

    def open(self) -> Any:
        """The table. A process opens a version once."""
        return _opened(self.uri, self.version, self.options)

    def __call__(self, rows: pa.Table) -> pa.ChunkedArray:
        """The samples of rows of an index."""
        table, numbers = self.open(), rows["offset"].to_pylist()
        if not numbers:
            return plain_samples(plain_column(table.schema.empty_table()[self.column]))
        if _is_blob(table.schema.field(self.column)):
            files = table.take_blobs(self.column, indices=numbers)
            return pa.chunked_array([[None if file is None else file.readall() for file in files]], pa.binary())
        return plain_samples(plain_column(table.take(numbers, columns=[self.column])[self.column]))


@lru_cache(maxsize=8)
def _opened(uri: str, version: int | str | None, options: tuple[tuple[str, str], ...]) -> Any:
    import lance

    return lance.dataset(uri, version=version, storage_options=dict(options))


def _is_blob(field: pa.Field) -> bool:
    """Whether values lie outside of the rows, to be opened as files (Lance's blob encoding)."""
    kind = field.type
    name = kind.extension_name if isinstance(kind, pa.BaseExtensionType) else ""
    return name.startswith("lance.blob") or (field.metadata or {}).get(b"lance-encoding:blob") == b"true"


class LanceTable(SourceReader):
    """An id stands in a column, or is that of a fragment's data file and the row in it."""

    def unique_ids(self, pool: cfg.Pool) -> bool:
        return pool.id_column is not None

    def listing(self, samples: SampleSet) -> Listing:
        """The fragments, by their first data file."""
        at = _rows(samples, samples.version)
        with opening(samples, "Lance", "lance"):
            table = _opened.__wrapped__(at.uri, at.version, at.options)  # a tag may be another version by now
            fragments = [fragment.metadata for fragment in table.get_fragments()]
        check_columns(samples, "Lance", table.schema.names)
        refuse_pickles(table.schema, at.uri)
        if not fragments:
            raise PoolError(f"{samples.field}: the Lance table '{at.uri}' has no rows at version {table.version}")
        names = [_name(fragment) for fragment in fragments]
        sizes = [_size(fragment) for fragment in fragments]
        return Listing(
            roots=(Place.at(one_table(samples)),),
            root_numbers=(0,) * len(names),
            names=tuple(names),
            sizes=tuple(sizes),
            of_table=TableVersion(version=str(table.version)),
        )

    def class_names(self, samples: SampleSet, listing: Listing) -> list[str] | None:
        column, table = samples.pool.label_column, _at(samples, listing).open()
        return features_names(table.schema, column) if isinstance(column, str) and not samples.task.numbers else None

    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        check_order(samples, classes, self.class_names(samples, listing))
        at = _at(samples, listing)
        columns = (samples.pool.id_column, samples.label_column)
        found = scanned(_Scan(at), columns, samples, listing, _source(samples, at), classes, new)
        if samples.pool.id_column is not None:
            check_unique(found, samples, samples.pool.id_column)
        return replace(found, version=str(at.version))

    def read(self, samples: SampleSet, where: Place) -> Source:
        """Of the version that is the newest when this is asked, whatever is committed while it is read."""
        return written(where, _source(samples, _at(samples, self.listing(samples))))


def _rows(samples: SampleSet, version: int | str | None) -> LanceRows:
    path = one_table(samples)
    place = Place.at(path)
    options = tuple(sorted(store_options(place).items()))
    return LanceRows(uri=uri_of(path, place), version=version, options=options, column=samples.sample_column)


def _at(samples: SampleSet, listing: Listing) -> LanceRows:
    """The table at the version that was listed."""
    assert listing.of_table is not None
    return _rows(samples, int(listing.of_table.version))


def _source(samples: SampleSet, at: LanceRows) -> Source:
    place = Place.at(one_table(samples))
    return Source(
        fs=place.fs, files=(), sizes=(), sample_column=at.column, roots=(place,), text=samples.text, opener=at
    )


def _name(fragment: Any) -> str:
    return f"data/{fragment.files[0].path}"


def _size(fragment: Any) -> int:
    """Bytes of a fragment. Deleted rows count, too, and what the files of its later columns are called counts as a few
    bytes: whoever compares sizes sees that these are others. A column that is written anew may be as large as before.
    """
    others = zlib.crc32("".join(file.path for file in fragment.files[1:]).encode()) % FEW_BYTES
    deleted = fragment.deletion_file.num_deleted_rows if fragment.deletion_file else 0
    return sum(file.file_size_bytes or 0 for file in fragment.files) + deleted + others


@lru_cache(maxsize=8)
def _fragments(at: LanceRows) -> dict[str, tuple[Any, int]]:
    """The fragments of a version by their names, each with the number of its first row."""
    found, first = dict[str, tuple[Any, int]](), 0
    for fragment in at.open().get_fragments():
        found[_name(fragment.metadata)] = fragment, first
        first += fragment.count_rows()
    return found


@dataclass(frozen=True)
class _Scan:
    """What `index.scanned` calls of a fragment."""

    at: LanceRows

    def __call__(
        self, place: Place, name: str, id_: str | None, label: str | tuple[str, ...] | None
    ) -> Iterator[Found]:
        fragment, first = _fragments(self.at)[name]
        labels = label if isinstance(label, tuple) else (label,)
        wanted = list(dict.fromkeys(column for column in (id_, *labels) if column is not None))
        size = _size(fragment.metadata)
        untyped = not isinstance(label, str) or features_names(self.at.open().schema, label) is None
        for batch in fragment.to_batches(columns=wanted, with_row_address=True, batch_size=ROWS):
            rows = (batch["_rowaddr"].to_numpy() & np.uint64(2**32 - 1)).tolist()
            numbers = range(first, first + len(rows))
            first = numbers.stop
            cells = {column: batch[column].to_pylist() for column in wanted}
            ids = [f"{name.removeprefix('data/')}:{row}" for row in rows] if id_ is None else (
                [_id(cell, id_, self.at.uri) for cell in cells[id_]]
            )  # fmt: skip
            given: list[Any] = [None] * len(rows)
            if isinstance(label, tuple):
                given = [list(values) for values in zip(*(cells[column] for column in label), strict=True)]
            elif label is not None:
                given = cells[label]
            columns = {"offset": list(numbers), "bytes": [size] * len(rows)}
            yield Found(ids=ids, labels=given, columns=columns, untyped=untyped)


def _id(cell: Any, column: str, uri: str) -> str:
    if isinstance(cell, bool) or not isinstance(cell, str | int) or cell == "":
        raise PoolError(f"'{uri}': {cell!r} in column '{column}' is no id; fill it in, or set pool.id_column to null")
    return str(cell)


LANCE = LanceTable()
