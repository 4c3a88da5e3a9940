"""The files of a pool over the life of a run: recorded, compared, and (on request) joined by new ones between rounds.

`pool/files.parquet` holds what the run began with; every committed step `grow` adds what that round found. A round
sees exactly these files, so a resume is exact whatever has been put into the pool since.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunefuse_ray import config as cfg
from prunefuse_ray.config.schema import Config
from prunefuse_ray.data.index import INDEX_ROWS, list_images, listing
from prunefuse_ray.data.inspection import inspect_parquet, listing_digest
from prunefuse_ray.data.parquet import locate_parquet, with_groups
from prunefuse_ray.data.pool import PoolInfo, Source, part
from prunefuse_ray.data.survey import id_digest, source_of
from prunefuse_ray.errors import LedgerError, PoolError
from prunefuse_ray.method.steps import GROW, Step
from prunefuse_ray.run.ledger import Ledger, Output
from prunefuse_ray.schemas import POOL_FILES
from prunefuse_ray.storage import Place

NAMED = 10


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


def check(change: Change, field: str, path: Any, *, growth: bool) -> None:
    """LedgerError, naming the files, where the change is not allowed."""
    faults = []
    if change.removed:
        faults.append(f"removed: {_named(change.removed)}")
    if change.changed:
        faults.append(f"changed: {_named(change.changed)}")
    if change.added.num_rows and not growth:
        faults.append(f"new: {_named(change.added['file'].to_pylist())}")
    if faults:
        may = "; pool.allow_growth, set from the start, takes in new ones" if field == "pool.path" else ""
        raise LedgerError(
            f"{field}: '{path}' has changed since the run began ({'; '.join(faults)}): restore these files, or start "
            f"under another --run.name{may}"
        )


def _named(files: Sequence[str]) -> str:
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return ", ".join(files[:NAMED]) + more


# --- what the run recorded ------------------------------------------------------------------------------------------


def record(pool: cfg.Pool, info: PoolInfo, root: Place) -> None:
    """Write the listings of pool and test set that a new run begins with."""
    if pool.source == "digits":
        return
    now, test = list_files(pool)
    if listing_digest(now["file"].to_pylist(), now["bytes"].to_pylist()) != info.listing_digest:
        raise PoolError(f"pool.path: '{pool.path}' changed while it was inspected; try again when it is at rest")
    (root / "pool" / "files.parquet").write_table(now)
    (root / "pool" / "test-files.parquet").write_table(test)


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
    looks = grown(config, ledger)
    if not config.pool.allow_growth:
        return found
    if found.roots:
        indices = [ledger.files(s, "grown/index") for s in looks]
        return replace(
            found,
            files=(*found.files, *(p for paths, _ in indices for p in paths)),
            sizes=(*found.sizes, *(s for _, sizes in indices for s in sizes)),
        )
    return only(found, config.pool.path, set(seen_files(config, ledger)["file"].to_pylist()))


def only(found: Source, paths: Any, names: set[str]) -> Source:
    """The source with those of its files whose names below the pool's root are in `names`."""
    return part(found, [i for i, name in enumerate(_names(found, paths)) if name in names])


# --- what lies there now --------------------------------------------------------------------------------------------


def list_files(pool: cfg.Pool) -> tuple[pa.Table, pa.Table]:
    """Pool and test set as they are now, each as `POOL_FILES`."""
    return _listed(pool, "path"), _listed(pool, "test_path")


def _listed(pool: cfg.Pool, setting: str) -> pa.Table:
    paths, field = getattr(pool, setting), f"pool.{setting}"
    if pool.source != "parquet":
        located = listing(pool, paths, field)
        return pa.table({"file": located.names, "bytes": located.sizes}, schema=POOL_FILES)
    source = locate_parquet(paths, pool, field)
    return pa.table({"file": _names(source, paths), "bytes": source.sizes}, schema=POOL_FILES)


def _names(source: Source, path: Any) -> list[str]:
    """Names of a source's files below the directory that `path` names (up to its first wildcard), so that a pool under
    a relative path may be moved; whole paths where several are given."""
    if not isinstance(path, str):
        return list(source.files)
    parts = Place.at(path).path.split("/")
    wild = next((i for i, name in enumerate(parts) if set(name) & set("*?[")), len(parts))
    root = "/".join(parts[:wild])
    return [posixpath.basename(f) if f == root else posixpath.relpath(f, root) for f in source.files]


def check_unchanged(config: Config, ledger: Ledger) -> None:
    """LedgerError, naming the files, where pool or test set are no longer what the run has seen."""
    pool = config.pool
    if pool.source == "digits":
        return
    now, test = list_files(pool)
    check(compare(seen_files(config, ledger), now), "pool.path", pool.path, growth=pool.allow_growth)
    began = (ledger.root / "pool" / "test-files.parquet").read_table(POOL_FILES)
    check(compare(began, test), "pool.test_path", pool.test_path, growth=False)


# --- taking in new files --------------------------------------------------------------------------------------------


def grow(config: Config, ledger: Ledger, info: PoolInfo) -> tuple[dict[str, Output], dict[str, Any]]:
    """Look for new files, check them, and return what the step `grow` commits: outputs and metrics.

    Raises:
        LedgerError: files were removed or changed.
        PoolError: new files that do not fit the pool, or whose ids are there already.
    """
    pool, labeled = config.pool, config.annotation.kind == "oracle"
    now, _ = list_files(pool)
    change = compare(seen_files(config, ledger), now)
    check(change, "pool.path", pool.path, growth=True)
    added = change.added.combine_chunks()
    larger = info
    outputs: dict[str, Output] = {}
    if added.num_rows and pool.source == "images":
        larger, outputs = _grow_images(pool, info, added, now, labeled)
    elif added.num_rows:
        larger = _grow_parquet(config, ledger, info, added, now)
    return (
        {**outputs, "grown/files.parquet": added.cast(POOL_FILES), "grown/pool.json": larger.to_json()},
        {"files": added.num_rows, "samples": larger.rows - info.rows},
    )


def _grow_images(
    pool: cfg.Pool, info: PoolInfo, added: pa.Table, now: pa.Table, labeled: bool
) -> tuple[PoolInfo, dict[str, Output]]:
    table = list_images(pool.path, "pool.path", info.classes, labeled=labeled).parts[0]
    new = table.filter(pc.is_in(table["id"], value_set=added["file"].combine_chunks()))
    outputs: dict[str, Output] = {
        f"grown/index/index-{n:05d}.parquet": new.slice(start, INDEX_ROWS)
        for n, start in enumerate(range(0, new.num_rows, INDEX_ROWS))
    }
    digest = (int(info.id_digest, 16) + int(id_digest(new["id"]), 16)) % 2**64
    return _larger(info, now, rows=now.num_rows, digest=f"{digest:016x}"), outputs


def _grow_parquet(config: Config, ledger: Ledger, info: PoolInfo, added: pa.Table, now: pa.Table) -> PoolInfo:
    found = source_of(config.pool, ledger.root, "path", labeled=config.annotation.kind == "oracle")
    found = with_groups(found, config.pool)
    everything = only(found, config.pool.path, set(now["file"].to_pylist()))
    new = only(found, config.pool.path, set(added["file"].to_pylist()))
    _check_types(everything, new)
    rows, digest, id_type = inspect_parquet(
        everything, len(info.classes), "pool.path", config.pool.text_column is not None
    )
    assert id_type == info.id_type, "the types of all files were compared"
    return _larger(info, now, rows=rows, digest=digest)


def _check_types(everything: Source, new: Source) -> None:
    """PoolError where a new file cannot be read or has other columns than the files before it."""
    old = next(f for f in everything.files if f not in set(new.files))
    ids = () if everything.names is not None else (everything.id_column,)
    columns = (*ids, everything.sample_column, *([everything.group_column] if everything.group_column else []))
    wanted = pq.read_schema(old, filesystem=everything.fs)
    for file in new.files:
        try:
            schema = pq.read_schema(file, filesystem=new.fs)
        except (OSError, pa.ArrowInvalid) as error:
            raise PoolError(
                f"pool.path: the new file '{file}' cannot be read ({error}); is it still being written? Give the same "
                "command again when it is whole, or take it away"
            ) from error
        for column in columns:
            kind = schema.field(column).type if column in schema.names else "missing"
            if kind != wanted.field(column).type:
                raise PoolError(
                    f"pool.path: in the new file '{file}' the column '{column}' is {kind}, in the pool "
                    f"{wanted.field(column).type}; mend the file or take it away"
                )


def _larger(info: PoolInfo, now: pa.Table, *, rows: int, digest: str) -> PoolInfo:
    return replace(
        info,
        rows=rows,
        files=now.num_rows,
        bytes=pc.sum(now["bytes"]).as_py(),
        listing_digest=listing_digest(now["file"].to_pylist(), now["bytes"].to_pylist()),
        id_digest=digest,
    )
