"""Set strategies: choices in which the samples know of each other, over score files with features.

Each is exact and does not depend on how the rows lie in files, nor on the number of shards: distances are exact
(`acquisition/fixed_point.py`), ties go to the smaller id, and chance is a hash of the id.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from prunefuse_ray.acquisition import (
    TOO_CLOSE,
    Front,
    Points,
    Rule,
    hash_ids,
    means,
    place_in_group,
    round_robin,
    take_in_turn,
    turn_order,
)
from prunefuse_ray.data.reading import ids_to_numpy
from prunefuse_ray.distributed.remote import GROUPS, plain_errors
from prunefuse_ray.selection.shards import Added, Candidates, Files, Rows, Shards, attempt, count_shards, read
from prunefuse_ray.selection.top_k import best_of_groups, enough, ranked, sort_keys, threshold_bucket

CANDIDATE_BYTES = 2**20
"""Points that a shard sends at each step; more make fewer steps."""

EXACT_WORK = 10**13
"""Multiply-adds up to which greedy k-centers is exact, about twenty minutes of one core."""
SURPLUS = 2
"""The first of two rounds takes so many times the samples that are wanted."""
MAX_PARTS = 16
"""Parts in the first of two rounds: more of them save work, but each then chooses so few that all choose alike."""
PART_BYTES = 2**30
"""Features of one part at most: it is one task's; where they are more, there are more parts."""
DEALT_ROW = 10_000
"""What it costs to read a row and deal it out, in multiply-adds."""

MAX_CLUSTERS = 1_000
SAMPLES_PER_CLUSTER = 10
"""Clusters of `cluster_margin`: one for so many samples of the batch, at least so many, at most MAX_CLUSTERS."""
LLOYD_STEPS = 5
MARGIN_POOL = 10
"""`cluster_margin` chooses among so many times the batch of smallest margin (k_m = 10 k_t in the paper)."""


def k_centers(files: Files, known: Files | None, k: int, cpus: float) -> pa.Table:
    """Greedy k-centers: again and again the sample farthest from its nearest labeled or chosen one.

    Sener, O., Savarese, S., "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
    algorithm 1; within a factor of two of the best covering radius (Gonzalez 1985).

    Where that is too much work (`parts_of`), in two rounds: the samples are dealt into parts by the hashes of their
    ids, in each part SURPLUS x its share of k is chosen, and k among all of these. Every part is a random sample of the
    pool and so looks like it; after Malkomes et al., "Fast Distributed k-Center Clustering with Outliers on Massive
    Data", NeurIPS 2015, who take k in every part, for a guarantee, and so save no work but time. What it costs in
    covering radius: `jobs/benchmark.py centers --two-rounds-rows 300000`.

    Args:
        known: files with the features of the labeled samples; None: there are none.
        cpus: of the cluster.

    Returns:
        (id, score, rank) in the order of the choice; the scores are those of the files.
    """
    rows, dimensions = files.shape()
    parts = parts_of(rows, known.shape()[0] if known else 0, k, sum(dimensions))
    if parts > 1:
        return in_two_rounds(files, known, k, parts)

    def choose() -> pa.Table:
        with shards_of(files, k, cpus, known) as shards:
            return _k_centers(shards, known, k).table

    return attempt(choose)


def parts_of(rows: int, known: int, k: int, dimensions: int) -> int:
    """Into how many parts greedy k-centers deals the samples; 1: it is exact. Sizes alone decide, not the cluster, so
    that the same pool gives the same choice.

    Two rounds are for more than EXACT_WORK, and where they at least halve it: every part begins from the labeled
    samples as the exact choice does, so these save nothing, and the second round grows with the square of k.
    """
    exact = rows * (known + k) * dimensions
    parts = max(int(np.clip(rows // k, 2, MAX_PARTS)), math.ceil(4 * rows * dimensions / PART_BYTES))
    first = rows * (DEALT_ROW + (known + SURPLUS * k / parts) * dimensions)
    second = SURPLUS * k * (known + k) * dimensions
    return parts if exact > EXACT_WORK and 2 * (first + second) <= exact else 1


def _k_centers(shards: Shards, known: Files | None, k: int) -> Chosen:
    rule = Rule(kind="farthest")
    shards("begin", rule, known)
    return greedy(shards, rule, k)


@contextmanager
def shards_of(files: Files, k: int, cpus: float, known: Files | None = None) -> Iterator[Shards]:
    """The files' rows in as many shards as they are worth. ScoreError where there are fewer than k."""
    rows, dimensions = files.shape()
    enough(rows, k)  # with its score or without: where there is nothing, nothing can be read
    with Shards(files, count_shards(files, cpus, rows, dimensions), known) as shards:
        enough(shards.rows, k)
        yield shards


def badge(files: Files, k: int, seed: int, round_: int, cpus: float) -> pa.Table:
    """BADGE: k-means++ over the gradient embeddings g = (p - y) ⊗ h, of which only the factors are kept.

    Ash, J. et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", ICLR 2020, algorithm 1.
    As in the authors' code the first sample is the one with the largest gradient. Each further one is drawn with a
    probability proportional to its squared distance from the nearest chosen one (Arthur, Vassilvitskii 2007).

    Args:
        files: with the columns (gradient, feature).

    Returns:
        (id, score, rank) in the order of the choice; the scores are those of the files.
    """

    def choose() -> pa.Table:
        with shards_of(files, k, cpus) as shards:
            return race(shards, k, seed, round_).table

    return attempt(choose)


def cluster_margin(files: Files, k: int, seed: int, round_: int, cpus: float) -> pa.Table:
    """Cluster-Margin: of the samples of smallest margin one from each cluster in turn, the smallest cluster first.

    Citovsky, G. et al., "Batch Active Learning at Scale", NeurIPS 2021, algorithms 1 and 2. Different from there: the
    clusters are those of k-means (k-means++ seeds, LLOYD_STEPS of Lloyd's algorithm; exact sums, so sharding does not
    matter) in place of average linkage, of the round's own features; and within a cluster margin decides, not chance.

    Args:
        files: with the column (feature,), and scores by `margin` (1 - margin).

    Returns:
        (id, score, rank) in the order of the choice.
    """

    def choose() -> pa.Table:
        with shards_of(files, k, cpus) as shards:
            return _cluster_margin(shards, k, seed, round_)

    return attempt(choose)


def _cluster_margin(shards: Shards, k: int, seed: int, round_: int) -> pa.Table:
    count = min(shards.rows, MAX_CLUSTERS, max(SAMPLES_PER_CLUSTER, k // SAMPLES_PER_CLUSTER))
    centers = race(shards, count, seed, round_).points
    for _ in range(LLOYD_STEPS):
        sums, counts = zip(*shards("sums", centers), strict=True)
        centers = means(np.sum(sums, axis=0), np.sum(counts, axis=0), centers)
    shards("assign", centers)
    least = _smallest_margins(shards, min(shards.rows, k * MARGIN_POOL))
    sizes = np.sum(shards("reduce", _cluster_sizes, least, count), axis=0)
    quotas = round_robin(sizes, k)
    rows: pa.Table | None = None
    for part in shards.one_by_one("reduce", _best_of_clusters, quotas):
        rows = best_of_groups(part if rows is None else pa.concat_tables([rows, part]), quotas)
    assert rows is not None
    turn = np.empty(count, np.int64)
    turn[turn_order(sizes)] = np.arange(count)
    clusters = rows["group"].to_numpy()
    order = np.lexsort([turn[clusters], place_in_group(clusters)])
    return ranked(rows.select(["id", "score"]).take(pa.array(order)))


def _smallest_margins(shards: Shards, m: int) -> np.uint32:
    """The key of the m-th highest score (1 - margin): by a radix select over the shards' scores."""
    bucket, above = threshold_bucket(np.sum(shards("reduce", _count_keys, None), axis=0), m)
    low, _ = threshold_bucket(np.sum(shards("reduce", _count_keys, bucket), axis=0), m - above)
    return np.uint32((bucket << 16) | low)


def _count_keys(_ids: Any, scores_N: Any, _clusters: Any, bucket: int | None) -> npt.NDArray[np.int64]:
    keys = sort_keys(scores_N)
    upper = keys >> np.uint32(16)
    return np.bincount(upper if bucket is None else keys[upper == bucket] & np.uint32(0xFFFF), minlength=1 << 16)


def _cluster_sizes(_ids: Any, scores_N: Any, clusters_N: Any, least: np.uint32, count: int) -> npt.NDArray[np.int64]:
    return np.bincount(clusters_N[sort_keys(scores_N) >= least], minlength=count)


def _best_of_clusters(ids: pa.Array, scores_N: Any, clusters_N: Any, quotas: npt.NDArray[np.int64]) -> pa.Table:
    return best_of_groups(pa.table({"id": ids, "score": scores_N, "group": clusters_N}), quotas)


def spread(files: Files, known: Files | None, k: int, min_distance: float, cpus: float) -> tuple[pa.Table, int]:
    """The k best scores among samples that keep `min_distance` from each other and from the labeled ones.

    From the best downwards, ties by id, each sample is taken unless one taken before, or a labeled one, is nearer
    (Euclidean distance of the features). Where too few keep it, the best of the others fill up.

    Returns:
        (id, score, rank) in the order of the choice, and how many of them do not keep the distance.
    """

    def choose() -> tuple[pa.Table, int]:
        with shards_of(files, k, cpus, known) as shards:
            within = float(np.ldexp(float(min_distance), shards.powers[0])) ** 2
            rule = Rule(kind="spread", within=within)
            shards("begin", rule, known)
            chosen = greedy(shards, rule, k)
            return chosen.table, int((chosen.keys > TOO_CLOSE / 2).sum())

    return attempt(choose)


# --- the common engine ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A greedy choice: (id, score, rank), and the chosen points with their keys when they were taken."""

    table: pa.Table
    points: Points
    keys: npt.NDArray[np.float64]


def race(shards: Shards, k: int, seed: int, round_: int) -> Chosen:
    """k-means++ over all points; the first is the one of largest norm."""
    rule = Rule(kind="race")
    shards("begin", rule, None, seed, round_)
    widest = _together(shards("widest"))
    largest = max(float(w.points.squares_N[0]) for w in widest)
    first = min((w for w in widest if w.points.squares_N[0] == largest), key=lambda w: w.ids[0].as_py())
    return greedy(shards, rule, k, first)


def greedy(shards: Shards, rule: Rule, k: int, first: Candidates | None = None) -> Chosen:
    """Take k points by `rule`, which the shards have begun with. Each step is one broadcast of the points taken and
    one reduction of the shards' candidates, and takes as many points as the candidates decide."""
    width = int(np.clip(CANDIDATE_BYTES // shards.point_bytes, 16, 512))
    steps: list[tuple[Added, pa.Table]] = []
    if first is not None:
        added = Added(points=first.points, times=np.zeros(1), shards=np.array([first.shard]), rows=first.rows)
        steps.append((added, pa.table({"id": first.ids, "score": first.scores})))
    taken = len(steps)
    while taken < k:
        parts = _together(shards("advance", steps[-1][0] if steps else None, width))
        steps.append(_take(rule, parts, k - taken))
        taken += steps[-1][1].num_rows
    return Chosen(
        table=ranked(pa.concat_tables([table for _, table in steps])),
        points=Points.concat([added.points for added, _ in steps]),
        keys=np.concatenate([added.times for added, _ in steps]),
    )


def _together(parts: list[Candidates]) -> list[Candidates]:
    """The parts that have any rows."""
    return [part for part in parts if len(part.rows)]


def _take(rule: Rule, parts: list[Candidates], limit: int) -> tuple[Added, pa.Table]:
    """What the candidates of all shards decide: the points taken, and their rows (id, score)."""
    table = pa.table(
        {
            "id": pa.concat_arrays([p.ids for p in parts]),
            "score": np.concatenate([p.scores for p in parts]),
            "shard": np.concatenate([np.full(len(p.rows), p.shard) for p in parts]),
            "row": np.concatenate([p.rows for p in parts]),
        }
    )
    by_id = pc.sort_indices(table["id"]).to_numpy()
    table = table.take(pa.array(by_id))
    points = Points.concat([p.points for p in parts]).take(by_id)
    keys = np.concatenate([p.keys for p in parts])[by_id]
    nearest = np.concatenate([p.nearest for p in parts])[by_id]
    bound = min(((p.next_key, p.next_id) for p in parts if p.next_id is not None), default=None)
    if bound is None:
        key, before = np.inf, np.ones(len(keys), bool)
    else:
        key, before = bound[0], pc.less(table["id"], pa.scalar(bound[1], table["id"].type)).to_numpy()
    rows, times = take_in_turn(Front(rule, points, keys, nearest), limit, key, before)
    taken = table.take(pa.array(rows))
    added = Added(points=points.take(rows), times=times, shards=taken["shard"].to_numpy(), rows=taken["row"].to_numpy())
    return added, taken.select(["id", "score"])


# --- two rounds of k-centers ----------------------------------------------------------------------------------------


def in_two_rounds(files: Files, known: Files | None, k: int, parts: int) -> pa.Table:
    """The files are read once, by tasks that cut their rows into parts; then a task for every part, and one for all."""
    deal = ray.remote(num_cpus=0.5, num_returns=parts)(_deal)
    first = ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")(_choose_in_part)
    second = ray.remote(num_cpus=0.5)(_choose_among)
    dealt: list[Any] = [deal.remote(some, parts) for some in files.cut(max(GROUPS, parts))]
    found = [first.remote(known, -(-k * SURPLUS // parts), *(d[n] for d in dealt)) for n in range(parts)]
    del dealt  # each part is forgotten as soon as its task is done
    with plain_errors():
        return ray.get(second.remote(known, k, *found))


def _deal(files: Files, parts: int) -> tuple[Rows, ...]:
    """A task: rows by part. The hash of its id says where a row belongs, however the files are cut."""
    rows = read(files)
    part_N = hash_ids(ids_to_numpy(rows.ids)) % np.uint64(parts)
    order = np.argsort(part_N, kind="stable")
    return tuple(rows.take(some) for some in np.split(order, np.searchsorted(part_N[order], np.arange(1, parts))))


def _choose_in_part(known: Files | None, share: int, *dealt: Rows) -> Rows:
    """The first round, a task: k-centers among the rows of one part."""
    rows = Rows.concat(dealt)
    if len(rows.ids) <= share:
        return rows
    with Shards(rows, 0, known) as shards:
        chosen = _k_centers(shards, known, share)
        vectors = [np.ldexp(f, -p) for f, p in zip(chosen.points.factors, shards.powers, strict=True)]
    table = chosen.table.combine_chunks()
    return Rows(ids=table["id"].chunk(0), scores=table["score"].to_numpy(), vectors=vectors)


def _choose_among(known: Files | None, k: int, *parts: Rows) -> pa.Table:
    """The second round, a task: k-centers among what the parts have chosen."""
    rows = Rows.concat(parts)
    enough(len(rows.ids), k)
    with Shards(rows, 0, known) as shards:
        return _k_centers(shards, known, k).table
