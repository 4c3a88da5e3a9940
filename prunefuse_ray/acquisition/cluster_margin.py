"""Cluster-Margin: of the samples of smallest margin one from each cluster in turn, the smallest cluster first.

Citovsky, G. et al., "Batch Active Learning at Scale", NeurIPS 2021, algorithms 1 and 2. Different from there: the
clusters are those of k-means in place of average linkage, of the round's own features; and within a cluster margin
decides, not chance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray.acquisition.k_means import k_means
from prunefuse_ray.acquisition.quotas import best_of_groups, place_in_group, round_robin, turn_order
from prunefuse_ray.acquisition.ranking import ranked, score_counts, sort_keys, threshold_bucket
from prunefuse_ray.acquisition.strategy import Candidates, Chance, Part, Strategy
from prunefuse_ray.acquisition.uncertainty import margin

MAX_CLUSTERS = 1_000
SAMPLES_PER_CLUSTER = 10
"""One cluster for so many samples of the batch, at least so many, at most MAX_CLUSTERS."""
MARGIN_POOL = 10
"""Selected among so many times the batch of smallest margin (k_m = 10 k_t in the paper)."""


def select(candidates: Candidates, k: int, chance: Chance) -> pa.Table:
    """k of the candidates, whose scores are those of `margin` (1 - margin)."""
    count = min(candidates.rows, MAX_CLUSTERS, max(SAMPLES_PER_CLUSTER, k // SAMPLES_PER_CLUSTER))
    candidates.assign(k_means(candidates, count, chance))
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


def _count_keys(part: Part, bucket: int | None) -> npt.NDArray[np.int64]:
    return score_counts(part.scores, bucket)


def _cluster_sizes(part: Part, least: np.uint32, count: int) -> npt.NDArray[np.int64]:
    assert part.clusters is not None
    return np.bincount(part.clusters[sort_keys(part.scores) >= least], minlength=count)


def _best_of_clusters(part: Part, quotas: npt.NDArray[np.int64]) -> pa.Table:
    return best_of_groups(pa.table({"id": part.ids, "score": part.scores, "group": part.clusters}), quotas)


CLUSTER_MARGIN = Strategy(
    name="cluster_margin",
    wants="two likely classes, from every cluster",
    paper="Citovsky et al. 2021 (arXiv 2107.14263)",
    score=margin,
    select=select,
    by_score=True,
)
