"""The files of a pool over the life of a run: recorded, compared, and (on request) joined by new ones between rounds.

`pool/files.parquet` holds what the run began with; every committed step `grow` adds what that round found. A round
sees exactly these files, so a resume is exact whatever has been put into the pool since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray import config as cfg
from prunefuse_ray.config.schema import Config
from prunefuse_ray.data import draw, leaks
from prunefuse_ray.data.folders import of_system
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.data.index import Index, new_rows
from prunefuse_ray.data.left_out import gathered
from prunefuse_ray.data.paths import Listing
from prunefuse_ray.data.pool import PoolInfo, Source, part
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader, reader_of
from prunefuse_ray.errors import LedgerError, PoolError, few
from prunefuse_ray.method.steps import GROW, Step
from prunefuse_ray.run.ledger import Ledger, Output
from prunefuse_ray.schemas import POOL_FILES, arrow_type
from prunefuse_ray.storage import Place

NAMED = 10
HELD_OUT_FILES = {"test_path": "test-files.parquet", "validation_path": "validation-files.parquet"}
"""Setting -> the listing of its files with which a run began, below pool/."""


# --- decisions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a listing differs from the one that was recorded."""

    added: pa.Table
    removed: tuple[str, ...]
    changed: tuple[str, ...]


def compare(recorded: pa.Table, now: pa.Table) -> Change:
    """Compare two listings (`POOL_FILES`) by name and size."""
    before = dict(zip(recorded["file"].to_pylist(), recorded["bytes"].to_pylist(), strict=True))
    after = dict(zip(now["file"].to_pylist(), now["bytes"].to_pylist(), strict=True))
    return Change(
        added=now.filter(pc.invert(pc.is_in(now["file"], value_set=recorded["file"].combine_chunks()))),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(sorted(f for f in before.keys() & after.keys() if before[f] != after[f])),
    )


def check(change: Change, field: str, path: Any, *, growth: bool, version: str | None = None) -> None:
    """LedgerError, naming the files, where the change is not allowed.

    Args:
        version: of a table that has another one now, that which the run has read.
    """
    faults = []
    if change.removed and all(map(of_system, change.removed)):
        raise LedgerError(
            f"{field}: '{path}': an earlier version took files for samples that are none of the pool "
            f"({_named(change.removed)}): go on with that version, or start under another --run.name"
        )
    if change.removed:
        faults.append(f"removed: {_named(change.removed)}")
    if change.changed:
        faults.append(f"changed: {_named(change.changed)}")
    if change.added.num_rows and not growth:
        faults.append(f"new: {_named(change.added['file'].to_pylist())}")
    if faults:
        may = "; pool.allow_growth, set from the start, takes in new ones" if field == "pool.path" else ""
        pinned = f"go on with what the run has read by --pool.version {version}"
        remedy = "restore these files" if version is None else pinned
        raise LedgerError(
            f"{field}: '{path}' has changed since the run began ({'; '.join(faults)}): {remedy}, or start "
            f"under another --run.name{may}"
        )


def _named(files: Sequence[str]) -> str:
    return few(files, NAMED)


# --- what the run recorded ------------------------------------------------------------------------------------------


def record(pool: cfg.Pool, info: PoolInfo, root: Place) -> None:
    """Write the listings of pool and test set that a new run begins with."""
    now = listed(pool, "path")
    if not now.names:
        return
    if now.digest != info.listing_digest:
        raise PoolError(f"pool.path: '{pool.path}' changed while it was inspected; try again when it is at rest")
    (root / "pool" / "files.parquet").write_table(now.table)
    for setting in _held_out(pool):
        (root / "pool" / HELD_OUT_FILES[setting]).write_table(listed(pool, setting).table)


def grown(config: Config, ledger: Ledger) -> list[Step]:
    """The committed steps that looked for new files."""
    found = [Step(r, GROW) for r in range(len(config.selection.budgets))] if config.pool.allow_growth else []
    return [s for s in found if ledger.committed(s)]


def seen_files(config: Config, ledger: Ledger) -> pa.Table:
    """The files that the run has taken in so far: `POOL_FILES`."""
    added = [ledger.read_table(s, "grown/files.parquet", POOL_FILES) for s in grown(config, ledger)]
    return pa.concat_tables([(ledger.root / "pool" / "files.parquet").read_table(POOL_FILES), *added])


def seen_info(config: Config, ledger: Ledger) -> PoolInfo:
    """The pool as the run last looked at it."""
    looks = grown(config, ledger)
    place = ledger.place(looks[-1], "grown/pool.json") if looks else None
    return PoolInfo.from_json(place.read_json() if place else ledger.read_pool())


def seen_source(config: Config, ledger: Ledger, found: Source) -> Source:
    """`found`, what lies in the pool now, cut down to the files that the run has taken in."""
    if not config.pool.allow_growth:
        return found
    if reader_of(config.pool).in_place:
        now = listed(config.pool, "path")
        seen = set(now.only(seen_files(config, ledger)["file"].to_pylist()).paths)
        return part(found, [i for i, file in enumerate(found.files) if file in seen])
    rows = [ledger.files(step, "grown/index") for step in grown(config, ledger)]
    return replace(
        found,
        files=(*found.files, *(p for paths, _ in rows for p in paths)),
        sizes=(*found.sizes, *(s for _, sizes in rows for s in sizes)),
    )


# --- what lies there now --------------------------------------------------------------------------------------------


def drawn_of(root: Place, info: PoolInfo) -> pa.Array:
    """Ids of the test set that was drawn from the pool when the run began; none where it has one of its own."""
    return draw.read_ids(root, arrow_type(info.id_type), draw.IDS_FILE)


def set_aside(root: Place, info: PoolInfo) -> IdSet | None:
    """Ids of the pool's files that are none of its samples: the test set, and what has its content."""
    twins = draw.read_ids(root, arrow_type(info.id_type), draw.TWINS_FILE)
    ids = pa.concat_arrays([drawn_of(root, info), twins])
    return IdSet.of(ids) if len(ids) else None


def _held_out(pool: cfg.Pool) -> list[str]:
    """The settings that name held-out sets."""
    return [setting for setting in reader_of(pool).settings(pool) if setting != "path"]


def listed(pool: cfg.Pool, setting: str) -> Listing:
    """The files of pool or test set as they are now; none where there are none that could change."""
    return reader_of(pool).listing(SampleSet(pool, setting))


def check_unchanged(config: Config, ledger: Ledger) -> None:
    """LedgerError, naming the files, where pool or test set are no longer what the run has seen."""
    pool = config.pool
    if (now := listed(pool, "path")).names:
        seen, version = seen_info(config, ledger).version, now.of_table and now.of_table.version
        change = compare(seen_files(config, ledger), now.table)
        left = seen if version != seen and not pool.allow_growth else None
        check(change, "pool.path", pool.path, growth=pool.allow_growth, version=left)
    for setting in _held_out(pool):
        place = ledger.root / "pool" / HELD_OUT_FILES[setting]
        if setting == "validation_path" and not place.exists():
            continue  # earlier versions recorded none
        if (held := listed(pool, setting)).names:
            change = compare(place.read_table(POOL_FILES), held.table)
            check(change, f"pool.{setting}", getattr(pool, setting), growth=False)


# --- taking in new files --------------------------------------------------------------------------------------------


def grow(config: Config, ledger: Ledger, info: PoolInfo) -> tuple[dict[str, Output], dict[str, Any]]:
    """Look for new files, check them, and return what the step `grow` commits: outputs and metrics.

    Raises:
        LedgerError: files were removed or changed.
        PoolError: new files that do not fit the pool, or whose ids are there already.
    """
    pool = config.pool
    reader, samples = (
        reader_of(pool),
        SampleSet(pool, labeled=config.annotation.kind == "oracle", task_name=config.task),
    )
    now = reader.listing(samples)
    change = compare(seen_files(config, ledger), now.table)
    check(change, "pool.path", pool.path, growth=True)
    larger = info
    outputs: dict[str, Output] = {}
    if change.added.num_rows:
        held_out = [SampleSet(pool, setting, task_name=config.task) for setting in _held_out(pool)]
        leaks.check_files([(samples, now), *((held, reader.listing(held)) for held in held_out)])
        found = reader.index(samples, now, info.classes, now.only(change.added["file"].to_pylist()))
        if reader.unique_ids(pool):
            leaks.check_ids({"path": found, **{h.setting: _index(reader, h, info) for h in held_out}})
        aside = set_aside(ledger.root, info)
        outputs |= {f"grown/index/index-{n:05d}.parquet": rows for n, rows in enumerate(new_rows(found))}
        larger = replace(
            info,
            rows=found.rows - (0 if aside is None else len(aside)),
            files=found.files,
            bytes=found.bytes,
            listing_digest=found.listing_digest,
            id_digest=found.id_digest,
            version=found.version,
        )
    left_out = gathered(now.left_out)
    return (
        {
            **outputs,
            "grown/files.parquet": change.added.combine_chunks().cast(POOL_FILES),
            "grown/pool.json": larger.to_json(),
        },
        {"files": change.added.num_rows, "samples": larger.rows - info.rows, "left_out": dict(left_out.counts)},
    )


def _index(reader: SourceReader, samples: SampleSet, info: PoolInfo) -> Index:
    return reader.index(samples, reader.listing(samples), info.classes)
