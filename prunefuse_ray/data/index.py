"""Indexes: where every sample of an image folder, of WebDataset tars or of a Hugging Face dataset lies.

Such a source is listed or scanned once; its index becomes Parquet files in the run directory, from which the stream
reads the samples. From then on all sources are the same thing: Parquet files with an id column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from prunefuse_ray import config as cfg
from prunefuse_ray.acquisition import hash_ids
from prunefuse_ray.data.containers import arrow_files, arrow_schema, class_names, class_number, scan_arrow, scan_tar
from prunefuse_ray.data.images import IMAGE_EXTENSIONS
from prunefuse_ray.data.inspection import listing_digest
from prunefuse_ray.data.paths import Located, as_list, check_names, locate, root_of
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import ids_to_numpy
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.errors import PoolError
from prunefuse_ray.schemas import INDEX
from prunefuse_ray.storage import Place

IMAGES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
INDEX_ROWS = 2_000  # rows of one index file: small enough that a few thousand images already feed several readers
HEAD_ROWS = 256  # rows that are looked at for what the configuration left open
SCANS = 256  # tasks that scan a pool's files, at most


@dataclass(frozen=True, kw_only=True)
class Index:
    """A source as found."""

    roots: tuple[Place, ...]
    classes: list[str]
    parts: list[Any]
    """Tables of the schema INDEX, or references to them in Ray's object store: a scan's never pass the driver."""
    head: pa.Table
    rows: int
    bytes: int
    files: int
    listing_digest: str
    id_digest: str


def index_source(
    pool: cfg.Pool, paths: Any, field: str, classes: Sequence[str] | None = None, *, labeled: bool = True
) -> Index:
    """List or scan the source at `paths`.

    Args:
        classes: names in the order of the labels, where they are known already (from the pool, for a test set).
        labeled: whether every sample has a label here.

    Raises:
        PoolError: no files, ids that clash, labels outside the classes, damaged containers.
    """
    if pool.source == "images":
        return list_images(paths, field, classes, labeled=labeled)
    if pool.source == "webdataset":
        located = locate(paths, (".tar",), field)
        names, label = _named(pool, classes), pool.label_column if labeled else None
        scan: Callable[..., Iterator[tuple]] = _scan_tar
        columns: tuple[str | None, ...] = (label,)
    else:
        located = _locate_arrow(paths, field)
        sample, label = pool.text_column or pool.image_column, pool.label_column if labeled else None
        schema = arrow_schema(Place(located.fs, located.paths[0]))
        for setting, column in (
            ("text_column" if pool.text_column else "image_column", sample),
            ("label_column", label),
        ):
            if column is not None and column not in schema.names:
                raise PoolError(f"pool.{setting}: {field} has no column '{column}'; it has {', '.join(schema.names)}")
        names = _named(pool, classes or class_names(schema, label))
        scan, columns = _scan_arrow, (sample, label)
    check_names(located, field)
    if labeled and names is None:
        raise PoolError(f"pool.classes is missing: {field} does not name its classes; set pool.classes")
    return _scanned(located, names or [], field, scan, columns, labeled=labeled)


def list_images(paths: Any, field: str, classes: Sequence[str] | None = None, *, labeled: bool = True) -> Index:
    """List an image folder; labeled, with one sub-folder per class in the order of `classes` (default: sorted)."""
    located = locate(paths, IMAGES, field)
    check_names(located, field)
    names = list(classes or [])
    labels: list[int | None] = [None] * len(located.names)
    if labeled:
        names, labels = _folder_labels(located, classes, field)
    table = pa.table(
        {
            "id": located.names,
            "label": pa.array(labels, pa.int64()),
            "root": located.root_numbers,
            "file": located.names,
            "offset": pa.nulls(len(located.names), pa.int64()),
            "bytes": located.sizes,
        },
        schema=INDEX,
    )
    return Index(
        roots=located.roots,
        classes=names,
        parts=[table],
        head=table.slice(0, HEAD_ROWS),
        rows=table.num_rows,
        bytes=sum(located.sizes),
        files=table.num_rows,
        listing_digest=listing_digest(located.names, located.sizes),
        id_digest=f"{_id_digest(table['id']):016x}",
    )


def listing(pool: cfg.Pool, paths: Any, field: str) -> Located:
    """The files of an indexed source as they are now."""
    match pool.source:
        case "images":
            return locate(paths, IMAGES, field)
        case "webdataset":
            return locate(paths, (".tar",), field)
        case _:
            return _locate_arrow(paths, field)


def write_index(index: Index, where: Place) -> None:
    """Write an index as Parquet files below `where`."""
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
    for n, start in enumerate(range(0, table.num_rows, INDEX_ROWS)):
        (where / f"index-{number:05d}-{n:05d}.parquet").write_table(table.slice(start, INDEX_ROWS))


def locate_index(where: Place, pool: cfg.Pool, paths: Any) -> Source:
    """The source of a written index."""
    found = where.files()
    return Source(
        fs=where.fs,
        files=tuple(f.path for f in found),
        sizes=tuple(f.size for f in found),
        roots=tuple(root_of(Place.at(path)) for path in as_list(paths)),
        text=pool.text_column is not None,
    )


def _folder_labels(located: Located, classes: Sequence[str] | None, field: str) -> tuple[list[str], list[int | None]]:
    folders = [name.split("/", 1)[0] if "/" in name else "" for name in located.names]
    if "" in folders:
        raise PoolError(
            f"{field}: '{located.names[folders.index('')]}' lies outside any class folder; move it into one"
        )
    names = list(classes) if classes is not None else sorted(set(folders))
    if unknown := sorted(set(folders) - set(names)):
        raise PoolError(
            f"{field}: folder '{unknown[0]}' is not one of the classes {names}; mend pool.classes or move it"
        )
    if len(names) < 2:
        raise PoolError(f"{field}: one class folder ('{names[0]}') was found; at least two are needed")
    number = {name: n for n, name in enumerate(names)}
    return names, [number[f] for f in folders]


def _named(pool: cfg.Pool, found: Sequence[str] | None) -> list[str] | None:
    """The names of the classes: those of the configuration before those of the file."""
    if isinstance(pool.classes, list):
        return pool.classes
    if pool.classes is not None and (found is None or len(found) != pool.classes):
        if found is not None:
            raise PoolError(
                f"pool.classes: {pool.classes}, but the pool names {len(found)} classes ({', '.join(found[:10])}); "
                "leave it out or mend it"
            )
        return [str(n) for n in range(pool.classes)]
    return None if found is None else list(found)


def _locate_arrow(paths: Any, field: str) -> Located:
    """The Arrow files of directories that `save_to_disk` wrote; other Arrow files there (indices) do not count."""
    located = locate(paths, (".arrow",), field)
    wanted: set[str] = set()
    for path in as_list(paths):
        place = Place.at(path)
        if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
            wanted |= set(arrow_files(place, field))
    if not wanted:
        return located
    keep = [i for i, path in enumerate(located.paths) if path in wanted]
    return replace(
        located,
        root_numbers=tuple(located.root_numbers[i] for i in keep),
        names=tuple(located.names[i] for i in keep),
        sizes=tuple(located.sizes[i] for i in keep),
    )


# --- scanning in tasks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What one task found, without the index itself."""

    rows: int
    id_digest: int
    bad_labels: list[str]
    head: pa.Table


def _scanned(
    located: Located,
    classes: list[str],
    field: str,
    scan: Callable[..., Iterator[tuple]],
    columns: tuple[str | None, ...],
    *,
    labeled: bool,
) -> Index:
    task = ray.remote(num_cpus=0.5, num_returns=2)(_scan_files)
    step = -(-len(located.names) // SCANS)
    answers: list[Any] = [
        task.remote(located, range(i, min(i + step, len(located.names))), scan, columns, classes, labeled)
        for i in range(0, len(located.names), step)
    ]
    scans: list[_Scan] = _results([a[0] for a in answers])
    if bad := [b for s in scans for b in s.bad_labels]:
        raise PoolError(
            f"{field}: labels that are none of the {len(classes)} classes, e.g. {'; '.join(bad[:5])}; mend them, "
            "pool.label_column or pool.classes"
        )
    rows = sum(s.rows for s in scans)
    if not rows:
        raise PoolError(f"{field}: holds no samples; give a pool with samples in it")
    return Index(
        roots=located.roots,
        classes=classes,
        parts=[a[1] for a in answers],
        head=pa.concat_tables([s.head for s in scans]).slice(0, HEAD_ROWS),
        rows=rows,
        bytes=sum(located.sizes),
        files=len(located.names),
        listing_digest=listing_digest(located.names, located.sizes),
        id_digest=f"{sum(s.id_digest for s in scans) % 2**64:016x}",
    )


def _results(references: list[Any]) -> list[Any]:
    with plain_errors():
        return ray.get(references)


def _scan_files(
    located: Located,
    numbers: range,
    scan: Callable[..., Iterator[tuple]],
    columns: tuple[str | None, ...],
    classes: list[str],
    labeled: bool,
) -> tuple[_Scan, pa.Table]:
    """Index the files of these numbers."""
    tables, bad = [INDEX.empty_table()], []
    for n in numbers:
        name, path = located.names[n], located.paths[n]
        for keys, offsets, sizes, labels in scan(Place(located.fs, path), name, *columns):
            ids = [f"{_stem(name)}{key}" for key in keys]
            codes = [class_number(label, classes) for label in labels] if labeled else [None] * len(ids)
            bad += [
                f"{label!r} (id '{i}')" for i, label, c in zip(ids, labels, codes, strict=True) if labeled and c is None
            ][:5]
            tables.append(
                pa.table(
                    {
                        "id": ids,
                        "label": pa.array(codes, pa.int64()),
                        "root": pa.array([located.root_numbers[n]] * len(ids), pa.int32()),
                        "file": [name] * len(ids),
                        "offset": pa.array(offsets, pa.int64()),
                        "bytes": pa.array(sizes, pa.int64()),
                    },
                    schema=INDEX,
                )
            )
    table = pa.concat_tables(tables)
    digest = _id_digest(table["id"]) if table.num_rows else 0
    return _Scan(rows=table.num_rows, id_digest=digest, bad_labels=bad[:5], head=table.slice(0, HEAD_ROWS)), table


def _scan_tar(place: Place, name: str, label: str | None) -> Iterator[tuple]:
    found = list(scan_tar(place, label))
    yield (
        [f"/{r.key}" for r in found],
        [r.offset for r in found],
        [r.bytes for r in found],
        [r.label for r in found],
    )


def _scan_arrow(place: Place, name: str, sample: str, label: str | None) -> Iterator[tuple]:
    first = 0
    for offsets, sizes, labels in scan_arrow(place, sample, label):
        yield [f":{row}" for row in range(first, first + len(sizes))], offsets, sizes, labels
        first += len(sizes)


def _stem(name: str) -> str:
    """A shard's name in its samples' ids: without .tar, for the key follows as if the shard were a folder."""
    return name.removesuffix(".tar")


def _id_digest(ids: pa.ChunkedArray) -> int:
    return int(hash_ids(ids_to_numpy(ids)).sum(dtype=np.uint64))
