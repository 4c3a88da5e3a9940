"""What a run will take, before it is started: samples, multiply-accumulates, seconds, machines, memory, bytes.

`estimate` is a pure function of the configuration, the pool's size and a few rates; `measured_costs` gets the rates
from a second of work on this machine.
"""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prunefuse_ray import networks
from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.config.schema import Config
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.prepared import room
from prunefuse_ray.data.sample_format import Form, decode_column
from prunefuse_ray.data.sources.base import reader_of
from prunefuse_ray.distributed.autoscaler import units_of
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import STREAM_CPUS, training_threads
from prunefuse_ray.method.steps import PRETRAIN, SCORE, steps
from prunefuse_ray.run.context import kept_samples, unlabeled_forms
from prunefuse_ray.run.phases.pretrain import decide
from prunefuse_ray.scoring.backend_choice import rate_here
from prunefuse_ray.scoring.scorer import ScoringJob
from prunefuse_ray.tasks import TASKS, Task
from prunefuse_ray.training.augmentation import network_inputs
from prunefuse_ray.training.pretrainer import macs_of, steps_of
from prunefuse_ray.training.recipe import lengthened, passes_of_step, passes_per_epoch, steps_per_epoch
from prunefuse_ray.training.trainer import arithmetic

SCORE_ROW_BYTES = 32
"""A row of a score file: id, score, reason; without features and gradients."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one sample costs, and what one process does in a second."""

    proxy_macs: int
    """Multiply-accumulates of the selecting network per sample, forward."""
    dense_macs: int
    parameters: tuple[int, int]
    """Of the selecting and of the dense network."""
    scored_per_second: float
    """Samples that one scoring actor reads, decodes and scores in a second."""
    proxy_trained_per_second: float
    """Samples of the proxy's training (forward and backward) in a second, over all workers."""
    dense_trained_per_second: float
    actor_bytes: int
    """Memory of a scoring process."""
    features: int = 0
    """Numbers that a score file holds of a sample where the selection reads features."""
    gradients: int = 0
    """Likewise where it reads gradients, too."""
    prepared_bytes: int = 0
    """Of the prepared pool, at most."""
    again_per_second: float | None = None
    """`scored_per_second` of samples that lie decoded in the prepared pool; None: they do not."""


@dataclass(frozen=True, kw_only=True)
class PhaseEstimate:
    """One phase of one round."""

    round: int
    phase: str
    samples: int
    macs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LabelsAsked:
    """The labels that a run asks for: at most, since what cannot be read is not labeled."""

    rounds: tuple[int, ...]
    """Samples that each round selects to be labeled. The test set is not among them."""
    test: int
    """Samples of a test set that is drawn from the pool (`pool.test_samples`), labeled in round 0."""
    known: int
    """Labels of both that are there already."""
    people: bool
    """Whether people are asked; else a column of the pool is read."""
    each: int
    """Answers of different people that a sample needs."""

    @property
    def samples(self) -> int:
        return sum(self.rounds) + self.test

    @property
    def answers(self) -> int:
        return self.samples * self.each if self.people else 0

    def words(self) -> str:
        parts = [f"{sum(self.rounds):,} selected in {len(self.rounds)} round{'s' * (len(self.rounds) > 1)}"]
        if self.test:
            parts.append(f"{self.test:,} for the test set")
        many = f", {self.each} answers each: {self.answers:,} answers" if self.people and self.each > 1 else ""
        known = f"; {self.known:,} more are known already" if self.known else ""
        return f"{self.samples:,} {'by people' if self.people else 'from the pool'}{many} ({', '.join(parts)}){known}"


def labels_asked(config: Config, *, known: int = 0, known_test: int = 0) -> LabelsAsked:
    """How many labels the run of `config` asks for.

    Args:
        known: labels that are known beforehand (`pool.known_labels`), without those of a drawn test set.
        known_test: those of a drawn test set.
    """
    budgets, people = config.selection.budgets, config.annotation.kind != "oracle"
    return LabelsAsked(
        rounds=tuple(more - before for more, before in zip(budgets, [known, *budgets], strict=False)),
        test=config.pool.test_samples - known_test,
        known=known + known_test,
        people=people,
        each=config.annotation.labels_per_sample if people else 1,
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A whole run. Phases that only move rows (select, label, fuse, report) count in bytes, not in seconds."""

    phases: tuple[PhaseEstimate, ...]
    labels: LabelsAsked
    actors: int
    actor_bytes: int
    bytes_read: int
    bytes_stored: int
    """In the run directory."""
    prepared_bytes: int = 0

    def seconds(self, phase: str | None = None) -> float:
        return sum(p.seconds for p in self.phases if phase in (None, p.phase))

    def actors_within(self, seconds: float) -> int | None:
        """The smallest number of scoring actors with which the run ends in time; None where training alone is too
        long. Scoring is taken to speed up with the actors, which holds while storage keeps up."""
        left = seconds - (self.seconds() - self.seconds("score"))
        if left <= 0:
            return None
        return max(1, math.ceil(self.seconds("score") * self.actors / left))


def nodes_for(actors: int, cpus: int, node_cpus: int, gpus: float = 0.0, node_gpus: int = 0) -> int:
    """Machines of `node_cpus` CPUs and `node_gpus` GPUs that hold so many actors of `cpus` and `gpus`, and their
    stream; 0 where none holds a single actor."""
    if not (held := units_of(node_cpus, node_gpus, cpus, gpus)):
        return 0
    return max(math.ceil(actors / held), math.ceil((actors * cpus + STREAM_CPUS) / node_cpus))


def pretraining(config: Config, info: PoolInfo, macs: int) -> tuple[int, int]:
    """Samples and MACs of the pre-training of a network of so many MACs per sample."""
    plan = decide(config, len(info.classes))
    if plan.method == "none":
        return 0, 0
    settings = config.pretraining.model_copy(update={"method": plan.method})
    steps = steps_of(settings, info.rows, macs)
    return steps * settings.batch_size, macs_of(settings, steps, macs)


def trained(recipe: Recipe, labels: int, macs: int) -> tuple[int, int]:
    """Samples that have a label, repetitions counted, and MACs of a training on so many labels. Of unlabeled samples
    as many as there may be are counted: the network is taken to be sure of all."""
    recipe = lengthened(recipe, macs)
    steps = recipe.epochs * passes_per_epoch(recipe, labels) * steps_per_epoch(labels, recipe.batch_size)
    batch = min(labels, recipe.batch_size)
    return steps * batch, steps * passes_of_step(recipe, batch) * macs


def evaluated(recipe: Recipe, tested: int, validated: int, *, before: bool = False) -> int:
    """Samples that a training only looks at: the validation set after every epoch, the test set at the end and as often
    as `evaluate_every` says.

    Args:
        tested, validated: sizes of the two sets.
        before: whether the network is also tested before the first epoch, as a fused one is.
    """
    often = before + recipe.epochs // recipe.evaluate_every if recipe.evaluate_every else 0
    return (often + 1) * tested + recipe.epochs * validated


def estimate(
    config: Config,
    info: PoolInfo,
    costs: Costs,
    actors: int,
    asked: LabelsAsked | None = None,
    *,
    tested: int = 0,
    validated: int = 0,
) -> Estimate:
    """What the run of `config` on the pool of `info` takes with `actors` scoring actors.

    Args:
        asked: default: what a run without known labels asks for.
        tested, validated: samples of the test set, and of a validation set of its own.

    MACs are counted as the run counts them: forward once, training three times (forward, gradient of the inputs,
    gradient of the weights). Evaluations count in seconds alone: a sample in a third of the time that training takes.
    """
    asked = asked or labels_asked(config)
    phases, passes, stored, decoded = [], 0, 0, False
    for step in steps(config):
        if step.round < 0 and step.phase not in (PRETRAIN, SCORE):
            continue
        labels = config.selection.budgets[step.round] if step.round >= 0 else 0
        held = round(labels * config.pool.validation_share)
        learned, checked = labels - held, held or validated
        samples, macs, seconds = 0, 0, 0.0
        match step.phase:
            case "label":
                passes += 1
                samples = asked.rounds[step.round] + (0 if step.round else asked.test)
            case "score":
                passes += 1
                samples = max(0, info.rows - labels)  # budgets may be larger than a pool that grows is yet
                asked_again = config.selection.passes if step.round >= 0 else 1  # no initial strategy asks a committee
                known = labels if any(map(config.selection.reads_labeled, config.selection.later)) else 0
                macs = (samples + known) * costs.proxy_macs * asked_again
                rate = costs.again_per_second if decoded and costs.again_per_second else costs.scored_per_second
                seconds, decoded = (samples + known) / (rate * actors), True
                stored += samples * (SCORE_ROW_BYTES + 4 * _numbers(config, step.round, costs))
            case "pretrain":
                passes += 1
                samples, macs = pretraining(config, info, costs.proxy_macs)
                decoded = decoded or samples > 0
                seconds = macs / (3 * costs.proxy_macs * costs.proxy_trained_per_second)
                stored += 4 * costs.parameters[0]
            case "train":
                samples, macs = trained(config.training, learned, costs.proxy_macs)
                forward = macs / costs.proxy_macs + evaluated(config.training, tested, checked)
                seconds = forward / (3 * costs.proxy_trained_per_second)
                stored += 4 * costs.parameters[0]
            case "finetune":
                samples, macs = trained(config.finetuning, config.coreset.kept(learned), costs.dense_macs)
                fused = config.fusion.target == "fused"
                forward = macs / costs.dense_macs + evaluated(config.finetuning, tested, checked, before=fused)
                seconds = forward / (3 * costs.dense_trained_per_second)
                if config.distilled:  # what the proxy says of the same samples
                    macs += samples * costs.proxy_macs
                    seconds += samples / (3 * costs.proxy_trained_per_second)
                stored += 4 * costs.parameters[1]
            case _:
                pass
        phases.append(PhaseEstimate(round=step.round, phase=step.phase, samples=samples, macs=macs, seconds=seconds))
    drawn = config.pool.test_samples  # `info` counts the samples without them, but their bytes
    share = (config.selection.budgets[-1] + drawn) / (info.rows + drawn)
    copied = info.bytes if reader_of(config.pool).copies else 0
    return Estimate(
        phases=tuple(phases),
        labels=asked,
        actors=actors,
        actor_bytes=costs.actor_bytes,
        bytes_read=passes * info.bytes,
        bytes_stored=stored + copied + int(share * info.bytes),
        prepared_bytes=costs.prepared_bytes,
    )


def _numbers(config: Config, round_: int, costs: Costs) -> int:
    """How many numbers beside the score are written of a sample: what the next selection reads."""
    selection = config.selection
    read = [STRATEGIES[selection.initial]] if round_ < 0 else selection.later
    features = config.scoring.features or any(map(selection.reads_features, read))
    return costs.features * features + costs.gradients * any(strategy.gradients for strategy in read)


def caveats(config: Config, *, gpu: bool, scoring: bool = True, training: bool = True) -> list[str]:
    """What rates that are measured here say nothing of.

    Args:
        gpu: whether this machine has one.
        scoring, training: whether this rate was measured, and not given.
    """
    told = []
    if scoring and config.scoring.gpus and not gpu:
        told.append("scoring.gpus: this machine has no GPU, so scoring was measured on its CPUs; give --scoring-rate")
    if training and config.workers.gpu and not gpu:
        told.append("workers.gpu: this machine has no GPU, so training was measured on its CPUs; give --training-rate")
    if training and config.workers.count != (1, 1):
        told.append(
            f"workers.count {list(config.workers.count)}: training was measured in one process of this machine; give "
            "the --training-rate of all workers together"
        )
    return told


# --- rates of this machine ------------------------------------------------------------------------------------------


def measured_costs(
    config: Config,
    dense: networks.Dense,
    selector: networks.Selector,
    form: Form,
    samples: Sequence[object],
    rows: int,
    seconds: float = 1.0,
) -> Costs:
    """Costs from about `seconds` of each kind of work in this process, with the threads that the run would use.

    Args:
        rows: of the pool, on which it depends how a sample is scored (`backend_choice.candidates`).
        samples: some encoded samples of the pool, for the time that decoding takes; empty: not counted.
    """
    import pyarrow as pa

    shape = form.network_shape
    proxy_macs, dense_macs = networks.macs(selector.network, shape), networks.macs(dense.network, shape)
    threads = torch.get_num_threads()
    try:
        job = ScoringJob(
            strategy="least_confidence",
            task=config.task,
            form=form,
            batch_size=1,
            features=config.scoring.features or config.selection.needs_features,
            threads=config.scoring.cpus,
            gpu=config.scoring.gpus > 0 and torch.cuda.is_available(),
            trusted=(selector.spec.architecture,),
            masks=config.selection.dropout_masks,
        )
        forward = rate_here(config.scoring, selector, job, rows * proxy_macs * config.selection.passes, rows)
        decode = math.inf
        if samples:
            column = pa.chunked_array([pa.array(samples)])
            decode = len(samples) / _seconds_of(lambda: decode_column(column, form), seconds)
        scored = 1 / (1 / forward + 1 / decode)
        if gpus := config.scoring.gpus:  # other CPUs decode meanwhile: of this machine's, those that an actor comes to
            share = cores() * min(1.0, gpus / max(1, torch.cuda.device_count()))
            scored = min(forward, decode * max(1.0, share - config.scoring.cpus))
        device = torch.device("cuda" if config.workers.gpu and torch.cuda.is_available() else "cpu")
        torch.set_num_threads(training_threads(_step_macs(config.training, proxy_macs), cores()))
        proxy_trained = _training_rate(TASKS[config.task], selector, config.training, form, seconds, device)
        torch.set_num_threads(training_threads(_step_macs(config.finetuning, dense_macs), cores()))
        dense_trained = _training_rate(TASKS[config.task], dense, config.finetuning, form, seconds, device)
    finally:
        torch.set_num_threads(threads)
    also = unlabeled_forms(config, form)
    kept = room(config.prepared, form, samples=kept_samples(config, rows), free_bytes=None, also=also)
    return Costs(
        proxy_macs=proxy_macs,
        dense_macs=dense_macs,
        parameters=(networks.parameters(selector.network), networks.parameters(dense.network)),
        scored_per_second=scored,
        proxy_trained_per_second=proxy_trained,
        dense_trained_per_second=dense_trained,
        actor_bytes=peak_bytes(),
        features=_features(selector, form) if config.scoring.features or config.selection.needs_features else 0,
        gradients=selector.spec.classes,
        prepared_bytes=0 if kept is None else min(kept.bytes, kept.limit),
        again_per_second=forward if kept and kept.format == "raw" and kept.bytes <= kept.limit else None,
    )


@torch.inference_mode()
def _features(selector: networks.Selector, form: Form) -> int:
    """The length of a sample's features."""
    x = form.inputs(torch.zeros((1, *form.shape), dtype=torch.uint8))
    return int(networks.with_features(selector.network, x)(x)[1].shape[1])


def _step_macs(recipe: Recipe, macs: int) -> int:
    return passes_of_step(recipe, recipe.batch_size) * macs


def _training_rate(
    task: Task, network: networks.Selector, recipe: Recipe, form: Form, seconds: float, device: torch.device
) -> float:
    """In the trainer's format and arithmetic: what it avoids is avoided here, too (`networks.channels_last`)."""
    if recipe.precision == "fp32":
        networks.full_float32()
    module = networks.channels_last(copy.deepcopy(network.network).to(device)).train()
    x = network_inputs(form, torch.zeros((recipe.batch_size, *form.shape), dtype=torch.uint8, device=device))
    y = torch.from_numpy(task.blank_targets(recipe.batch_size, network.spec.classes, form)).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with arithmetic(recipe.precision, x.device):
            outputs = module(x)
        (task.loss_sum(outputs.float(), y) / recipe.batch_size).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()  # else only the time that it takes to ask for the work is measured

    return recipe.batch_size / _seconds_of(step, seconds)


def _seconds_of(work: Callable[[], object], seconds: float) -> float:
    """Median seconds of one call, over calls that fill `seconds` (at least three); the first is not counted."""
    work()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def peak_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
