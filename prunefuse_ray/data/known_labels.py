"""Labels that exist before a run begins: read, checked against classes and pool, all faults said at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray import config as cfg
from prunefuse_ray.data.draw import outside
from prunefuse_ray.data.index import Index, normal_ids, present, present_in
from prunefuse_ray.data.label_tables import AT_ONCE, Labels, TableError, read_id, read_table
from prunefuse_ray.data.pool import PoolInfo, Source
from prunefuse_ray.errors import PoolError, few
from prunefuse_ray.schemas import arrow_type
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task

SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Known:
    """Labels from a file: one row (id, label) per sample, ordered by id; and the digest of the file."""

    table: pa.Table
    sha256: str
    notes: tuple[str, ...] = ()
    """What was left aside, and what was understood otherwise than written."""
    blanks: tuple[str, ...] = ()
    """Ids that stand there with blanks around them."""


def read_known(path: str, info: PoolInfo, task: Task) -> Known:
    """Read `pool.known_labels`: a table (`label_tables.py`) with the columns id and label, as `Task.label` takes it.

    Raises:
        PoolError: no such file or columns, labels outside the classes, a sample with two different labels.
    """
    place = Place.at(path)
    try:
        content = place.read_bytes()
    except OSError as error:
        raise PoolError(f"pool.known_labels: '{path}' cannot be read ({error}); give a file") from error
    given = Labels(task=task, classes=info.classes, beside=place.parent)
    gathered = _Gathered(pa.schema([("id", arrow_type(info.id_type)), ("label", task.label_type)]))
    faults: list[str] = []
    blanks, without, outside = [], 0, False
    try:
        found = read_table(content, ("id", "label"))
        for row in found.lines:
            id_, cell = read_id(row.cells["id"], arrow_type(info.id_type)), row.cells["label"]
            if given.missing(cell):
                without += 1
                continue
            label, wrong = given.read(cell)
            if isinstance(id_, str) and id_ != id_.strip():
                blanks.append(id_)
                id_ = id_.strip()
            if id_ in (None, ""):
                empty = row.cells["id"] in (None, "")
                what = "a row without an id" if empty else f"id '{row.cells['id']}' is no integer"
                faults.append(f"line {row.number}: {what}")
            elif wrong is not None:
                faults.append(f"line {row.number} ({id_!r}): {wrong}")
                outside = True
            else:
                gathered.add(id_, label)
    except TableError as error:
        raise PoolError(f"pool.known_labels: '{path}' {_some(error.faults)}") from error
    labels, twice = _once(gathered.table())
    for id_, both in twice.items():
        faults.append(f"{id_!r}: both {' and '.join(repr(task.named(one, info.classes)) for one in both)}")
    if faults:
        outside = outside and not (task.numbers or task.pixels)
        named = f"; the classes are {_some(info.classes, ', ')}" if outside else ""
        raise PoolError(f"pool.known_labels: {_some(faults)}{named}; fix '{path}'")
    left = [f"{without:,} rows without a label are left out"] if without else []
    trimmed = [f"blanks around {len(blanks):,} ids are left out"] if blanks else []
    return Known(
        table=labels,
        sha256=hashlib.sha256(content).hexdigest(),
        notes=(*found.notes, *left, *trimmed, *given.notes),
        blanks=tuple(blanks),
    )


class _Gathered:
    """Rows (id, label) as they are read, in Arrow's arrays: as Python's objects a million takes half a gigabyte."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.batches = schema, list[pa.RecordBatch]()
        self.ids, self.labels = list[Any](), list[Any]()

    def add(self, id_: Any, label: Any) -> None:
        self.ids.append(id_)
        self.labels.append(label)
        if len(self.ids) == AT_ONCE:
            self._put()

    def _put(self) -> None:
        columns = [pa.array(c, f.type) for c, f in zip((self.ids, self.labels), self.schema, strict=True)]
        self.batches.append(pa.record_batch(columns, schema=self.schema))
        self.ids, self.labels = [], []

    def table(self) -> pa.Table:
        self._put()
        return pa.Table.from_batches(self.batches, self.schema)


def _once(rows: pa.Table) -> tuple[pa.Table, dict[Any, tuple[Any, Any]]]:
    """Each id once, ordered by id; and of ids that have two different labels these two."""
    ordered = rows.sort_by("id")
    ids = ordered["id"].combine_chunks()
    if len(ids) < 2:
        return ordered, {}
    again = pa.concat_arrays([pa.array([False]), pc.equal(ids[1:], ids[:-1])])
    several = rows.filter(pc.is_in(rows["id"], value_set=ids.filter(again)))
    first, twice = dict[Any, Any](), dict[Any, tuple[Any, Any]]()
    for id_, label in zip(several["id"].to_pylist(), several["label"].to_pylist(), strict=True):
        if first.setdefault(id_, label) != label:
            twice.setdefault(id_, (first[id_], label))
    return ordered.filter(pc.invert(again)), twice


def check_known_labels(pool: cfg.Pool, task: str, info: PoolInfo, index: Index | None = None) -> Known | None:
    """The labels of `pool.known_labels`; None where it is not set.

    Args:
        task: what labels are (`tasks.TASKS`).
        index: of the pool, where it has been looked through just now: it has to hold these samples.

    Raises:
        PoolError: see `read_known`; and samples that the pool lacks.
    """
    path = pool.known_labels
    if path is None:
        return None
    known = read_known(path, info, TASKS[task])
    if index is None:
        return known
    if not known.table.num_rows:  # an earlier version took it: what began so goes on
        raise PoolError(f"pool.known_labels: '{path}' holds no label; fill it in, or leave pool.known_labels out")
    wanted = known.table["id"].combine_chunks()
    there = normal_ids(present(index, wanted))
    absent = wanted.filter(pc.invert(pc.is_in(normal_ids(wanted), value_set=there))).to_pylist()
    if absent:
        raise PoolError(
            f"pool.known_labels: {len(absent)} of {len(wanted)} ids are not in the pool: "
            f"{_some([repr(i) for i in absent])}; fix '{path}' or pool.path"
        )
    if known.blanks and len(same := present(index, pa.array(known.blanks, wanted.type))):
        raise PoolError(
            f"pool.known_labels: the pool has samples whose ids differ by blanks alone, such as {same[0].as_py()!r}: "
            "which one is meant is not clear; make ids differ by more"
        )
    return known


def known_count(known: Known | None, drawn: pa.Array | None) -> int:
    """How many labels the initial set has beforehand: all but those of a test set that is drawn from the pool."""
    if known is None:
        return 0
    return (known.table if drawn is None else outside(known.table, normal_ids(drawn))).num_rows


def in_pool(known: pa.Table, pool: Source) -> pa.Table:
    """Labels (id, label) with the ids as the pool spells them: of two Unicode forms of a name (NFC, NFD) a table may
    have the one, and the pool the other."""
    ids = known["id"].combine_chunks()
    if not pa.types.is_string(ids.type) or pc.all(pc.string_is_ascii(ids)).as_py() in (True, None):
        return known
    theirs = present_in(pool, ids.filter(pc.invert(pc.string_is_ascii(ids))))
    place = pc.index_in(ids, value_set=normal_ids(theirs))
    return known.set_column(0, "id", pc.coalesce(theirs.take(place), ids)).sort_by("id")


def _some(several: Sequence[str], between: str = "; ") -> str:
    return few(several, SHOWN, between, f"{between}and {{}} more")
