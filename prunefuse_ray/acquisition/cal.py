"""CAL: samples whose prediction differs from that of the labeled samples most like them.

Margatina, K., et al., "Active Learning by Acquiring Contrastive Examples", EMNLP 2021, algorithm 1: the mean divergence
in nats of the predicted probabilities of the NEIGHBORS nearest labeled samples from the sample's own, KL(neighbor ||
sample); the k highest are selected. A sample is judged by itself, so the same selection comes out of any shards.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray.acquisition.fixed_point import ROWS_AT_ONCE, Points
from prunefuse_ray.acquisition.ranking import best, ranked
from prunefuse_ray.acquisition.strategy import Candidates, Chance, Part, Strategy
from prunefuse_ray.acquisition.uncertainty import least_confidence

NEIGHBORS = 10
SMALLEST = 2.0**-20
"""Probabilities are taken to be at least this large: smaller ones are lost in fixed point."""
DISTANCES_AT_ONCE = 2**22


def select(candidates: Candidates, k: int, chance: Chance) -> pa.Table:
    """k of the candidates."""
    found: pa.Table | None = None
    for rows in candidates.each(_best, k):
        found = best(rows if found is None else pa.concat_tables([found, rows]), k)
    assert found is not None
    return ranked(pa.table({"id": found["id"], "score": found["of"]}))


def _best(part: Part, k: int) -> pa.Table:
    contrast_N = contrast(part.points, part.labeled(), part.units[0])
    return best(pa.table({"id": part.ids, "score": contrast_N, "of": part.scores}), k)


def contrast(points: Points, labeled: Iterable[Points], unit: float) -> npt.NDArray[np.float32]:
    """(N,) the mean divergence of the nearest labeled samples; zero where none is labeled.

    Args:
        points: of two factors, `gradient_factor` and features.
        unit: what 1.0 of the first factor is in whole numbers.
    """
    known = list(labeled)
    found_N = np.zeros(len(points), np.float32)
    if not known:
        return found_N
    p_LC = np.concatenate([_probabilities(batch.factors[0], unit) for batch in known])
    features = Points.of([np.concatenate([batch.factors[1] for batch in known])])
    own_L = (p_LC * np.log(p_LC)).sum(axis=1)
    neighbors = min(NEIGHBORS, len(p_LC))
    step = max(1, min(ROWS_AT_ONCE, DISTANCES_AT_ONCE // max(len(p_LC), neighbors * p_LC.shape[1])))
    for start in range(0, len(points), step):
        block = points.take(slice(start, start + step))
        d_NL = features.distances(Points.of([block.factors[1]]))
        near_NK = np.argpartition(d_NL, neighbors - 1, axis=1)[:, :neighbors]
        near_NK = np.take_along_axis(near_NK, np.take_along_axis(d_NL, near_NK, 1).argsort(1, kind="stable"), 1)
        log_NC = np.log(_probabilities(block.factors[0], unit))
        # KL(q || p) = sum of q log q - sum of q log p, for each neighbor's q and a row's p
        divergence_NK = own_L[near_NK] - np.einsum("nkc,nc->nk", p_LC[near_NK], log_NC)
        found_N[start : start + step] = divergence_NK.mean(axis=1)
    return found_N


def _probabilities(factor_NC: npt.NDArray[np.float32], unit: float) -> npt.NDArray[np.float64]:
    """The predicted probabilities in `gradient_factor`, whose one entry with a minus sign is that of the likeliest
    class: a negative number, or -0.0 where the network is so sure that fixed point has nothing left of it."""
    p_NC = factor_NC.astype(np.float64) / unit
    p_NC[np.arange(len(p_NC)), np.signbit(p_NC).argmax(axis=1)] += 1.0
    return np.maximum(p_NC, SMALLEST)


CAL = Strategy(
    name="cal",
    wants="another prediction than the most similar labeled samples have",
    paper="Margatina et al. 2021 (arXiv 2109.03764)",
    score=least_confidence,
    select=select,
    gradients=True,
    labeled=True,
)
