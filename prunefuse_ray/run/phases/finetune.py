"""The phase `finetune`: the target network on all labels."""

from __future__ import annotations

from prunefuse_ray.method.selector import proxies
from prunefuse_ray.method.steps import FUSE, TRAIN, Step
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.phases.train import network_outputs, train_network, training_job


def run(context: RunContext, step: Step) -> Done:
    """Train the target network, with distillation from the trained proxy where it is asked for."""
    config, ledger = context.config, context.ledger
    fused = config.fusion.target == "fused"
    distillation = config.distillation if config.distillation.weight > 0 and fused else None
    job = training_job(
        context,
        step,
        ledger.read_network(Step(step.round, FUSE), "fused-initial"),
        config.finetuning,
        teacher=ledger.read_network(Step(step.round, TRAIN), proxies(config)) if distillation else None,
        distillation=distillation,
        recalibrate=fused,
    )
    result = train_network(context, step, job, "finetuning")
    return Done(
        outputs=network_outputs(context, "fused", result, job), metrics=result.metrics, leftovers=("finetuning",)
    )
