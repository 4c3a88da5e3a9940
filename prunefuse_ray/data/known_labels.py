"""Labels that exist before a run begins: read, checked against classes and pool, all faults said at once."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from prunefuse_ray import config as cfg
from prunefuse_ray.data.index import Index, normal_ids, present, present_in
from prunefuse_ray.data.pool import PoolInfo, Source
from prunefuse_ray.errors import PoolError
from prunefuse_ray.schemas import arrow_type
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task

SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Known:
    """Labels from a file: one row (id, label) per sample, ordered by id; and the file's contents for its digest."""

    table: pa.Table
    content: bytes


def read_known(path: str, info: PoolInfo, task: Task) -> Known:
    """Read `pool.known_labels`: Parquet or CSV with the columns id and label, as `Task.label` takes it.

    Raises:
        PoolError: no such file or columns, labels outside the classes, a sample with two different labels.
    """
    place = Place.at(path)
    try:
        content = place.read_bytes()
    except OSError as error:
        raise PoolError(f"pool.known_labels: '{path}' cannot be read ({error}); give a file") from error
    found = _read(content, path)
    if missing := {"id", "label"} - set(found.column_names):
        raise PoolError(
            f"pool.known_labels: '{path}' has no column '{min(missing)}'; it has {', '.join(found.column_names)}"
        )
    try:
        ids = found["id"].cast(arrow_type(info.id_type))
    except pa.ArrowInvalid as error:
        raise PoolError(f"pool.known_labels: ids that are not of the pool's type {info.id_type}: {error}") from error
    labels: dict[Any, Any] = {}
    faults: list[str] = []
    for id_, given in zip(normal_ids(ids).to_pylist(), found["label"].to_pylist(), strict=True):
        label = task.label(given, info.classes)
        if id_ in (None, ""):
            faults.append("a row without an id")
        elif label is None:
            faults.append(f"{id_!r}: {given!r} is none of the {len(info.classes)} classes")
        elif labels.setdefault(id_, label) != label:
            faults.append(f"{id_!r}: both {info.classes[labels[id_]]!r} and {info.classes[label]!r}")
    if faults:
        raise PoolError(f"pool.known_labels: {_some(faults)}; mend '{path}'")
    columns = [pa.array(labels, arrow_type(info.id_type)), pa.array(labels.values(), task.label_type)]
    return Known(table=pa.table(columns, ["id", "label"]).sort_by("id"), content=content)


def check_known_labels(pool: cfg.Pool, task: str, info: PoolInfo, index: Index | None = None) -> pa.Table | None:
    """The labels (id, label) of `pool.known_labels`; None where it is not set.

    Args:
        task: what labels are (`tasks.TASKS`).
        index: of the pool, where it has been looked through just now: it has to hold these samples.

    Raises:
        PoolError: see `read_known`; and samples that the pool lacks.
    """
    path = pool.known_labels
    if path is None:
        return None
    known = read_known(path, info, TASKS[task]).table
    if index is not None:
        wanted = known["id"].combine_chunks()
        there = normal_ids(present(index, wanted))
        absent = wanted.filter(pc.invert(pc.is_in(normal_ids(wanted), value_set=there))).to_pylist()
        if absent:
            raise PoolError(
                f"pool.known_labels: {len(absent)} of {len(wanted)} ids are not in the pool: "
                f"{_some([repr(i) for i in absent])}; mend '{path}' or pool.path"
            )
    return known


def in_pool(known: pa.Table, pool: Source) -> pa.Table:
    """Labels (id, label) with the ids as the pool spells them: of two Unicode forms of a name (NFC, NFD) a table may
    have the one, and the pool the other."""
    ids = known["id"].combine_chunks()
    if not pa.types.is_string(ids.type) or pc.all(pc.string_is_ascii(ids)).as_py() in (True, None):
        return known
    theirs = present_in(pool, ids.filter(pc.invert(pc.string_is_ascii(ids))))
    place = pc.index_in(ids, value_set=normal_ids(theirs))
    return known.set_column(0, "id", pc.coalesce(theirs.take(place), ids)).sort_by("id")


def _read(content: bytes, path: str) -> pa.Table:
    try:
        if path.lower().endswith(".csv"):
            # As text: ids such as 007 must not become numbers.
            names = pyarrow.csv.open_csv(io.BytesIO(content)).schema.names
            types = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
            return pyarrow.csv.read_csv(io.BytesIO(content), convert_options=types)
        return pq.read_table(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        raise PoolError(f"pool.known_labels: '{path}' is no readable CSV or Parquet file ({error})") from error


def _some(faults: list[str]) -> str:
    return "; ".join(faults[:SHOWN]) + (f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else "")
