"""BADGE: k-means++ over the gradient embeddings g = (p - y) ⊗ h, of which only the factors are kept.

Ash, J. et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", ICLR 2020, algorithm 1. As in
the authors' code the first sample is the one with the largest gradient. Each further one is drawn with a probability
proportional to its squared distance from the nearest selected one (Arthur, Vassilvitskii 2007).
"""

from __future__ import annotations

import pyarrow as pa

from prunefuse_ray.acquisition.greedy import RACE
from prunefuse_ray.acquisition.strategy import Candidates, Chance, Strategy
from prunefuse_ray.acquisition.uncertainty import least_confidence


def select(candidates: Candidates, k: int, chance: Chance) -> pa.Table:
    """k of the candidates by k-means++."""
    return candidates.greedy(RACE, k, chance=chance).table


BADGE = Strategy(
    name="badge",
    wants="large and different gradients",
    paper="Ash et al. 2020 (arXiv 1906.03671)",
    score=least_confidence,
    select=select,
    gradients=True,
)
