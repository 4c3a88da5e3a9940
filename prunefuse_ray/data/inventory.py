"""The account of a pool before anything is bought: what lies there, what of it became samples, and what happened to it.

Nothing is left out, converted or guessed without a line here. What is exact and what was seen of a part only is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from prunefuse_ray import config as cfg
from prunefuse_ray.data import draw
from prunefuse_ray.data.account import LEFT_OUT_FILE, lines, pairs
from prunefuse_ray.data.contents import HeldOut, Overlap, overlaps, repeated
from prunefuse_ray.data.index import Index, label_counts
from prunefuse_ray.data.known_labels import Known
from prunefuse_ray.data.left_out import LeftOuts
from prunefuse_ray.data.look import ALL_BYTES, ALL_ROWS, SOME, Look, look
from prunefuse_ray.data.sample_format import Form, form_of
from prunefuse_ray.data.survey import Survey
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.errors import PoolError, PruneFuseError, ScoreError
from prunefuse_ray.schemas import HELD_OUT, LEFT_OUT
from prunefuse_ray.storage import Place

Tell = Callable[[Sequence[str]], None]
"""Called with the lines of an account."""
INVENTORY, HELD_OUT_FILE = "inventory.json", "pool/held-out.parquet"
FEW = 10
"""Unreadable samples in a part of a pool below which nothing is concluded of the whole."""


@dataclass(frozen=True, kw_only=True)
class SetAccount:
    """One of the sets."""

    samples: int
    files: int
    bytes: int
    left_out: dict[str, int]
    """Reason -> how many."""
    labels: dict[str, int]
    """Class -> samples, in the order of the classes; empty where the set has no labels."""
    looked: int
    """Samples whose heads were read; fewer than `samples` where the set is large."""
    decoded: bool
    """Whether they were decoded as well."""
    conversions: dict[str, int]
    """Kind -> how many of those looked at."""
    unreadable: dict[str, int]
    """Reason -> how many of those looked at."""
    sizes: dict[str, tuple[int, int]]
    """smallest, median and largest (height, width) of those looked at; empty of what has none."""
    repeated: int | None
    """Samples that have the content of another one; None where only a part was looked at."""
    examples: dict[str, list[str]]
    """Reason or kind -> the first few names or ids; `repeated`: some that are the same."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The account of a pool and its held-out sets. `inventory.json`."""

    classes: list[str]
    """In the order of their numbers."""
    sets: dict[str, SetAccount]
    """By setting: path, test_path, validation_path."""
    known_labels: dict[str, int]
    """Class -> labels that are known beforehand; a sample may have several."""
    known_notes: list[str]
    """What of their table was left aside, or understood otherwise than written."""
    known: int = 0
    """Samples whose label is known beforehand."""
    drawn: int = 0
    """Samples of the pool that are the test set (`pool.test_samples`); they count in `path`."""
    twins: int = 0
    """Others that have the content of one of them, as far as was looked at: they are left out of the pool."""
    compared: int
    """Samples of the pool whose contents were compared with the held-out sets."""
    overlaps: dict[str, Overlap]
    """Setting of a held-out set -> what of it lies in the pool, too."""
    numbers: bool = False
    """Whether labels are numbers, and the classes the names of the targets."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An inventory, and what of it is too long for its account."""

    inventory: Inventory
    left_out: dict[str, LeftOuts]
    """By setting."""
    twins: pa.Array | None = None
    """Ids of `Inventory.twins`."""
    held_out: pa.Table | None = None
    """`HELD_OUT`: what the pool has still to be compared with, while it is scored; None where that is done."""


def take(found: Survey, known: Known | None = None, *, thorough: bool = False, form: Form | None = None) -> Taken:
    """Account for what a survey found.

    Every sample of a pool that is not large is looked at: the heads of files, and digests of contents. Of a larger one
    a part is. The held-out sets are decoded, every network is tested on all of them, and digested whole, since the pool
    is compared with them.

    Args:
        known: labels that exist beforehand.
        thorough: look at all, and decode all.
        form: that samples are brought to; default: the pool's.
    """
    form = form or form_of(found.pool, found.info)
    accounts, digests, whole = {}, {}, {}
    for setting, index in found.indexes.items():
        held_out = setting != "path"
        whole[setting] = thorough or (index.rows <= ALL_ROWS and index.bytes <= ALL_BYTES)
        decoded = thorough or held_out
        seen, digests[setting] = look(
            index,
            form,
            some=None if whole[setting] or held_out else SOME,
            heads=None if whole[setting] or held_out else SOME,
            decode=decoded,
        )
        accounts[setting] = _account(index, seen, found.info.classes, digests[setting], whole[setting], decoded)
    held_out = _held_out({s: parts for s, parts in digests.items() if s != "path"})
    shared = overlaps(digests["path"], HeldOut(held_out))
    samples, classes = found.sets["path"], found.info.classes
    counts = Counter[int]() if known is None else label_counts(known.table["label"], samples.task, len(classes))
    labels = _by_class(counts, classes)
    if known is not None and samples.task.numbers:
        labels = {", ".join(classes): known.table.num_rows}
    pool = accounts["path"]
    twins = _twins(digests["path"], found.drawn) if found.drawn is not None and whole["path"] else None
    return Taken(
        inventory=Inventory(
            classes=found.info.classes,
            numbers=samples.task.numbers,
            sets=accounts,
            known_labels=labels,
            known=0 if known is None else known.table.num_rows,
            known_notes=[] if known is None else list(known.notes),
            drawn=0 if found.drawn is None else len(found.drawn),
            twins=0 if twins is None else len(twins),
            compared=pool.samples if whole["path"] else pool.looked,
            overlaps=shared,
        ),
        left_out={setting: index.left_out for setting, index in found.indexes.items()},
        twins=twins,
        held_out=held_out if held_out.num_rows and (found.pool.allow_growth or not whole["path"]) else None,
    )


def _twins(parts: Sequence[Any], drawn: pa.Array) -> pa.Array:
    with plain_errors():
        here = [part if isinstance(part, pa.Table) else ray.get(part) for part in parts]
    return draw.twins(pa.concat_tables(here), drawn)


def _account(index: Index, seen: Look, classes: list[str], digests: Any, whole: bool, decoded: bool) -> SetAccount:
    twice = repeated(digests, index.rows) if whole else None
    examples = {reason: list(names) for reason, names in index.left_out.examples.items()} | seen.examples
    if twice is not None and twice.samples:
        examples["repeated"] = [" = ".join(ids) for ids in twice.examples]
    return SetAccount(
        samples=index.rows,
        files=index.files,
        bytes=index.bytes,
        left_out=dict(index.left_out.counts),
        labels=_by_class(index.labels, classes),
        looked=seen.looked,
        decoded=decoded,
        conversions=dict(seen.conversions.most_common()),
        unreadable=dict(seen.unreadable.most_common()),
        sizes=_sizes(seen.sizes),
        repeated=None if twice is None else twice.samples,
        examples=examples,
    )


def _by_class(counts: Mapping[int, int], classes: list[str]) -> dict[str, int]:
    return {name: counts.get(n, 0) for n, name in enumerate(classes)} if counts else {}


def _sizes(sizes: Counter[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """By the number of pixels."""
    if not sizes:
        return {}
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    half, passed = sizes.total() / 2, 0
    for median in ordered:
        if (passed := passed + sizes[median]) >= half:
            break
    return {"smallest": ordered[0], "median": median, "largest": ordered[-1]}


def _held_out(parts: Mapping[str, Any]) -> pa.Table:
    """The digests of the held-out sets (`HELD_OUT`)."""
    tables = [HELD_OUT.empty_table()]
    for setting, several in parts.items():
        with plain_errors():
            here = [part if isinstance(part, pa.Table) else ray.get(part) for part in several]
        for table in here:
            tables.append(table.add_column(0, HELD_OUT.field("set"), pa.array([setting] * table.num_rows, pa.string())))
    return pa.concat_tables(tables)


# --- checked --------------------------------------------------------------------------------------------------------


def checked(taken: Taken, pool: cfg.Pool, tell: Tell) -> Taken:
    """The same, if a run may begin with it.

    Args:
        tell: is told the account where it may not: it shows what is wrong.

    Raises:
        PoolError: more of a held-out set lies in the pool than `pool.max_overlap` allows.
        PoolError: a sample of a held-out set cannot be read.
        ScoreError: more samples cannot be used than `pool.max_rejected` allows.
    """
    account = taken.inventory
    try:
        check_overlap(account.overlaps, {s: one.samples for s, one in account.sets.items()}, pool.max_overlap)
        _check_unreadable(account.sets["path"], pool.max_rejected)
        _check_held_out(account.sets)
    except PruneFuseError:
        tell(lines(account.to_json()))
        raise
    return taken


def _check_held_out(sets: Mapping[str, SetAccount]) -> None:
    """Found when a network is tested it would stop the run; and mended then it would be another test set."""
    for setting, one in sets.items():
        if setting != "path" and one.unreadable:
            reason = next(iter(one.unreadable))
            raise PoolError(
                f"pool.{setting}: {sum(one.unreadable.values()):,} of {one.samples:,} samples cannot be read, e.g. "
                f"{one.examples[reason][0]!r}: {reason}; fix them, or leave them out"
            )


def _check_unreadable(one: SetAccount, allowed: float) -> None:
    """What a look at a part of a pool leaves open is left to the scoring pass."""
    bad = sum(one.unreadable.values())
    if one.looked == one.samples or bad >= max(FEW, 2 * allowed * one.looked):
        reason = next(iter(one.unreadable), "")
        example = f"{one.examples[reason][0]!r}: {reason}" if bad else ""
        check_share(bad, one.looked, allowed, example, "Mend the pool, or raise pool.max_rejected")


def check_share(bad: int, rows: int, allowed: float, example: str, remedy: str) -> None:
    """ScoreError where more than the `allowed` share of so many samples cannot be used."""
    if bad > allowed * rows:
        raise ScoreError(
            f"pool.max_rejected: {bad} of {rows} samples cannot be used, more than the allowed share {allowed:g}; e.g. "
            f"{example}. {remedy}"
        )


def check_overlap(shared: Mapping[str, Overlap], rows: Mapping[str, int], allowed: float) -> None:
    """PoolError where more than the allowed share of a held-out set lies in the pool by its content."""
    for setting, overlap in shared.items():
        if overlap.held_out > allowed * rows[setting]:
            raise PoolError(
                f"pool.max_overlap: the pool holds the very bytes of {overlap.held_out} of the {rows[setting]} samples "
                f"of pool.{setting} ({pairs(overlap.examples)}), more than the allowed share {allowed:g}; take them "
                "out of the pool, or raise pool.max_overlap"
            )


# --- kept -----------------------------------------------------------------------------------------------------------


def write(taken: Taken, root: Place) -> None:
    """Write the account and its full lists into a run's directory."""
    (root / INVENTORY).write_json(taken.inventory.to_json())
    if any(found.total for found in taken.left_out.values()):
        if all(isinstance(part, pa.Table) for found in taken.left_out.values() for part in found.parts):
            _write_left_out(root, {setting: found.parts for setting, found in taken.left_out.items()})
        else:
            task = ray.remote(num_cpus=0.5)(_write_left_out)
            with plain_errors():
                ray.get(task.remote(root, {setting: found.parts for setting, found in taken.left_out.items()}))
    if taken.twins is not None and len(taken.twins):
        draw.write_ids(taken.twins, root, draw.TWINS_FILE)
    if taken.held_out is not None:
        (root / HELD_OUT_FILE).write_table(taken.held_out)


def _write_left_out(root: Place, parts: Mapping[str, Any]) -> None:
    """One table after the other: those of a large pool are many."""
    place = root / LEFT_OUT_FILE
    root.fs.create_dir(root.path, recursive=True)
    with root.fs.open_output_stream(place.path) as stream, pq.ParquetWriter(stream, LEFT_OUT) as writer:
        for setting, several in parts.items():
            for part in several:
                table = part if isinstance(part, pa.Table) else ray.get(part)
                named = pa.array([setting] * table.num_rows, pa.string())
                writer.write_table(table.add_column(0, LEFT_OUT.field("set"), named))
