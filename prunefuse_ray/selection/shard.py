"""One shard of the candidates: some rows' ids, scores and fixed-point vectors, and the messages it exchanges with the
driver, which holds what was selected and a few candidates of every shard."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.acquisition.fixed_point import Points, cluster_sums, magnitudes, nearest, within
from prunefuse_ray.acquisition.greedy import OPEN, TAKEN, Front, Rule, first_keys
from prunefuse_ray.acquisition.strategy import Chance, Part
from prunefuse_ray.data.ids import ids_to_numpy
from prunefuse_ray.selection.rows import Files, Rows, read, read_vectors

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Of a shard, what the common scale of the fixed point follows from."""

    rows: int
    largest: list[float]
    """The largest coordinate of each factor, over the shard's rows and the labeled samples."""
    magnitudes: list[npt.NDArray[np.int64]]
    """`fixed_point.magnitudes` of each factor, over the shard's rows."""
    dimensions: list[int]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """To the shards: points that were taken since they heard last, with their keys, and where they lie."""

    points: Points
    keys: npt.NDArray[np.float64]
    shards: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Lowest:
    """From a shard: its rows of lowest keys, and the key and id of the next one."""

    shard: int
    rows: npt.NDArray[np.int64]
    ids: pa.Array
    scores: npt.NDArray[np.float32]
    points: Points
    keys: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.float64]
    next_key: float = math.inf
    next_id: Any = None


@dataclass(frozen=True, kw_only=True)
class Sums:
    """From a shard: sums (K, D) of its points nearest to each center, and their numbers (K,)."""

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]


class Shard:
    """The usable rows of some score files, in memory: an actor's, or the driver's own where there are few."""

    points: Points
    front: Front
    clusters: npt.NDArray[np.int64] | None = None

    def __init__(self, number: int, labeled: Files | Rows | None, references: Rows | None = None) -> None:
        """
        Args:
            labeled: the labeled samples: files, which are read a batch at a time whenever they are needed, or rows.
            references: rows for `Part.references`.
        """
        self.number, self.labeled, self.references = number, labeled, references

    def load(self, source: Files | Rows) -> Extent:
        """Take in the rows. ScoreError, with ids, where vectors are not finite."""
        rows = source if isinstance(source, Rows) else read(source)
        self.ids, self.scores, self.raw = rows.ids, rows.scores, rows.vectors
        self.order = np.empty(len(self.ids), np.int64)
        self.order[pc.sort_indices(self.ids).to_numpy()] = np.arange(len(self.ids))
        pa.default_memory_pool().release_unused()  # what reading took beside the rows
        largest = [_largest(f) for f in self.raw]
        for vectors in itertools.chain(self._labeled(), [self.references.vectors] if self.references else []):
            largest = [max(x, _largest(v)) for x, v in zip(largest, vectors, strict=True)]
        return Extent(
            rows=len(self.ids),
            largest=largest,
            magnitudes=[magnitudes(f) for f in self.raw],
            dimensions=[f.shape[1] for f in self.raw],
        )

    def fix(self, powers: Sequence[int]) -> None:
        """Go over to fixed point; the scale is common to all shards."""
        self.powers = tuple(powers)
        self.points = self._fixed(self.raw)
        self.raw = []
        self.fixed_references = None
        if self.references is not None:
            vectors = [v.copy() for v in self.references.vectors]  # out of Ray's store they cannot be written to
            self.fixed_references = self._fixed(vectors), self.references.scores

    def rows_of(self, ids: pa.Array) -> Rows:
        """These of the shard's rows, back in floating point (as far as the fixed point holds it)."""
        rows = pc.index_in(ids, value_set=self.ids).to_numpy().astype(np.int64)
        vectors = [np.ldexp(f[rows], -p) for f, p in zip(self.points.factors, self.powers, strict=True)]
        return Rows(ids=ids, scores=self.scores[rows], vectors=vectors)

    # --- greedy selection ---

    def begin(self, rule: Rule, chance: Chance, from_labeled: bool) -> None:
        """Start a selection, from the labeled samples as centers or from none."""
        keys = first_keys(rule, ids_to_numpy(self.ids), self.scores, chance.seed, chance.round)
        self.front = Front(rule, self.points, keys, np.full(len(keys), OPEN))
        if from_labeled:
            for centers in self.labeled_points():
                self.front.add(centers, np.zeros(len(centers)))

    def advance(self, taken: Taken | None, width: int) -> Lowest:
        """One step: take in what was taken, and return the next candidates, at most `width`."""
        front = self.front
        if taken is not None:
            front.add(taken.points, taken.keys)
            front.key_N[taken.rows[taken.shards == self.number]] = TAKEN
        rows, following = front.first(width, self.order)
        lowest = self._lowest(rows)
        if following is None:
            return lowest
        return replace(lowest, next_key=float(front.key_N[following]), next_id=self.ids[following].as_py())

    def widest(self) -> Lowest:
        """The point of largest norm, ties by id; no row where the shard is empty."""
        squares_N = self.points.squares_N
        largest = np.flatnonzero(squares_N == squares_N.max(initial=0.0))
        return self._lowest(largest[np.argsort(self.order[largest])][:1])

    def _lowest(self, rows: npt.NDArray[np.int64]) -> Lowest:
        return Lowest(
            shard=self.number,
            rows=rows,
            ids=self.ids.take(pa.array(rows)),
            scores=self.scores[rows],
            points=self.points.take(rows),
            keys=self.front.key_N[rows],
            nearest=self.front.nearest_N[rows],
        )

    # --- clusters ---

    def sums(self, centers: Points) -> Sums:
        sums, counts = cluster_sums(self.points, nearest(self.points, centers)[0], len(centers))
        return Sums(sums=sums, counts=counts)

    def assign(self, centers: Points) -> None:
        """Settle each row's cluster for good."""
        self.clusters = nearest(self.points, centers)[0]

    def labeled_clusters(self, centers: Points) -> npt.NDArray[np.int64]:
        """(K,) how many labeled samples are nearest to each center."""
        counts = np.zeros(len(centers), np.int64)
        for points in self.labeled_points():
            counts += np.bincount(nearest(points, centers)[0], minlength=len(centers))
        return counts

    # --- what strategies' functions see ---

    def part(self) -> Part:
        return Part(
            ids=self.ids,
            scores=self.scores,
            points=self.points,
            units=tuple(2.0**p for p in self.powers),
            clusters=self.clusters,
            labeled=self.labeled_points,
            references=self.fixed_references,
        )

    def reduce(self, function: Callable[..., T], *args: Any) -> T:
        return function(self.part(), *args)

    def labeled_points(self) -> Iterator[Points]:
        """The labeled samples, a batch at a time; none where the strategy reads none."""
        yield from map(self._fixed, self._labeled())

    def _labeled(self) -> Iterator[list[npt.NDArray[np.float32]]]:
        """The labeled samples' vectors, in arrays of their own."""
        match self.labeled:
            case Files() as files:
                yield from read_vectors(files)
            case Rows() as rows:
                yield [v.copy() for v in rows.vectors]

    def _fixed(self, vectors: Sequence[npt.NDArray[np.float32]]) -> Points:
        return Points.of([within(v, p) for v, p in zip(vectors, self.powers, strict=True)])


def _largest(values: npt.NDArray[np.float32]) -> float:
    return max(float(values.max()), -float(values.min())) if values.size else 0.0
