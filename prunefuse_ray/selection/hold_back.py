"""Samples that are like none of the labeled ones: named, and held back from the selection.

A sample that belongs to no class lies far from all labeled samples in the features (Sun, Y., et al., "Out-of-
Distribution Detection with Deep Nearest Neighbors", ICML 2022; here the nearest labeled sample is the neighbor). What
is far is told by the labeled samples themselves: USUAL of them are nearer to another one. A class that has no label yet
is far from all, too, so this is for pools with foreign samples, once every class has labels.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunefuse_ray.acquisition import hash_ids
from prunefuse_ray.acquisition.fixed_point import (
    Float32s,
    Points,
    exponent,
    magnitudes,
    nearest,
    to_fixed,
    within,
    within_reach,
)
from prunefuse_ray.data.ids import ids_to_numpy
from prunefuse_ray.distributed.remote import GROUPS, over
from prunefuse_ray.selection.rows import READ_BYTES, Files, matrices, read
from prunefuse_ray.storage import Place

USUAL = 0.95
"""Share of the labeled samples that are no farther from the nearest other one than what is called usual."""
JUDGED = 4_096
"""Labeled samples by which the usual distance is judged, at most."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is left to select from, and what is not."""

    files: Files
    """Copies of the score files in which samples that are held back have no score."""
    held: pa.Table
    """(id, distance) by falling distance, ties by id: Euclidean, to the nearest labeled sample."""
    limit: float
    """Samples beyond this distance are held back."""


def hold_back(files: Files, labeled: Files, times: float, out: Place) -> Kept:
    """Leave out samples that are more than `times` the usual distance from every labeled one.

    Args:
        files: with all columns that the selection reads; `feature` is one of them.
        out: where copies of the score files are written.
    """
    known = read(replace(labeled, columns=("feature",)))
    (vectors_ND,) = known.vectors
    reach = within_reach(float(np.abs(vectors_ND).max(initial=0.0)), magnitudes(vectors_ND))
    power = exponent(reach, vectors_ND.shape[1])
    points = Points.of([within(vectors_ND, power)])
    limit = times * usual_distance(points, hash_ids(ids_to_numpy(known.ids)))
    out.fs.create_dir(out.path, recursive=True)
    args = (points, power, limit, out)
    parts = list(over(_hold_back, files.cut(GROUPS), *args, size=sum(files.sizes)))
    held = pa.concat_tables([rows for rows, _, _ in parts]) if parts else pa.table({"id": [], "distance": []})
    order = [("distance", "descending"), ("id", "ascending")]
    return Kept(
        files=replace(
            files,
            paths=tuple(path for _, paths, _ in parts for path in paths),
            sizes=tuple(size for _, _, sizes in parts for size in sizes),
        ),
        held=held.sort_by(order),
        limit=float(np.ldexp(limit, -power)),
    )


def usual_distance(points: Points, hashes_N: np.ndarray) -> float:
    """The distance within which USUAL of the labeled samples have another one, in the points' own unit."""
    judged = np.argsort(hashes_N, kind="stable")[:JUDGED]
    squares = []
    for row in np.array_split(judged, max(1, len(judged) // 256)):
        d_MN = points.distances(points.take(row))
        d_MN[np.arange(len(row)), row] = np.inf
        squares.append(d_MN.min(axis=1))
    found = np.sort(np.sqrt(np.concatenate(squares)))
    return float(found[min(len(found) - 1, int(USUAL * len(found)))])


def _hold_back(
    files: Files, known: Points, power: int, limit: float, out: Place
) -> tuple[pa.Table, Sequence[str], Sequence[int]]:
    """A task: copies of some score files, and what is held back of them."""
    held, paths, sizes = [], [], []
    for path in files.paths:
        copy = out / posixpath.basename(path)
        with files.where.fs.open_input_file(path) as source, out.fs.open_output_stream(copy.path) as target:
            file = pq.ParquetFile(source)
            width = 4 * file.schema_arrow.field("feature").type.list_size + 64
            with pq.ParquetWriter(target, file.schema_arrow) as writer:
                for batch in file.iter_batches(batch_size=max(256, READ_BYTES // width)):
                    rows, far = _without_far(pa.Table.from_batches([batch]), known, power, limit)
                    held.append(far)
                    writer.write_table(rows.cast(file.schema_arrow))
        paths.append(copy.path)
        sizes.append(out.fs.get_file_info(copy.path).size)
    return pa.concat_tables(held), paths, sizes


def _without_far(rows: pa.Table, known: Points, power: int, limit: float) -> tuple[pa.Table, pa.Table]:
    """The rows, those that are too far without a score; and (id, distance) of these."""
    scored = pc.is_valid(rows["score"]).to_numpy()
    (features_ND,) = matrices(rows.filter(pa.array(scored)), ("feature",))
    distance_N = np.zeros(len(scored))
    distance_N[scored] = _distances(np.array(features_ND), known, power)
    far = distance_N > limit
    scores = pa.array(rows["score"].to_numpy(), pa.float32(), mask=far | ~scored)
    place = rows.schema.get_field_index("score")
    named = pa.table({"id": rows["id"], "distance": np.ldexp(distance_N, -power)})
    return rows.set_column(place, "score", scores), named.filter(pa.array(far))


def _distances(features_ND: Float32s, known: Points, power: int) -> np.ndarray:
    return np.sqrt(nearest(Points.of([to_fixed(features_ND, power)]), known)[1])
