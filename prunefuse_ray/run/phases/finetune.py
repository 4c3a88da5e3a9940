"""The phase `finetune`: the target network on all labels."""

from __future__ import annotations

import logging
from dataclasses import replace

from prunefuse_ray import networks
from prunefuse_ray.errors import few
from prunefuse_ray.method.selector import proxies
from prunefuse_ray.method.steps import FUSE, TRAIN, Step, round_seed
from prunefuse_ray.run.class_counts import NAMED, class_counts, without_labels
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.phases.train import HARDNESS, network_outputs, train_network, training_job
from prunefuse_ray.schemas import hardness_schema
from prunefuse_ray.training.coreset import coreset
from prunefuse_ray.training.trainer import TrainingJob

logger = logging.getLogger(__name__)


def run(context: RunContext, step: Step) -> Done:
    """Train the target network, with distillation from the trained proxy where it is asked for."""
    config, ledger = context.config, context.ledger
    fused = config.fusion.target == "fused"
    job = training_job(
        context,
        step,
        ledger.read_network(Step(step.round, FUSE), "fused-initial"),
        config.finetuning,
        teacher=ledger.read_network(Step(step.round, TRAIN), proxies(config)) if config.distilled else None,
        distillation=config.distillation if config.distilled else None,
        recalibrate=fused and not networks.FUSION_RULES[config.fusion.rule].exact,
        met=fused,
    )
    kept = {}
    if config.coreset.used:
        job = _on_coreset(context, step, job)
        kept = {"coreset": job.labels.num_rows}
    result = train_network(context, step, job, "finetuning")
    return Done(
        outputs=network_outputs(context, "fused", result, job),
        metrics={**result.metrics, **kept},
        leftovers=("finetuning",),
    )


def _on_coreset(context: RunContext, step: Step, job: TrainingJob) -> TrainingJob:
    settings = context.config.coreset
    found = None
    if settings.by_hardness:
        schema = hardness_schema(context.info.id_type)
        found = context.ledger.read_table(Step(step.round, TRAIN), HARDNESS, schema)
    labels = coreset(job.labels, found, settings, round_seed(context.config, step.round, step.phase))
    logger.info(
        "round %d, finetune: %d of %d labeled samples (coreset.by %s)",
        step.round, labels.num_rows, job.labels.num_rows, settings.by,
    )  # fmt: skip
    classes = context.info.classes
    before, now = (
        without_labels(class_counts(context.config.task, some, len(classes)), classes) for some in (job.labels, labels)
    )
    if lost := [name for name in now if name not in before]:
        logger.warning(
            "round %d, finetune: the core-set holds none of %d of %d classes (%s), so the network cannot learn them: "
            "raise coreset.share (%g), or set coreset.by to random, in a run of another run.name",
            step.round, len(lost), len(classes), few(lost, NAMED), settings.share,
        )  # fmt: skip
    return replace(job, labels=labels)
