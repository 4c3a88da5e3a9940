"""Greedy k-centers: again and again the sample farthest from its nearest labeled or selected one.

Sener, O., Savarese, S., "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
algorithm 1; within a factor of two of the best covering radius (Gonzalez 1985).
"""

from __future__ import annotations

import pyarrow as pa

from prunefuse_ray.acquisition.greedy import FARTHEST
from prunefuse_ray.acquisition.strategy import Candidates, Chance, Strategy
from prunefuse_ray.acquisition.uncertainty import least_confidence


def select(candidates: Candidates, k: int, chance: Chance) -> pa.Table:
    """k of the candidates, each farthest from the labeled samples and those before it."""
    return candidates.greedy(FARTHEST, k, from_labeled=True).table


K_CENTERS = Strategy(
    name="k_centers",
    wants="no similar sample among the labeled and selected ones",
    paper="Sener, Savarese 2018 (arXiv 1708.00489)",
    score=least_confidence,
    select=select,
    labeled=True,
    divisible=True,
)
