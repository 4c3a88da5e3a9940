"""What people are told of a run while it goes on: a line for every round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunefuse_ray.config.schema import Config
from prunefuse_ray.method.steps import LEARN, PRETRAIN, steps
from prunefuse_ray.report.names import names
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Metric


class RoundLines:
    """A listener of `loop.run` that says a line per round as it ends, whichever commands carried out its phases."""

    def __init__(self, config: Config, place: Place, say: Callable[[str], None]) -> None:
        self.config, self.metric, self.say = config, TASKS[config.task].metric, say
        self.ledger = Ledger(place)  # one for all: each step asks for the commits of its round
        self.steps_done = 0

    def __call__(self, event: str, step: Any, commit: Any) -> None:
        if event == "start":
            return
        self.steps_done += 1
        if step.phase == LEARN:
            self.say(learned_line(commit.metrics))
        if step.phase == PRETRAIN:
            self.say(pretraining_line(commit.metrics))
        if step.round < 0:
            return
        if self.ledger.round_done(self.config, step.round):
            mine = [s for s in steps(self.config) if s.round == step.round]
            figures: dict[str, Any] = {s.phase: self.ledger.require(s).metrics for s in mine}
            figures["seconds"] = sum(metrics["seconds"] for metrics in figures.values())
            called = names(self.config.selection.selector, self.config.fusion.target)
            self.say(round_line(step.round, figures["label"]["labels"], figures, self.metric, called))


def learned_line(learned: dict[str, Any]) -> str:
    """What the network took from the pool, in a line."""
    unreadable = f", {learned['unreadable']:,} more could not be read" * bool(learned["unreadable"])
    return (
        f"learned from the pool: {learned['samples']:,} of its {learned['pool']:,} samples{unreadable}, "
        f"{learned['seconds']:.1f} s"
    )


def pretraining_line(metrics: dict[str, Any]) -> str:
    """What the pre-training came to, in a line."""
    if metrics["method"] == "none":
        return f"pre-training: none ({metrics['reason']})"
    told = f", {metrics['right'][-1]:.1%} right" if "right" in metrics else ""
    return (
        f"pre-training: {metrics['method']}{told}, {metrics['epochs']:.1f} passes over the pool, "
        f"{metrics['macs']:.3g} MACs, {metrics['seconds']:.1f} s"
    )


def round_line(
    round_: int, labels: int, figures: dict[str, Any], metric: Metric, called: tuple[str, str] = ("proxy", "fused")
) -> str:
    """What one round came to, in a line.

    Args:
        called: `report.names.names`.
    """
    parts = [f"round {round_}: {labels} labels"]
    if "train" in figures:
        parts.append(f"{called[0]} {metric.text(figures['train'][metric.measured])}")
        if sure := figures["train"].get("sure"):
            parts.append(f"sure of {sure[-1]:.0%} of the unlabeled")
    counts = figures.get("label", {}).get("class_counts")
    if counts:
        missing = sum(not count for count in counts)
        parts.append(f"{min(counts)} to {max(counts)} of a class" + f" ({missing} without any)" * bool(missing))
    if "score" in figures:
        parts.append(f"{figures['score']['samples']:,} scored")
    if "finetune" in figures:
        parts.append(f"{called[1]} {metric.text(figures['finetune'][metric.measured])}")
    return ", ".join([*parts, f"{figures['seconds']:.1f} s"])
