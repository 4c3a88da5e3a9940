"""What a run consists of: the method as a list of steps, and the numbers that follow from the configuration alone.

Kousar, Bhatti, Moon, "PruneFuse", 2026 (arXiv 2603.26138), algorithm 1.
"""

from __future__ import annotations

from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.config import Config
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.ledger import Step

INIT, REPORT = "init", "report"


def steps(config: Config) -> list[Step]:
    """Every step of a run, in order.

    Round r selects (at random in round 0, then from the scores of round r-1), labels and trains the proxy from its
    initial weights; the last round scores nothing. The target is made after the last round, or after every one.
    """
    plan = [Step(-1, INIT)]
    last = len(config.selection.budgets) - 1
    for r in range(last + 1):
        plan += [Step(r, "select"), Step(r, "label"), Step(r, "train")]
        if r < last and STRATEGIES[config.selection.strategy].score is not None:
            plan.append(Step(r, "score"))
        if r == last or config.fusion.evaluate == "every":
            plan += [Step(r, "fuse"), Step(r, "finetune")]
    return [*plan, Step(-1, REPORT)]


def to_choose(config: Config, round_: int) -> int:
    """How many samples round `round_` adds to the labeled set."""
    budgets = config.selection.budgets
    return budgets[round_] - (budgets[round_ - 1] if round_ else 0)


def check_budget(config: Config, rows: int) -> None:
    """ConfigError where the pool is too small for the budget."""
    if config.selection.budgets[-1] > rows:
        raise ConfigError(
            f"selection.budgets: the last budget is {config.selection.budgets[-1]} labels, but the pool has "
            f"{rows} samples; lower it or enlarge the pool"
        )


def round_seed(config: Config, round_: int, phase: str) -> int:
    """A seed for one training: the same for every run with the same run.seed."""
    return (config.run.seed * 1_000 + round_) * 2 + (phase == "finetune")
