"""The phase `pretrain`: what selects learns from the pool, once a run, before there is a label."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from prunefuse_ray.acquisition.auto import in_words
from prunefuse_ray.config import Config
from prunefuse_ray.errors import TrainingError
from prunefuse_ray.method.selector import proxies, trusted
from prunefuse_ray.method.steps import INIT, Step
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.phases.train import does_not_fit
from prunefuse_ray.run.unlabeled import unlabeled
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.training.pretrainer import PretrainingJob, pretrain

logger = logging.getLogger(__name__)

HARDLY = 0.35
"""Share of turns that are told in the end, below which it is said. By chance a quarter is."""
LAST = 5
"""Figures of a pre-training that are its end."""
ENOUGH_LABELS = 250
"""A class. With ResNet-20 on CIFAR-10, pruned by half, rotations were worth 4 points of the fused network at 100 labels
a class and nothing at 500."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is learned, and why."""

    method: str
    """none, or one of `pretext.PRETEXTS`."""
    reason: str


def decide(config: Config, classes: int) -> Plan:
    """By what a run pre-trains."""
    method = config.pretraining.method
    if method != "auto":
        return Plan(method=method, reason="pretraining.method")
    labels = config.selection.budgets[0] / classes
    few, each = labels <= ENOUGH_LABELS, "target" if TASKS[config.task].numbers else "class"
    reason = f"auto: {in_words(labels)} labels a {each} in the initial set"
    return Plan(method="rotation" if few else "none", reason=reason)


def hardly_learned(metrics: Mapping[str, Any]) -> str | None:
    """What people should know where a network cannot tell how samples are turned: of some kinds (tissue, the earth from
    above) nobody can."""
    right = metrics.get("right", [])[-LAST:]
    if not right or (share := sum(right) / len(right)) >= HARDLY:
        return None
    return (
        f"the network tells {share:.0%} of the turns in the end, and by chance 25% are told: it has hardly learned "
        "from the pool; set pretraining.method to vicreg or none, in a run of another run.name"
    )


def run(context: RunContext, step: Step) -> Done:
    """Pre-train the network that selects; every round's begins with the result, which fusion carries on."""
    config = context.config
    network = context.ledger.read_network(Step(-1, INIT), proxies(config))
    plan = decide(config, len(context.info.classes))
    told = {"method": plan.method, "reason": plan.reason}
    if plan.method == "none":
        return Done(outputs=_outputs(config, network), metrics=told)
    job = PretrainingJob(
        network=network,
        settings=config.pretraining.model_copy(update={"method": plan.method}),
        views=config.training,
        pool=unlabeled(context, 0, pa.array([], pa.string())),
        rows=context.info.rows,
        form=context.form,
        seed=config.run.seed,
        trusted=trusted(config),
    )
    try:
        result = pretrain(job, context.training, context.ledger.place(step, "pretraining"))
    except torch.OutOfMemoryError as error:
        raise does_not_fit(error, step, "pretraining.batch_size", config.pretraining.batch_size) from error
    if not math.isfinite(loss := result.metrics["loss"][-1]):
        raise TrainingError(
            f"pre-training: the loss is {loss}: the network diverged; lower pretraining.lr "
            f"({config.pretraining.lr:g}), in a run of another run.name"
        )
    if said := hardly_learned(result.metrics):
        logger.warning("pre-training: %s", said)
    return Done(
        outputs=_outputs(config, result.network), metrics={**result.metrics, **told}, leftovers=("pretraining",)
    )


def _outputs(config: Config, network: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{proxies(config, 'pretrained')}/{k}": v for k, v in network.items()}
