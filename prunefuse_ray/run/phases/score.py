"""The phase `score`: the pool through the round's trained proxy."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from prunefuse_ray.acquisition import AUTO, auto
from prunefuse_ray.acquisition.auto import Decision, Facts
from prunefuse_ray.acquisition.class_weights import OTHERS, class_weights
from prunefuse_ray.config import Config
from prunefuse_ray.data.contents import HeldOut, matches_of, overlaps_of
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.data.inventory import check_overlap
from prunefuse_ray.data.pool import Source, part, with_groups
from prunefuse_ray.data.prepared import usage
from prunefuse_ray.data.reading import tables
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.errors import LedgerError, ScoreError
from prunefuse_ray.method.selector import proxies, trusted
from prunefuse_ray.method.steps import INIT, SCORE, TRAIN, Step, round_seed, start
from prunefuse_ray.run.class_counts import class_counts
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.scoring.backend_choice import FILE, SMALL_BATCH
from prunefuse_ray.scoring.score_pass import ScorePass, fitting, score, write_scores
from prunefuse_ray.scoring.scorer import ScoringJob
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)


def decide(
    config: Config,
    form: Form,
    plan: ScoringPlan,
    strategy: str,
    weights: Sequence[float] = (),
    held_out: Place | None = None,
    seed: int = 0,
) -> ScoringJob:
    """What a sample is scored by, and what is written of it: what the selection by `strategy` will read.

    Args:
        weights: what a score is worth by class; none: all alike.
        held_out: contents of the held-out sets, where samples have not been compared with them yet.
        seed: of dropout masks.
    """
    read = TASKS[config.task].strategies[strategy]
    return ScoringJob(
        strategy=strategy,
        task=config.task,
        form=form,
        batch_size=SMALL_BATCH,
        features=config.scoring.features or config.selection.reads_features(read),
        gradients=read.gradients,
        predicted=config.selection.per_group == "predicted",
        pixel_share=config.selection.pixel_share,
        masks=config.selection.masks_of(read),
        masks_seed=seed,
        threads=plan.cpus,
        gpu=plan.gpus > 0,
        gpu_share=plan.gpu_share,
        class_weights=tuple(weights),
        held_out=held_out,
        trusted=trusted(config),
    )


def compares(config: Config, round_: int) -> bool:
    """Whether a round's pass compares samples with the held-out sets: it does so once, and again where a pool grows."""
    return round_ == 0 or config.pool.allow_growth


def run(context: RunContext, step: Step) -> Done:
    """Score every sample of the pool that people may still be asked about; the labeled ones where a set strategy needs
    their features, too."""
    config, ledger = context.config, context.ledger
    macs = ledger.require(Step(-1, INIT)).metrics["macs_per_sample"]
    _check_choice(context, step)
    labeled, unknown = context.labels(step.round)["id"].combine_chunks(), context.unknown(step.round)
    by = strategy_of(context, step)
    read = TASKS[config.task].strategies[by.strategy]
    passes = max(1, config.selection.masks_of(read))
    what = ScorePass(
        root=ledger.root,
        record=ledger.write_file,
        source=with_groups(context.pool, config.pool),
        rows=context.info.rows,
        exclude=pa.concat_arrays([labeled, unknown]),
        network=_network(context, step),
        macs=macs["proxy"] * passes,
        classes=len(context.info.classes),
        members=config.pruning.committee * passes,
        out=ledger.place(step, "scores"),
        checkpoint=ledger.place(step, "scores-checkpoint"),
    )
    _begun_alike(context, step, what, by.strategy)
    held_out = context.held_out_contents if compares(config, step.round) else None
    job = decide(
        config, context.form, context.scoring, by.strategy, weights_of(context, step, by.strategy), held_out,
        round_seed(config, step.round, step.phase) if step.round >= 0 else 0,
    )  # fmt: skip
    with fitting(str(step), config.scoring, "run.name"):
        scored = score(
            what, config.scoring, job, context.scoring, lambda: ledger.clear(step, "scores", "scores-checkpoint")
        )
    try:
        context.note_rejected(scored.rejected)
    except ScoreError:  # what could not be read may be there the next time
        ledger.clear(step, "scores", "scores-checkpoint")
        raise
    shared = {} if held_out is None else _overlaps(context, step.round, held_out, scored.held_out)
    # What is like a sample that nobody could tell is not asked about either. But labels alone tell what is usual, and
    # which predictions neighbors should share.
    labels_alone = read.gradients or config.selection.hold_back is not None
    covered = labeled if labels_alone else pa.concat_arrays([labeled, unknown])
    asked_again = len(covered) if config.selection.reads_labeled(read) else 0
    with fitting(str(step), config.scoring, "run.name"):
        known = _score_labeled(context, step, what, scored.job, covered) if asked_again else []
    return Done(
        outputs={},
        written=[*scored.written, *known],
        leftovers=("scores-checkpoint", "labeled-checkpoint", BY),
        metrics={
            **scored.metrics,
            "macs": scored.metrics["macs"] + asked_again * what.macs,
            "strategy": by.strategy,
            "reason": by.reason,
            "class_weights": list(scored.job.class_weights),
            "overlaps": shared,
            "dense_macs": (scored.metrics["samples"] + asked_again) * macs["dense"] * passes,
            **({} if context.prepared is None else {"prepared": usage(context.prepared, context.form)}),
            "actors": list(context.scoring.at_once),
        },
    )


BY = "scores-by"
"""Names the strategy by which a pass that is not over was begun."""


def _begun_alike(context: RunContext, step: Step, what: ScorePass, strategy: str) -> None:
    """Begin a pass anew that was begun by another strategy: `auto` of another version may decide otherwise."""
    ledger, selection = context.ledger, context.config.selection
    begun = [file.base_name for file in ledger.place(step, BY).written()]
    unknown = not begun and selection.strategy == AUTO and step.round >= 0  # an earlier version did not note it
    if what.out.written() and (unknown or begun not in ([], [strategy])):
        logger.warning("round %d, %s: begun by another strategy, so it begins anew", step.round, step.phase)
        ledger.clear(step, "scores", "scores-checkpoint", "labeled", "labeled-checkpoint")
    if begun != [strategy]:
        ledger.clear(step, BY)
        ledger.write_file(posixpath.join(step.directory, BY, strategy), b"")


def strategy_of(context: RunContext, step: Step) -> Decision:
    """The strategy by which the next round selects from the scores of this one."""
    selection = context.config.selection
    if step.round < 0:
        learned = f"weights of {path}" if (path := context.config.network.weights) else "no training yet"
        learned = "pre-training on the pool" if context.config.pretraining.used else learned
        return Decision(strategy=selection.initial, reason=f"selection.initial; features of a network with {learned}")
    if selection.strategy != AUTO:
        return Decision(strategy=selection.strategy, reason="selection.strategy")
    trained = context.ledger.require(Step(step.round, TRAIN)).metrics
    labels = context.labels(step.round)
    counts = class_counts(context.config.task, labels, len(context.info.classes))
    # What covers a leap goes by no scores, which weights need.
    able = "max_herding" in TASKS[context.config.task].strategies and not selection.weighs
    growth = selection.budgets[step.round + 1] / labels.num_rows if able else 1.0
    return auto.decide(facts(context.config, counts, trained, growth))


def facts(config: Config, counts: Sequence[int], trained: Mapping[str, Any], growth: float) -> Facts:
    """What `auto` decides by.

    A share of the labels (`pool.validation_share`) is no fair sample of the pool: after round 0 most of them were
    selected because they are hard. The test set decides nothing.

    Args:
        counts: labels so far, by class.
        trained: metrics of the round's training.
        growth: labels after the round for each so far.
    """
    measured = trained.get(f"validation_{TASKS[config.task].metric.name}") or []
    agreement = max(measured, default=None) if config.pool.validation_path else None
    return Facts(counts=counts, agreement=agreement, growth=growth)


def _network(context: RunContext, step: Step) -> Place:
    """What scores: the round's trained proxy; before the first round what that will be trained from."""
    if step.round >= 0:
        return context.ledger.place(step, proxies(context.config))
    origin, name = start(context.config, 0)
    return context.ledger.place(origin, proxies(context.config, name))


def weights_of(context: RunContext, step: Step, strategy: str) -> list[float]:
    """What a score is worth by class; none where all are alike, or no network is trained yet."""
    selection, classes = context.config.selection, context.info.classes
    if step.round < 0 or not selection.weighs:
        return []
    return class_weights(
        class_counts(context.config.task, context.labels(step.round), len(classes)),
        balance=selection.class_balance,
        wanted=[classes.index(name) for name in selection.wanted_classes],
        others=0.0 if TASKS[context.config.task].strategies[strategy].wanted else OTHERS,
    ).tolist()


def _overlaps(context: RunContext, round_: int, contents: Place, matches: pa.Table) -> dict[str, Any]:
    """What of the held-out sets lies in the pool by its content: among what was scored, and among what was not, since
    people have answered. PoolError where that is more than allowed."""
    held_out = HeldOut.at(contents).table
    answered = matches_of(_once(context.samples(round_), context.answered(round_)), contents)
    found = overlaps_of(pa.concat_tables([matches, answered]), held_out)
    rows = {setting: pc.sum(pc.equal(held_out["set"], setting)).as_py() for setting in found}
    check_overlap(found, rows, context.config.pool.max_overlap)
    return {setting: asdict(overlap) for setting, overlap in found.items()}


def _check_choice(context: RunContext, step: Step) -> None:
    """LedgerError where earlier rounds were scored here, and by what is known no more."""
    before = [context.ledger.committed(Step(r, SCORE)) for r in range(step.round)]
    here = [c for c in before if c is not None and "shared_from" not in c.metrics]
    if here and not (context.ledger.root / FILE).exists():
        raise LedgerError(
            f"{context.ledger.root.path}: '{FILE}', by which the pool was scored so far, is gone; restore it "
            "from a copy, or start under another --run.name"
        )


def _score_labeled(
    context: RunContext, step: Step, what: ScorePass, job: ScoringJob, labeled: pa.Array
) -> list[pafs.FileInfo]:
    """The samples that cover others, the labeled ones above all, through the same network."""
    return write_scores(
        ScorePass(
            **{
                **vars(what),
                "source": _once(context.samples(step.round), labeled),
                "rows": len(labeled),
                "exclude": labeled[:0],
                "out": context.ledger.place(step, "labeled"),
                "checkpoint": context.ledger.place(step, "labeled-checkpoint"),
            }
        ),
        job,
        context.scoring,
    )


def _once(source: Source, ids: pa.Array) -> Source:
    """These among the samples that people were asked about, each once. What they left without a label is in the pool
    again; where it was selected again, and labeled then, it lies in two files."""
    wanted, seen_L = IdSet.of(ids), np.zeros(len(ids), bool)
    others = dict[str, np.ndarray]()
    for number, file in enumerate(source.files):
        rows = tables(part(source, [number]), [source.id_column])
        place_N = np.concatenate([np.zeros(0, np.int64), *(wanted.find(some[source.id_column]) for some in rows)])
        new_N = place_N >= 0
        new_N[new_N] = ~seen_L[place_N[new_N]]
        seen_L[place_N[new_N]] = True
        others[file] = np.flatnonzero(~new_N)
    return replace(source, deleted=others)
