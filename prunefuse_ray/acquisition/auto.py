"""`selection.strategy: auto`: which strategy a round selects by, decided from facts of the run.

The rule, the first that applies:

1. The round makes more than LEAP times as many labels of those so far: `max_herding`. What a network of so few labels
   is unsure of is no guide to so many (IMDb, from 200 to 1,000 labels at once: `margin` 2 points below random, in three
   steps 0.5; from 1,000 to 5,000 at once 2.6 below, `max_herding` 0.1).
2. Fewer than FEW labels a class: `uncertainty_herding`. What the network is unsure of means little yet, and typical,
   different samples win (Hacohen et al. 2022; Bae et al. 2025, whose strategy does both).
3. A class has no label yet, below MANY labels a class: `uncertainty_herding`. A network does not doubt because of a
   class that it has never seen, so `margin` does not look for it; what covers the pool comes across it. A class that so
   many labels have not met may not be there at all.
4. The commonest class has more than IMBALANCED times the labels of the rarest of those that have any: `margin`, which
   asks at the borders of the rare classes (CIFAR-10-LT, factor 50, 2,000 labels: 3.5 points above random).
5. The network's metric on `pool.validation_path` is below UNSURE: `uncertainty_herding`, as in 2.
6. MANY labels a class or more: `margin`. No strategy of a single network decisively beats it there ("Deep Active
   Learning: A Reality Check", arXiv 2403.14800), and it costs nothing beside the scores (CIFAR-10, from 5,000 to 10,000
   labels: ahead of random in each of three seeds, by 2.2 points).
7. Else `uncertainty_herding` (CIFAR-10 with ten near copies of each image, 500 to 2,500 labels: 0.6 points above
   random, `margin` 2.3 below).

Evidence is to move the numbers; they stand here alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

AUTO = "auto"
STRATEGIES = ("uncertainty_herding", "margin", "max_herding")
"""All that `decide` may answer."""
NEEDED = STRATEGIES[:2]
"""What a task must have; one without `max_herding` has no answer of its own for a leap."""

LEAP = 3.0
"""Labels after a round for each before it."""
FEW = 25
"""Labels a class."""
MANY = 500
IMBALANCED = 5.0
UNSURE = 0.5
"""Accuracy on the validation set; where samples have several labels, mAP."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run knows when it decides."""

    counts: Sequence[int]
    """Labels so far, by class."""
    agreement: float | None
    """The network's metric on `pool.validation_path`; None where there is none."""
    growth: float = 1.0
    """Labels after the round for each so far."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A strategy's name, and why."""

    strategy: str
    reason: str


def in_words(each: float) -> str:
    """Labels of one class on average, rounded down: 24.9, of which a limit of 25 is told apart."""
    return f"{_down(each):,.1f}".removesuffix(".0") if each >= 10 else f"{each:.2g}"


def _down(value: float, parts: int = 10) -> float:
    """The largest multiple of 1 / parts that is not above it, but for rounding."""
    return math.floor(round(parts * value, 6)) / parts


def decide(facts: Facts) -> Decision:
    """The strategy of the next selection."""
    per_class = sum(facts.counts) / max(1, len(facts.counts))
    rarest, commonest = min(filter(None, facts.counts), default=0), max(facts.counts, default=0)
    labels = f"{in_words(per_class)} labels a class"
    if facts.growth > LEAP:
        times = -_down(-facts.growth, 100)  # rounded up
        reason = f"{times:g} times as many labels at once, above {LEAP:g}: too many for what is uncertain now"
        return Decision(strategy="max_herding", reason=reason)
    if per_class < FEW:
        return Decision(strategy="uncertainty_herding", reason=f"few labels ({labels}, below {FEW})")
    if (missing := sum(count == 0 for count in facts.counts)) and per_class < MANY:
        reason = f"no label yet of {missing:,} of {len(facts.counts):,} classes"
        return Decision(strategy="uncertainty_herding", reason=reason)
    if commonest > IMBALANCED * rarest:
        reason = f"imbalanced classes ({commonest:,} labels of one, {rarest:,} of another, above {IMBALANCED:g} to 1)"
        return Decision(strategy="margin", reason=reason)
    if facts.agreement is not None and facts.agreement < UNSURE:
        reason = f"the network reaches {_down(100 * facts.agreement):g}% on pool.validation_path, below {UNSURE:.0%}"
        return Decision(strategy="uncertainty_herding", reason=reason)
    if per_class >= MANY:
        return Decision(strategy="margin", reason=f"many labels ({labels}, {MANY} or more)")
    return Decision(strategy="uncertainty_herding", reason=f"between few and many labels ({labels})")
