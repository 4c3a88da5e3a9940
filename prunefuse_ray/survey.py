"""Before a run begins: what the pool and the test set are, checked without writing anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prunefuse_ray import config as cfg
from prunefuse_ray.acquisition import hash_ids
from prunefuse_ray.errors import PoolError, Rejected
from prunefuse_ray.images import picture_size, sample_values
from prunefuse_ray.inspection import inspect_parquet, listing_digest
from prunefuse_ray.pool import (
    Listing,
    PoolInfo,
    Source,
    digits_tables,
    ids_to_numpy,
    list_images,
    load_images,
    locate_index,
    locate_parquet,
    tables,
    write_digits,
    write_index,
)
from prunefuse_ray.storage import Place

DIGITS = cfg.Pool(source="parquet", path="pool", test_path="test", classes=10)
"""How the embedded example is read once it lies in the run directory."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found; `materialise` writes the parts of it that the run directory has to hold."""

    info: PoolInfo
    pool: Listing | None = None
    test: Listing | None = None


def survey(pool: cfg.Pool, *, labeled: bool = True) -> Survey:
    """Check pool and test set and learn what the configuration left open. Raises PoolError; writes nothing.

    Args:
        labeled: the pool holds labels (as the test set always does); else people will give them.
    """
    match pool.source:
        case "digits":
            return _survey_digits()
        case "images":
            return _survey_images(pool, labeled)
        case _:
            return _survey_parquet(pool, labeled)


def materialise(found: Survey, root: Place) -> None:
    """Write what the run needs of the pool below `root`: the index of an image folder, or the embedded digits."""
    if found.info.source == "digits":
        write_digits(root / "pool")
    if found.pool is not None and found.test is not None:
        write_index(found.pool, root / "pool" / "index")
        write_index(found.test, root / "pool" / "test-index")


def sources(pool: cfg.Pool, root: Place) -> tuple[Source, Source]:
    """Pool and test set of a run whose directory exists."""
    match pool.source:
        case "digits":
            return (
                locate_parquet(root / "pool" / "pool", DIGITS, "pool"),
                locate_parquet(root / "pool" / "test", DIGITS, "test set"),
            )
        case "images":
            return (
                locate_index(root / "pool" / "index", _place(pool.path)),
                locate_index(root / "pool" / "test-index", _place(pool.test_path)),
            )
        case _:
            return _parquet(pool)


def _place(path: str | None) -> Place:
    assert path is not None, "validated by config.Pool"
    return Place.at(path)


def _parquet(pool: cfg.Pool) -> tuple[Source, Source]:
    return (
        locate_parquet(_place(pool.path), pool, "pool.path"),
        locate_parquet(_place(pool.test_path), pool, "pool.test_path"),
    )


def _digest(listing: Listing) -> str:
    return listing_digest(listing.table["id"].to_pylist(), listing.table["bytes"].to_pylist())


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


def _survey_images(pool: cfg.Pool, labeled: bool) -> Survey:
    named = pool.classes if isinstance(pool.classes, list) else None
    if not labeled and named is None:  # the test set knows them
        named = list_images(pool.test_path or "", "pool.test_path").classes
    listing = list_images(pool.path or "", "pool.path", named, labeled=labeled)
    if isinstance(pool.classes, int) and pool.classes != len(listing.classes):
        raise PoolError(
            f"pool.classes: {pool.classes}, but pool.{'path' if labeled else 'test_path'} has "
            f"{len(listing.classes)} class folders ({', '.join(listing.classes[:10])}); leave it out or mend the folder"
        )
    test = list_images(pool.test_path or "", "pool.test_path", listing.classes)
    size = pool.image_size or _first_size(
        (load_images(listing.table.slice(i, 16), listing.root)["sample"] for i in range(0, listing.table.num_rows, 16)),
        pool.channels,
    )
    info = PoolInfo(
        source="images",
        path=pool.path or "",
        rows=listing.table.num_rows,
        bytes=sum(listing.table["bytes"].to_pylist()),
        files=listing.table.num_rows,
        listing_digest=_digest(listing),
        id_digest=id_digest(listing.table["id"]),
        id_type="string",
        classes=listing.classes,
        sample_size=size,
    )
    return Survey(info=info, pool=listing, test=test)


def _survey_parquet(pool: cfg.Pool, labeled: bool) -> Survey:
    source, test = _parquet(pool)
    classes = pool.classes if isinstance(pool.classes, list) else [str(n) for n in range(pool.classes or 0)]
    text = pool.text_column is not None
    rows, digest, id_type = inspect_parquet(source, len(classes), "pool.path", text, labeled=labeled)
    inspect_parquet(test, len(classes), "pool.test_path", text)
    size: tuple[int, ...] = (pool.text_length,)
    if not text:
        columns = (t[pool.image_column] for t in tables(source, [pool.image_column], rows=64))
        size = pool.image_size or _first_size(columns, pool.channels)
    return Survey(
        info=PoolInfo(
            source="parquet",
            path=pool.path or "",
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


def _first_size(columns: Iterable, channels: int) -> tuple[int, int]:
    """(height, width) of the first readable picture."""
    reason = "no pictures"
    for column in columns:
        for value in sample_values(column):
            try:
                return picture_size(value, channels)
            except Rejected as rejected:
                reason = str(rejected)
    raise PoolError(
        f"pool.image_column: no picture of the pool can be read (last reason: {reason}); name the right column "
        "or set pool.image_size"
    )
