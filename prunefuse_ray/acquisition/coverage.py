"""Coverage: sets that represent the pool, so that every sample has a similar one that is labeled.

All four maximize f(S) = sum over samples i of w_i * max over labeled and selected j of similarity(i, j) greedily
(`max_coverage`); they differ in the similarity and in the weights.

- `max_herding`: a Gaussian kernel, all samples alike. Bae, W., Noh, J., Sutherland, D., "Generalized Coverage for More
  Robust Low-Budget Active Learning", ECCV 2024 (arXiv 2407.12212).
- `uncertainty_herding`: the same, each sample weighted with its uncertainty (1 - margin). Bae, W., Oliveira, G.,
  Sutherland, D., "Uncertainty Herding: One Active Learning Method for All Label Budgets", ICLR 2025 (arXiv 2412.20644).
  Its temperature scaling is left out.
- `prob_cover`: balls of one radius. Yehuda, O., et al., "Active Learning Through a Covering Lens", NeurIPS 2022
  (arXiv 2205.11320). As there, the radius is the largest at which PURE of all balls lie within one cluster of k-means.
- `facility_location`: similarity falls linearly with the squared distance. Wei, K., Iyer, R., Bilmes, J.,
  "Submodularity in Data Subset Selection and Active Learning", ICML 2015.

**The kernel's width** is not tuned: it is the median distance from a sample to the nearest of the labeled ones and k
random others, so the reach of one sample among so many. It shrinks as labels grow, by which uncertainty herding goes
from covering to asking what is uncertain. The paper takes the smallest distance between two labeled samples, which a
pair of near-duplicates makes zero. The k are drawn among what is selected from: in the second of two rounds (below)
among what the parts have selected.

Where nothing more is to be gained (all balls cover, all that is left are duplicates), chance decides. Under
`uncertainty_herding`, samples that weighed nothing beside others that are far more uncertain are covered next. Of equal
gains, of which balls have many, chance takes one, not the id, which may begin with a class.

In a large pool every random part selects for itself, and then one round among what the parts have selected (GreeDi:
Mirzasoleiman, B., et al., "Distributed Submodular Maximization", NeurIPS 2013), with f estimated on a random sample.
Parts follow from the pool's size and the ids, so the same selection comes out of any shards and files.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray.acquisition.draws import FILLING, TIES
from prunefuse_ray.acquisition.fixed_point import Points, nearest
from prunefuse_ray.acquisition.k_means import k_means
from prunefuse_ray.acquisition.max_coverage import Coverage, Ints, Kernel
from prunefuse_ray.acquisition.ranking import ranked
from prunefuse_ray.acquisition.strategy import Candidates, Chance, Part, Scores, Strategy
from prunefuse_ray.acquisition.uncertainty import margin

PURE = 0.95
"""Share of ProbCover's balls that lie within one cluster (alpha in the paper)."""
REFERENCES = 4_096
REFERENCES_PER_SAMPLE = 1
"""f is estimated on so many samples, or so many for each that is wanted, if that is more."""
WEIGHTS = 2.0**10
"""The largest weight, in the whole numbers that `Coverage` takes."""


def _select(kernel: Callable[[Candidates, Part, Points, int, Chance], Kernel], by_uncertainty: bool) -> Callable:
    def select(candidates: Candidates, k: int, chance: Chance) -> pa.Table:
        part = candidates.whole()
        points, scores = references_of(part, k, chance)
        weights_R = weights_of(scores) if by_uncertainty else np.ones(len(scores))
        order = np.argsort(part.drawn(chance, TIES), kind="stable")
        coverage = Coverage(kernel(candidates, part, points, k, chance), part.points.take(order), points, weights_R)
        coverage.cover(part.labeled())
        found, light_R = coverage.greedy(k), np.where(weights_R > 0, 0, scores)
        while by_uncertainty and len(found) < k and light_R.any():
            coverage.weights_R = weights_of(light_R)
            light_R = np.where(coverage.weights_R > 0, 0, light_R)
            found = np.concatenate([found, coverage.greedy(k - len(found))])
        rows = _filled(order[found], part, k, chance)
        return ranked(pa.table({"id": part.ids, "score": part.scores}).take(pa.array(rows)))

    return select


def weights_of(scores_R: Scores) -> npt.NDArray[np.float64]:
    """Uncertainties (R,) as whole numbers up to WEIGHTS. Their ratios alone matter, so the largest has all digits: of a
    network that is sure of every sample all weights would be zero, and chance would decide."""
    power = math.frexp(float(scores_R.max(initial=0.0)))[1]
    return np.rint(np.ldexp(scores_R.astype(np.float64), -power) * WEIGHTS)


def references_of(part: Part, k: int, chance: Chance) -> tuple[Points, Scores]:
    """The samples on which f is estimated: those that came with the part, or some of its own."""
    if part.references is not None:
        return part.references
    count = max(REFERENCES, k * REFERENCES_PER_SAMPLE)
    rows = _random_rows(part, count, chance)
    return part.points.take(rows), part.scores[rows]


def _random_rows(part: Part, count: int, chance: Chance) -> Ints:
    """So many rows by chance, in their order."""
    if count >= len(part.ids):
        return np.arange(len(part.ids))
    return np.sort(np.argsort(part.drawn(chance, FILLING), kind="stable")[:count])


def _filled(rows: Ints, part: Part, k: int, chance: Chance) -> Ints:
    if len(rows) == k:
        return rows
    left = np.setdiff1d(np.arange(len(part.ids)), rows)
    by_chance = left[np.argsort(part.drawn(chance, FILLING)[left], kind="stable")]
    return np.concatenate([rows, by_chance[: k - len(rows)]])


# --- how far a sample's similarity reaches ---


def gaussian(candidates: Candidates, part: Part, references: Points, k: int, chance: Chance) -> Kernel:
    """As wide as the median distance of the references to the nearest of the labeled samples and k random ones."""
    sample = part.points.take(_random_rows(part, max(1, min(k, len(part.ids) // 2)), chance))
    near_R = nearest(references, sample)[1]
    for points in part.labeled():
        near_R = np.minimum(near_R, nearest(references, points)[1])
    apart = near_R[near_R > 0]  # the random ones may be references themselves
    return Kernel.gaussian(width=float(np.sqrt(np.median(apart))) if len(apart) else 1.0)


SMALL = 5
"""A cluster of fewer samples is of some that are far off, and tells nothing of how far a class reaches."""


def ball(candidates: Candidates, part: Part, references: Points, k: int, chance: Chance) -> Kernel:
    """As large as PURE of all balls may be before a sample of another cluster comes in."""
    clusters_R = _clusters(candidates, references, chance)
    kept = np.bincount(clusters_R)[clusters_R] >= SMALL
    if len(np.unique(clusters_R[kept])) > 1:  # of one alone no ball would ever be impure
        references, clusters_R = references.take(np.flatnonzero(kept)), clusters_R[kept]
    others_R = np.full(len(references), np.inf)
    for cluster in np.unique(clusters_R):
        own, rest = np.flatnonzero(clusters_R == cluster), np.flatnonzero(clusters_R != cluster)
        others_R[own] = nearest(references.take(own), references.take(rest))[1]
    first_impure = float(np.sort(others_R)[int(len(others_R) * (1 - PURE))])
    largest = float(np.finfo(np.float64).max)
    return Kernel(reach=min(largest, max(0.0, first_impure - 1)), squarings=None)  # squares are whole numbers


def _clusters(candidates: Candidates, references: Points, chance: Chance) -> Ints:
    """Number of each reference's cluster (R,): as many clusters as classes, as long as they have samples enough; more
    where fewer than two have, since k-means gives samples far off clusters of their own."""
    most = max(2, len(references) // (2 * SMALL))
    count = min(chance.classes, most)
    while True:
        clusters_R = nearest(references, k_means(candidates, count, chance))[0]
        if (np.bincount(clusters_R) >= SMALL).sum() > 1 or count >= most:
            return clusters_R
        count = min(most, 2 * count)


FAR = 32.0
"""So many times the usual norm."""


def linear(candidates: Candidates, part: Part, references: Points, k: int, chance: Chance) -> Kernel:
    """Zero where no two samples are; where it is zero makes no difference to the set. A sample FAR off is like none but
    itself: stretched to reach it, the STEPS of a similarity would not tell the others apart."""
    squares = np.concatenate([part.points.squares_N, references.squares_N])
    usual, widest = float(np.median(squares)), float(squares.max())
    return Kernel(reach=max(1.0, 4 * min(widest, FAR**2 * usual or widest)), squarings=0)


MAX_HERDING = Strategy(
    name="max_herding",
    wants="many similar samples that have no label nearby",
    paper="Bae et al. 2024 (arXiv 2407.12212)",
    score=margin,
    select=_select(gaussian, by_uncertainty=False),
    labeled=True,
    pairwise=True,
)
UNCERTAINTY_HERDING = Strategy(
    name="uncertainty_herding",
    wants="many similar, uncertain samples that have no label nearby",
    paper="Bae et al. 2025 (arXiv 2412.20644)",
    score=margin,
    select=_select(gaussian, by_uncertainty=True),
    by_score=True,
    labeled=True,
    pairwise=True,
)
PROB_COVER = Strategy(
    name="prob_cover",
    wants="many samples within a radius that no label covers yet",
    paper="Yehuda et al. 2022 (arXiv 2205.11320)",
    score=margin,
    select=_select(ball, by_uncertainty=False),
    labeled=True,
    pairwise=True,
)
FACILITY_LOCATION = Strategy(
    name="facility_location",
    wants="short distances to all samples that have no label nearby",
    paper="Wei et al. 2015",
    score=margin,
    select=_select(linear, by_uncertainty=False),
    labeled=True,
    pairwise=True,
)
