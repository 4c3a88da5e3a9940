"""Greedy selection of sets, one point after the other, as arithmetic on one shard of the points.

A greedy strategy takes, again and again, the point of lowest *key*; every point taken is a new center that changes the
keys of the others. The three rules here have in common that a key never falls. So a point that was not among a shard's
m lowest keys cannot undercut them later on either, and whoever has the m lowest of every shard can take many points in
a row, exactly as if all points had been at hand, before the shards have to hear of them (lazy evaluation: Minoux, M.,
"Accelerated greedy algorithms for maximizing submodular set functions", 1978).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from prunefuse_ray.acquisition.draws import RACES
from prunefuse_ray.acquisition.fixed_point import CENTERS_AT_ONCE, ROWS_AT_ONCE, Float64s, Points
from prunefuse_ray.acquisition.hashing import hash_ids, mix
from prunefuse_ray.acquisition.ranking import sort_keys

Ints = npt.NDArray[np.int64]
TAKEN = np.inf
LAST = float(np.finfo(np.float64).max)
"""Key of a point that is wanted only when nothing else is left."""
TOO_CLOSE = 2.0**34
"""Added to the key of a point of the rule `apart` that is too close to a center; keys are whole numbers above -2^32."""
OPEN = 2.0**120
"""Squared distance to the nearest center while there is none: beyond any real one, and a power of two."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What makes a point wanted.

    farthest: key = -(squared distance to the nearest center). Greedy k-centers.
    race: key = the time at which the point's clock rings, which runs at a speed of the squared distance to the nearest
        center. The next to ring is a draw with probability proportional to that speed (exponential clocks have no
        memory): k-means++ with one random number per point, which depends on its id alone.
        The first is the point of largest norm.
    apart: key = -(the score's `sort_keys`), raised by TOO_CLOSE once a center is nearer than `within`.
    """

    kind: Literal["farthest", "race", "apart"]
    within: float = 0.0
    """Squared distance."""


FARTHEST = Rule(kind="farthest")
RACE = Rule(kind="race")


def clocks(ids_N: npt.NDArray, seed: int, round_: int) -> Float64s:
    """Standard exponential random numbers, one per id, that depend on (id, seed, round) alone."""
    x_N = mix(hash_ids(ids_N), seed, RACES + round_)
    return -np.log(((x_N >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53) + 2.0**-60


def first_keys(rule: Rule, ids_N: npt.NDArray, scores_N: npt.NDArray[np.float32], seed: int, round_: int) -> Float64s:
    """The keys while there is no center."""
    match rule.kind:
        case "farthest":
            return np.full(len(scores_N), -OPEN)
        case "race":
            return clocks(ids_N, seed, round_) / OPEN
        case "apart":
            return -sort_keys(scores_N).astype(np.float64)  # exact when raised, whatever the size of scores


class Front:
    """Points and their keys: a shard's, or those of the candidates that the driver has in hand."""

    def __init__(self, rule: Rule, points: Points, key_N: Float64s, nearest_N: Float64s) -> None:
        self.rule, self.points, self.key_N, self.nearest_N = rule, points, key_N, nearest_N

    def add(self, centers: Points, times_M: Float64s) -> None:
        """Take in new centers, in their order; `times_M` are their keys when they were taken."""
        for c in range(0, len(centers), CENTERS_AT_ONCE):
            some, times = centers.take(slice(c, c + CENTERS_AT_ONCE)), times_M[c : c + CENTERS_AT_ONCE]
            for start in range(0, len(self.points), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                self._update(rows, self.points.take(rows).distances(some), times)

    def _update(self, rows: slice, d_MN: Float64s, times_M: Float64s) -> None:
        key, nearest = self.key_N[rows], self.nearest_N[rows]
        if self.rule.kind == "race":
            for d_N, time in zip(d_MN, times_M, strict=True):
                i = np.flatnonzero((d_N < nearest) & (key < LAST))
                with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # d = 0: settled below
                    later = time + (key[i] - time) * (nearest[i] / d_N[i])
                # Rounding must not turn a clock back: that a key never falls is what the lazy evaluation rests on.
                key[i] = np.where(d_N[i] > 0, np.clip(later, key[i], LAST), LAST)
                nearest[i] = d_N[i]
            return
        was_far = nearest >= self.rule.within
        np.minimum(nearest, d_MN.min(0), out=nearest)
        if self.rule.kind == "farthest":
            key[:] = np.where(key == TAKEN, TAKEN, -nearest)
        else:
            key[was_far & (nearest < self.rule.within)] += TOO_CLOSE

    def first(self, m: int, order_N: Ints) -> tuple[Ints, int | None]:
        """Rows of the m lowest keys, ties by `order_N`, and the row that would come next; taken points never."""
        alive = int((self.key_N < TAKEN).sum())
        if alive <= m:
            return np.flatnonzero(self.key_N < TAKEN), None
        last = np.partition(self.key_N, m)[m]  # the (m+1)-th lowest: the row that comes next has this key
        below = np.flatnonzero(self.key_N < last)
        ties = np.flatnonzero(self.key_N == last)
        wanted = m - len(below)
        if wanted + 1 < len(ties):
            ties = ties[np.argpartition(order_N[ties], wanted)[: wanted + 1]]
        ties = ties[np.argsort(order_N[ties])]
        return np.concatenate([below, ties[:wanted]]), int(ties[wanted])


def take_in_turn(
    front: Front, limit: int, bound_key: float, before_bound_N: npt.NDArray[np.bool_]
) -> tuple[Ints, Float64s]:
    """Take up to `limit` of the candidates, as long as no point outside of them could come first.

    Args:
        front: the candidates of all shards, sorted by id. Changed.
        bound_key: lowest key of all points that are not candidates (inf: there are none).
        before_bound_N: which candidates go before the bounding point if their keys are equal (by their ids).

    Returns:
        Rows of the candidates taken, in order, and their keys when they were.
    """
    taken: list[int] = []
    keys: list[float] = []
    while len(taken) < limit:
        i = int(np.argmin(front.key_N))  # the first of equals has the smallest id
        key = float(front.key_N[i])
        if key == TAKEN or key > bound_key or (key == bound_key and not before_bound_N[i]):
            break
        taken.append(i)
        keys.append(key)
        center = front.points.take(np.array([i]))
        front.key_N[i] = TAKEN
        front.add(center, np.array([key]))
    return np.array(taken, np.int64), np.array(keys, np.float64)
