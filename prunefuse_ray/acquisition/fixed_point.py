"""Points in fixed-point arithmetic, so that a distance is the same number however the points are sharded.

The sum inside a matrix product is rounded in an order that depends on the shapes of both matrices, so with floating
point the same two points would be a last bit nearer in one shard than in another, and an arg-max could fall on another
sample. Here every coordinate is an integer (times one power of two for all points), small enough that every product,
sum and squared distance is exact in float64: the order no longer matters, nor does the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

EXACT_BITS = 51
"""A sum of squares below 2^51 keeps a squared distance (at most four times that) within float64's 53 bits."""
FAR = 12
"""A coordinate counts as at most 2^FAR times the usual sample's largest: a sample beyond is still the farthest of all,
and leaves the others digits to differ in."""
ROWS_AT_ONCE = 2048
CENTERS_AT_ONCE = 256


def coordinate_bits(dimensions: int) -> int:
    """Bits of a coordinate: as many as keep sums over `dimensions` squares exact (22 for 64, 20 for 2,048)."""
    return min(24, (EXACT_BITS - math.ceil(math.log2(max(1, dimensions)))) // 2)


def exponent(largest: float, dimensions: int) -> int:
    """The power of two by which coordinates of at most `largest` in size become integers of `coordinate_bits`."""
    return coordinate_bits(dimensions) - math.frexp(largest)[1] if largest > 0 else 0


def magnitudes(values_ND: Float32s) -> npt.NDArray[np.int64]:
    """(256,) how many rows have a largest coordinate of each exponent of float32; [0]: nothing but zeros."""
    counts = np.zeros(256, np.int64)
    for rows in _blocks(len(values_ND)):
        largest_N = np.abs(values_ND[rows]).max(axis=1, initial=0.0)
        counts += np.bincount(largest_N.view(np.uint32) >> np.uint32(23), minlength=256)
    return counts


def within_reach(largest: float, counts: npt.NDArray[np.int64]) -> float:
    """`largest`, or what is FAR beyond the median row's largest coordinate (`magnitudes`) if that is less. Never less
    than 1: the factors of gradients, which are at most that, may be tiny for most samples."""
    if not counts[1:].any():
        return largest
    passed = np.cumsum(counts[1:])
    usual = 1 + int(np.searchsorted(passed, (passed[-1] + 1) // 2))
    return min(largest, max(1.0, math.ldexp(1.0, usual - 126 + FAR)))


def to_fixed(values_ND: Float32s, power: int) -> Float32s:
    """Integers (as float32, in place) nearest to values * 2^power. Grids of powers of two stay what they are."""
    with np.errstate(over="ignore"):  # one sample far off; see `within`
        np.ldexp(values_ND, power, out=values_ND)
    return np.rint(values_ND, out=values_ND)


def within(values_ND: Float32s, power: int) -> Float32s:
    """`to_fixed`, cut off where coordinates end (`within_reach`)."""
    limit = 2.0 ** coordinate_bits(values_ND.shape[1])
    return np.clip(to_fixed(values_ND, power), -limit, limit, out=values_ND)


@dataclass(frozen=True)
class Points:
    """n points, each the outer product of its rows in `factors`, which is never formed.

    One factor (N, D): plain features. Two factors (N, C) and (N, D): gradient embeddings of C·D dimensions. All hold
    integers; see `to_fixed`.
    """

    factors: tuple[Float32s, ...]
    squares_N: Float64s
    """Squared norms: the product of those of the factors."""

    @classmethod
    def of(cls, factors: Sequence[Float32s]) -> Points:
        squares_N = np.ones(len(factors[0]))
        for factor in factors:
            for rows in _blocks(len(factor)):
                block = factor[rows].astype(np.float64)
                squares_N[rows] *= np.einsum("nd,nd->n", block, block)
        return cls(tuple(factors), squares_N)

    def __len__(self) -> int:
        return len(self.squares_N)

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Points:
        return Points(tuple(f[rows] for f in self.factors), self.squares_N[rows])

    @staticmethod
    def concat(parts: Sequence[Points]) -> Points:
        factors = tuple(np.concatenate(f) for f in zip(*(p.factors for p in parts), strict=True))
        return Points(factors, np.concatenate([p.squares_N for p in parts]))

    def distances(self, centers: Points) -> Float64s:
        """Squared distances (M, N) of M centers to these points. Two factors a, h:
        |g_i - g_j|^2 = |a_i|^2 |h_i|^2 + |a_j|^2 |h_j|^2 - 2 <a_i, a_j> <h_i, h_j>."""
        dots_MN: Float64s | None = None
        for mine, theirs in zip(self.factors, centers.factors, strict=True):
            product = theirs.astype(np.float64) @ mine.astype(np.float64).T
            dots_MN = product if dots_MN is None else np.multiply(dots_MN, product, out=dots_MN)
        assert dots_MN is not None
        dots_MN *= -2.0
        # The two squares are added first: equal points then have distance zero, even where products are rounded.
        dots_MN += centers.squares_N[:, None] + self.squares_N
        return np.maximum(dots_MN, 0.0, out=dots_MN)


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(n, start + ROWS_AT_ONCE)) for start in range(0, n, ROWS_AT_ONCE)]


def nearest(points: Points, centers: Points) -> tuple[npt.NDArray[np.int64], Float64s]:
    """(N,) index of each point's nearest center, the first of equals, and its squared distance."""
    found, near = np.zeros(len(points), np.int64), np.full(len(points), np.inf)
    for rows in _blocks(len(points)):
        block = points.take(rows)
        for start in range(0, len(centers), CENTERS_AT_ONCE):
            d_MN = block.distances(centers.take(slice(start, start + CENTERS_AT_ONCE)))
            first = d_MN.argmin(0)
            d_N = d_MN[first, np.arange(len(first))]
            closer = d_N < near[rows]
            found[rows][closer] = first[closer] + start
            near[rows][closer] = d_N[closer]
    return found, near


def cluster_sums(points: Points, nearest_N: npt.NDArray[np.int64], clusters: int) -> tuple[Float64s, Float64s]:
    """Sums (K, D) of the points nearest to each center and their numbers (K,): one half of a step of Lloyd's
    algorithm. Integers, so shards' sums add up to the same whatever the shards (below 2^53: for 10^9 points)."""
    (features_ND,) = points.factors
    sums_KD = np.zeros((clusters, features_ND.shape[1]))
    for rows in _blocks(len(points)):
        order = np.argsort(nearest_N[rows], kind="stable")
        present, starts = np.unique(nearest_N[rows][order], return_index=True)
        sums_KD[present] += np.add.reduceat(features_ND[rows][order].astype(np.float64), starts, axis=0)
    return sums_KD, np.bincount(nearest_N, minlength=clusters).astype(np.float64)


def means(sums_KD: Float64s, counts_K: Float64s, before: Points) -> Points:
    """New centers from `cluster_sums` of all shards; a center without points stays where it is."""
    found = np.rint(sums_KD / np.maximum(counts_K, 1)[:, None]).astype(np.float32)
    return Points.of([np.where(counts_K[:, None] > 0, found, before.factors[0])])
