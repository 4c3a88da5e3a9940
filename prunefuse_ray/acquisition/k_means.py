"""k-means over the shards of the candidates: k-means++ seeds (Arthur, Vassilvitskii 2007), then Lloyd's steps (1982).

Sums are exact, so sharding does not matter.
"""

from __future__ import annotations

from prunefuse_ray.acquisition.fixed_point import Points
from prunefuse_ray.acquisition.greedy import RACE
from prunefuse_ray.acquisition.strategy import Candidates, Chance

LLOYD_STEPS = 5


def k_means(candidates: Candidates, count: int, chance: Chance) -> Points:
    """At most so many centers of clusters."""
    centers = candidates.greedy(RACE, min(count, candidates.rows), chance=chance).points
    for _ in range(LLOYD_STEPS):
        centers = candidates.lloyd_step(centers)
    return centers
