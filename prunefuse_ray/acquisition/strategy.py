"""The seam for acquisition strategies: what a strategy is, and what one that selects a set may ask of the candidates.

To add one: write it in a file of its own and name it in `acquisition/__init__.py` (or register it from elsewhere, see
`prunefuse_ray/registry.py`). Validation, help, the scoring pass and the documents' table follow from the entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray.acquisition.fixed_point import Points
from prunefuse_ray.acquisition.greedy import Rule
from prunefuse_ray.acquisition.hashing import random_scores
from prunefuse_ray.errors import ConfigError

Probabilities = npt.NDArray[np.float64]
"""(N, C); of a committee, for strategies that ask its members, (M, N, C). Rows sum to one."""
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What random draws depend on beside the sample's id."""

    seed: int
    round: int
    classes: int = 2
    """Of the task: for strategies that look for as many groups."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Samples that one process holds: those of a shard, or all that there are."""

    ids: pa.Array
    scores: Scores
    """(N,)"""
    points: Points
    units: tuple[float, ...] = (1.0,)
    """What 1.0 of each factor is in the whole numbers of `points`."""
    clusters: npt.NDArray[np.int64] | None = None
    """(N,) once `Candidates.assign` was called."""
    labeled: Callable[[], Iterator[Points]] = lambda: iter(())
    """The labeled samples, a batch at a time (`Strategy.labeled`)."""
    references: tuple[Points, Scores] | None = None
    """A random sample of the pool with its scores, where the part is none itself."""

    def drawn(self, chance: Chance, purpose: int) -> Scores:
        """(N,) uniform random numbers, another series for every purpose (a large number)."""
        return random_scores(self.ids.to_numpy(zero_copy_only=False), chance.seed, purpose + chance.round)


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A selected set: (id, score, rank), and the selected points with their keys at the time."""

    table: pa.Table
    points: Points
    keys: npt.NDArray[np.float64]


class Candidates(Protocol):
    """The scored samples of a pool as points, wherever they lie. What is asked here costs memory O(N D / nodes)."""

    rows: int
    labeled: int
    """Labeled samples (`Strategy.labeled`)."""

    def greedy(self, rule: Rule, k: int, *, chance: Chance | None = None, from_labeled: bool = False) -> Selected:
        """Take k points, again and again the one of lowest key by `rule`; see `acquisition/greedy.py`.

        Args:
            from_labeled: begin with the labeled samples as centers (`Strategy.labeled`).
        """

    def whole(self) -> Part:
        """All samples by rising id: only for a `Strategy.pairwise`, whose samples are few enough."""

    def lloyd_step(self, centers: Points) -> Points:
        """The means of the points nearest to each center: one step of Lloyd's algorithm."""

    def assign(self, centers: Points) -> None:
        """Settle each sample's cluster, the nearest center's, for `total` and `each`."""

    def labeled_clusters(self, centers: Points) -> npt.NDArray[np.int64]:
        """(K,) how many labeled samples are nearest to each center."""

    def total(self, function: Callable[..., npt.NDArray[Any]], *args: Any) -> npt.NDArray[Any]:
        """The sum over all shards of `function(part, *args)`."""

    def each(self, function: Callable[..., pa.Table], *args: Any) -> Iterator[pa.Table]:
        """`function(part, *args)` of every shard, one at a time."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """An acquisition strategy. Scores are higher for samples that are more wanted."""

    name: str
    wants: str
    """What it looks for, to follow 'wants samples with ': one line of help."""
    paper: str = ""
    """Where it is described."""
    score: Callable[[Probabilities], Scores] | None = None
    """Scores (N,) from the predicted probabilities. None: no network is asked, a hash of the id decides."""
    largest: Callable[[int, int], float] = lambda classes, members: 1.0
    """The largest score that it can give, from the numbers of classes and of a committee's members."""
    members: bool = False
    """Only for committees: `score` takes the members' probabilities (M, N, C). Else it gets their mean, (N, C)."""
    select: Callable[[Candidates, int, Chance], pa.Table] | None = None
    """Selects k of the candidates as a set: (id, score, rank) in the order of selection. It reads their penultimate
    features. None: the k highest scores."""
    by_score: bool = False
    """`select` reads the scores, so that what weighs these has a say (`class_weights`)."""
    wanted: bool = False
    """Only with the names of classes that are wanted, which alone weigh its scores."""
    gradients: bool = False
    """`select` reads gradient embeddings: the features times `gradient_factor`."""
    labeled: bool = False
    """`select` begins with the features of the labeled samples."""
    divisible: bool = False
    """`select` may be applied to random parts of a large pool first, and then to what was selected there."""
    pairwise: bool = False
    """`select` compares samples with each other, and so gets random parts of all but small pools (`Candidates.whole`);
    then what was selected there, with a random sample of the pool."""

    def __post_init__(self) -> None:
        if self.select is not None and self.score is None:
            raise ConfigError(
                f"acquisition strategy '{self.name}': selects a set but has no score, without which the pool is never "
                "scored and chance selects: give it one, such as prunefuse_ray.acquisition.uncertainty.margin"
            )

    @property
    def goes_by_scores(self) -> bool:
        """Whether what weighs its scores has a say in what it selects."""
        return self.score is not None and (self.by_score or self.select is None)

    @property
    def needs_no_training(self) -> bool:
        """Whether it makes sense of the pool before any label: by chance, or by features alone."""
        return self.score is None or bool(self.select and not self.by_score and not self.gradients)
