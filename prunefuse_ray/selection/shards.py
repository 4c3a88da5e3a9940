"""Score files as points in memory, spread over actors: what the set strategies choose from.

A shard holds its rows' ids, scores and fixed-point features, O(N·D / shards), and answers small questions; the driver
holds what it has chosen and a few candidates. Nothing of N x k or N x N exists anywhere.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayActorError

from prunefuse_ray.acquisition import (
    OPEN,
    TAKEN,
    Front,
    Points,
    Rule,
    cluster_sums,
    exponent,
    first_keys,
    nearest_center,
    to_fixed,
)
from prunefuse_ray.data.pool import Source, groups
from prunefuse_ray.data.reading import ids_to_numpy
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.storage import Place

logger = logging.getLogger(__name__)

SHARD_CPUS = 0.1
"""Logical CPUs of a shard's actor: so few that the shards of one run, one per CPU, always find room beside others."""
BYTES_WORTH_AN_ACTOR = 32 * 2**20
"""Features that fit in so little are held by the driver: an actor takes seconds to start."""
ATTEMPTS = 3
"""A choice that loses an actor (with its node) is made again from the files; it comes out the same."""
READ_BYTES = 32 * 2**20
"""Bytes of one batch of a score file."""
NAMED = 5
"""Ids named in an error."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Score files, and the columns of vectors in them whose product is a point (see `Points`)."""

    where: Place
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    columns: tuple[str, ...] = ("feature",)

    def cut(self, count: int) -> list[Files]:
        """At most `count` parts of about equal size."""
        source = Source(fs=self.where.fs, files=self.paths, sizes=self.sizes)
        return [replace(self, paths=g.files, sizes=g.sizes) for g in groups(source, count)]

    def shape(self) -> tuple[int, list[int]]:
        """Rows, and dimensions of each column's vectors; reads the files' ends only."""
        rows, dimensions = 0, [0] * len(self.columns)
        for path in self.paths:
            with self.where.fs.open_input_file(path) as stream:
                file = pq.ParquetFile(stream)
                rows += file.metadata.num_rows
                dimensions = [file.schema_arrow.field(c).type.list_size for c in self.columns]
        return rows, dimensions


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows in memory: ids (N,), scores (N,), and the vectors (N, D) of each factor, which become the shard's own."""

    ids: pa.Array
    scores: npt.NDArray[np.float32]
    vectors: list[npt.NDArray[np.float32]]

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        return Rows(
            ids=self.ids.take(pa.array(rows)), scores=self.scores[rows], vectors=[v[rows] for v in self.vectors]
        )

    @staticmethod
    def concat(parts: Sequence[Rows]) -> Rows:
        filled = [p for p in parts if len(p.ids)] or parts[:1]  # the ids of an empty file have no type
        return Rows(
            ids=pa.concat_arrays([p.ids for p in filled]),
            scores=np.concatenate([p.scores for p in filled]),
            vectors=[np.concatenate(column) for column in zip(*(p.vectors for p in filled), strict=True)],
        )


@dataclass(frozen=True, kw_only=True)
class Added:
    """Centers that the driver has taken since the shards heard of it last."""

    points: Points
    times: npt.NDArray[np.float64]
    shards: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """A shard's rows of lowest keys, and the key and id of the next."""

    shard: int
    rows: npt.NDArray[np.int64]
    ids: pa.Array
    scores: npt.NDArray[np.float32]
    points: Points
    keys: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.float64]
    next_key: float = math.inf
    next_id: Any = None


class Shard:
    """The usable rows of some score files, in memory: an actor's, or the driver's own where there are few."""

    points: Points
    front: Front
    clusters: npt.NDArray[np.int64]

    def __init__(self, number: int) -> None:
        self.number = number

    def load(self, source: Files | Rows, known: Files | None) -> tuple[int, list[tuple[float, int]]]:
        """Take in the rows. Returns their number, and the largest coordinate and the dimensions of each factor, over
        the rows and those of `known`.

        Raises:
            ScoreError: vectors that are not finite, with ids.
        """
        rows = source if isinstance(source, Rows) else read(source)
        self.ids, self.scores, self.raw = rows.ids, rows.scores, rows.vectors
        self.order = _order(self.ids)
        pa.default_memory_pool().release_unused()  # what reading took beside the rows
        largest = [_largest(f) for f in self.raw]
        if known is not None:
            for vectors in _vectors(known):
                largest = [max(x, _largest(v)) for x, v in zip(largest, vectors, strict=True)]
        return len(self.ids), [(x, f.shape[1]) for x, f in zip(largest, self.raw, strict=True)]

    def fix(self, powers: Sequence[int]) -> None:
        """Go over to fixed point."""
        self.powers = tuple(powers)
        self.points = Points.of([to_fixed(f, p) for f, p in zip(self.raw, powers, strict=True)])
        self.raw = []

    # --- greedy choices ---

    def begin(self, rule: Rule, known: Files | None = None, seed: int = 0, round_: int = 0) -> None:
        """Start a choice from the centers in `known` (labeled samples), or from none."""
        keys = first_keys(rule, ids_to_numpy(self.ids), self.scores, seed, round_)
        self.front = Front(rule, self.points, keys, np.full(len(keys), OPEN))
        if known is not None:
            for vectors in _vectors(known):
                centers = Points.of([to_fixed(v, p) for v, p in zip(vectors, self.powers, strict=True)])
                self.front.add(centers, np.zeros(len(centers)))

    def advance(self, added: Added | None, width: int) -> Candidates:
        """One step: take in what was taken, and return the next candidates."""
        front = self.front
        if added is not None:
            front.add(added.points, added.times)
            front.key_N[added.rows[added.shards == self.number]] = TAKEN
        rows, following = front.first(width, self.order)
        candidates = self._candidates(rows)
        if following is None:
            return candidates
        return replace(candidates, next_key=float(front.key_N[following]), next_id=self.ids[following].as_py())

    def widest(self) -> Candidates:
        """The point of largest norm, ties by id; no row where the shard is empty."""
        squares_N = self.points.squares_N
        largest = np.flatnonzero(squares_N == squares_N.max(initial=0.0))
        return self._candidates(largest[np.argsort(self.order[largest])][:1])

    def _candidates(self, rows: npt.NDArray[np.int64]) -> Candidates:
        return Candidates(
            shard=self.number,
            rows=rows,
            ids=self.ids.take(pa.array(rows)),
            scores=self.scores[rows],
            points=self.points.take(rows),
            keys=self.front.key_N[rows],
            nearest=self.front.nearest_N[rows],
        )

    # --- clusters ---

    def sums(self, centers: Points) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return cluster_sums(self.points, nearest_center(self.points, centers), len(centers))

    def assign(self, centers: Points) -> None:
        """Settle each row's cluster for good."""
        self.clusters = nearest_center(self.points, centers)

    def reduce(self, function: Callable[..., T], *args: Any) -> T:
        """`function` of (ids, scores, clusters) and `args`."""
        return function(self.ids, self.scores, self.clusters, *args)


class Shards:
    """All shards: a call goes to every one of them, and the answers come back in their order."""

    def __init__(self, source: Files | Rows, count: int, known: Files | None = None) -> None:
        """Shards of the rows: at most `count` actors spread over the nodes; for `count` 0 one in this process.

        Args:
            known: files of further points (the labeled samples) that the scale of the fixed point has to hold.
        """
        cuts: Sequence[Files | Rows] = source.cut(max(1, count)) if isinstance(source, Files) else [source]
        self.here = not count
        make: Any = Shard if self.here else ray.remote(num_cpus=SHARD_CPUS, scheduling_strategy="SPREAD")(Shard).remote
        self.members = [make(n) for n in range(len(cuts))]
        try:
            found = self.each("load", [(cut, known) for cut in cuts])
        except BaseException:
            self.close()
            raise
        self.rows = sum(rows for rows, _ in found)
        factors = [factor for _, factor in found]
        dimensions = [d for _, d in factors[0]]
        largest = np.max([[x for x, _ in factor] for factor in factors], axis=0)
        self.powers = [exponent(float(x), d) for x, d in zip(largest, dimensions, strict=True)]
        self.point_bytes = 4 * sum(dimensions)
        self("fix", self.powers)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for actor in () if self.here else self.members:
            ray.kill(actor)

    def __call__(self, method: str, *args: Any) -> list[Any]:
        """The same call to every shard."""
        if not self.here:  # what all of them get is stored once
            args = tuple(ray.put(a) if isinstance(a, (Added, Points)) else a for a in args)
        return self.each(method, [args] * len(self.members))

    def each(self, method: str, calls: Sequence[tuple]) -> list[Any]:
        """A call of its own to every shard."""
        pairs = zip(self.members, calls, strict=True)
        if self.here:
            return [getattr(shard, method)(*args) for shard, args in pairs]
        with plain_errors():
            return ray.get([getattr(actor, method).remote(*args) for actor, args in pairs])

    def one_by_one(self, method: str, *args: Any) -> Iterator[Any]:
        """The same call to every shard, of whose large answers only one at a time is held here."""
        if self.here:
            yield from self(method, *args)
            return
        answers = [getattr(actor, method).remote(*args) for actor in self.members]
        while answers:
            with plain_errors():
                yield ray.get(answers.pop(0))


def count_shards(files: Files, cpus: float, rows: int, dimensions: Sequence[int]) -> int:
    """How many actors hold the features: one for every so many bytes, at most one per CPU and file; 0: the driver."""
    size = 4 * rows * sum(dimensions)
    if size <= BYTES_WORTH_AN_ACTOR:
        return 0
    return max(1, min(len(files.paths), int(cpus), math.ceil(size / BYTES_WORTH_AN_ACTOR)))


def attempt(choice: Callable[[], T]) -> T:
    """`choice()`, again where an actor was lost."""
    for n in range(1, ATTEMPTS):
        try:
            return choice()
        except RayActorError as error:
            logger.warning("selection lost an actor (%s); attempt %d of %d", error, n + 1, ATTEMPTS)
    return choice()


def _order(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Each row's place in the order of the ids."""
    order = np.empty(len(ids), np.int64)
    order[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return order


def _largest(values: npt.NDArray[np.float32]) -> float:
    return max(float(values.max()), -float(values.min())) if values.size else 0.0


def read(files: Files) -> Rows:
    """The rows that have a score, each column of vectors in one array made beforehand."""
    rows, dimensions = files.shape()
    vectors = [np.empty((rows, d), np.float32) for d in dimensions]
    ids: list[pa.ChunkedArray] = []
    scores, filled = np.empty(rows, np.float32), 0
    for table in _tables(files, ["id", "score", *files.columns], sum(dimensions)):
        table = table.filter(pc.is_valid(table["score"]))
        place = slice(filled, filled + table.num_rows)
        for array, found in zip(vectors, _matrices(table, files.columns), strict=True):
            array[place] = found
        scores[place] = table["score"].to_numpy()
        ids.append(table["id"])
        filled = place.stop
    chunks = [chunk for column in ids for chunk in column.chunks]
    return Rows(
        ids=pa.concat_arrays(chunks) if chunks else pa.array([], pa.string()),
        scores=scores[:filled],
        vectors=[v[:filled] for v in vectors],
    )


def _vectors(files: Files) -> Iterator[list[npt.NDArray[np.float32]]]:
    """The vectors of the rows that have a score, a batch at a time, in arrays of their own."""
    _, dimensions = files.shape()
    for table in _tables(files, ["id", "score", *files.columns], sum(dimensions)):
        yield [np.array(m) for m in _matrices(table.filter(pc.is_valid(table["score"])), files.columns)]


def _matrices(table: pa.Table, columns: Sequence[str]) -> list[npt.NDArray[np.float32]]:
    """Columns of vectors as matrices (rows, D). ScoreError with ids where one is not finite."""
    found = []
    for column in columns:
        values = table[column].combine_chunks()
        matrix = values.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, values.type.list_size)
        finite = np.isfinite(matrix).all(axis=1)
        if not finite.all():
            named = table["id"].filter(pa.array(~finite)).to_pylist()[:NAMED]
            raise ScoreError(
                f"{column}s are not finite, e.g. of the samples {', '.join(map(repr, named))}: the network diverged; "
                "look at these samples, or lower training.lr in a run of another run.name"
            )
        found.append(matrix)
    return found


def _tables(files: Files, columns: list[str], dimensions: int) -> Iterator[pa.Table]:
    rows = max(256, READ_BYTES // (4 * dimensions + 64))
    for path in files.paths:
        with files.where.fs.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=rows, columns=columns):
                yield pa.Table.from_batches([batch])
