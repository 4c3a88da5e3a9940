"""The test set that a pool without one gives: so many samples (`pool.test_samples`), drawn by a hash of their ids.

Drawn once, before a run begins, whatever its seed and strategy: runs on the same pool are tested on the same samples,
and of a pool with some more files on nearly the same. The ids are kept in the run's directory, so a pool that grows
changes nothing. From then on the pool is what is left: nothing of the draw is scored, selected or learned from.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from prunefuse_ray import config as cfg
from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.acquisition.draws import TEST_SET
from prunefuse_ray.acquisition.ranking import best
from prunefuse_ray.data.ids import ids_to_numpy, of_one_width
from prunefuse_ray.data.index import Index
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import in_tasks, tables
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.storage import Place

IDS_FILE, TWINS_FILE = "pool/test-ids.parquet", "pool/test-twins.parquet"


def test_set(index: Index, pool: cfg.Pool) -> pa.Array:
    """The ids of the test set, in the order of the draw. ConfigError where the pool has no more than that."""
    if pool.test_samples >= index.rows:
        raise ConfigError(
            f"pool.test_samples: {pool.test_samples} of a pool of {index.rows} samples leave none to select; lower it"
        )
    if index.parts:
        task = ray.remote(num_cpus=0.5)(_of_part)
        answers: list[Any] = [task.remote(part, pool.test_samples) for part in index.parts]
        with plain_errors():
            parts = ray.get(answers)
    else:
        parts = in_tasks(_of_source, index.source, pool.test_samples)
    return best(pa.concat_tables([p for p in parts if p is not None]), pool.test_samples)["id"].combine_chunks()


def _of_part(rows: pa.Table, count: int) -> pa.Table | None:
    return _drawn(rows["id"], count) if rows.num_rows else None


def _of_source(source: Source, count: int) -> pa.Table | None:
    kept = None
    for table in tables(source, [source.id_column]):
        rows = _drawn(table[source.id_column], count)
        kept = best(rows if kept is None else pa.concat_tables([kept, rows]), count)
    return kept


def _drawn(ids: pa.ChunkedArray, count: int) -> pa.Table:
    ids = of_one_width(ids)
    return best(pa.table({"id": ids, "score": pa.array(random_scores(ids_to_numpy(ids), *TEST_SET))}), count)


def twins(digests: pa.Table, drawn: pa.Array) -> pa.Array:
    """Ids of the samples that have the content of one that was drawn, and were not drawn themselves.

    Args:
        digests: of the whole pool (`DIGESTS`).
    """
    ids = drawn.cast(pa.string())
    inside = pc.is_in(digests["id"], value_set=ids)
    contents = digests["digest"].filter(inside).drop_null().combine_chunks()
    same = pc.and_(pc.invert(inside), pc.is_in(digests["digest"], value_set=contents))
    return digests["id"].filter(same).combine_chunks().cast(drawn.type)


def write_ids(ids: pa.Array, root: Place, name: str) -> None:
    (root / name).write_table(pa.table({"id": ids}))


def read_ids(root: Place, id_type: pa.DataType, name: str) -> pa.Array:
    """The ids that a run has recorded; none where it has no such file."""
    place = root / name
    return (
        place.read_table(pa.schema([("id", id_type)]))["id"].combine_chunks()
        if place.exists()
        else pa.array([], id_type)
    )


def outside(rows: pa.Table, drawn: pa.Array) -> pa.Table:
    """Rows (id, ...) without those of the draw."""
    return rows.filter(pc.invert(pc.is_in(rows["id"], value_set=drawn.cast(rows["id"].type))))


def within(rows: pa.Table, drawn: pa.Array) -> pa.Table:
    """Rows (id, ...) of the draw."""
    return rows.filter(pc.is_in(rows["id"], value_set=drawn.cast(rows["id"].type)))
