"""Before a run begins: what the pool and the held-out sets are, checked without writing anything."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa

from prunefuse_ray import config as cfg
from prunefuse_ray.config.sources import POOL_SOURCES
from prunefuse_ray.data import draw, leaks
from prunefuse_ray.data.classes import classes_of
from prunefuse_ray.data.images import image_size, sample_values
from prunefuse_ray.data.index import Index, first_samples, write_index
from prunefuse_ray.data.paths import Listing, as_list
from prunefuse_ray.data.pool import PoolInfo, Source
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader, reader_of
from prunefuse_ray.data.vectors import vector
from prunefuse_ray.errors import IdsError, LedgerError, PoolError, Rejected
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tasks.classification import CLASSIFICATION


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found; `materialize` writes the parts of it that the run directory has to hold."""

    pool: cfg.Pool
    info: PoolInfo
    sets: dict[str, SampleSet]
    """By setting: the pool (`path`) and the held-out sets."""
    indexes: dict[str, Index]
    """Likewise."""
    drawn: pa.Array | None = None
    """Ids of the test set that is drawn from the pool (`draw.py`)."""


def survey(pool: cfg.Pool, *, labeled: bool = True, task: str = CLASSIFICATION.name) -> Survey:
    """Check pool, test set and validation set and learn what the configuration left open.

    Args:
        labeled: whether the pool's samples have to have labels. Those of test and validation set always have.
        task: what labels are (`tasks.TASKS`).

    Raises:
        PoolError: something is wrong with a set, or two sets share files or ids. Nothing is written, then or otherwise.
    """
    reader = reader_of(pool)
    sets = [SampleSet(pool, setting, labeled or setting != "path", task) for setting in reader.settings(pool)]
    listings = [(samples, reader.listing(samples)) for samples in sets]
    leaks.check_files(listings)
    classes = _classes(pool, reader, listings)
    if len(classes) < (fewest := TASKS[task].fewest_classes) and (classes or any(s.labeled for s in sets)):
        raise PoolError(
            f"pool.classes: {len(classes)} classes; task '{task}' takes at least {fewest}: give a pool with more, or "
            "name them all in pool.classes"
        )
    if (most := TASKS[task].most_classes) is not None and len(classes) > most:
        raise PoolError(f"pool.classes: {len(classes)} classes; task '{task}' takes at most {most}: leave some out")
    indexes = {samples.setting: reader.index(samples, listing, classes) for samples, listing in listings}
    if reader.unique_ids(pool):
        leaks.check_ids(indexes)
    found = indexes["path"]
    drawn = draw.test_set(found, pool) if pool.test_samples else None
    info = PoolInfo(
        source=pool.source,
        path=", ".join(as_list(pool.path)),
        rows=found.rows - pool.test_samples,
        bytes=found.bytes,
        files=found.files,
        listing_digest=found.listing_digest,
        id_digest=found.id_digest,
        id_type=found.id_type,
        classes=classes,
        sample_size=_sample_size(pool, found),
        version=found.version,
    )
    named = {samples.setting: samples for samples in sets}
    return Survey(pool=pool, info=info, sets=named, indexes=indexes, drawn=drawn)


def survey_guessed(pool: cfg.Pool, *, labeled: bool, task: str) -> tuple[Survey, str]:
    """`survey` of a pool whose column of ids was guessed: where ids do not tell samples apart, by file names and rows,
    and why; '' where they do."""
    try:
        return survey(pool, labeled=labeled, task=task), ""
    except IdsError:
        if pool.id_column is None or "id_column" not in POOL_SOURCES[pool.source].fields:
            raise
    why = f"several samples have one '{pool.id_column}': file name and row are the ids"
    return survey(pool.model_copy(update={"id_column": None}), labeled=labeled, task=task), why


def materialize(found: Survey, root: Place) -> None:
    """Write what the run needs of the pool below `root`: the rows of indexes, and which are the test set."""
    reader = reader_of(found.pool)
    if found.drawn is not None:
        draw.write_ids(found.drawn, root, draw.IDS_FILE)
    for setting, index in found.indexes.items():
        write_index(index, _directory(reader, root, setting))


def sources(pool: cfg.Pool, root: Place, task: str = CLASSIFICATION.name) -> tuple[Source, Source]:
    """Pool and test set of a run whose directory exists."""
    return source_of(pool, root, "path", task=task), source_of(pool, root, "test_path", task=task)


def source_of(
    pool: cfg.Pool, root: Place, setting: str, *, labeled: bool = True, task: str = CLASSIFICATION.name
) -> Source:
    """The samples that a setting names, of a run whose directory exists."""
    reader = reader_of(pool)
    source = reader.read(SampleSet(pool, setting, labeled, task), _directory(reader, root, setting))
    return replace(source, task=task)


def check_unchanged(pool: cfg.Pool, recorded: PoolInfo) -> None:
    """LedgerError where the pool's files are no longer those that the run began with."""
    now = reader_of(pool).listing(SampleSet(pool))
    if now.names and now.digest != recorded.listing_digest:
        raise LedgerError(
            f"pool.path: '{recorded.path}' has changed since the run began (then {recorded.files} files, "
            f"{recorded.bytes} bytes; now {len(now.names)} files, {sum(now.sizes)} bytes): restore the pool, or start "
            "under another --run.name"
        )


def _directory(reader: SourceReader, root: Place, setting: str) -> Place:
    return root / "pool" / reader.directories[setting]


def _classes(pool: cfg.Pool, reader: SourceReader, listings: list[tuple[SampleSet, Listing]]) -> list[str]:
    """The names of the classes: the first set whose files name them counts, the pool before the others. Of numbers the
    names of the targets: of several columns, or of the one."""
    named, field = None, ""
    if listings[0][0].task.numbers and not isinstance(pool.classes, list):
        columns = pool.label_column if isinstance(pool.label_column, list) else [pool.label_column]
        return columns if pool.classes in (None, len(columns)) else classes_of(pool, None, field)
    if not isinstance(pool.classes, list):
        for samples, listing in listings:
            if (named := reader.class_names(samples, listing)) is not None:
                field = samples.field
                break
    classes = classes_of(pool, named, field)
    if not classes and (pool.test_samples or any(samples.labeled for samples, _ in listings)):
        raise PoolError(
            "pool.classes is missing, and the files do not name their classes: set pool.classes to their number or "
            "their names"
        )
    return classes


def _sample_size(pool: cfg.Pool, index: Index) -> tuple[int, ...]:
    """(height, width) of images, (length,) of texts and vectors."""
    if pool.vector_column is not None:
        return (_first_length(first_samples(index)),)
    if pool.text_column is not None:
        return (pool.text_length,)
    columns = first_samples(index)
    if pool.crop_ratio < 1 and (first := next(columns, None)) is not None:
        columns = itertools.chain([first], columns)
        if any(value is not None and not isinstance(value, bytes) for value in sample_values(first)):
            raise PoolError(
                f"pool.crop_ratio {pool.crop_ratio:g} crops scaled images, but column '{pool.image_column}' "
                "holds tensors, which are never scaled; set it to 1"
            )
    return pool.image_size or _first_size(columns, pool.channels)


def _first_length(columns: Iterable[pa.ChunkedArray]) -> int:
    """The length of the first readable vector."""
    reason = "no vectors"
    for column in columns:
        for value in sample_values(column):
            try:
                if length := len(vector(value)):
                    return length
                reason = "no numbers"
            except Rejected as rejected:
                reason = str(rejected)
    raise PoolError(
        f"pool.vector_column: no vector of the pool can be read (last reason: {reason}); name the right column"
    )


def _first_size(columns: Iterable[pa.ChunkedArray], channels: int) -> tuple[int, int]:
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
