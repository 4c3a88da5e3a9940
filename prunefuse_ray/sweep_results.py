"""What came out of a sweep, from its files alone: rows, means over seeds, costs, the Pareto front, the best point.

Figures of a phase that a trial took over from another (`shared_from`) count for it as if it had done the work itself:
costs are those of the method, not of the sweep.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import yaml

from prunefuse_ray.config import Config
from prunefuse_ray.config_files import merge, to_tree
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.ledger import Ledger, Step
from prunefuse_ray.plan import REPORT, steps
from prunefuse_ray.reuse import inputs_keys
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep_config import Sweep, Trial, sweep_from_tree, trials

COMPLETE, STOPPED, FAILED, UNFINISHED = "complete", "stopped", "failed", "unfinished"

ROW = {
    "round": pa.int64(),
    "labels": pa.int64(),
    "budgets_passed": pa.int64(),
    "proxy_accuracy": pa.float64(),
    "fused_accuracy": pa.float64(),
    "selection_macs": pa.int64(),
    "selection_training_macs": pa.int64(),
    "dense_selection_macs": pa.int64(),
    "selection_seconds": pa.float64(),
    "finetuning_seconds": pa.float64(),
    "seconds": pa.float64(),
    "phases_shared": pa.int64(),
}
"""Columns of a round. Selection costs are sums over the rounds before, i.e. what it took to choose these labels:
`selection_macs` of scoring the pool, `selection_training_macs` of training the networks that scored it, and
`selection_seconds` of both and of choosing. `seconds`: all phases so far. `phases_shared`: of this round."""


def pool_key(config: Config) -> str:
    """A short name for the pool that a configuration describes."""
    return hashlib.sha256(config.pool.model_dump_json().encode()).hexdigest()[:12]


# --- what became of a trial ---


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended, if it did."""

    status: str
    message: str = ""


def outcome_place(root: Place, name: str) -> Place:
    return root / "outcomes" / f"{name}.json"


def outcome(root: Place, name: str) -> Outcome:
    ledger = Ledger(root / "trials" / name)
    if ledger.exists and ledger.committed(Step(-1, REPORT)):
        return Outcome(status=COMPLETE)
    place = outcome_place(root, name)
    if place.exists():
        tree = place.read_json()
        return Outcome(status=tree["status"], message=tree.get("message", ""))
    return Outcome(status=UNFINISHED)


# --- rows ---


def round_row(ledger: Ledger, config: Config, round_: int) -> dict[str, Any]:
    """The figures of one round that are known; see ROW."""

    def of(step: Step) -> Mapping[str, Any]:
        commit = ledger.committed(step)
        return commit.metrics if commit else {}

    scored = [q for q in range(round_) if ledger.committed(Step(q, "score"))]
    selecting = [Step(q, phase) for q in scored for phase in ("train", "score")]
    selecting += [Step(q, "select") for q in range(1, round_ + 1)]
    mine = [s for s in steps(config) if s.round == round_]
    row = {
        "round": round_,
        "labels": config.selection.budgets[round_],
        "budgets_passed": round_ + 1,
        "proxy_accuracy": of(Step(round_, "train")).get("test_accuracy"),
        "fused_accuracy": of(Step(round_, "finetune")).get("test_accuracy"),
        "selection_macs": sum(of(Step(q, "score")).get("macs", 0) for q in scored),
        "selection_training_macs": sum(of(Step(q, "train")).get("macs", 0) for q in scored),
        "dense_selection_macs": sum(of(Step(q, "score")).get("dense_macs", 0) for q in scored),
        "selection_seconds": sum(of(s).get("seconds", 0.0) for s in selecting),
        "finetuning_seconds": of(Step(round_, "finetune")).get("seconds"),
        "seconds": sum(of(s).get("seconds", 0.0) for s in steps(config) if s.phase != REPORT and s.round <= round_),
        "phases_shared": sum("shared_from" in of(s) for s in mine),
    }
    return {k: v for k, v in row.items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the target's training on the last budget went."""

    labels_key: str
    """Inputs key of the last labels: trials with the same one trained their targets on the same labels."""
    epochs: int
    evaluations: list[tuple[int, float]]
    """(epoch, test accuracy), where it was measured while training"""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    trial: Trial
    outcome: Outcome
    rows: list[dict[str, Any]]
    tuning: Tuning | None
    shared: dict[str, int]
    """Trial -> number of phases that were taken over from it."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A sweep as it stands on disk."""

    sweep: Sweep
    root: Place
    trials: list[TrialResult]


def read_sweep(root: Place) -> SweepResult:
    """Raises LedgerError where the directory is no sweep or is damaged."""
    try:
        tree = yaml.safe_load((root / "sweep.yaml").read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise LedgerError(f"{root.path}: sweep.yaml cannot be read ({error}); is this a sweep's directory?") from error
    sweep = sweep_from_tree(tree)
    return SweepResult(sweep=sweep, root=root, trials=[_read_trial(root, t) for t in trials(sweep)])


def _read_trial(root: Place, trial: Trial) -> TrialResult:
    ledger, config = Ledger(root / "trials" / trial.name), trial.config
    rows: list[dict[str, Any]] = []
    tuning, shared = None, dict[str, int]()
    if ledger.exists:
        plan = steps(config)
        ends = {s.round: s for s in plan}
        rows = [round_row(ledger, config, r) for r in range(len(config.selection.budgets)) if ledger.committed(ends[r])]
        for step in plan:
            commit = ledger.committed(step)
            if commit is not None and (origin := commit.metrics.get("shared_from")):
                shared[origin] = shared.get(origin, 0) + 1
        last = len(config.selection.budgets) - 1
        if tuned := ledger.committed(Step(last, "finetune")):
            tuning = Tuning(
                labels_key=inputs_keys(config, ledger.read_pool())[Step(last, "label")],
                epochs=tuned.metrics["epochs"],
                evaluations=[(e["epoch"], e["accuracy"]) for e in tuned.metrics.get("evaluations", [])],
            )
    return TrialResult(trial=trial, outcome=outcome(root, trial.name), rows=rows, tuning=tuning, shared=shared)


def table(result: SweepResult) -> pa.Table:
    """A row per trial and round: who, what was tried, and ROW."""
    fields = sorted({field for r in result.trials for field in r.trial.values})
    names = {"trial": pa.string(), "point": pa.string(), "arm": pa.string(), "seed": pa.int64(), "status": pa.string()}
    rows = [
        {
            "trial": r.trial.name,
            "point": r.trial.point,
            "arm": r.trial.arm or None,
            "seed": r.trial.config.run.seed,
            "status": r.outcome.status,
            **{f: r.trial.values.get(f) for f in fields},
            **row,
        }
        for r in result.trials
        for row in r.rows
    ]
    columns = {n: pa.array([row.get(n) for row in rows], kind) for n, kind in names.items()}
    columns |= {f: _column([row[f] for row in rows]) for f in fields}
    columns |= {n: pa.array([row.get(n) for row in rows], kind) for n, kind in ROW.items()}
    return pa.table(columns)


def _column(values: list[Any]) -> pa.Array:
    """Values of a field as numbers or words; lists and mixtures as JSON."""
    for kind in (bool, int, float, str):
        allowed = (int, float) if kind is float else kind
        if all(v is None or (isinstance(v, allowed) and (kind is bool or not isinstance(v, bool))) for v in values):
            return pa.array([None if v is None else kind(v) for v in values])
    return pa.array([json.dumps(v) for v in values])


# --- over the seeds ---


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
    """Epochs that fused networks needed to the final accuracy of scratch targets trained on the very same labels."""

    epochs: Stat | None
    """Over the seeds that reached it."""
    reached: int
    seeds: int
    scratch_epochs: int
    scratch: Stat
    every: int
    """Epochs between two measurements: the resolution."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One combination over its seeds."""

    name: str
    arm: str
    values: dict[str, Any]
    seeds: int
    fused: dict[int, Stat]
    """Labels -> accuracy."""
    proxy: dict[int, Stat]
    costs: dict[str, Stat]
    """Columns of ROW at the last budget, over the seeds that passed it."""
    catching: Catching | None

    def final(self, metric: str) -> Stat | None:
        """The metric at the point's largest budget, where any seed has passed it."""
        by_labels = self.fused if metric == "fused_accuracy" else self.proxy
        return by_labels[max(by_labels)] if by_labels and "selection_macs" in self.costs else None


COSTS = ("selection_macs", "selection_training_macs", "dense_selection_macs", "selection_seconds", "seconds")


def points(result: SweepResult) -> list[Point]:
    """The combinations in the order of the sweep."""
    grouped: dict[str, list[TrialResult]] = {}
    for r in result.trials:
        grouped.setdefault(r.trial.point, []).append(r)
    return [_point(members, result) for members in grouped.values()]


def _point(members: Sequence[TrialResult], result: SweepResult) -> Point:
    first = members[0].trial
    last = first.config.selection.budgets[-1]

    def over(column: str) -> dict[int, Stat]:
        by_labels: dict[int, list[float | None]] = {}
        for row in (row for m in members for row in m.rows):
            by_labels.setdefault(row["labels"], []).append(row.get(column))
        return {labels: s for labels, values in sorted(by_labels.items()) if (s := stat(values))}

    finals = [row for m in members for row in m.rows if row["labels"] == last]
    return Point(
        name=first.point,
        arm=first.arm,
        values=first.values,
        seeds=len(finals),
        fused=over("fused_accuracy"),
        proxy=over("proxy_accuracy"),
        costs={c: s for c in COSTS if (s := stat(row.get(c) for row in finals))},
        catching=_catching(members, result.trials),
    )


def _catching(members: Sequence[TrialResult], everyone: Sequence[TrialResult]) -> Catching | None:
    needed, finals, epochs, gaps = list[int | None](), list[float](), 0, list[int]()
    for member in members:
        if member.tuning is None or member.trial.config.fusion.target != "fused" or not member.tuning.evaluations:
            continue
        twin = next((t for t in everyone if _is_twin(t, member)), None)
        if twin is None or twin.tuning is None:
            continue
        final = twin.rows[-1]["fused_accuracy"]
        needed.append(next((e for e, accuracy in member.tuning.evaluations if accuracy >= final), None))
        finals.append(final)
        epochs = twin.tuning.epochs
        gaps.append(member.trial.config.finetuning.evaluate_every)
    scratch = stat(finals)
    if scratch is None:
        return None
    reached = [n for n in needed if n is not None]
    return Catching(
        epochs=stat(reached), reached=len(reached), seeds=len(needed), scratch_epochs=epochs, scratch=scratch,
        every=max(gaps),
    )  # fmt: skip


def _is_twin(other: TrialResult, member: TrialResult) -> bool:
    """Whether `other` trained from scratch on the same labels, for as long."""
    assert member.tuning is not None
    mine, theirs = member.trial.config, other.trial.config
    recipes = [c.finetuning.model_copy(update={"evaluate_every": 0}) for c in (mine, theirs)]
    return (
        other.tuning is not None
        and theirs.fusion.target == "scratch"
        and theirs.network == mine.network
        and recipes[0] == recipes[1]
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


def pareto(found: Sequence[Point], cost: str, metric: str) -> list[Point]:
    """Points than which no other is at once cheaper and more accurate, by rising cost (means over seeds)."""

    def key(point: Point) -> tuple[float, float]:
        final = point.final(metric)
        assert final is not None
        return point.costs[cost].mean, -final.mean

    front: list[Point] = []
    for point in sorted((p for p in found if p.final(metric) and cost in p.costs), key=key):
        if not front or key(point)[1] < key(front[-1])[1]:
            front.append(point)
    return front


def best(found: Sequence[Point], metric: str) -> Point | None:
    """The highest mean at the last budget among the points with the most seeds; of equals the cheaper selection."""
    measured = [p for p in found if p.final(metric)]
    most = max((p.seeds for p in measured), default=0)

    def key(point: Point) -> tuple[float, float]:
        final = point.final(metric)
        assert final is not None
        return final.mean, -point.costs["selection_macs"].mean

    return max((p for p in measured if p.seeds == most), key=key, default=None)


def measured_metric(found: Sequence[Point], sweep: Sweep) -> str:
    """The sweep's metric, or the proxies' accuracy as long as no target has been trained."""
    return sweep.metric if any(p.final(sweep.metric) for p in found) else "proxy_accuracy"


# --- files ---


def write_results(root: Place, render: Callable[[SweepResult], str]) -> SweepResult:
    """Write sweep.parquet, sweep.csv, best.yaml and report.html from the trials' files."""
    result = read_sweep(root)
    rows = table(result)
    (root / "sweep.parquet").write_table(rows)
    text = io.BytesIO()
    pa.csv.write_csv(rows, text)
    (root / "sweep.csv").write_bytes(text.getvalue())
    if (config := best_config(result)) is not None:
        (root / "best.yaml").write_bytes(config.encode())
    (root / "report.html").write_bytes(render(result).encode())
    return result


def best_config(result: SweepResult) -> str | None:
    """The configuration of the best point, for a run of its own."""
    found = points(result)
    metric = measured_metric(found, result.sweep)
    winner = best(found, metric)
    if winner is None:
        return None
    final = winner.final(metric)
    assert final is not None
    config = next(r.trial.config for r in result.trials if r.trial.point == winner.name)
    base = result.sweep.base.run
    tree = merge(to_tree(config), {"run": {"directory": base.directory, "name": f"{base.name}-best"}})
    spread = "" if math.isnan(final.std) else f" ± {final.std:.2%}"
    words = f"# {winner.name}: {metric} {final.mean:.2%}{spread} over {final.n} seeds, the best of {len(found)}.\n"
    return words + yaml.safe_dump(tree, sort_keys=False)
