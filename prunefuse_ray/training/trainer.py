"""Training on Ray Train: proxies, dense and fused networks, on labels and beside them on the pool; distillation;
checkpoints that resume exactly.

One training function serves both forms: inside the driver (Ray Train's local mode, without the start-up of a worker
group) and data-parallel over a worker group. Every random draw, those of dropout included, depends on the seed, the
epoch and the step (dropout's on the worker, too), so a resumed training ends with the same weights as an undisturbed
one: to the bit on CPUs, on GPUs up to what cuDNN's kernels add up in another order.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.collective
import torch
from torch import Tensor, nn

from prunefuse_ray import config as cfg
from prunefuse_ray import interrupts, networks, progress
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.labeled_set import Samples, load_samples, load_test, load_within, sample_bytes
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.data.unlabeled import PoolBatches, Unlabeled
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import TrainingPlan, training_threads
from prunefuse_ray.networks.architectures import isolated_seed
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Evaluation, Task
from prunefuse_ray.training.augmentation import center, draw, held_form, masked_view, network_inputs, weak_view
from prunefuse_ray.training.checkpoints import (
    State,
    Weights,
    registered,
    restore,
    save,
    under,
    weights_of,
)
from prunefuse_ray.training.coreset import EARLY, Hardness, hardness_table
from prunefuse_ray.training.recipe import (
    batches,
    distillation_weight,
    learning_rate,
    lengthened,
    passes_of_step,
    samples_per_epoch,
)
from prunefuse_ray.training.recipe import (
    optimizer as recipe_optimizer,
)
from prunefuse_ray.training.semi_supervised import Guesser
from prunefuse_ray.training.worker_group import ANNOUNCED, fit, over_workers

EVALUATION_BATCHES = {"cpu": 64, "cuda": 500}
"""On CPUs larger ones leave the caches: 500 took 1.5 times as long as 64 (ResNet-20, 32 x 32)."""
RECALIBRATION_BATCH = 500
VALUES = 2**25
"""Most numbers in the inputs of a batch that is not trained on: what a network holds of large images between its layers
is a hundred times as much."""
NAMED_ROWS = 10_000
PREEMPTION_STEPS = 16
"""Steps between two looks for an announced preemption; a look is a barrier for all workers."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One network to train on labeled samples."""

    network: dict[str, bytes]
    """The network with its initial weights, as `networks.to_files` made it. The members of a committee are trained side
    by side: the same batches, a forward and a backward pass for each, which share no weight."""
    recipe: cfg.Recipe
    samples: Source
    """The labeled samples: Parquet files with (id, image)."""
    labels: pa.Table
    """Their labels: (id, label), the latter as `Task.label_type`."""
    test: Source
    """The test set, with its labels in a column of its own."""
    form: Form
    seed: int
    task: str = "classification"
    """`tasks.TASKS`"""
    trusted: tuple[str, ...] = ()
    """Architectures of the user's own that the configuration names (`networks.from_files`)."""
    validation: Source | None = None
    """The validation set: the weights of the best epoch on it are the result. None: those of the last epoch."""
    validation_labels: pa.Table | None = None
    """Its labels (id, label); None where they stand in a column of its own."""
    teacher: dict[str, bytes] | None = None
    """The proxy (or committee) to distil from."""
    distillation: cfg.Distillation | None = None
    unlabeled: Unlabeled | None = None
    """What is learned from without labels, where the recipe says so."""
    prior: tuple[float, ...] = ()
    """The shares of the classes that guesses on those are brought to."""
    hardness: bool = False
    """Note how hard each labeled sample is (`coreset.py`); of task classification."""
    memory: float = math.inf
    """Bytes of decoded samples: a held-out set that takes more lies in a file on the node's disk."""
    recalibrate: bool = False
    """Recompute batch-norm statistics before the first step: those of a fused network, or of one
    pruned from trained weights, are those of other inputs."""
    met: bool = False
    """The network holds already what it takes of labeled samples (`networks.meet`): fusion has brought along what the
    proxy took of all of them, of which these may be a part."""

    @cached_property
    def name(self) -> str:
        """Tells this training from all others: the network that it begins with, its recipe, seed and labels."""
        # Without what is not used: trainings that an earlier version began have the name that it gave them.
        recipe = self.recipe.model_dump_json(exclude=None if self.recipe.unlabeled.used else {"unlabeled"})
        sha256 = hashlib.sha256(f"{recipe} {self.seed} {self.distillation}".encode())
        for file, content in sorted(self.network.items()):
            sha256.update(file.encode() + content)
        for column in ("id", "label"):
            _update(sha256, self.labels[column])
        if self.unlabeled is not None:
            sha256.update(json.dumps([self.unlabeled.exclude.to_pylist(), self.prior]).encode())
        return sha256.hexdigest()

    @cached_property
    def fitted_task(self) -> Task:
        """The task, with what its labels settle (`Task.fitted`)."""
        return TASKS[self.task].fitted(self.labels["label"])

    @property
    def training_form(self) -> Form:
        """The form in which samples are held to learn from them."""
        return held_form(self.form, self.recipe)

    def inputs(self, decoded_N: Tensor) -> Tensor:
        """Decoded samples, uint8 (N, *form.shape), as the network's input."""
        return network_inputs(self.form, decoded_N)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The trained network and how it went."""

    network: dict[str, bytes]
    metrics: dict[str, Any]
    hardness: pa.Table | None = None
    """`coreset.hardness_table` of the labeled samples, where the job asks for it."""


# --- the training function ------------------------------------------------------------------------------------------


def _train(config: dict[str, Any]) -> None:
    """The function that every worker runs (or the driver, in local mode)."""
    job: TrainingJob = config["job"]
    storage: Place | None = config["storage"]  # set in local mode only, where Ray Train stores nothing
    context = ray.train.get_context()
    world, rank = context.get_world_size(), context.get_world_rank()
    device = ray.train.torch.get_device() if config["gpu"] else torch.device("cpu")
    recipe, task = job.recipe, job.fitted_task
    if recipe.precision == "fp32":
        networks.full_float32()

    saved = networks.from_files(job.network, job.trusted)
    network = networks.channels_last(saved.network.to(device))
    teacher = (
        networks.inference_form(networks.from_files(job.teacher, job.trusted).network.to(device))
        if job.teacher
        else None
    )
    samples = _load(job, config["file"], context.get_local_rank())
    validation = None
    if job.validation and not rank:
        validation = load_within(job.memory, job.validation, job.form, job.validation_labels)
    guesser = None
    if recipe.unlabeled.used:
        assert job.unlabeled is not None
        size = recipe.batch_size * recipe.unlabeled.ratio
        pool = PoolBatches(job.unlabeled, job.training_form, batch=size, seed=job.seed, memory=config["memory"])
        guesser = Guesser(recipe, job.form, pool, np.array(job.prior), job.seed, rank, world)
    optimizer = recipe_optimizer(recipe, network)
    restored = restore(network, optimizer, config["where"], job.name, rank)
    state, kept = restored or (State(), {})
    if rank:  # the first one goes on with the sums of all (`_of_all`)
        state.loss, state.seen = 0.0, 0
    best = under("best.", kept) or None
    tells = validation is None or task.tells(validation.labels_N)
    if state.best is not None:  # an earlier version kept the metric, also where it tells nothing
        state.best.setdefault("merit", state.best.get(task.metric.name, -math.inf) if tells else -math.inf)
    hardness = Hardness(len(samples), device) if job.hardness else None
    if hardness is not None:
        hardness.restore(under("hardness.", kept))
    if restored is None and not job.met:
        networks.meet(network, lambda: _labeled(samples, job, saved.spec.classes, device))
    if restored is None and job.recalibrate:
        networks.recalibrate_batch_norm(network, _inputs(samples, job, device))
    if restored is None and (job.recalibrate or job.met) and recipe.evaluate_every:
        if rank == 0:
            state.history.append({"epoch": 0, **_evaluate(network, job, _test(job), device)})
        if world > 1:  # Ray's waits for as long as it takes; torch's own, which come next, for half an hour
            ray.train.collective.barrier()
    parallel = on_workers(network, saved.spec.architecture) if world > 1 else network

    def checkpoint(metrics: dict[str, Any], now: State | None = None) -> None:
        config["check"]()
        found = {f"best.{k}": v for k, v in (best or {}).items()}
        if hardness is not None:
            found |= {f"hardness.{k}": v for k, v in hardness.tensors().items()}
        save(rank, metrics, network, optimizer, now or state, storage, kept=found, training=job.name)

    if not state.finished(recipe):
        state.go_on(world)
    elif not registered(state):  # killed between the last epoch and the end
        metrics = _metrics(state, samples, job, config["macs"])
        checkpoint(metrics | (_tested(network, best, job, device) if rank == 0 else {}))
    notice = Notice(listening=storage is None)
    while not state.finished(recipe):
        started, before = time.perf_counter(), state.seconds
        with interrupts.deferred():
            for _ in _steps(
                parallel, optimizer, teacher, samples, job, state, device, world, rank, network, guesser, hardness
            ):
                progress.trained(state.epoch + state.seen * world / samples_per_epoch(recipe, len(samples)))
                if (arrived := notice.arrived(state.step)) or interrupts.requested():
                    state.seconds = before + time.perf_counter() - started
                    metrics = _metrics(state, samples, job, config["macs"]) | {ANNOUNCED: arrived}
                    checkpoint(metrics, _of_all(state, world))
                    interrupts.check()
        whole = _of_all(state, world)
        entry = {"epoch": state.epoch + 1, "train_loss": whole.loss / max(1, whole.seen)}
        if guesser is not None:
            entry |= {"guessed": state.guessed, "sure": state.sure}
        state.epoch, state.step, state.loss, state.seen, state.guessed, state.sure = state.epoch + 1, 0, 0.0, 0, 0, 0
        state.seconds = before + time.perf_counter() - started
        if recipe.evaluate_every and state.epoch % recipe.evaluate_every == 0 and rank == 0:
            entry |= _evaluate(network, job, _test(job), device)
        if validation is not None:
            found = _evaluate(network, job, validation, device)
            entry |= {f"validation_{name}": value for name, value in found.items()}
            metric = task.metric.name
            merit = found[metric] if tells else -found["loss"]
            if state.improves(merit, found["loss"]):
                best = weights_of(network)
        if world > 1 and job.validation is not None:  # all workers have to stop after the same epoch
            state.best = ray.train.collective.broadcast_from_rank_zero(state.best)
        state.history.append(entry)
        metrics = _metrics(state, samples, job, config["macs"])
        if state.finished(recipe) and rank == 0:
            metrics |= _tested(network, best, job, device)
        checkpoint(metrics)


def _of_all(state: State, world: int) -> State:
    """The state with the sums of all workers, as a checkpoint in mid-epoch holds it; this one may train on with its own
    until it is ended."""
    loss, seen = over_workers(np.array([state.loss, state.seen], np.float64), world)
    return replace(state, loss=float(loss), seen=int(seen))


def _update(sha256: Any, column: pa.ChunkedArray) -> None:
    """Hash a column as one list in JSON, written a piece at a time: as Python's objects a million take 100 MB."""
    for first in range(0, max(1, len(column)), NAMED_ROWS):
        piece = json.dumps(column.slice(first, NAMED_ROWS).to_pylist(), default=bytes.hex)
        sha256.update((("[" if first == 0 else ", ") + piece[1:-1]).encode())
    sha256.update(b"]")


def on_workers(network: nn.Module, architecture: str) -> nn.Module:
    """The network as the workers of a group share it. A step of one that is not ours may leave out layers (stochastic
    depth), other ones on each worker."""
    theirs = {"find_unused_parameters": ":" in architecture}
    return ray.train.torch.prepare_model(network, parallel_strategy_kwargs=theirs)


def _load(job: TrainingJob, file: str | None, local_rank: int) -> Samples:
    """The labeled samples; too large a set in a file that the workers of a node share."""
    if file is None:
        return load_samples(job.samples, job.training_form, job.labels)
    path = Path(tempfile.gettempdir()) / file

    def nameless() -> None:
        """All map it before it is filled, which takes long: a process that is killed then leaves nothing behind."""
        for _ in ("it is there", "all have mapped it"):
            ray.train.collective.barrier()
        path.unlink()

    if local_rank == 0:
        samples = load_samples(job.samples, job.training_form, job.labels, path, mapped=nameless)
    else:
        ray.train.collective.barrier()
        samples = load_samples(job.samples, job.training_form, job.labels, path, fill=False)
        ray.train.collective.barrier()
    ray.train.collective.barrier()  # it is filled
    return samples


class Notice:
    """Tells once that a preemption of one of the worker group's nodes was announced.

    Every worker asks at the same steps: Ray Train's answer is a barrier.
    """

    def __init__(self, listening: bool) -> None:
        self.listening = listening

    def arrived(self, step: int) -> bool:
        if not self.listening or step % PREEMPTION_STEPS:
            return False
        arrived = ray.train.get_preemption_info() is not None
        self.listening = not arrived
        return arrived


def _steps(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    teacher: nn.Module | None,
    samples: Samples,
    job: TrainingJob,
    state: State,
    device: torch.device,
    world: int,
    rank: int,
    unwrapped: nn.Module,
    guesser: Guesser | None,
    hardness: Hardness | None = None,
) -> Iterator[None]:
    """What is left of the current epoch, a step at a time; `state` counts along.

    Args:
        unwrapped: the network itself, where `network` is one that is shared with other workers.
        guesser: gives unlabeled samples to learn from; None: none are.
        hardness: takes in what the network says of the labeled samples.
    """
    recipe, distillation, task = job.recipe, job.distillation, job.fitted_task
    generator = torch.Generator().manual_seed(job.seed * 1_000_003 + state.epoch)
    epoch = batches(recipe, len(samples), generator)
    steps = len(epoch)
    # What the network itself draws (dropout, stochastic depth) comes from torch's global generators.
    noise = torch.Generator().manual_seed(-1 - (job.seed * 1_000_003 + state.epoch))
    seeds = torch.randint(2**62, (steps,), generator=noise).tolist()
    network.train()
    total = torch.tensor(state.loss, device=device)
    members = len(unwrapped.members) if isinstance(unwrapped, networks.Members) else 1
    for i, batch in enumerate(epoch):
        draws = draw(len(batch), generator)
        if i < state.step:  # done before a preemption; the draws are repeated, so that the next ones are the same
            continue
        rows = batch[rank::world]
        held, y = samples.values_N[rows].to(device), samples.labels_N[rows].to(device)
        if task.pixels:
            values, y = masked_view(held, y, draws[rank::world], recipe, job.form)
        else:
            values = weak_view(held, draws[rank::world], recipe, job.form)
        step = state.epoch * steps + i
        guessed = None
        if guesser is not None:
            # Through what the workers share: it gives all of them the same batch-norm statistics first.
            guessed = guesser.guess(network, task, step, state.mean_guess_C, arithmetic(recipe.precision, device))
            values = torch.cat([values, guessed.values_N])
        x = job.inputs(values)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, steps)
        weight = distillation_weight(distillation, step / (recipe.epochs * steps)) if distillation else 0.0
        with arithmetic(recipe.precision, device):
            lone = networks.lone_samples(network) if len(x) < 2 else contextlib.nullcontext()
            with isolated_seed(seeds[i] + rank, device), lone:
                outputs = network(x if teacher is None else x.clone())  # it may work in place
            with torch.no_grad():
                taught = task.consensus(teacher(x[: len(y)])) if teacher is not None and weight > 0 else None
        outputs = outputs.float()
        loss = task.loss_sum(
            outputs if guessed is None else outputs[..., : len(y), :],
            y,
            smoothing=recipe.label_smoothing,
            teacher=None if taught is None else taught.float(),
            weight=weight,
            temperature=distillation.temperature if distillation else 1.0,
        )
        labeled = loss.detach()
        if hardness is not None:
            early = state.epoch < max(1, EARLY * recipe.epochs)
            hardness.see(batch, task.consensus(outputs[..., : len(y), :].detach()), y, rank, world, early=early)
        if guessed is not None and guesser is not None and len(guessed.labels_N):
            # The mean over all unlabeled samples of the step, also those that the network is not sure of.
            share = recipe.unlabeled.weight * len(batch) / guesser.pool.batch
            loss = loss + share * task.loss_sum(outputs[..., len(y) :, :], guessed.labels_N.to(device))
        # Each member's loss counts whole, as if it were trained alone. DDP averages gradients over workers; scaled like
        # this the average is the mean over the global batch.
        (loss * (world / len(batch))).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += labeled / members
        state.step, state.seen = i + 1, state.seen + len(rows)
        if guessed is not None and guesser is not None:
            state.mean_guess_C = guessed.mean_C
            state.guessed += guesser.pool.batch
            state.sure += guessed.sure
        if i + 1 == steps or (i + 1) % PREEMPTION_STEPS == 0 or interrupts.requested():
            state.loss = float(total)  # not at every step: it waits for the device
            yield


def arithmetic(precision: str, device: torch.device) -> torch.autocast:
    """The arithmetic of training and of the evaluations within it: of `precision`, as recipes have it."""
    bf16 = precision == "bf16" or (precision == "auto" and networks.fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def at_once(most: int, form: Form, outputs: int = 0) -> int:
    """Of so many samples at most, how many of this form, of so many outputs each, are looked at together."""
    return max(2, min(most, VALUES // max(outputs, math.prod(form.network_shape))))


@torch.inference_mode()
def _evaluated(network: nn.Module, job: TrainingJob, samples: Samples, device: torch.device) -> Evaluation:
    """The task's evaluation on the samples."""
    network, task = networks.inference_form(network), job.fitted_task
    evaluation = task.evaluation()
    # Of every pixel each class has an output: of many classes they are far more than the inputs.
    outputs = network(job.inputs(samples.values_N[:1].to(device))).numel() if task.pixels else 0
    size = at_once(EVALUATION_BATCHES.get(device.type, 500), job.form, outputs)
    for start in range(0, len(samples), size):
        rows = slice(start, start + size)
        y = samples.labels_N[rows].to(device)
        with arithmetic(job.recipe.precision, device):
            outputs = task.consensus(network(job.inputs(samples.values_N[rows].to(device)))).float()
        evaluation.add(outputs, y)
    return evaluation


def _evaluate(network: nn.Module, job: TrainingJob, samples: Samples, device: torch.device) -> dict[str, float]:
    """The task's metric and the mean loss on the samples."""
    return _evaluated(network, job, samples, device).result()


def _test(job: TrainingJob) -> Samples:
    return load_test(job.test, job.form, job.memory)


def _inputs(samples: Samples, job: TrainingJob, device: torch.device) -> Iterator[Tensor]:
    """Labeled samples in batches of about equal size, not augmented, for batch-norm statistics. They are drawn at
    random: in the order of ids a batch may have one class alone."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(job.seed))[: 10 * RECALIBRATION_BATCH]
    for rows in order.tensor_split(-(-len(order) // at_once(RECALIBRATION_BATCH, job.form))):
        values = samples.values_N[rows].to(device)
        yield job.inputs(center(values, job.form.shape[:2]) if isinstance(job.form, ImageForm) else values)


def _labeled(samples: Samples, job: TrainingJob, classes: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All labeled samples, not augmented, in batches of inputs and of which classes each is (N, C)."""
    task = job.fitted_task
    size = at_once(RECALIBRATION_BATCH, job.form)
    for start in range(0, len(samples), size):
        rows = slice(start, start + size)
        yield job.inputs(samples.values_N[rows].to(device)), task.members(samples.labels_N[rows], classes).to(device)


def _teacher_macs(job: TrainingJob) -> int:
    """Multiply-accumulates per sample of the network that is distilled from; 0 where none is asked."""
    if job.teacher is None or job.distillation is None or not job.distillation.weight:
        return 0
    return networks.macs(networks.from_files(job.teacher, job.trusted).network, job.form.network_shape)


def _metrics(state: State, samples: Samples, job: TrainingJob, macs_each: tuple[int, int]) -> dict[str, Any]:
    """How the training has gone so far.

    Args:
        macs_each: of the network and of its teacher, per sample.
    """
    macs, teacher_macs = macs_each
    recipe, metric = job.recipe, TASKS[job.task].metric.name
    seen = state.epoch * samples_per_epoch(recipe, len(samples))
    guessed, sure = [sum(h.get(name, 0) for h in state.history) for name in ("guessed", "sure")]
    return {
        "epochs": state.epoch,
        "train_loss": [h["train_loss"] for h in state.history if "train_loss" in h],
        "evaluations": [h for h in state.history if metric in h],
        **_validated(state, metric),
        # Forward, gradient of the inputs, gradient of the weights; a guess is a forward pass, and what a teacher says.
        "macs": 3 * macs * (seen + sure) + macs * guessed + teacher_macs * seen,
        **(
            {"unlabeled": guessed, "sure": [h["sure"] / h["guessed"] for h in state.history if "sure" in h]}
            if guessed
            else {}
        ),
        "seconds": state.seconds,
        "samples_per_second": seen / state.seconds if state.seconds else 0.0,
        "workers": state.workers,
    }


def _validated(state: State, metric: str) -> dict[str, Any]:
    """What the validation set told: the metric after every epoch, and the epoch whose weights are kept."""
    if state.best is None:
        return {}
    name = f"validation_{metric}"
    return {name: [h[name] for h in state.history if name in h], "best_epoch": state.best["epoch"]}


def _tested(network: nn.Module, best: Weights | None, job: TrainingJob, device: torch.device) -> dict[str, Any]:
    """The metric and the loss on the test set, of the weights that are kept, under the names of the final metrics. Of a
    committee they are those of its consensus; each member's metric stands beside them."""
    if best is not None:
        network = copy.deepcopy(network)
        network.load_state_dict(best)
    evaluation = _evaluated(network, job, _test(job), device)
    found: dict[str, Any] = {f"test_{name}": value for name, value in evaluation.result().items()}
    found |= {f"test_{name}": value for name, value in evaluation.shown().items()}
    found["tested"] = len(_test(job))
    if isinstance(network, networks.Members):
        metric = TASKS[job.task].metric.name
        found[f"members_test_{metric}"] = [_evaluate(m, job, _test(job), device)[metric] for m in network.members]
    return found


# --- running it -----------------------------------------------------------------------------------------------------


def train(job: TrainingJob, plan: TrainingPlan, where: Place) -> TrainingResult:
    """Train one network; called again with the same `where` after a kill, it goes on from the last epoch.

    Args:
        where: a directory of its own for this training's checkpoints, on storage that all workers reach.
    """
    loaded = networks.from_files(job.network, job.trusted)
    macs = networks.macs(loaded.network, job.form.network_shape)
    job = replace(job, recipe=lengthened(job.recipe, macs), memory=plan.sample_bytes)
    if plan.in_process:
        per_step = macs * passes_of_step(job.recipe, min(job.recipe.batch_size, job.labels.num_rows))
        torch.set_num_threads(training_threads(per_step, plan.cores or cores()))
    large = sample_bytes(job.labels.num_rows, job.training_form) > plan.sample_bytes
    file = f"prunefuse-{uuid.uuid4().hex}" if large else None
    told = {"job": job, "macs": (macs, _teacher_macs(job)), "file": file, "memory": plan.sample_bytes}
    tensors, metrics = fit(_train, told, plan, where)
    loaded.network.load_state_dict(under("best.", tensors) or under("network.", tensors))
    hardness = None
    if job.hardness:
        ids = job.labels.sort_by("id")["id"].combine_chunks()
        hardness = hardness_table(ids, under("hardness.", tensors))
    return TrainingResult(network=networks.to_files(loaded), metrics=metrics, hardness=hardness)
