"""The phase `score`: the pool through the round's trained proxy."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.fs as pafs

from prunefuse_ray.config import Config
from prunefuse_ray.data.pool import with_groups
from prunefuse_ray.data.reading import tables
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.method.selector import proxies, trusted
from prunefuse_ray.method.steps import INIT, Step
from prunefuse_ray.run.context import Done, RunContext, without
from prunefuse_ray.scoring.backend_choice import SMALL_BATCH
from prunefuse_ray.scoring.score_pass import ScorePass, score, write_scores
from prunefuse_ray.scoring.scorer import ScoringJob
from prunefuse_ray.tasks import TASKS


def decide(config: Config, form: Form, plan: ScoringPlan) -> ScoringJob:
    """What a sample is scored by, and what is written of it: what the selection will read."""
    strategy = TASKS[config.task].strategies[config.selection.strategy]
    return ScoringJob(
        strategy=config.selection.strategy,
        task=config.task,
        form=form,
        batch_size=SMALL_BATCH,
        features=config.scoring.features or config.selection.needs_features,
        gradients=strategy.gradients,
        predicted=config.selection.per_group == "predicted",
        threads=plan.cpus,
        gpu=plan.gpus > 0,
        trusted=trusted(config),
    )


def run(context: RunContext, step: Step) -> Done:
    """Score every sample of the pool that has no label; the labeled ones where a set strategy needs their features,
    too."""
    config, ledger = context.config, context.ledger
    macs = ledger.require(Step(-1, INIT)).metrics["macs_per_sample"]
    labeled = context.labels(step.round)["id"].combine_chunks()
    what = ScorePass(
        root=ledger.root,
        source=with_groups(context.pool, config.pool),
        rows=context.info.rows,
        exclude=labeled,
        network=ledger.place(step, proxies(config)),
        macs=macs["proxy"],
        classes=len(context.info.classes),
        members=config.pruning.committee,
        out=ledger.place(step, "scores"),
        checkpoint=ledger.place(step, "scores-checkpoint"),
    )
    job = decide(config, context.form, context.scoring)
    scored = score(
        what, config.scoring, job, context.scoring, lambda: ledger.clear(step, "scores", "scores-checkpoint")
    )
    context.note_rejected(scored.rejected)
    known = _score_labeled(context, step, what, scored.job, labeled) if config.selection.needs_labeled else []
    return Done(
        outputs={},
        written=[*scored.written, *known],
        leftovers=("scores-checkpoint", "labeled-checkpoint"),
        metrics={
            **scored.metrics,
            "dense_macs": scored.metrics["samples"] * macs["dense"],
            "actors": [context.scoring.min_actors, context.scoring.max_actors],
        },
    )


def _score_labeled(
    context: RunContext, step: Step, what: ScorePass, job: ScoringJob, labeled: pa.Array
) -> list[pafs.FileInfo]:
    """The labeled samples through the same network. Those that people were asked about and left without a label are in
    the pool again, and no centers."""
    source = context.samples(step.round)
    asked = pa.concat_tables(tables(source, [source.id_column]))[source.id_column].combine_chunks()
    return write_scores(
        ScorePass(
            **{
                **vars(what),
                "source": source,
                "rows": len(labeled),
                "exclude": without(asked, pa.chunked_array([labeled])),
                "out": context.ledger.place(step, "labeled"),
                "checkpoint": context.ledger.place(step, "labeled-checkpoint"),
            }
        ),
        job,
        context.scoring,
    )
