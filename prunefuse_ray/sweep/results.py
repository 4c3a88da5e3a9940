"""What came out of each trial of a sweep, from its files alone: how it ended, and a row of figures per round.

Figures of a phase that a trial took over from another (`shared_from`) count for it as if it had done the work itself:
costs are those of the method, not of the sweep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from prunefuse_ray.config.files import flatten, merge, overlay, to_tree
from prunefuse_ray.config.schema import Config
from prunefuse_ray.errors import ConfigError, LedgerError
from prunefuse_ray.method.steps import BASELINE, FINETUNE, PRETRAIN, REPORT, Step, is_sync, pretrained_target, steps
from prunefuse_ray.registry import check_trusted, reading_files
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.recorded import read_recorded
from prunefuse_ray.storage import Place, parted
from prunefuse_ray.sweep.config import Sweep, Trial, ends, sweep_from_tree, trials
from prunefuse_ray.sweep.sharing import TRAININGS, inputs_keys
from prunefuse_ray.tasks import TASKS, Metric

COMPLETE, STOPPED, FAILED, UNFINISHED = "complete", "stopped", "failed", "unfinished"

ROW = {
    "round": pa.int64(),
    "labels": pa.int64(),
    "budgets_passed": pa.int64(),
    "proxy": pa.float64(),
    "fused": pa.float64(),
    "baseline": pa.float64(),
    "selection_macs": pa.int64(),
    "selection_training_macs": pa.int64(),
    "dense_selection_macs": pa.int64(),
    "total_macs": pa.int64(),
    "selection_seconds": pa.float64(),
    "finetuning_seconds": pa.float64(),
    "seconds": pa.float64(),
    "phases_shared": pa.int64(),
}
"""Columns of a round. `proxy` and `fused`: the networks' metric on the test set; `baseline`: of the last round, that
of the simplest model on the same labels; `column` has their names in files. Selection costs are sums over the rounds
before, i.e. what it took to choose these labels: `selection_macs` of scoring the pool, `selection_training_macs` of
training (and pre-training) the networks that scored it, and the targets that these were pruned from, and
`selection_seconds` of both and of choosing.
`total_macs`: both, training the proxy that this round's target was fused from (and pre-training it), and the target's
own training (targets of earlier rounds, and the proxies fused into them, count where a proxy was pruned from them),
of rounds that have a target. `seconds`: all phases so far. `phases_shared`: of this round."""


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
        if tree["status"] == STOPPED and ledger.exists and _through(ledger):
            return Outcome(status=UNFINISHED)  # stopped too late to save anything: only its report is missing
        return Outcome(status=tree["status"], message=tree.get("message", ""))
    return Outcome(status=UNFINISHED)


def _through(ledger: Ledger) -> bool:
    """Whether a run has passed its last label budget."""
    last = [step for step in steps(ledger.read_config()) if step.round >= 0][-1]
    return ledger.committed(last) is not None


# --- rows ---


def round_row(ledger: Ledger, config: Config, round_: int) -> dict[str, Any]:
    """The figures of one round that are known; see ROW."""

    def of(step: Step) -> Mapping[str, Any]:
        commit = ledger.committed(step)
        return commit.metrics if commit else {}

    scored = [q for q in range(-1, round_) if ledger.committed(Step(q, "score"))]  # -1: for the initial set
    selecting = [Step(q, phase) for q in scored for phase in ("train", "score")]
    selecting += [Step(q, "select") for q in range(0 if -1 in scored else 1, round_ + 1)]
    needs_proxy = config.fusion.target == "fused" or config.coreset.by_hardness
    learned = [Step(-1, PRETRAIN)] if scored or needs_proxy or pretrained_target(config) else []
    selecting += learned if scored else []
    # A proxy that was pruned from a target has all that the target's training cost behind it.
    selecting += [Step(q, FINETUNE) for q in range(max(scored, default=0)) if is_sync(config, q)]
    targets = [q for q in range(round_ + 1) if q == round_ or is_sync(config, q)]
    fused = targets if needs_proxy else []
    costly = {*learned, *(Step(q, "train") for q in [*scored, *fused])}
    costly |= {Step(q, "score") for q in scored} | {Step(q, "finetune") for q in targets}
    mine = [s for s in steps(config) if s.round == round_]
    metric = TASKS[config.task].metric
    row = {
        "round": round_,
        "labels": config.selection.budgets[round_],
        "budgets_passed": round_ + 1,
        "proxy": of(Step(round_, "train")).get(metric.measured),
        "fused": of(Step(round_, "finetune")).get(metric.measured),
        "baseline": of(Step(-1, BASELINE)).get(metric.measured)
        if round_ == len(config.selection.budgets) - 1
        else None,
        "selection_macs": sum(of(Step(q, "score")).get("macs", 0) for q in scored),
        "selection_training_macs": sum(of(s).get("macs", 0) for s in selecting if s.phase in TRAININGS),
        "dense_selection_macs": sum(of(Step(q, "score")).get("dense_macs", 0) for q in scored),
        "total_macs": sum(of(s).get("macs", 0) for s in costly) if of(Step(round_, "finetune")) else None,
        "selection_seconds": sum(of(s).get("seconds", 0.0) for s in selecting),
        "finetuning_seconds": of(Step(round_, "finetune")).get("seconds"),
        "seconds": sum(
            of(s).get("seconds", 0.0) for s in steps(config) if s.phase not in (BASELINE, REPORT) and s.round <= round_
        ),
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
    """(epoch, metric on the test set), where it was measured while training"""


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

    @property
    def metric(self) -> Metric:
        return TASKS[self.sweep.base.task].metric


def read_draws(root: Place) -> list[dict[str, Any]]:
    """What a search has drawn so far (`draws/NNN.json`), in its order."""
    files = {int(file.base_name.partition(".")[0]): Place(root.fs, file.path) for file in (root / "draws").written()}
    return [dict(place.read_json()) for _, place in sorted(files.items())]


def wanted(sweep: Sweep, ordered: int, drawn: int) -> int:
    """How many trials a search carries out: those that are there, and those that are still to be drawn."""
    return ordered + max(0, sweep.samples - drawn) * len(sweep.seeds)


def draw_of(name: str) -> int:
    """The number of the draw that a point or a trial of a search belongs to."""
    return int(name.partition("_")[0])


def trials_of(sweep: Sweep, root: Place) -> list[Trial]:
    """The trials of a sweep as far as they are known: of a search those that it has drawn.

    Raises:
        LedgerError: a search that has drawn values of other fields.
    """
    if sweep.search == "random":
        return trials(sweep, None)
    drawn = read_draws(root)
    if drawn and drawn[0].keys() != sweep.space.keys():
        raise LedgerError(
            f"{root.path}: values of {', '.join(drawn[0])} have been drawn already, and space has "
            f"{', '.join(sweep.space)}: give the same space to go on, or another --run.name to start afresh"
        )
    return trials(sweep, drawn)


def recorded_trials(sweep: Sweep, root: Place) -> list[Trial]:
    """`trials_of` a sweep that was read from its directory: of the code that its arms, space and draws name, only what
    is trusted is imported.

    Raises:
        LedgerError: they name other code, or what this version does not take.
    """
    try:
        with reading_files():
            return trials_of(sweep, root)
    except ConfigError as error:
        raise LedgerError(f"{(root / 'sweep.yaml').path}: {error}") from error


def expected(sweep: Sweep, root: Place, known: int) -> int:
    """How many trials a sweep has, of which so many are known: of a search also those that are still to be drawn."""
    return known if sweep.search == "random" else wanted(sweep, known, len(read_draws(root)))


def recorded_sweep(root: Place, path: str, overrides: Mapping[str, Any], settings: Mapping[str, Any]) -> Sweep:
    """The sweep that a directory holds, to go on with it; `overrides` and `settings` as `load_sweep` takes them.

    Args:
        path: of the directory, as it was given.

    Raises:
        LedgerError: there is none, so nothing to go on with.
    """
    if not (root / "sweep.yaml").exists():
        raise LedgerError(
            f"--resume {path}: there is no sweep to go on with (no sweep.yaml); begin one with --config or --preset"
        )
    from prunefuse_ray.method.selector import trusted  # which imports torch
    from prunefuse_ray.networks.architectures import is_custom

    tree = to_tree(read_recorded(root / "sweep.yaml", Sweep))
    parent, name = parted(root.path if root.local else path)
    tree["base"] = overlay(merge(tree["base"], {"run": {"directory": parent, "name": name}}), overrides)
    sweep = sweep_from_tree({**tree, **settings})
    with reading_files():  # nor is other code imported that arms, space and draws name
        found = trials_of(sweep, root)
        found += trials(sweep, ends(sweep)) if sweep.search != "random" else []
    given = {str(value) for value in flatten(overrides).values()}
    for name in sorted({name for trial in found for name in filter(is_custom, trusted(trial.config))}):
        if not given & {name, f"svp:{name}"}:  # networks are imported only when they are built
            check_trusted(name, "network")
    return sweep


def read_sweep(root: Place) -> SweepResult:
    """Raises LedgerError where the directory is no sweep or is damaged."""
    sweep = read_recorded(root / "sweep.yaml", Sweep)
    return SweepResult(sweep=sweep, root=root, trials=[_read_trial(root, t) for t in recorded_trials(sweep, root)])


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
        # It may have been committed since the rows were read.
        if rows and rows[-1]["round"] == last and (tuned := ledger.committed(Step(last, "finetune"))):
            tuning = Tuning(
                labels_key=inputs_keys(config, ledger.read_pool())[Step(last, "label")],
                epochs=tuned.metrics["epochs"],
                evaluations=[
                    (e["epoch"], e[TASKS[config.task].metric.name]) for e in tuned.metrics.get("evaluations", [])
                ],
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
    columns |= {column(n, result.metric): _figures([row.get(n) for row in rows], kind) for n, kind in ROW.items()}
    return pa.table(columns)


def _figures(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Of the kind; MACs beyond its range, as of a large network on ImageNet, as floats."""
    large = kind == pa.int64() and any(value is not None and value >= 2**63 for value in values)
    return pa.array([v if v is None else float(v) for v in values]) if large else pa.array(values, kind)


def column(name: str, metric: Metric) -> str:
    """A column of ROW as files and progress name it: `fused_accuracy`."""
    return f"{name}_{metric.name}" if name in ("proxy", "fused", "baseline") else name


def _column(values: list[Any]) -> pa.Array:
    """Values of a field as numbers or words; lists and mixtures as JSON."""
    for kind in (bool, int, float, str):
        allowed = (int, float) if kind is float else kind
        if all(v is None or (isinstance(v, allowed) and (kind is bool or not isinstance(v, bool))) for v in values):
            return pa.array([None if v is None else kind(v) for v in values])
    return pa.array([json.dumps(v) for v in values])
