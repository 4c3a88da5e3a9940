"""Greedy maximization of coverage: f(S) = sum over reference samples i of w_i * max over j in S of similarity(i, j).

The objective is monotone and submodular, so the greedy set is within 1 - 1/e of the best one (Nemhauser, Wolsey, Fisher
1978). Every gain is kept exact: a sample that is taken lowers the gains of the others only through the references that
it covers better than those before, and these become few (a reference is covered better about log k times). That costs
about (1 + log k) evaluations of the similarity per pair, at most, and no lazy bounds.

Similarities are whole numbers (of STEPS), as are weights, and squared distances are exact (`fixed_point`), so gains do
not depend on the order of sums, nor on the machine; of equals the first one is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunefuse_ray.acquisition.fixed_point import Float32s, Float64s, Points

Ints = npt.NDArray[np.int64]

STEPS = 2.0**20
"""Similarity 1. With weights of up to 2^10 and 2^22 references, sums stay exact in float64."""
BLOCK = 2**18
"""Pairs worked on at once: what fits in a core's cache."""
KEPT_PAIRS = 2**25
"""Pairs whose similarities are kept in memory (128 MiB) in place of being computed again."""
TAKEN = -1.0


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Similarity of two points in [0, 1], falling with their squared distance d²: (1 - d²/reach)₊^(2^squarings).

    With 4 squarings it is a Gaussian of variance reach / 32 to within 0.02, made of operations that round alike
    everywhere; with none it falls linearly. None: 1 up to `reach`, 0 beyond it.
    """

    reach: float
    squarings: int | None

    @classmethod
    def gaussian(cls, width: float) -> Kernel:
        """exp(-d² / (2 width²)), almost."""
        return cls(reach=32 * width**2, squarings=4)

    def similarities(self, a_MD: Float64s, squares_M: Float64s, b_ND: Float64s, squares_N: Float64s) -> Float32s:
        """(M, N) in whole STEPS, of points with their squared norms."""
        found_MN = a_MD @ b_ND.T
        if self.squarings is None:
            found_MN *= -2.0  # exact, as the limit has to be
            found_MN += squares_N
            found_MN += squares_M[:, None]
            return (found_MN <= self.reach).astype(np.float32) * np.float32(STEPS)
        found_MN *= 2 / self.reach
        found_MN += 1 - squares_N / self.reach
        found_MN -= (squares_M / self.reach)[:, None]
        similar_MN = found_MN.astype(np.float32)
        np.maximum(similar_MN, 0, out=similar_MN)
        for _ in range(self.squarings):
            np.multiply(similar_MN, similar_MN, out=similar_MN)
        similar_MN *= np.float32(STEPS)
        return np.rint(similar_MN, out=similar_MN)


class Coverage:
    """Candidates, the references that they are to cover, and how well each reference is covered so far."""

    def __init__(self, kernel: Kernel, candidates: Points, references: Points, weights_R: Float64s) -> None:
        """
        Args:
            weights_R: whole numbers up to 2^10.
        """
        self.kernel, self.weights_R = kernel, weights_R
        self.points_CD, self.squares_C = _plain(candidates), candidates.squares_N
        self.references_RD, self.squares_R = _plain(references), references.squares_N
        self.covered_R = np.zeros(len(references), np.float32)
        self._kept: Float32s | None = None
        if len(candidates) * len(references) <= KEPT_PAIRS:
            self._kept = np.concatenate([self._similar(rows) for rows in self._blocks(np.arange(len(references)))])

    def cover(self, batches: Iterable[Points]) -> None:
        """Take in points that cover already: the labeled ones."""
        for points in batches:
            step = max(1, BLOCK // len(self.squares_R))
            for start in range(0, len(points), step):
                some = points.take(slice(start, start + step))
                similar_RM = self.kernel.similarities(self.references_RD, self.squares_R, _plain(some), some.squares_N)
                np.maximum(self.covered_R, similar_RM.max(1), out=self.covered_R)

    def value(self) -> float:
        """The weighted mean of how well the references are covered, in [0, 1]."""
        return float(self.weights_R @ self.covered_R.astype(np.float64)) / (STEPS * float(self.weights_R.sum()))

    def greedy(self, k: int) -> Ints:
        """Up to k candidates in order, each with the largest gain, the first of equals; fewer where nothing more is to
        be gained."""
        gains_C = np.zeros(len(self.squares_C))
        for rows in self._blocks(np.arange(len(self.covered_R))):
            better = self._rows(rows) - self.covered_R[rows, None]
            gains_C += self.weights_R[rows] @ np.maximum(better, 0, out=better).astype(np.float64)
        taken: list[int] = []
        while len(taken) < k:
            best = int(gains_C.argmax())
            if gains_C[best] <= 0:
                break
            taken.append(best)
            self._take(best, gains_C)
            gains_C[best] = TAKEN
        return np.array(taken, np.int64)

    def _take(self, candidate: int, gains_C: Float64s) -> None:
        """Cover the references as well as this candidate does, and lower the gains of the others."""
        now_R = self._column(candidate)
        improved = np.flatnonzero(now_R > self.covered_R)
        for rows in self._blocks(improved):
            before, now = self.covered_R[rows, None], now_R[rows, None]
            similar = self._rows(rows)
            lost = np.clip(similar, before, now, out=None if self._kept is not None else similar)
            gains_C -= self.weights_R[rows] @ lost.astype(np.float64)
            gains_C += self.weights_R[rows] @ before[:, 0].astype(np.float64)
        self.covered_R[improved] = now_R[improved]

    def _column(self, candidate: int) -> Float32s:
        """Similarity (R,) of a candidate to every reference."""
        if self._kept is not None:
            return self._kept[:, candidate]
        one = slice(candidate, candidate + 1)
        return self.kernel.similarities(self.references_RD, self.squares_R, self.points_CD[one], self.squares_C[one])[
            :, 0
        ]

    def _rows(self, references: Ints) -> Float32s:
        return self._similar(references) if self._kept is None else self._kept[references]

    def _similar(self, references: Ints) -> Float32s:
        """Similarities (M, C) of some references to every candidate."""
        return self.kernel.similarities(
            self.references_RD[references], self.squares_R[references], self.points_CD, self.squares_C
        )

    def _blocks(self, references: Ints) -> Iterator[Ints]:
        step = max(1, BLOCK // max(1, len(self.squares_C)))
        for start in range(0, len(references), step):
            yield references[start : start + step]


def _plain(points: Points) -> Float64s:
    (values_ND,) = points.factors
    return values_ND.astype(np.float64)
