"""Preferences among classes: a sample's score counts as much as the classes that the network expects it to be of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from prunefuse_ray.acquisition.strategy import Probabilities, Scores
from prunefuse_ray.errors import ScoreError

SMOOTHING = 0.1
"""Labels that every class is taken to have besides: this share of the mean of all classes, and one."""
ROUNDING = 1e-5
"""How far below 0 a score may come by rounding."""
OTHERS = 0.125
"""What a score is worth where other classes are wanted."""


def class_weights(
    counts_C: Sequence[int], *, balance: float = 0.0, wanted: Collection[int] = (), others: float = OTHERS
) -> npt.NDArray[np.float64]:
    """Weights (C,) in [0, 1], the largest 1: inverse frequency to the power `balance`, times `others` for the classes
    that are not `wanted` (where any are)."""
    counts = np.asarray(counts_C, np.float64)
    smoothed = counts + SMOOTHING * counts.mean() + 1
    weights = (smoothed.min() / smoothed) ** balance
    if wanted:
        weights[np.setdiff1d(np.arange(len(counts)), list(wanted))] *= others
    return weights / weights.max()


def weighted(scores_N: Scores, p_NC: Probabilities, weights_C: Sequence[float]) -> Scores:
    """Scores (N,) times the expected weight of each sample's class. ScoreError where one is below 0: the smallest
    weight would make it the most wanted."""
    if (least := scores_N.min(initial=0.0)) < -ROUNDING:
        raise ScoreError(
            f"selection.strategy: it gives scores below 0 ({least:.3g}), which selection.class_balance and "
            "selection.wanted_classes cannot multiply; let it give 0 or more, or leave these out"
        )
    return (scores_N * (p_NC * np.asarray(weights_C)).sum(axis=1)).astype(np.float32)
