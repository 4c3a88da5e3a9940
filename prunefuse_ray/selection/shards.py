"""The candidates of a set strategy, spread over actors (`acquisition.Candidates`): O(N·D / shards) memory in each.

Nothing of N x k or N x N exists anywhere. A selection depends neither on how the rows lie in files nor on the number of
shards: distances are exact (`acquisition/fixed_point.py`), ties go to the smaller id, and chance is a hash of the id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from prunefuse_ray.acquisition.fixed_point import Points, exponent, means, within_reach
from prunefuse_ray.acquisition.greedy import Front, Rule, take_in_turn
from prunefuse_ray.acquisition.ranking import ranked
from prunefuse_ray.acquisition.strategy import Chance, Part, Selected
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.selection.rows import Files, Rows
from prunefuse_ray.selection.shard import Lowest, Shard, Taken

SHARD_CPUS = 0.1
"""Logical CPUs of a shard's actor: so few that the shards of one run, one per CPU, always find room beside others."""
BYTES_WORTH_AN_ACTOR = 32 * 2**20
"""Features that fit in so little are held by the driver: an actor takes seconds to start."""
STEP_BYTES = 2**20
"""Points that a shard sends at each step; more make fewer steps."""

P = ParamSpec("P")
T = TypeVar("T")


class Shards:
    """All shards: a call goes to every one of them, and the answers come back in their order."""

    def __init__(
        self, source: Files | Rows, count: int, labeled: Files | Rows | None = None, references: Rows | None = None
    ) -> None:
        """Shards of the rows: at most `count` actors spread over the nodes; for `count` 0 one in this process.

        Args:
            labeled: the labeled samples, which the scale of the fixed point has to hold.
            references: a random sample of the pool (`Part.references`), which it has to hold, too.
        """
        cuts: Sequence[Files | Rows] = source.cut(max(1, count)) if isinstance(source, Files) else [source]
        self.here = not count
        make: Any = Shard if self.here else ray.remote(num_cpus=SHARD_CPUS, scheduling_strategy="SPREAD")(Shard).remote
        self.members = [make(n, labeled, references) for n in range(len(cuts))]
        try:
            extents = self._each(Shard.load, [(cut,) for cut in cuts])
        except BaseException:
            self.close()
            raise
        self.rows = sum(e.rows for e in extents)
        self.labeled = len(labeled.ids) if isinstance(labeled, Rows) else labeled.shape()[0] if labeled else 0
        dimensions = extents[0].dimensions
        largest = np.max([e.largest for e in extents], axis=0)
        counts = np.sum([e.magnitudes for e in extents], axis=0)
        reach = [within_reach(float(x), c) for x, c in zip(largest, counts, strict=True)]
        self.powers = [exponent(x, d) for x, d in zip(reach, dimensions, strict=True)]
        self.point_bytes = 4 * sum(dimensions)
        self._all(Shard.fix, self.powers)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for actor in () if self.here else self.members:
            ray.kill(actor)

    # --- what strategies ask ---

    def greedy(self, rule: Rule, k: int, *, chance: Chance | None = None, from_labeled: bool = False) -> Selected:
        """Take k points by `rule`. Each step is one broadcast of the points taken and one reduction of the shards'
        candidates, and takes as many points as the candidates decide."""
        self._all(Shard.begin, rule, chance or Chance(seed=0, round=0), from_labeled)
        width = int(np.clip(STEP_BYTES // self.point_bytes, 16, 512))
        steps: list[tuple[Taken, pa.Table]] = []
        if rule.kind == "race":
            steps.append(_widest(self._all(Shard.widest)))
        taken = sum(table.num_rows for _, table in steps)
        while taken < k:
            lowest = self._all(Shard.advance, steps[-1][0] if steps else None, width)
            steps.append(_take(rule, lowest, k - taken))
            taken += steps[-1][1].num_rows
        return Selected(
            table=ranked(pa.concat_tables([table for _, table in steps])),
            points=Points.concat([taken.points for taken, _ in steps]),
            keys=np.concatenate([taken.keys for taken, _ in steps]),
        )

    def whole(self) -> Part:
        assert self.here, "only pairwise strategies ask; see set_selection"
        return self.members[0].part()

    def lloyd_step(self, centers: Points) -> Points:
        found = self._all(Shard.sums, centers)
        return means(np.sum([s.sums for s in found], axis=0), np.sum([s.counts for s in found], axis=0), centers)

    def assign(self, centers: Points) -> None:
        self._all(Shard.assign, centers)

    def labeled_clusters(self, centers: Points) -> npt.NDArray[np.int64]:
        if self.here:
            return self.members[0].labeled_clusters(centers)
        with plain_errors():
            return ray.get(self.members[0].labeled_clusters.remote(centers))

    def total(self, function: Callable[..., npt.NDArray[Any]], *args: Any) -> npt.NDArray[Any]:
        return np.sum(self._all(Shard.reduce, function, *args), axis=0)

    def each(self, function: Callable[..., pa.Table], *args: Any) -> Iterator[pa.Table]:
        if self.here:
            yield from self._all(Shard.reduce, function, *args)
            return
        answers = [actor.reduce.remote(function, *args) for actor in self.members]
        while answers:  # of the answers, which may be large, one at a time is held here
            with plain_errors():
                yield ray.get(answers.pop(0))

    # --- calls ---

    def _all(self, method: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """The same call to every shard."""
        shared: tuple[Any, ...] = args
        if not self.here:  # what all of them get is stored once
            shared = tuple(ray.put(a) if isinstance(a, Taken | Points) else a for a in args)
        return self._each(method, [shared] * len(self.members))

    def _each(self, method: Callable[Concatenate[Shard, ...], T], calls: Sequence[tuple]) -> list[T]:
        """A call of its own to every shard."""
        pairs = zip(self.members, calls, strict=True)
        if self.here:
            return [method(shard, *args) for shard, args in pairs]
        with plain_errors():
            return ray.get([getattr(actor, method.__name__).remote(*args) for actor, args in pairs])


def count_shards(files: Files, cpus: float, rows: int, dimensions: Sequence[int]) -> int:
    """How many actors hold the features: one for every so many bytes, at most one per CPU and file; 0: the driver."""
    size = 4 * rows * sum(dimensions)
    if size <= BYTES_WORTH_AN_ACTOR:
        return 0
    return max(1, min(len(files.paths), int(cpus), math.ceil(size / BYTES_WORTH_AN_ACTOR)))


def _widest(found: Sequence[Lowest]) -> tuple[Taken, pa.Table]:
    """The point of largest norm of all shards', ties by id."""
    filled = [w for w in found if len(w.rows)]
    largest = max(float(w.points.squares_N[0]) for w in filled)
    first = min((w for w in filled if w.points.squares_N[0] == largest), key=lambda w: w.ids[0].as_py())
    taken = Taken(points=first.points, keys=np.zeros(1), shards=np.array([first.shard]), rows=first.rows)
    return taken, pa.table({"id": first.ids, "score": first.scores})


def _take(rule: Rule, lowest: Sequence[Lowest], limit: int) -> tuple[Taken, pa.Table]:
    """What the candidates of all shards decide: the points taken, and their rows (id, score)."""
    parts = [part for part in lowest if len(part.rows)]
    table = pa.table(
        {
            "id": pa.concat_arrays([p.ids for p in parts]),
            "score": np.concatenate([p.scores for p in parts]),
            "shard": np.concatenate([np.full(len(p.rows), p.shard) for p in parts]),
            "row": np.concatenate([p.rows for p in parts]),
        }
    )
    by_id = pc.sort_indices(table["id"]).to_numpy()
    table = table.take(pa.array(by_id))
    points = Points.concat([p.points for p in parts]).take(by_id)
    keys = np.concatenate([p.keys for p in parts])[by_id]
    nearest = np.concatenate([p.nearest for p in parts])[by_id]
    bound = min(((p.next_key, p.next_id) for p in parts if p.next_id is not None), default=None)
    if bound is None:
        key, before = np.inf, np.ones(len(keys), bool)
    else:
        key, before = bound[0], pc.less(table["id"], pa.scalar(bound[1], table["id"].type)).to_numpy()
    rows, taken_keys = take_in_turn(Front(rule, points, keys, nearest), limit, key, before)
    won = table.take(pa.array(rows))
    taken = Taken(points=points.take(rows), keys=taken_keys, shards=won["shard"].to_numpy(), rows=won["row"].to_numpy())
    return taken, won.select(["id", "score"])
