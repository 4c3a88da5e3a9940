"""The section `selection`: which samples get labeled, and how many."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from prunefuse_ray.acquisition import AUTO as AUTO_STRATEGY
from prunefuse_ray.acquisition import STRATEGIES, Strategy, auto
from prunefuse_ray.config.names import Named
from prunefuse_ray.config.section import Positive, Section

StrategyName = Annotated[
    str,
    Named(
        registry=STRATEGIES,
        describe=lambda strategy: strategy.wants,
        besides={AUTO_STRATEGY: f"what the rule of {auto.__name__} says in each round"},
    ),
]


InitialName = Annotated[
    str,
    Named(
        registry=STRATEGIES,
        describe=lambda strategy: strategy.wants,
        fits=lambda strategy: strategy.needs_no_training,
    ),
]


class Selection(Section):
    """Which samples get labeled, and how many."""

    strategy: StrategyName = "least_confidence"
    """Acquisition strategy: what makes a sample wanted. Or module:name for one of your own."""
    initial: InitialName = "random"
    """Strategy of the initial set. One that selects by features (typiclust, say) reads those of the selecting network
    before any training: worth it with trained weights (network.weights)."""
    per_group: Literal["predicted", "group"] | None = None
    """Choose the same number of samples from each class that the network predicts (predicted), or from each value of
    pool.group_column (group), as far as each has enough. Only with strategies that score each sample by itself."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Prefer classes with few labels so far: a score is multiplied by the inverse label count (smoothed) of the classes
    that the network predicts, raised to this power; 0: no preference. Only with strategies that go by scores."""
    wanted_classes: list[str] = []
    """Classes, by name, of which more samples are wanted: the scores of other classes are divided by eight; the
    strategy rare_classes sets them to zero. Only with strategies that go by scores."""
    min_distance: Annotated[float, Field(gt=0)] | None = None
    """Leave out samples whose features are nearer than this (Euclidean distance) to a better one or a labeled one.
    Only with strategies that score each sample by itself."""
    hold_back: Annotated[float, Field(gt=0)] | None = None
    """Hold back samples that belong to no class: those whose nearest labeled sample, by features, is farther than this
    many times the distance within which 95 % of the labeled samples have another one. For pools with foreign samples,
    once every class has labels; 1 holds back about one in twenty of the pool's own, too, and 2 hardly any."""
    pixel_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """An image's score is the mean over this share of its pixels, the most uncertain ones; 1: over all of them. For
    task segmentation."""
    dropout_masks: Annotated[int, Field(ge=0)] = 0
    """Monte Carlo dropout: score each sample under this many dropout masks (10, say), which act as the committee for
    strategies such as bald. The masks are drawn anew in each round and are the same for all samples. 0: none. For
    networks with dropout layers; scoring takes this many passes."""
    selector: str = Field("proxy", pattern=r"^(proxy|dense|svp:.+)$")
    """Network that selects: proxy (PruneFuse), dense (classic active learning), svp:ARCHITECTURE (another network)."""
    budgets: Annotated[list[Positive], Field(min_length=1)] = [50, 100, 150, 200, 250]
    """Label budgets, one per round, rising; the first is the initial set (`initial`), the last the whole budget."""

    @model_validator(mode="after")
    def _fair(self) -> Selection:
        for field in ("per_group", "min_distance"):
            value = getattr(self, field)
            refused = [s for s in self.later if s.score is None or s.select is not None]
            if value is not None and refused:
                why = "selects a set of its own" if refused[0].select is not None else "asks no network"
                others = [n for n, s in STRATEGIES.loadable().items() if s.score is not None and s.select is None]
                raise ValueError(
                    f"{field} {value} cannot be combined with strategy '{self.strategy}', which {why}: leave it out, "
                    f"or set strategy to one that scores each sample by itself ({', '.join(others)})"
                )
        if self.per_group is not None and self.min_distance is not None:
            raise ValueError(
                f"per_group {self.per_group} and min_distance {self.min_distance:g} cannot be combined: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _weighable(self) -> Selection:
        for field in ("class_balance", "wanted_classes"):
            if getattr(self, field) and not all(s.goes_by_scores for s in self.later):
                able = [name for name, strategy in STRATEGIES.loadable().items() if strategy.goes_by_scores]
                raise ValueError(
                    f"{field} weighs scores, and strategy '{self.strategy}' does not go by them: leave it out, or set "
                    f"strategy to one of {', '.join(able)}"
                )
        if self.hold_back is not None and any(s.score is None for s in self.later):
            raise ValueError(
                f"hold_back {self.hold_back:g} reads features, and strategy '{self.strategy}' has none: leave it out, "
                "or use another strategy"
            )
        if any(s.wanted for s in self.later) and not self.wanted_classes:
            raise ValueError(f"strategy '{self.strategy}' asks for classes: name them in selection.wanted_classes")
        if not STRATEGIES[self.initial].needs_no_training:
            able = [name for name, strategy in STRATEGIES.loadable().items() if strategy.needs_no_training]
            raise ValueError(f"initial '{self.initial}' asks a trained network: use one of {', '.join(able)}")
        return self

    @model_validator(mode="after")
    def _maskable(self) -> Selection:
        if self.dropout_masks == 1:
            raise ValueError("dropout_masks 1 makes no committee: set it to 2 or more, or to 0")
        if self.dropout_masks and (self.min_distance is not None or self.hold_back is not None):
            raise ValueError("dropout_masks cannot be combined with min_distance or hold_back: leave one out")
        return self

    @property
    def passes(self) -> int:
        """How often a round's pass asks the network of each sample, at most."""
        return max(1, self.dropout_masks)

    def masks_of(self, strategy: Strategy) -> int:
        """Dropout masks under which a selection by `strategy` asks the network; 0: none."""
        return self.dropout_masks if strategy.members else 0

    @property
    def later(self) -> list[Strategy]:
        """The strategies by which the rounds after the initial set may select."""
        if self.strategy != AUTO_STRATEGY:
            return [STRATEGIES[self.strategy]]
        answers = [STRATEGIES[name] for name in auto.STRATEGIES]
        return [s for s in answers if s.goes_by_scores or not self.weighs]

    @property
    def weighs(self) -> bool:
        """Whether scores are weighed by class."""
        return bool(self.class_balance or self.wanted_classes)

    @property
    def needs_features(self) -> bool:
        """Whether any selection may read the penultimate features."""
        return any(map(self.reads_features, [*self.later, STRATEGIES[self.initial]]))

    def reads_features(self, strategy: Strategy) -> bool:
        """Whether a selection by `strategy` reads the penultimate features."""
        return strategy.select is not None or self.min_distance is not None or self.hold_back is not None

    def reads_labeled(self, strategy: Strategy) -> bool:
        """Whether it reads those of the labeled samples, too."""
        return strategy.labeled or self.min_distance is not None or self.hold_back is not None

    @field_validator("budgets")
    @classmethod
    def _rising(cls, value: list[int]) -> list[int]:
        if any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError(
                f"{value} does not rise: each budget counts all labels so far, so give e.g. [50, 100, 150]"
            )
        return value
