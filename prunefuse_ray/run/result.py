"""What a run came to, from the ledger alone: `result.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prunefuse_ray.acquisition.learning_curve import Forecast
from prunefuse_ray.config import Config
from prunefuse_ray.method.steps import BASELINE, FINETUNE, INIT, LABEL, LEARN, PRETRAIN, SCORE, TRAIN, Step
from prunefuse_ray.report.outlook import outlook
from prunefuse_ray.run.ledger import Ledger, label_count, phases_of
from prunefuse_ray.tasks import TASKS, Metric


def forecast_of(rounds: Sequence[Mapping[str, Any]], metric: Metric) -> Forecast | None:
    """What the next labels are expected to bring, by the `rounds` of a result."""
    tested = [r["tested"] for r in rounds if r.get("tested")]
    return outlook([(r["labels"], r[f"proxy_{metric.name}"]) for r in rounds], metric, min(tested, default=None))


def result_of(config: Config, ledger: Ledger) -> dict[str, Any]:
    """The figures of every round and of the whole run, as far as they are there."""

    def metrics(step: Step) -> dict[str, Any]:
        commit = ledger.committed(step)
        return dict(commit.metrics) if commit else {}

    metric = TASKS[config.task].metric
    compared = metrics(Step(-1, BASELINE))
    rounds = []
    for r in range(len(config.selection.budgets)):
        phases = phases_of(config, ledger, r)
        rounds.append(
            {
                "round": r,
                "labels": label_count(config, ledger, r),
                "class_counts": metrics(Step(r, LABEL)).get("class_counts"),
                "strategy": metrics(Step(r - 1, SCORE)).get("strategy", "random"),
                f"proxy_{metric.name}": metrics(Step(r, TRAIN)).get(metric.measured),
                f"fused_{metric.name}": metrics(Step(r, FINETUNE)).get(metric.measured),
                "tested": metrics(Step(r, TRAIN)).get("tested"),
                "selection_macs": metrics(Step(r, SCORE)).get("macs", 0),
                "dense_selection_macs": metrics(Step(r, SCORE)).get("dense_macs", 0),
                "training_macs": metrics(Step(r, TRAIN)).get("macs", 0),
                "seconds": {s.phase: metrics(s).get("seconds", 0.0) for s in phases},
            }
        )
    found = forecast_of(rounds, metric)
    init, first, learned, pretrained = (metrics(Step(-1, phase)) for phase in (INIT, SCORE, LEARN, PRETRAIN))
    return {
        "name": config.run.name,
        "seed": config.run.seed,
        "task": config.task,
        "selector": config.selection.selector,
        "target": config.fusion.target,
        "rounds": rounds,
        "forecast": None if found is None else {**asdict(found), "worth": found.worth},
        f"proxy_{metric.name}": rounds[-1][f"proxy_{metric.name}"],
        f"fused_{metric.name}": rounds[-1][f"fused_{metric.name}"],
        "selection_macs": sum(r["selection_macs"] for r in rounds) + first.get("macs", 0),
        "dense_selection_macs": sum(r["dense_selection_macs"] for r in rounds) + first.get("dense_macs", 0),
        "pretraining": {k: pretrained[k] for k in ("method", "reason", "epochs", "macs", "seconds") if k in pretrained}
        or None,
        "seconds": sum(s for r in rounds for s in r["seconds"].values())
        + learned.get("seconds", 0.0)
        + init.get("seconds", 0.0)
        + pretrained.get("seconds", 0.0)
        + first.get("seconds", 0.0),
        f"baseline_{metric.name}": compared.get(metric.measured),
        "baseline": compared or None,
        "learned": learned or None,
        "parameters": init.get("parameters"),
        "macs_per_sample": init.get("macs_per_sample"),
        "rejected": ledger.rejected().num_rows,
    }
