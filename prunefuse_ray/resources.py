"""What the cluster has, and the decisions that depend on it: how many actors score, where training runs."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.data

from prunefuse_ray import config as cfg
from prunefuse_ray.errors import PlanError

BLOCK_BYTES = 4 * 2**20
STREAM_CPUS = 2
"""CPUs left to reading, filtering finished rows and writing beside the scoring actors. Actors that hold every CPU
would leave none for the tasks that feed them, and the stream would stand still without an error."""

MACS_WORTH_AN_ACTOR = 50e9
"""An actor takes seconds of CPU to start; below this much work (a few seconds of one core) another is a loss."""

ROWS_WORTH_AN_ACTOR = 20_000
"""A pool with fewer rows, and less work than MACS_WORTH_AN_ACTOR, is scored by the driver in less time than an actor
takes to start."""

MACS_WORTH_THREADS = 1e9
"""An optimiser step with less work than this is trained by one thread inside the driver: a second one gains nothing on
so small a step, and costs several times the step whenever another process takes its core."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The cluster as it is now."""

    nodes: int
    cpus: float
    gpus: float
    in_process: bool
    """One node, which is this one: training may run inside the driver."""
    cores: int = 0
    """Cores of this machine for training inside the driver; 0: all of them."""

    def part(self, runs: int) -> Resources:
        """What each of `runs` runs may plan with, when they share the cluster. The CPUs left to reading and writing
        are common to all, so that all scoring actors of all runs together leave them free."""
        if runs == 1:
            return self
        cpus = STREAM_CPUS + max(0.0, self.cpus - STREAM_CPUS) / runs
        return replace(self, cpus=cpus, gpus=self.gpus / runs, cores=max(1, (self.cores or cores()) // runs))

    def to_json(self) -> dict[str, float]:
        return {"nodes": self.nodes, "cpus": self.cpus, "gpus": self.gpus}


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """How many actors score, and what each holds."""

    min_actors: int
    max_actors: int
    cpus: int
    gpus: float
    here: bool = False
    """So little work, on one machine, that the driver does it itself."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Where one network is trained. `workers` (0, 0): inside the driver."""

    workers: tuple[int, int]
    cpus: int
    gpu: bool
    max_failures: int
    cores: int = 0
    """Cores that training inside the driver may use; 0: all of this machine's."""

    @property
    def in_process(self) -> bool:
        return self.workers == (0, 0)


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (submitted jobs have it set), or start Ray on this machine.

    A local Ray gets STREAM_CPUS logical CPUs more than the machine has cores, so that every core can hold a scoring
    actor while the short reading and writing tasks still find a slot.
    """
    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            ray.init(address="local", num_cpus=cores() + STREAM_CPUS, include_dashboard=False, **quiet)
    configure_data()


def configure_data() -> None:
    """Settings of Ray Data that every stream of this process shares."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # The default reader of Ray 2.60 adds a stage that lists files: 10 s for every stream here, against 0.5 s without.
    context.use_datasource_v2 = False
    # Ray Data cuts large files only by this size; its default of 128 MiB leaves a whole pool to one actor.
    context.target_max_block_size = BLOCK_BYTES
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # These two warn that the bars are off, and, when one stream follows another at once, that no CPU is free yet;
    # plan_scoring has refused by then what could really stand still.
    for name in ("ray.data._internal.progress", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def observe() -> Resources:
    """The resources of the cluster that this process is connected to."""
    nodes = [n for n in ray.nodes() if n["Alive"]]
    total = ray.cluster_resources()
    here = ray.get_runtime_context().get_node_id()
    return Resources(
        nodes=len(nodes),
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        # A head that declares no CPUs is not to be worked on, even where it is alone.
        in_process=len(nodes) == 1 and nodes[0]["NodeID"] == here and total.get("CPU", 0.0) > 0,
    )


def training_threads(macs_per_step: float, cores_: int) -> int:
    """Threads of a training inside the driver."""
    return cores_ if macs_per_step >= MACS_WORTH_THREADS else 1


def plan_scoring(scoring: cfg.Scoring, has: Resources, macs: float, rows: float = math.inf) -> ScoringPlan:
    """The actor pool for a cluster; PlanError, with the numbers, where not even the smallest one fits.

    Args:
        macs: multiply-accumulates of scoring the whole pool once, by which the default number of actors is bounded.
        rows: samples of the pool.
    """
    by_cpu = int((has.cpus - STREAM_CPUS) // scoring.cpus)
    fits = min(by_cpu, int(has.gpus // scoring.gpus)) if scoring.gpus else by_cpu
    smallest, largest = scoring.actors or (1, max(1, min(fits, math.ceil(macs / MACS_WORTH_AN_ACTOR))))
    if smallest > fits:
        raise PlanError(
            f"scoring.actors: {smallest} actors of {scoring.cpus} CPUs and {scoring.gpus:g} GPUs, with {STREAM_CPUS} "
            f"CPUs for reading and writing, do not fit {has.cpus:g} CPUs and {has.gpus:g} GPUs: lower scoring.actors "
            "or scoring.cpus, or start Ray with more (--num-cpus)"
        )
    small = macs < MACS_WORTH_AN_ACTOR and rows < ROWS_WORTH_AN_ACTOR
    return ScoringPlan(
        min_actors=smallest,
        max_actors=min(largest, fits),
        cpus=scoring.cpus,
        gpus=scoring.gpus,
        here=small and has.in_process and scoring.actors is None and not scoring.gpus,
    )


def plan_training(workers: cfg.Workers, has: Resources) -> TrainingPlan:
    """Inside the driver for one worker on one machine, else a worker group; PlanError where it does not fit."""
    smallest = workers.count[0]
    if workers.count == (1, 1) and has.in_process and (not workers.gpu or has.gpus >= 1):
        return TrainingPlan(
            workers=(0, 0), cpus=workers.cpus, gpu=workers.gpu, max_failures=workers.max_failures, cores=has.cores
        )
    if smallest * workers.cpus > has.cpus or (workers.gpu and smallest > has.gpus):
        raise PlanError(
            f"workers.count: {smallest} workers of {workers.cpus} CPUs{' and a GPU' if workers.gpu else ''} do not fit "
            f"{has.cpus:g} CPUs and {has.gpus:g} GPUs: lower workers.count or workers.cpus, or add machines"
        )
    return TrainingPlan(workers=workers.count, cpus=workers.cpus, gpu=workers.gpu, max_failures=workers.max_failures)
