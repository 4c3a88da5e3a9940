"""TypiClust: the most typical sample of each cluster, of those clusters first that have the fewest labels.

Hacohen, G., Dekel, A., Weinshall, D., "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets",
ICML 2022, algorithm 1: as many clusters of k-means as there will be labels, at most MAX_CLUSTERS; typicality is the
inverse of the mean distance to the NEIGHBORS nearest samples in the cluster; the clusters take turns, those with the
fewest labels first, then the largest, those of fewer than SMALLEST samples never unless the others have too few.
Different from there: of a large cluster MEMBERS samples are looked at, which chance draws; labeled samples are counted
in the clusters, but neither make them nor are neighbors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray.acquisition.draws import TYPICAL
from prunefuse_ray.acquisition.fixed_point import Points
from prunefuse_ray.acquisition.k_means import k_means
from prunefuse_ray.acquisition.quotas import best_of_groups, place_in_group, round_robin
from prunefuse_ray.acquisition.ranking import ranked
from prunefuse_ray.acquisition.strategy import Candidates, Chance, Part, Strategy
from prunefuse_ray.acquisition.uncertainty import margin

MAX_CLUSTERS = 500
NEIGHBORS = 20
SMALLEST = 5
MEMBERS = 512
"""A cluster from which many are wanted has all of those as members."""
MEMBER_BYTES = 2**28
"""Features of all members that are looked at, at most."""
DISTANCES_AT_ONCE = 2**20

Ints = npt.NDArray[np.int64]


def select(candidates: Candidates, k: int, chance: Chance) -> pa.Table:
    """k of the candidates, from each cluster in turn."""
    centers = k_means(candidates, min(MAX_CLUSTERS, k + candidates.labeled), chance)
    candidates.assign(centers)
    sizes = candidates.total(_sizes, len(centers))
    order = turns(sizes, candidates.labeled_clusters(centers))
    large = np.where(sizes >= SMALLEST, sizes, 0)
    quotas = round_robin(large if large.sum() >= k else sizes, k, order)
    member_bytes = 4 * centers.factors[0].shape[1] * np.count_nonzero(quotas)
    members = np.maximum(quotas, min(MEMBERS, MEMBER_BYTES // member_bytes))
    members[quotas == 0] = 0
    found: pa.Table | None = None
    for rows in candidates.each(_drawn, members, chance):
        found = best_of_groups(rows if found is None else pa.concat_tables([found, rows]), members)
    assert found is not None
    return _most_typical(found, quotas, order)


def turns(sizes_G: Ints, labeled_G: Ints) -> Ints:
    """Clusters in the order in which they take: fewest labels first, then the largest, then by number."""
    return np.lexsort([np.arange(len(sizes_G)), -sizes_G, labeled_G]).astype(np.int64)


def typicality(points: Points) -> npt.NDArray[np.float64]:
    """(N,) inverse of the mean distance to the NEIGHBORS nearest of the others, or to all of them."""
    neighbors = min(NEIGHBORS, len(points) - 1)
    if neighbors < 1:
        return np.zeros(len(points))
    apart_N, step = np.empty(len(points)), max(1, DISTANCES_AT_ONCE // len(points))
    for start in range(0, len(points), step):
        rows = np.arange(start, min(start + step, len(points)))
        squares_MN = points.distances(points.take(rows))
        squares_MN[np.arange(len(rows)), rows] = np.inf
        nearest_MK = np.sort(np.partition(squares_MN, neighbors - 1, axis=1)[:, :neighbors], axis=1)
        apart_N[rows] = np.sqrt(nearest_MK).sum(axis=1)
    return np.divide(neighbors, apart_N, out=np.full(len(points), np.inf), where=apart_N > 0)


def _sizes(part: Part, count: int) -> Ints:
    assert part.clusters is not None
    return np.bincount(part.clusters, minlength=count)


def _drawn(part: Part, members_G: Ints, chance: Chance) -> pa.Table:
    """(id, group, score: chance, of: its own score, feature) of up to `members_G` samples of each cluster."""
    drawn_N = part.drawn(chance, TYPICAL)
    rows = pa.table(
        {"id": part.ids, "group": part.clusters, "score": drawn_N, "of": part.scores, "row": np.arange(len(part.ids))}
    )
    kept = best_of_groups(rows.filter(pa.array(members_G[part.clusters] > 0)), members_G)
    (features_ND,) = part.points.take(kept["row"].to_numpy()).factors
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features_ND.reshape(-1)), features_ND.shape[1])
    return kept.drop_columns(["row"]).append_column("feature", vectors)


def _most_typical(found: pa.Table, quotas_G: Ints, order_G: Ints) -> pa.Table:
    """The most typical members of each cluster: those of the first turn, then those of the second, ..."""
    found = found.sort_by([("group", "ascending"), ("id", "ascending")])
    groups = found["group"].to_numpy()
    features = found["feature"].combine_chunks()
    features_ND = features.flatten().to_numpy().reshape(len(features), -1)
    typical_N = np.zeros(len(groups))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        typical_N[rows] = typicality(Points.of([features_ND[rows]]))
    found = found.append_column("typical", pa.array(typical_N))
    found = found.sort_by([("group", "ascending"), ("typical", "descending"), ("id", "ascending")])
    groups = found["group"].to_numpy()
    places = place_in_group(groups)
    kept = places < quotas_G[groups]
    place_of_turn = np.empty(len(order_G), np.int64)
    place_of_turn[order_G] = np.arange(len(order_G))
    found, groups, places = found.filter(pa.array(kept)), groups[kept], places[kept]
    found = found.take(pa.array(np.lexsort([place_of_turn[groups], places])))
    return ranked(pa.table({"id": found["id"], "score": found["of"]}))


TYPICLUST = Strategy(
    name="typiclust",
    wants="many similar samples, in every cluster without labels",
    paper="Hacohen et al. 2022 (arXiv 2202.02794)",
    score=margin,
    select=select,
    labeled=True,
)
