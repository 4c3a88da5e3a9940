"""The phase `train`: the selecting network on all labels so far; and what it shares with `finetune`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

from prunefuse_ray import config as cfg
from prunefuse_ray import networks
from prunefuse_ray.data.labeled_set import held_out
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, Preprocessing, preprocessing_to_bytes
from prunefuse_ray.errors import TrainingError
from prunefuse_ray.method.selector import proxies, trusted
from prunefuse_ray.method.steps import PRETRAIN, SYNC, Step, round_seed, start, steps
from prunefuse_ray.networks.specs import first_line
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.unlabeled import prior, unlabeled
from prunefuse_ray.scoring.predictions import doubts, predict
from prunefuse_ray.training.trainer import TrainingJob, TrainingResult, train
from prunefuse_ray.training.worker_group import OTHER_WORKERS

logger = logging.getLogger(__name__)

HARDNESS = "hardness.parquet"
"""How hard each labeled sample was (`training/coreset.py`)."""
HARDLY = 0.01
"""Share of the unlabeled samples that a network is sure of, below which it is said."""


def run(context: RunContext, step: Step) -> Done:
    """Train the selecting network from its initial weights (pre-trained ones; after a sync: pruned fused ones)."""
    config = context.config
    origin, name = start(config, step.round)
    network = context.ledger.read_network(origin, proxies(config, name))
    # The statistics of a trained network's batch norms are off by what was pruned before them.
    pruned = isinstance(networks.from_files(network, trusted(config)), networks.Proxy | networks.Committee)
    learned = origin.phase == PRETRAIN and context.ledger.require(origin).metrics["method"] != "none"
    trained = origin.phase == SYNC or (config.network.weights is not None and not learned)
    job = training_job(
        context,
        step,
        network,
        config.training,
        recalibrate=trained and pruned,
        hardness=config.coreset.by_hardness,
    )
    result = train_network(context, step, job, "training")
    predicted = predict(
        context.samples(step.round),
        result.network,
        context.form,
        context.labels(step.round),
        task=config.task,
        units=job.fitted_task.units,
        trusted=trusted(config),
        in_process=context.training.in_process,
    )
    return Done(
        outputs={
            **network_outputs(context, proxies(config), result, job),
            "doubts.parquet": doubts(predicted),
            **({} if result.hardness is None else {HARDNESS: result.hardness}),
        },
        metrics=result.metrics,
        leftovers=("training",),
    )


def training_job(
    context: RunContext, step: Step, network: dict[str, bytes], recipe: cfg.Recipe, **more: Any
) -> TrainingJob:
    """The training of `network` on the labels up to the step's round."""
    config, samples = context.config, context.samples(step.round)
    labels, held = held_out(context.labels(step.round), config.pool.validation_share, config.run.seed)
    if recipe.unlabeled.used:
        validation = held["id"].combine_chunks()
        more |= {"unlabeled": unlabeled(context, step.round, validation), "prior": prior(context, step.round)}
    return TrainingJob(
        network=network,
        recipe=recipe,
        samples=samples,
        labels=labels,
        test=context.test,
        validation=samples if held.num_rows else context.validation,
        validation_labels=held if held.num_rows else None,
        form=context.form,
        seed=round_seed(config, step.round, step.phase),
        task=config.task,
        trusted=trusted(config),
        **more,
    )


def train_network(context: RunContext, step: Step, job: TrainingJob, section: str) -> TrainingResult:
    """Train by a section of the configuration; TrainingError where the network's outputs are no numbers any more, or a
    batch does not fit into the GPU."""
    try:
        result = train(job, context.training, context.ledger.place(step, section))
    except torch.OutOfMemoryError as error:
        raise does_not_fit(error, step, f"{section}.batch_size", job.recipe.batch_size) from error
    if not math.isfinite(loss := result.metrics["test_loss"]):
        raise TrainingError(
            f"round {step.round}, {step.phase}: the loss on the test set is {loss}: the network diverged; lower "
            f"{section}.lr ({job.recipe.lr:g}) or raise {section}.warmup_epochs, in a run of another run.name"
        )
    for said in (
        unsure(result.metrics, job.recipe, section),
        other_workers(result.metrics, _workers_before(context, step)),
    ):
        if said:
            logger.warning("round %d, %s: %s", step.round, step.phase, said)
    return result


def does_not_fit(error: torch.OutOfMemoryError, step: Step, field: str, batch_size: int) -> TrainingError:
    """What to tell of a training that takes more memory than the GPU has."""
    said, error.__traceback__ = first_line(error), None  # its frames would keep the network on the GPU in a notebook
    return TrainingError(
        f"{step}: a batch does not fit into the memory of the GPU ({said}): run the same "
        f"command where there is more; or lower {field} ({batch_size}) in a run of another run.name, which can begin "
        "with the labels of this one (pool.known_labels)"
    )


def _workers_before(context: RunContext, step: Step) -> int | None:
    """How many workers the training before this one ended with; None where there was none."""
    plan = steps(context.config)
    for earlier in reversed(plan[: plan.index(step)]):
        commit = context.ledger.committed(earlier)
        if commit is not None and (workers := commit.metrics.get("workers")):
            return int(workers[-1])
    return None


def other_workers(metrics: Mapping[str, Any], before: int | None) -> str | None:
    """What people should know where a training goes on with another number of workers than the one before it."""
    workers = metrics["workers"][0]
    if before in (None, workers):
        return None
    return f"on {workers} workers, and the training before it on {before}: {OTHER_WORKERS}"


def unsure(metrics: Mapping[str, Any], recipe: cfg.Recipe, section: str) -> str | None:
    """What people should know where a training hardly learned from its unlabeled samples."""
    sure = metrics.get("sure")
    if not sure or sure[-1] >= HARDLY:
        return None
    return (
        f"the network was sure of {sure[-1]:.1%} of the unlabeled samples in the end and learned from no others; lower "
        f"{section}.unlabeled.threshold ({recipe.unlabeled.threshold:g}) or raise {section}.unlabeled.steps"
    )


def network_outputs(context: RunContext, name: str, result: TrainingResult, job: TrainingJob) -> dict[str, bytes]:
    """A trained network's files, with what it takes to use it elsewhere."""
    told = Preprocessing(
        task=context.config.task, form=context.form, classes=context.info.classes, units=job.fitted_task.units
    )
    files = {**result.network, PREPROCESSING_FILE: preprocessing_to_bytes(told)}
    return {f"{name}/{k}": v for k, v in files.items()}
