"""Cluster-Margin: of the samples of smallest margin one from each cluster in turn, the smallest cluster first.

Citovsky, G. et al., "Batch Active Learning at Scale", NeurIPS 2021, algorithms 1 and 2. Different from there: the
clusters are those of k-means (k-means++ seeds, LLOYD_STEPS of Lloyd's algorithm; exact sums, so sharding does not
matter) in place of average linkage, of the round's own features; and within a cluster margin decides, not chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray.acquisition.greedy import RACE
from prunefuse_ray.acquisition.quotas import best_of_groups, place_in_group, round_robin, turn_order
from prunefuse_ray.acquisition.ranking import ranked, sort_keys, threshold_bucket
from prunefuse_ray.acquisition.strategy import Candidates, Chance, Strategy
from prunefuse_ray.acquisition.uncertainty import margin

MAX_CLUSTERS = 1_000
SAMPLES_PER_CLUSTER = 10
"""One cluster for so many samples of the batch, at least so many, at most MAX_CLUSTERS."""
LLOYD_STEPS = 5
MARGIN_POOL = 10
"""Selected among so many times the batch of smallest margin (k_m = 10 k_t in the paper)."""


def select(candidates: Candidates, k: int, chance: Chance) -> pa.Table:
    """k of the candidates, whose scores are those of `margin` (1 - margin)."""
    count = min(candidates.rows, MAX_CLUSTERS, max(SAMPLES_PER_CLUSTER, k // SAMPLES_PER_CLUSTER))
    centers = candidates.greedy(RACE, count, chance=chance).points
    for _ in range(LLOYD_STEPS):
        centers = candidates.lloyd_step(centers)
    candidates.assign(centers)
    least = _smallest_margins(candidates, min(candidates.rows, k * MARGIN_POOL))
    sizes = candidates.total(_cluster_sizes, least, count)
    quotas = round_robin(sizes, k)
    rows: pa.Table | None = None
    for part in candidates.each(_best_of_clusters, quotas):
        rows = best_of_groups(part if rows is None else pa.concat_tables([rows, part]), quotas)
    assert rows is not None
    turn = np.empty(count, np.int64)
    turn[turn_order(sizes)] = np.arange(count)
    clusters = rows["group"].to_numpy()
    order = np.lexsort([turn[clusters], place_in_group(clusters)])
    return ranked(rows.select(["id", "score"]).take(pa.array(order)))


def _smallest_margins(candidates: Candidates, m: int) -> np.uint32:
    """The key of the m-th highest score (1 - margin): by a radix select over the shards' scores."""
    bucket, above = threshold_bucket(candidates.total(_count_keys, None), m)
    low, _ = threshold_bucket(candidates.total(_count_keys, bucket), m - above)
    return np.uint32((bucket << 16) | low)


def _count_keys(_ids: Any, scores_N: Any, _clusters: Any, bucket: int | None) -> npt.NDArray[np.int64]:
    keys = sort_keys(scores_N)
    upper = keys >> np.uint32(16)
    return np.bincount(upper if bucket is None else keys[upper == bucket] & np.uint32(0xFFFF), minlength=1 << 16)


def _cluster_sizes(_ids: Any, scores_N: Any, clusters_N: Any, least: np.uint32, count: int) -> npt.NDArray[np.int64]:
    return np.bincount(clusters_N[sort_keys(scores_N) >= least], minlength=count)


def _best_of_clusters(ids: pa.Array, scores_N: Any, clusters_N: Any, quotas: npt.NDArray[np.int64]) -> pa.Table:
    return best_of_groups(pa.table({"id": ids, "score": scores_N, "group": clusters_N}), quotas)


CLUSTER_MARGIN = Strategy(
    name="cluster_margin",
    wants="two likely classes, from every cluster",
    paper="Citovsky et al. 2021 (arXiv 2107.14263)",
    score=margin,
    select=select,
)
