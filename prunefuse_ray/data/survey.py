"""Before a run begins: what the pool and the test set are, checked without writing anything."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray import config as cfg
from prunefuse_ray.acquisition import hash_ids
from prunefuse_ray.data.containers import class_names
from prunefuse_ray.data.digits import digits_tables, write_digits
from prunefuse_ray.data.images import image_size, sample_values
from prunefuse_ray.data.index import Index, index_source, listing, locate_index, write_index
from prunefuse_ray.data.inspection import inspect_parquet, listing_digest
from prunefuse_ray.data.parquet import locate_parquet, with_groups
from prunefuse_ray.data.paths import as_list
from prunefuse_ray.data.pool import PoolInfo, Source
from prunefuse_ray.data.reading import ids_to_numpy, opened, tables
from prunefuse_ray.errors import LedgerError, PoolError, Rejected
from prunefuse_ray.storage import Place

DIGITS = cfg.Pool(source="parquet", path="pool", test_path="test", classes=10)
"""How the embedded example is read once it lies in the run directory."""
SETS = {"path": "index", "test_path": "test-index", "validation_path": "validation-index"}
"""The settings that name samples, and where in the run directory the index of each is kept."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found; `materialise` writes the parts of it that the run directory has to hold."""

    info: PoolInfo
    indexes: dict[str, Index] = field(default_factory=dict)
    """By setting, for sources that are no Parquet files."""


def survey(pool: cfg.Pool, *, labeled: bool = True) -> Survey:
    """Check pool, test set and validation set and learn what the configuration left open.

    Args:
        labeled: whether the pool's samples have to have labels. Those of test and validation set always have.

    Raises:
        PoolError; nothing has been written then, nor otherwise.
    """
    match pool.source:
        case "digits":
            return _survey_digits()
        case "parquet":
            return _survey_parquet(pool, labeled)
        case _:
            return _survey_indexed(pool, labeled)


def materialise(found: Survey, root: Place) -> None:
    """Write what the run needs of the pool below `root`: indexes, or the embedded digits."""
    if found.info.source == "digits":
        write_digits(root / "pool")
    for setting, index in found.indexes.items():
        write_index(index, root / "pool" / SETS[setting])


def sources(pool: cfg.Pool, root: Place) -> tuple[Source, Source]:
    """Pool and test set of a run whose directory exists."""
    if pool.source == "digits":
        return (
            locate_parquet((root / "pool" / "pool").path, DIGITS, "pool"),
            locate_parquet((root / "pool" / "test").path, DIGITS, "test set"),
        )
    return source_of(pool, root, "path"), source_of(pool, root, "test_path")


def source_of(pool: cfg.Pool, root: Place, setting: str, *, labeled: bool = True) -> Source:
    """The samples that one of SETS names."""
    paths = getattr(pool, setting)
    if pool.source == "parquet":
        return locate_parquet(paths, pool, f"pool.{setting}", labeled=labeled)
    return locate_index(root / "pool" / SETS[setting], pool, paths)


def check_unchanged(pool: cfg.Pool, recorded: PoolInfo) -> None:
    """LedgerError where the pool's files are no longer those that the run began with."""
    what = "images" if pool.source == "images" else "files"
    match pool.source:
        case "digits":
            return
        case "parquet":
            source = locate_parquet(pool.path, pool, "pool.path")
            names, sizes = source.files, source.sizes
        case _:
            located = listing(pool, pool.path, "pool.path")
            names, sizes = located.names, located.sizes
    if listing_digest(names, sizes) != recorded.listing_digest:
        raise LedgerError(
            f"pool.path: '{recorded.path}' has changed since the run began (then {recorded.files} {what}, "
            f"{recorded.bytes} bytes; now {len(names)} {what}, {sum(sizes)} bytes): restore the pool, or start under "
            "another --run.name"
        )


def id_digest(ids: Iterable) -> str:
    return f"{sum(int(h) for h in hash_ids(ids_to_numpy(ids))) % 2**64:016x}"


def _survey_digits() -> Survey:
    pool, _ = digits_tables()
    size = sum(len(i) for i in pool["image"].to_pylist())
    return Survey(
        info=PoolInfo(
            source="digits",
            path="",
            rows=pool.num_rows,
            bytes=size,
            files=4,
            listing_digest="",
            id_type="string",
            id_digest=id_digest(pool["id"]),
            classes=[str(n) for n in range(10)],
            sample_size=(8, 8),
        )
    )


def _survey_indexed(pool: cfg.Pool, labeled: bool) -> Survey:
    named = pool.classes if isinstance(pool.classes, list) else None
    index = index_source(pool, pool.path, "pool.path", named, labeled=labeled)
    if labeled and isinstance(pool.classes, int) and pool.classes != len(index.classes):
        raise PoolError(
            f"pool.classes: {pool.classes}, but pool.path has {len(index.classes)} class folders "
            f"({', '.join(index.classes[:10])}); leave it out or mend the folder"
        )
    indexes = {"path": index}
    for setting in _others(pool):
        indexes[setting] = index_source(pool, getattr(pool, setting), f"pool.{setting}", index.classes or named)
    classes = index.classes or next((i.classes for i in indexes.values() if i.classes), [])
    size: tuple[int, ...] = (pool.text_length,)
    if pool.text_column is None:
        source = Source(fs=index.roots[0].fs, files=(), sizes=(), roots=index.roots)
        heads = (index.head.slice(i, 16).drop_columns(["label"]) for i in range(0, index.head.num_rows, 16))
        size = pool.image_size or _first_size((t["sample"] for h in heads for t in opened(h, source)), pool.channels)
    info = PoolInfo(
        source=pool.source,
        path=", ".join(as_list(pool.path)),
        rows=index.rows,
        bytes=index.bytes,
        files=index.files,
        listing_digest=index.listing_digest,
        id_digest=index.id_digest,
        id_type="string",
        classes=classes,
        sample_size=size,
    )
    return Survey(info=info, indexes=indexes)


def _others(pool: cfg.Pool) -> list[str]:
    """The settings of held-out sets that are given."""
    return [s for s in SETS if s != "path" and getattr(pool, s) is not None]


def _survey_parquet(pool: cfg.Pool, labeled: bool) -> Survey:
    source = locate_parquet(pool.path, pool, "pool.path", labeled=labeled)
    others = {s: locate_parquet(getattr(pool, s), pool, f"pool.{s}") for s in _others(pool)}
    classes = _parquet_classes(pool, [source, *others.values()])
    if not classes and (labeled or others):
        raise PoolError(
            "pool.classes is missing, and the files do not name their classes: set pool.classes to their number or "
            "their names"
        )
    text = pool.text_column is not None
    rows, digest, id_type = inspect_parquet(with_groups(source, pool), len(classes), "pool.path", text)
    for setting, other in others.items():
        inspect_parquet(other, len(classes), f"pool.{setting}", text)
    size: tuple[int, ...] = (pool.text_length,)
    if not text:
        columns: Iterator[pa.ChunkedArray] = (
            t[pool.image_column] for t in tables(source, [pool.image_column], rows=64)
        )
        if pool.crop_ratio < 1 and (first := next(columns, None)) is not None:
            columns = itertools.chain([first], columns)
            if any(value is not None and not isinstance(value, bytes) for value in sample_values(first)):
                raise PoolError(
                    f"pool.crop_ratio {pool.crop_ratio:g} crops scaled images, but column '{pool.image_column}' "
                    "holds tensors, which are never scaled; set it to 1"
                )
        size = pool.image_size or _first_size(columns, pool.channels)
    return Survey(
        info=PoolInfo(
            source="parquet",
            path=", ".join(as_list(pool.path)),
            rows=rows,
            bytes=sum(source.sizes),
            files=len(source.files),
            listing_digest=listing_digest(source.files, source.sizes),
            id_digest=digest,
            id_type=id_type,
            classes=classes,
            sample_size=size,
        )
    )


def _parquet_classes(pool: cfg.Pool, found: list[Source]) -> list[str]:
    """The names of the classes: from the configuration, or what Hugging Face wrote into a file's metadata."""
    if isinstance(pool.classes, list):
        return pool.classes
    named = (class_names(pq.read_schema(s.files[0], filesystem=s.fs), pool.label_column) for s in found)
    names = next((n for n in named if n), [])
    if pool.classes is None or pool.classes == len(names):
        return names
    return [str(n) for n in range(pool.classes)]


def _first_size(columns: Iterable, channels: int) -> tuple[int, int]:
    """(height, width) of the first readable image."""
    reason = "no images"
    for column in columns:
        for value in sample_values(column):
            try:
                return image_size(value, channels)
            except Rejected as rejected:
                reason = str(rejected)
    raise PoolError(
        f"pool.image_column: no image of the pool can be read (last reason: {reason}); name the right column "
        "or set pool.image_size"
    )
