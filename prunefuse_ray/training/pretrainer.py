"""Pre-training on the pool without labels, on Ray Train: the loop, for every task of `pretext.py`.

As in `trainer.py` one function serves the driver and a worker group, every random number depends on the seed and the
step alone, and a resumed pre-training ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from prunefuse_ray import config as cfg
from prunefuse_ray import interrupts, networks, progress
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.data.unlabeled import PoolBatches, Unlabeled
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import TrainingPlan, training_threads
from prunefuse_ray.networks.architectures import isolated_seed
from prunefuse_ray.storage import Place
from prunefuse_ray.training.augmentation import draw, held_form, network_inputs, weak_view
from prunefuse_ray.training.checkpoints import State, registered, restore, save, under
from prunefuse_ray.training.pretext import PRETEXTS, Pretext
from prunefuse_ray.training.recipe import learning_rate, parameter_groups
from prunefuse_ray.training.semi_supervised import step_generator
from prunefuse_ray.training.trainer import PREEMPTION_STEPS, Notice, TrainingResult, arithmetic, on_workers
from prunefuse_ray.training.worker_group import ANNOUNCED, fit

STRETCHES = 20
"""Checkpoints, and figures, of a pre-training."""
SALT = 1


def stretch(steps: int) -> int:
    """Steps from one checkpoint to the next, of a pre-training of so many."""
    return math.ceil(steps / STRETCHES)


@dataclass(frozen=True, kw_only=True)
class PretrainingJob:
    """One network to pre-train."""

    network: dict[str, bytes]
    """As `networks.to_files` made it. The members of a committee learn side by side, each for itself."""
    settings: cfg.Pretraining
    """With a method that is one of PRETEXTS."""
    views: cfg.Recipe
    """By whose augmentation samples are seen."""
    pool: Unlabeled
    rows: int
    """Samples of the pool."""
    form: Form
    seed: int
    trusted: tuple[str, ...] = ()
    """Architectures of the user's own that the configuration names (`networks.from_files`)."""

    @cached_property
    def name(self) -> str:
        """Tells this pre-training from all others."""
        sha256 = hashlib.sha256(f"{self.settings.model_dump_json()} {self.views.augment} {self.seed}".encode())
        for file, content in sorted(self.network.items()):
            sha256.update(file.encode() + content)
        return sha256.hexdigest()


def steps_of(settings: cfg.Pretraining, rows: int, macs: int) -> int:
    """Optimizer steps over a pool of so many samples.

    Args:
        macs: of the network per sample.
    """
    if settings.macs is not None:
        per_step = 3 * macs * PRETEXTS[settings.method].passes * settings.batch_size
        return max(1, int(settings.macs / per_step))
    return max(1, math.ceil(settings.epochs * rows / settings.batch_size))


def macs_of(settings: cfg.Pretraining, steps: int, macs: int) -> int:
    """Multiply-accumulates of so many steps; heads, which are small, do not count."""
    return 3 * macs * PRETEXTS[settings.method].passes * settings.batch_size * steps


class WithHeads(nn.Module):
    """A network (of a committee each member) without its classifier, and a head in its place: inputs (N, ...) to
    (members, N, K)."""

    def __init__(self, network: nn.Module, pretext: Pretext, example: Tensor, seed: int) -> None:
        super().__init__()
        found = networks.WithFeatures(copy.deepcopy(network).eval(), example)
        self.bodies = found.bodies
        with isolated_seed(seed):
            widths = [classifier.in_features for classifier in found.classifiers]
            self.heads = nn.ModuleList(pretext.head(int(width)) for width in widths)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([head(body(x)) for body, head in zip(self.bodies, self.heads, strict=True)])


def _pretrain(config: dict[str, Any]) -> None:
    """The function that every worker runs (or the driver, in local mode)."""
    job: PretrainingJob = config["job"]
    storage: Place | None = config["storage"]
    steps, length = config["steps"], stretch(config["steps"])
    context = ray.train.get_context()
    world, rank = context.get_world_size(), context.get_world_rank()
    device = ray.train.torch.get_device() if config["gpu"] else torch.device("cpu")
    if job.settings.precision == "fp32":
        networks.full_float32()
    loaded = networks.from_files(job.network, job.trusted)
    example = networks.example_input(loaded.spec)
    pretext = PRETEXTS[job.settings.method]
    network = networks.channels_last(WithHeads(loaded.network, pretext, example, job.seed).to(device))
    optimizer = torch.optim.SGD(
        parameter_groups(network, job.settings.weight_decay), lr=job.settings.lr, momentum=0.9, nesterov=True
    )
    restored = restore(network, optimizer, config["where"], job.name, rank)
    state = State() if restored is None else restored[0]
    state.seen = state.seen or (state.epoch * length + state.step) * job.settings.batch_size  # 0.1 did not count
    held = held_form(job.form, job.views)
    pool = PoolBatches(job.pool, held, batch=job.settings.batch_size, seed=job.seed, memory=config["memory"])
    parallel = on_workers(network, loaded.spec.architecture) if world > 1 else network

    def checkpoint(**more: Any) -> None:
        config["check"]()
        metrics = {**_metrics(state, job, length, config["macs"]), **more}
        save(rank, metrics, network, optimizer, state, storage, training=job.name)

    if state.epoch * length + state.step < steps:
        state.go_on(world)
    elif not registered(state):  # killed between the last step and the end
        checkpoint()
    notice = Notice(listening=storage is None)
    while state.epoch * length + state.step < steps:
        started, before = time.perf_counter(), state.seconds
        told: dict[str, float] = {}
        with interrupts.deferred():
            for last in _steps(parallel, optimizer, pool, pretext, job, state, steps, length, device, world, rank):
                told = last
                progress.trained(state.epoch + state.step / length)
                if state.step == length or state.epoch * length + state.step == steps:
                    continue  # the stretch is done: its checkpoint below holds what is told of it
                if (arrived := notice.arrived(state.step)) or interrupts.requested():
                    state.seconds = before + time.perf_counter() - started
                    checkpoint(**{ANNOUNCED: arrived})
                    interrupts.check()
        state.history.append({"steps": state.step, "loss": state.loss / state.step, **told})
        state.seconds = before + time.perf_counter() - started
        if state.step == length:
            state.epoch, state.step = state.epoch + 1, 0
        state.loss = 0.0
        checkpoint()
        interrupts.check()


def _steps(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    pool: PoolBatches,
    pretext: Pretext,
    job: PretrainingJob,
    state: State,
    steps: int,
    length: int,
    device: torch.device,
    world: int,
    rank: int,
) -> Iterator[dict[str, float]]:
    """What is left of the current stretch, a step at a time; what is told of the last one."""
    schedule = cfg.Recipe(epochs=STRETCHES, warmup_epochs=1, lr=job.settings.lr)
    size = job.settings.batch_size
    own = slice(rank, size - size % world, world)  # every worker as many
    network.train()
    total = torch.tensor(state.loss, device=device)
    for i in range(state.step, min(length, steps - state.epoch * length)):
        step = state.epoch * length + i
        generator = step_generator(job.seed, SALT, step)
        draws = [draw(size, generator) for _ in range(pretext.passes)]  # what views share is not learned to ignore
        uniform_KB = torch.rand(pretext.draws, size, generator=generator)
        values_N = pool.values(pool.places(step)[own]).to(device)
        weak = [weak_view(values_N, some[own], job.views, job.form) for some in draws]
        values_N, targets = pretext.views(weak, uniform_KB[:, own].to(device))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step, steps / STRETCHES)
        noise = int(torch.randint(2**62, (1,), generator=generator)) + rank
        lone = networks.lone_samples(network) if len(values_N) < 2 else contextlib.nullcontext()
        with arithmetic(job.settings.precision, device), isolated_seed(noise, device), lone:
            outputs = network(network_inputs(job.form, values_N))
        found = [pretext.loss(each.float(), targets, world) for each in outputs]
        loss = torch.stack([one for one, _ in found]).sum()  # each member's counts whole, as if it were alone
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach() / len(found)
        state.step, state.seen = i + 1, state.seen + size - size % world
        if state.step == length or step + 1 == steps or state.step % PREEMPTION_STEPS == 0 or interrupts.requested():
            state.loss = float(total)  # not at every step: it waits for the device
            yield {name: sum(float(told[name].detach()) for _, told in found) / len(found) for name in found[0][1]}


def _metrics(state: State, job: PretrainingJob, length: int, macs: int) -> dict[str, Any]:
    done = state.epoch * length + state.step
    samples = state.seen
    names = [name for name in (state.history[-1] if state.history else {}) if name != "steps"]
    return {
        "method": job.settings.method,
        "steps": done,
        "epochs": samples / job.rows,
        "macs": 3 * macs * PRETEXTS[job.settings.method].passes * samples,
        "seconds": state.seconds,
        "samples_per_second": samples / state.seconds if state.seconds else 0.0,
        "workers": state.workers,
        # Checkpoints of earlier versions may hold a stretch of which nothing was told.
        **{name: [h[name] for h in state.history if name in h] for name in names},
    }


def pretrain(job: PretrainingJob, plan: TrainingPlan, where: Place) -> TrainingResult:
    """Pre-train one network; called again with the same `where` after a kill, it goes on from its last checkpoint. The
    classifier stays as it is.

    Args:
        where: a directory of its own for this pre-training's checkpoints, on storage that all workers reach.
    """
    loaded = networks.from_files(job.network, job.trusted)
    macs = networks.macs(loaded.network, job.form.network_shape)
    steps = steps_of(job.settings, job.rows, macs)
    if plan.in_process:
        torch.set_num_threads(training_threads(macs_of(job.settings, 1, macs), plan.cores or cores()))
    told = {"job": job, "macs": macs, "steps": steps, "memory": plan.sample_bytes}
    tensors, metrics = fit(_pretrain, told, plan, where)
    names = "members" if isinstance(loaded, networks.Committee) else ""
    state = loaded.network.state_dict()
    for name, tensor in under("network.bodies.", tensors).items():
        state[f"{names}.{name}" if names else name.partition(".")[2]] = tensor
    loaded.network.load_state_dict(state)
    return TrainingResult(network=networks.to_files(loaded), metrics=metrics)
