"""What a sweep says, from its files alone: means over seeds, costs, epochs to scratch, the Pareto front, the best."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.csv
import yaml

from prunefuse_ray.config.files import merge, to_tree
from prunefuse_ray.method.steps import pretrained_target, steps
from prunefuse_ray.report.html import counted
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import Sweep
from prunefuse_ray.sweep.results import SweepResult, TrialResult, column, read_sweep, table


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation over the seeds; the latter is NaN for one seed."""

    mean: float
    std: float
    n: int


def stat(values: Iterable[float | None]) -> Stat | None:
    known = [v for v in values if v is not None]
    if not known:
        return None
    return Stat(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else math.nan, len(known))


@dataclass(frozen=True, kw_only=True)
class Catching:
    """Epochs that fused networks needed to the final metric of scratch targets trained on the very same labels."""

    epochs: Stat | None
    """Over the seeds that reached it."""
    reached: int
    seeds: int
    scratch_epochs: float
    """Of the scratch targets, the mean over the seeds: with `patience` each may stop after another number."""
    scratch: Stat
    share: float | None
    """Epochs needed, of those of the scratch target of the same seed; the mean over the seeds that reached it."""
    every: int
    """Epochs between two measurements: the resolution."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One combination over its seeds."""

    name: str
    arm: str
    values: dict[str, Any]
    labels: int
    """The label budget at which it is compared: `common_budget`, or its own last one."""
    seeds: int
    """How many of them passed it."""
    fused: dict[int, Stat]
    """Labels -> the task's metric on the test set."""
    proxy: dict[int, Stat]
    baseline: dict[int, Stat]
    """Of the simplest model on the same labels."""
    costs: dict[str, Stat]
    """Columns of ROW at `labels`."""
    catching: Catching | None

    def of(self, network: str) -> dict[int, Stat]:
        """Labels -> metric of the `fused` network (the target), of the `proxy`, or of the `baseline`."""
        return {"fused": self.fused, "proxy": self.proxy, "baseline": self.baseline}[network]

    def final(self, network: str) -> Stat | None:
        """Its metric at the label budget that counts, where any seed has passed it."""
        return self.of(network).get(self.labels)


COSTS = (
    "selection_macs",
    "selection_training_macs",
    "dense_selection_macs",
    "total_macs",
    "selection_seconds",
    "seconds",
)


def common_budget(result: SweepResult) -> int | None:
    """The largest label budget at which every trial of a sweep measures its metric; None where there is none."""
    phase = "finetune" if result.sweep.metric == "fused" else "train"
    measured = [
        {config.selection.budgets[s.round] for s in steps(config) if s.phase == phase}
        for config in (r.trial.config for r in result.trials)
    ]
    return max(set.intersection(*measured), default=None) if measured else None


def compared_at(result: SweepResult) -> str:
    """In words, at how many labels combinations are compared."""
    common = common_budget(result)
    if common is None:
        return "each at its own last label budget, since these differ and the metric is measured at none in common"
    if all(r.trial.config.selection.budgets[-1] == common for r in result.trials):
        return "at the last label budget"
    return f"at {common:,} labels, the largest budget at which all are measured"


def points(result: SweepResult) -> list[Point]:
    """The combinations in the order of the sweep."""
    grouped: dict[str, list[TrialResult]] = {}
    for r in result.trials:
        grouped.setdefault(r.trial.point, []).append(r)
    common = common_budget(result)
    return [_point(members, common, result) for members in grouped.values()]


def _point(members: Sequence[TrialResult], common: int | None, result: SweepResult) -> Point:
    first = members[0].trial
    compared = common or first.config.selection.budgets[-1]

    def over(column: str) -> dict[int, Stat]:
        by_labels: dict[int, list[float | None]] = {}
        for row in (row for m in members for row in m.rows):
            by_labels.setdefault(row["labels"], []).append(row.get(column))
        return {labels: s for labels, values in sorted(by_labels.items()) if (s := stat(values))}

    finals = [row for m in members for row in m.rows if row["labels"] == compared]
    return Point(
        name=first.point,
        arm=first.arm,
        values=first.values,
        labels=compared,
        seeds=len(finals),
        fused=over("fused"),
        proxy=over("proxy"),
        baseline=over("baseline"),
        costs={c: s for c in COSTS if (s := stat(row.get(c) for row in finals))},
        catching=_catching(members, result.trials),
    )


def _catching(members: Sequence[TrialResult], everyone: Sequence[TrialResult]) -> Catching | None:
    needed, finals, epochs, gaps = list[int | None](), list[float](), list[int](), list[int]()
    for member in members:
        if member.tuning is None or member.trial.config.fusion.target != "fused" or not member.tuning.evaluations:
            continue
        twin = next((t for t in everyone if _is_twin(t, member)), None)
        if twin is None or twin.tuning is None:
            continue
        final = twin.rows[-1]["fused"]
        needed.append(next((e for e, value in member.tuning.evaluations if value >= final), None))
        finals.append(final)
        epochs.append(twin.tuning.epochs)
        gaps.append(member.trial.config.finetuning.evaluate_every)
    scratch = stat(finals)
    if scratch is None:
        return None
    reached = [n for n in needed if n is not None]
    shares = [n / e for n, e in zip(needed, epochs, strict=True) if n is not None]
    return Catching(
        epochs=stat(reached), reached=len(reached), seeds=len(needed), scratch_epochs=statistics.fmean(epochs),
        share=statistics.fmean(shares) if shares else None,
        scratch=scratch, every=max(gaps),
    )  # fmt: skip


def _is_twin(other: TrialResult, member: TrialResult) -> bool:
    """Whether `other` trained from scratch on the same labels (of a core-set by hardness: as the same network found
    them), for as long, and on as many workers."""
    assert member.tuning is not None
    mine, theirs = member.trial.config, other.trial.config
    judges = [(c.selection.selector, c.pruning, c.training, c.pretraining) for c in (mine, theirs)]
    recipes = [c.finetuning.model_copy(update={"evaluate_every": 0}) for c in (mine, theirs)]
    return (
        other.tuning is not None
        and theirs.fusion.target == "scratch"
        and not pretrained_target(theirs)
        and theirs.network == mine.network
        and theirs.workers.count == mine.workers.count
        and recipes[0] == recipes[1]
        and theirs.coreset == mine.coreset
        and (not mine.coreset.by_hardness or judges[0] == judges[1])
        and other.tuning.labels_key == member.tuning.labels_key
    )


# --- comparisons ---


def reference_of(found: Sequence[Point], sweep: Sweep, point: Point) -> Point | None:
    """The point that another one's costs are relative to: of the reference arm, with the same values of the space."""
    return next((p for p in found if sweep.reference and p.arm == sweep.reference and p.values == point.values), None)


def relative(point: Point, reference: Point | None, cost: str) -> float | None:
    """A cost as a share of the reference's; MACs without a reference: of what the dense network would have needed."""
    mine = point.costs.get(cost)
    theirs = reference.costs.get(cost) if reference else None
    if reference is None and cost == "selection_macs":
        theirs = point.costs.get("dense_selection_macs")
    return mine.mean / theirs.mean if mine and theirs and theirs.mean else None


DIGITS = 9
"""In which means are compared: that of the same accuracies in another order differs in the sixteenth."""


def _whole(found: Sequence[Point], network: str) -> list[Point]:
    """Of the points that were measured those with the most seeds: what is left of one of which seeds failed, or were
    stopped as they fell behind, looks too good."""
    measured = [p for p in found if p.final(network)]
    most = max((p.seeds for p in measured), default=0)
    return [p for p in measured if p.seeds == most]


def pareto(found: Sequence[Point], cost: str, network: str) -> list[Point]:
    """Points than which no other is at once cheaper and more accurate, by rising cost (means over seeds), among those
    with the most seeds."""

    def key(point: Point) -> tuple[float, float]:
        final = point.final(network)
        assert final is not None
        return point.costs[cost].mean, -round(final.mean, DIGITS)

    front: list[Point] = []
    for point in sorted((p for p in _whole(found, network) if cost in p.costs), key=key):
        if not front or key(point)[1] < key(front[-1])[1]:
            front.append(point)
    return front


def best(found: Sequence[Point], network: str) -> Point | None:
    """The highest mean among the points with the most seeds; of equals the cheaper selection."""

    def key(point: Point) -> tuple[float, float]:
        final = point.final(network)
        assert final is not None
        return round(final.mean, DIGITS), -point.costs["selection_macs"].mean

    return max(_whole(found, network), key=key, default=None)


def measured_network(found: Sequence[Point], sweep: Sweep) -> str:
    """The network that the sweep compares, or `proxy` as long as no target has been trained."""
    return sweep.metric if any(p.final(sweep.metric) for p in found) else "proxy"


# --- files ---


def write_results(root: Place, render: Callable[[SweepResult], str]) -> SweepResult:
    """Write sweep.parquet, sweep.csv, best.yaml and report.html from the trials' files."""
    result = read_sweep(root)
    rows = table(result)
    (root / "sweep.parquet").write_table(rows)
    text = io.BytesIO()
    pyarrow.csv.write_csv(rows, text)
    (root / "sweep.csv").write_bytes(text.getvalue())
    if (config := best_config(result)) is not None:
        (root / "best.yaml").write_bytes(config.encode())
    (root / "report.html").write_bytes(render(result).encode())
    return result


def best_config(result: SweepResult) -> str | None:
    """The configuration of the best point, for a run of its own."""
    found = points(result)
    network = measured_network(found, result.sweep)
    winner = best(found, network)
    if winner is None:
        return None
    final = winner.final(network)
    assert final is not None
    config = next(r.trial.config for r in result.trials if r.trial.point == winner.name)
    base = result.sweep.base.run
    tree = merge(to_tree(config), {"run": {"directory": base.directory, "name": f"{base.name}-best"}})
    reached = result.metric.spread(final.mean, final.std, 2)
    words = f"# {winner.name}: {column(network, result.metric)} {reached} over {counted(final.n, 'seed')}"
    words += f", the best of {len(found)}, {compared_at(result)}, chosen by this very figure.\n"
    return words + yaml.safe_dump(tree, sort_keys=False)
