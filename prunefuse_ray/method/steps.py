"""What a run consists of: the method as a list of steps, and the numbers that follow from the configuration alone.

Kousar, Bhatti, Moon, "PruneFuse", 2026 (arXiv 2603.26138), algorithm 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from prunefuse_ray.acquisition.auto import AUTO, LEAP
from prunefuse_ray.config import Config
from prunefuse_ray.errors import ConfigError, near
from prunefuse_ray.networks.from_pool import STATISTICS
from prunefuse_ray.tasks import TASKS


@dataclass(frozen=True, order=True)
class Step:
    """One phase of one round, or of the run as a whole (round -1)."""

    round: int
    phase: str

    @property
    def directory(self) -> str:
        return f"rounds/{self.round:03d}" if self.round >= 0 else ""

    def __str__(self) -> str:
        return f"round {self.round}, {self.phase}" if self.round >= 0 else self.phase

    @property
    def doing(self) -> str:
        """For people, in the middle of a sentence: 'in round 1, scoring'."""
        return f"in round {self.round}, {_DOING[self.phase]}" if self.round >= 0 else f"while {_DOING[self.phase]}"


LEARN, INIT, PRETRAIN, BASELINE, REPORT = "learn", "init", "pretrain", "baseline", "report"
SELECT, REQUEST, LABEL, TRAIN, GROW, SCORE = "select", "request", "label", "train", "grow", "score"
FUSE, FINETUNE, SYNC = "fuse", "finetune", "sync"

_DOING = {
    LEARN: "learning from the unlabeled pool",
    INIT: "initializing the networks",
    PRETRAIN: "pre-training on the pool",
    SELECT: "selecting",
    REQUEST: "writing out what is to be labeled",
    LABEL: "taking labels",
    TRAIN: "training the proxy",
    GROW: "looking for new files",
    SCORE: "scoring",
    FUSE: "fusing",
    FINETUNE: "training the target network",
    SYNC: "pruning the fused network",
    BASELINE: "fitting the baseline",
    REPORT: "writing the report",
}


def steps(config: Config) -> list[Step]:
    """Every step of a run, in order.

    A network that takes statistics of the pool learns them first, unless it begins with trained weights; what
    selects is pre-trained on the pool, where that is asked for. Round r selects (from the scores of round r-1; at
    random in round 0, unless the initial set is selected from scores, too), labels and trains the proxy from its
    initial weights; the last round scores nothing. The target is made after the last round, or after every one; a
    baseline is fitted on the last labels. People are asked (`request`) before their labels are taken; a pool that
    may grow is looked at before it is scored.
    """
    plan = [*([Step(-1, LEARN)] if learns(config) else []), Step(-1, INIT)]
    if config.pretraining.used:
        plan.append(Step(-1, PRETRAIN))
    last = len(config.selection.budgets) - 1
    known = TASKS[config.task].strategies
    if known[config.selection.initial].score is not None:
        plan.append(Step(-1, SCORE))
    scores = any(strategy.score is not None for strategy in config.selection.later)
    for r in range(last + 1):
        asked = [] if config.annotation.kind == "oracle" else [Step(r, REQUEST)]
        plan += [Step(r, SELECT), *asked, Step(r, LABEL), Step(r, TRAIN)]
        if r < last and config.pool.allow_growth:
            plan.append(Step(r, GROW))
        if r < last and scores:
            plan.append(Step(r, SCORE))
        sync = r < last and is_sync(config, r)
        if r == last or config.fusion.evaluate == "every" or sync:
            plan += [Step(r, FUSE), Step(r, FINETUNE)]
        if sync:
            plan.append(Step(r, SYNC))
    compared = config.report.baseline and TASKS[config.task].baseline
    return [*plan, *([Step(-1, BASELINE)] if compared else []), Step(-1, REPORT)]


def learns(config: Config) -> bool:
    """Whether the dense network begins with statistics of the pool."""
    return config.network.architecture in STATISTICS and config.network.weights is None


def is_sync(config: Config, round_: int) -> bool:
    """Whether the fused network of this round is pruned for the next rounds' proxy (T_sync of the paper)."""
    return config.fusion.sync_every > 0 and (round_ + 1) % config.fusion.sync_every == 0


def base(config: Config, round_: int) -> Step:
    """Where the dense network and the initial proxy of a round come from: the last sync before it, or the beginning."""
    synced = [q for q in range(round_) if is_sync(config, q)]
    return Step(synced[-1], SYNC) if synced else Step(-1, INIT)


def start(config: Config, round_: int) -> tuple[Step, str]:
    """Where the weights lie that a round's proxy starts from: the step, and the name below its directory."""
    origin = base(config, round_)
    if origin.phase == SYNC:
        return origin, "next"
    return (Step(-1, PRETRAIN), "pretrained") if config.pretraining.used else (origin, "proxies")


def pretrained_target(config: Config) -> bool:
    """Whether the target begins with what was pre-trained: where the dense network selects, it is the target, too."""
    return config.selection.selector == "dense" and config.pretraining.used


def to_select(config: Config, round_: int, labels: int) -> int:
    """How many samples round `round_` adds to `labels` that there are: in round 0 those known beforehand; what earlier
    rounds left open is made up."""
    return config.selection.budgets[round_] - labels


def check_budget(config: Config, rows: int, known: int = 0) -> None:
    """ConfigError where the pool of so many rows is too small for the budget (one that may grow has to hold the initial
    set), or where more labels are known beforehand than the initial set has: budgets count them."""
    which, budget = ("first", 0) if config.pool.allow_growth else ("last", -1)
    if config.selection.budgets[budget] > rows:
        raise ConfigError(
            f"selection.budgets: the {which} budget is {config.selection.budgets[budget]} labels, but the pool has "
            f"{rows} samples; lower it or enlarge the pool"
        )
    if known > config.selection.budgets[0]:
        raise ConfigError(
            f"selection.budgets: the first budget is {config.selection.budgets[0]} labels, but pool.known_labels has "
            f"{known}, which it counts; begin with {known} (no sample is paid for in round 0) or more"
        )


def check_wanted(config: Config, classes: Sequence[str]) -> None:
    """ConfigError where classes are wanted that there are not."""
    if unknown := [name for name in config.selection.wanted_classes if name not in classes]:
        raise ConfigError(
            f"selection.wanted_classes: '{unknown[0]}' is no class of the pool{near(unknown[0], classes)}; they are "
            f"{', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
        )


def budget_notes(config: Config, classes: int) -> list[str]:
    """What people should know of very small budgets before they pay for them."""
    first, notes = config.selection.budgets[0], []
    if first < classes and TASKS[config.task].one_class:
        notes.append(f"selection.budgets: the first {first} labels cannot be of all {classes} classes")
    if first == 1:
        notes.append("selection.budgets: of one label a network learns one class, and its batch norms no statistics")
    by = config.selection
    if (by.strategy != AUTO or by.weighs) and not all(s.needs_no_training for s in by.later):
        free = not (by.weighs or by.per_group or by.min_distance is not None or by.dropout_masks)
        able = free and "max_herding" in TASKS[config.task].strategies
        instead = ", or set selection.strategy to max_herding" if able else ""
        notes += [
            f"selection.budgets: from {a:,} labels to {b:,} at once is a leap: what a network of {a:,} labels is "
            "unsure of is no guide to so many (on IMDb, 2 points below random selection); put budgets between" + instead
            for a, b in itertools.pairwise(by.budgets)
            if b > LEAP * a
        ]
    return notes


def round_seed(config: Config, round_: int, phase: str) -> int:
    """A seed for one training: the same for every run with the same run.seed."""
    return (config.run.seed * 1_000 + round_) * 2 + (phase == FINETUNE)
