"""Random selection: by a hash of the id, so that neither order nor sharding matters."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.acquisition.hashing import hash_ids, mix, scores_of
from prunefuse_ray.acquisition.ranking import best
from prunefuse_ray.data.ids import IdSet, ids_to_numpy, of_one_width
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import in_tasks, tables


def select_random(source: Source, k: int, seed: int, round_: int, exclude: pa.Array) -> pa.Table:
    """The k ids of highest random score that are not in `exclude`: (id, score), best first. Reads ids alone. Among
    equal scores, of which a billion samples have many, all of the hash decides: ids may begin with the class."""
    parts = in_tasks(_random_part, source, k, seed, round_, IdSet.of(exclude))
    return best(pa.concat_tables(parts), k, by="bits").select(["id", "score"])


def _random_part(source: Source, k: int, seed: int, round_: int, exclude: IdSet) -> pa.Table:
    kept = None  # where all files of this part are empty, as distributed writers leave them
    for table in tables(source, [source.id_column]):
        ids = of_one_width(table[source.id_column]).combine_chunks()
        bits = mix(hash_ids(ids_to_numpy(ids)), seed, round_)
        rows = pa.table({"id": ids, "score": pa.array(scores_of(bits)), "bits": pa.array(bits)})
        if kept is not None and kept.num_rows == k:  # what cannot win is not sorted
            rows = rows.filter(pc.greater_equal(rows["bits"], kept["bits"][k - 1]))
        rows = rows.filter(pa.array(~exclude.holds(rows["id"])))
        kept = best(rows if kept is None else pa.concat_tables([kept, rows]), k, by="bits")
    none = {"id": exclude.ids[:0], "score": pa.array([], pa.float32()), "bits": pa.array([], pa.uint64())}
    return pa.table(none) if kept is None else kept
