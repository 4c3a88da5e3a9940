"""What a report shows of a run, as plain values: the seam between the run directory and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunefuse_ray.report.names import names
from prunefuse_ray.tasks.task import Metric


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One chosen sample."""

    id: str
    score: float | None
    rank: int
    label: str
    image: bytes | None
    """An encoded image (PNG, JPEG, …), or None for text."""
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """A labeled sample of which the trained proxy thinks otherwise."""

    id: str
    label: str
    label_probability: float
    guess: str
    probability: float | None
    image: bytes | None
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreHistogram:
    """The scores of one round's pool."""

    edges: np.ndarray
    counts: np.ndarray
    threshold: float | None
    """The smallest score that was chosen."""


@dataclass(frozen=True, kw_only=True)
class RoundView:
    round: int
    labels: int
    """Labels after this round, the initial set included; before it is labeled, those that there are."""
    chosen: int
    strategy: str
    reason: str = ""
    """Why that strategy, where the run has decided it."""
    metrics: dict[str, Any]
    """The round's metrics.json; any phase may be missing."""
    scores: ScoreHistogram | None
    first: list[Chosen]
    """The samples chosen first: those with the highest scores."""
    last: list[Chosen]
    doubts: list[Doubt] = field(default_factory=list)
    """Labels that the round's proxy finds less likely than another class, the least likely first."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    name: str
    directory: str
    complete: bool
    metric: Metric
    """The task's: what of the networks' figures is shown first."""
    config: dict[str, Any]
    pool: dict[str, Any]
    """rows, files, bytes, classes, path."""
    rounds: list[RoundView]
    result: dict[str, Any] | None
    rejected: list[tuple[str, str]]
    """(id, reason) of the first few."""
    rejected_count: int
    inventory: dict[str, Any] | None = None
    """The account of the pool, as it was taken before the run began (`inventory.json`); None of older runs."""
    numbers: bool = False
    """Whether labels are numbers, and what else are classes are the names of the targets."""
    pixels: bool = False
    """Whether labels are of pixels."""
    beside: tuple[Metric, ...] = ()
    """Figures that are shown beside the metric."""
    pretraining: Mapping[str, Any] | None = None
    """What the network that selects learned from the pool before any label, with its cost; None where nothing was."""
    initial: Mapping[str, Any] | None = None
    """The pass that scored the pool for the initial set, with its cost; None where scores did not select that."""

    @property
    def names(self) -> tuple[str, str]:
        """What its two networks are called: the one that selects, and the one that is wanted."""
        selection, fusion = self.config.get("selection"), self.config.get("fusion")
        return names(
            selection.get("selector") if isinstance(selection, Mapping) else None,
            fusion.get("target") if isinstance(fusion, Mapping) else None,
        )
