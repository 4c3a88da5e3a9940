"""The phase `select`: which samples a round labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from prunefuse_ray.acquisition import Chance, Strategy
from prunefuse_ray.config import Config
from prunefuse_ray.distributed.resources import cpus_now
from prunefuse_ray.errors import ScoreError, few
from prunefuse_ray.method.steps import GROW, LABEL, SCORE, SELECT, Step, to_select
from prunefuse_ray.run.class_counts import class_counts, without_labels
from prunefuse_ray.run.context import TEST_IDS, Done, RunContext, too_few, without
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.schemas import arrow_type, held_back_schema, selected_schema
from prunefuse_ray.selection.hold_back import hold_back
from prunefuse_ray.selection.random import select_random
from prunefuse_ray.selection.rows import Files
from prunefuse_ray.selection.set_selection import select_apart, select_set
from prunefuse_ray.selection.top_k import top_k, top_k_of_groups
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

KEPT = "kept-scores"
"""Score files without what is held back, while the selection reads them."""
NAMED = 10
"""Samples that are held back, named in the metrics."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a round selects."""

    kind: Literal["nothing", "random", "set", "apart", "groups", "top_k"]
    k: int


def decide(config: Config, *, k: int, strategy: str | None) -> Plan:
    """How a round that wants k samples selects them.

    Args:
        strategy: by which the round before has scored the pool; None: it has not.
    """
    selection = config.selection
    if k == 0:  # the known labels are the whole initial set
        return Plan(kind="nothing", k=0)
    if strategy is None:
        return Plan(kind="random", k=k)
    if TASKS[config.task].strategies[strategy].select is not None:
        return Plan(kind="set", k=k)
    if selection.min_distance is not None:
        return Plan(kind="apart", k=k)
    return Plan(kind="top_k" if selection.per_group is None else "groups", k=k)


def run(context: RunContext, step: Step) -> Done:
    """Select the round's samples: at random, or by the strategy from the score files of the round before."""
    scored = Step(step.round - 1, SCORE)
    k = to_select(context.config, step.round, context.labels(step.round - 1).num_rows)
    strategy = scored_by(context.config, context.ledger, scored)
    plan = decide(context.config, k=k, strategy=strategy)
    schema = selected_schema(context.info.id_type)
    more: Mapping[str, Any] = {}
    outputs: dict[str, pa.Table] = {}
    if plan.kind == "nothing":
        selected = schema.empty_table()
    else:
        held = None
        try:
            if plan.kind == "random":
                selected = _random(context, step, k)
            else:
                assert strategy is not None
                selected, more, held = _from_scores(context, step, scored, plan, strategy)
                more = {"strategy": strategy, **more}
        except ScoreError:
            _look_again(context, scored)
            raise
        if held is not None:
            outputs["held_back.parquet"] = held.cast(held_back_schema(context.info.id_type))
    outputs["selected.parquet"] = selected.cast(schema)
    if step.round == 0 and len(context.drawn_test):
        outputs[TEST_IDS] = pa.table({"id": _usable_test(context)})
    return Done(outputs=outputs, metrics={"chosen": k, **more}, leftovers=(KEPT,))


def _look_again(context: RunContext, scored: Step) -> None:
    """Let the next start look for new files, and score the pool with them, as the message advises."""
    if context.config.pool.allow_growth and scored.round >= 0:
        for step in (scored, Step(scored.round, GROW)):
            context.ledger.uncommit(step)
        context.ledger.clear(scored, "scores", "labeled")


def _usable_test(context: RunContext) -> pa.Array:
    """The drawn test set without samples that cannot be decoded."""
    bad = context.undecodable(context.drawn_test, test=True)
    context.note_rejected(bad)
    return without(context.drawn_test, bad["id"])


def scored_by(config: Config, ledger: Ledger, scored: Step) -> str | None:
    """The strategy by which a pass has scored; None where there was none. Earlier versions did not record it."""
    commit = ledger.committed(scored)
    return None if commit is None else commit.metrics.get("strategy", config.selection.strategy)


def selected_of(context: RunContext, round_: int) -> pa.Table:
    """What a round has selected: `selected_schema`."""
    return context.ledger.read_table(Step(round_, SELECT), "selected.parquet", selected_schema(context.info.id_type))


def _from_scores(
    context: RunContext, step: Step, scored: Step, plan: Plan, name: str
) -> tuple[pa.Table, Mapping[str, Any], pa.Table | None]:
    """The samples that a strategy selects from the files of `scored`, figures about them, and what was held back."""
    selection, root = context.config.selection, context.ledger.root
    strategy = TASKS[context.config.task].strategies[name]

    def files(name: str, *columns: str) -> Files:
        paths, sizes = context.ledger.files(scored, name)
        return Files(where=root, paths=tuple(paths), sizes=tuple(sizes), columns=columns)

    columns = ("gradient", "feature") if strategy.gradients else ("feature",)
    labeled = files("labeled", *columns) if selection.reads_labeled(strategy) else None
    labeled = labeled if labeled and labeled.paths else None  # none before the initial set
    scores = files("scores", *columns)
    if selection.hold_back is None or labeled is None or _waits(context, step.round):
        return *_select(context, scored, plan, strategy, scores, labeled), None
    context.ledger.clear(step, KEPT)
    kept = hold_back(scores, labeled, selection.hold_back, context.ledger.place(step, KEPT))
    if (left := context.ledger.require(scored).metrics["samples"] - kept.held.num_rows) < plan.k:
        raise ScoreError(
            f"selection.hold_back {selection.hold_back:g} leaves {left} samples; round {step.round} wants {plan.k}: "
            "raise it, or leave it out, in a run of another run.name; or lower the budgets from this round on"
        )
    selected, more = _select(context, scored, plan, strategy, kept.files, labeled)
    farthest = [str(i) for i in kept.held["id"][:NAMED].to_pylist()]
    beyond = kept.limit if math.isfinite(kept.limit) else None  # one labeled sample does not say what is usual
    told = {"held_back": kept.held.num_rows, "held_back_beyond": beyond, "held_back_farthest": farthest}
    return selected, {**more, **told}, kept.held


def _waits(context: RunContext, round_: int) -> bool:
    """Whether nothing is held back yet, since a class has no label: its samples are as far from all labeled ones as
    foreign ones are, and what is held back never gets a label."""
    if round_:
        counts = context.ledger.require(Step(round_ - 1, LABEL)).metrics.get("class_counts", [])
    else:
        counts = class_counts(context.config.task, context.labels(-1), len(context.info.classes))
    missing = without_labels(counts, context.info.classes) if counts else []
    if missing:
        logger.warning(
            "round %d: selection.hold_back waits until every class has a label, and %s have none",
            round_, few(missing, NAMED),
        )  # fmt: skip
    return bool(missing)


def _select(
    context: RunContext, scored: Step, plan: Plan, strategy: Strategy, scores: Files, labeled: Files | None
) -> tuple[pa.Table, Mapping[str, Any]]:
    """The samples that a strategy selects from score files, and figures about them."""
    selection, root = context.config.selection, context.ledger.root
    cpus = max(context.has.cpus, cpus_now())  # those that came to score hold the features, too
    paths = list(scores.paths)
    match plan.kind:
        case "set":
            clusters = context.task.clusters(len(context.info.classes))
            chance = Chance(seed=context.config.run.seed, round=scored.round, classes=clusters)
            return select_set(strategy, scores, labeled, plan.k, chance, cpus), {}
        case "apart":
            assert selection.min_distance is not None
            selected, close = select_apart(scores, labeled, plan.k, selection.min_distance, cpus)
            if close:
                logger.warning(
                    "round %d: %d of %d selected samples are nearer than selection.min_distance %g to a better or a "
                    "labeled one, since too few others are left; lower it, in a run of another run.name",
                    scored.round + 1, close, plan.k, selection.min_distance,
                )  # fmt: skip
            return selected, {"closer_than_min_distance": close}
        case "groups":
            assert selection.per_group is not None
            selected, groups = top_k_of_groups(paths, root, plan.k, selection.per_group)
            by_class = selection.per_group == "predicted"
            return selected, {
                "per_group": {context.task.group_name(g, context.info.classes): n for g, n in groups.items()}
                if by_class
                else groups
            }
    return top_k(paths, root, plan.k), {}


def _random(context: RunContext, step: Step, k: int) -> pa.Table:
    """The k samples of highest random score that people have not answered yet, and that can be decoded."""
    id_type = arrow_type(context.info.id_type)
    while True:
        rejected = context.ledger.rejected()["id"].cast(id_type)
        exclude = pa.concat_arrays([context.answered(step.round - 1), rejected.combine_chunks()])
        selected = select_random(context.pool, k, context.config.run.seed, step.round, exclude)
        if selected.num_rows < k:
            raise too_few(step.round, k, selected.num_rows)
        bad = context.undecodable(selected["id"].combine_chunks())
        if not bad.num_rows:
            return selected.append_column("rank", pa.array(range(k), pa.int64()))
        context.note_rejected(bad)
