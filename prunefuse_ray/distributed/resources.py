"""What the cluster has, and the decisions that depend on it: how many actors score, where training runs."""

from __future__ import annotations

import atexit
import dataclasses
import importlib
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ray
import ray.data

from prunefuse_ray import config as cfg
from prunefuse_ray import interrupts, owned, progress
from prunefuse_ray.distributed.autoscaler import ROLE, Autoscaler, autoscaler, times, units_of
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.errors import PlanError
from prunefuse_ray.networks.backends import AUTO, BACKENDS

BLOCK_BYTES = 4 * 2**20
STREAM_CPUS = 2
"""CPUs left to reading, filtering finished rows and writing beside the scoring actors. Actors that hold every CPU
would leave none for the tasks that feed them, and the stream would stand still without an error."""

MACS_WORTH_AN_ACTOR = 50e9
"""An actor takes seconds of CPU to start; below this much work (a few seconds of one core) another is a loss."""

ROWS_WORTH_AN_ACTOR = 20_000
"""A pool with fewer rows, and less work than MACS_WORTH_AN_ACTOR, is scored by the driver in less time than an actor
takes to start."""

CORES_HERE = 4
"""On a machine alone with so few cores the driver scores every pool itself, a thread for each core: actors compute no
faster, and cost seconds in every round. With more cores threads get into each other's way."""

MACS_WORTH_THREADS = 1e9
"""An optimizer step with less work than this is trained by one thread inside the driver: a second one gains nothing on
so small a step, and costs several times the step whenever another process takes its core."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One node of the cluster."""

    cpus: float
    gpus: float
    role: str = ""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The cluster as it is now."""

    nodes: int
    cpus: float
    gpus: float
    in_process: bool
    """One node, which is this one: training may run inside the driver."""
    roles: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """CPUs and GPUs of the nodes that carry the label ROLE, by its value."""
    machines: tuple[Machine, ...] = ()
    """What actors and workers have to fit, each of them whole; none: one machine, which is all there is."""
    autoscaler: Autoscaler | None = None
    """What the cluster may grow to; None where it stays as it is."""
    cores: int = 0
    """Cores of this machine for training inside the driver; 0: all of them."""
    shared: bool = False
    """Others plan with it, too: Ray alone can say which GPU is whose."""

    def part(self, runs: int) -> Resources:
        """What each of `runs` runs may plan with, when they share the cluster. The CPUs left to reading and writing
        are common to all, so that all scoring actors of all runs together leave them free."""
        if runs == 1:
            return self
        cpus = STREAM_CPUS + max(0.0, self.cpus - STREAM_CPUS) / runs
        return dataclasses.replace(
            self,
            cpus=cpus,
            gpus=self.gpus / runs,
            cores=max(1, (self.cores or cores()) // runs),
            shared=True,
            roles={role: (c / runs, g / runs) for role, (c, g) in self.roles.items()},
            autoscaler=None,  # what it may bring is nobody's yet: every run would plan with all of it
        )

    def to_json(self) -> dict[str, float]:
        """For people: of a single machine its cores, where its own Ray has STREAM_CPUS more."""
        cpus = min(self.cpus, self.cores or cores()) if self.in_process else self.cpus
        return {"nodes": self.nodes, "cpus": cpus, "gpus": self.gpus}

    def holds(self, cpus: float, gpus: float, takes: Callable[[str], bool] = lambda _: True) -> float:
        """How many units of `cpus` and `gpus` the machines hold, whose role it `takes`; `part` leaves it as it is.
        Between two machines no unit is shared: CPUs that are enough together may hold none."""
        if not self.machines:
            return math.inf
        return sum(units_of(m.cpus, m.gpus, cpus, gpus) for m in self.machines if takes(m.role))

    @property
    def largest(self) -> str:
        """The rest of a refusal's numbers, where there are several machines."""
        if len(self.machines) < 2:
            return ""
        cpus, gpus = max(m.cpus for m in self.machines), max(m.gpus for m in self.machines)
        return f" on {len(self.machines)} machines of at most {cpus:g} CPUs and {gpus:g} GPUs each"

    def has_role(self, role: str) -> bool:
        """Whether there are machines with this label, or could be."""
        startable = self.autoscaler.node_types if self.autoscaler else ()
        return role in self.roles or any(kind.role == role for kind in startable)


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """How many actors score, and what each holds."""

    min_actors: int
    max_actors: int
    cpus: int
    gpus: float
    here: bool = False
    """On one machine, of few cores or with little work: the driver does it itself."""
    threads: int = 1
    """Of the driver, where it does; each runs a network of its own with `cpus` threads."""
    alone: bool = False
    """The driver's machine is the only one and scores on CPUs: what depends on the machine may be measured in the
    driver, without the start of another process."""
    labeled: bool = False
    """Nodes say what they are for: actors go to scoring (spot) machines, and to training machines that have room."""
    waits: str | None = None
    """What the cluster lacks for it now and the autoscaler has to bring, for people."""
    check: Callable[[], object] = field(default=bool, repr=False, compare=False)
    """Asked before the driver writes, where it scores itself: raises where another one has taken its run over."""

    @property
    def gpu_share(self) -> float:
        """Of a GPU, what one actor may take of its memory; 1 without GPUs."""
        return min(1.0, self.gpus or 1.0)

    @property
    def at_once(self) -> tuple[int, int]:
        """How many score at the same time, at least and at most: actors, or threads of the driver."""
        return (self.threads, self.threads) if self.here else (self.min_actors, self.max_actors)

    @property
    def placement(self) -> dict[str, Any]:
        """Options of Ray's for scoring tasks and actors. A preference: where no scoring machine has room, any machine
        but the head serves, so that nothing hangs while a spot market is empty."""
        if not self.labeled:
            return {}
        return {"label_selector": {ROLE: "scoring"}, "fallback_strategy": [{"label_selector": {ROLE: "!head"}}]}


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Where one network is trained. `workers` (0, 0): inside the driver."""

    workers: tuple[int, int]
    cpus: int
    gpu: bool
    max_failures: int
    cores: int = 0
    """Cores that training inside the driver may use; 0: all of this machine's."""
    sample_bytes: int = 8 * 2**30
    """Decoded samples that one worker may hold in memory."""
    labeled: bool = False
    """Nodes say what they are for: workers run on training machines only, never on spot."""
    waits: str | None = None
    """What the cluster lacks for it now and the autoscaler has to bring, for people."""
    check: Callable[[], object] = field(default=bool, repr=False, compare=False)
    """Asked before the driver stores or removes checkpoints: raises where another one has taken its run over."""

    @property
    def placement(self) -> dict[str, str] | None:
        """The label selector of the workers."""
        return {ROLE: "training"} if self.labeled else None

    @property
    def in_process(self) -> bool:
        return self.workers == (0, 0)


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (submitted jobs have it set), or start Ray on this machine.

    A local Ray gets STREAM_CPUS logical CPUs more than the machine has cores, so that every core can hold a scoring
    actor while the short reading and writing tasks still find a slot.
    """
    # The first error of several tasks is raised; Ray would log the others, with their tracebacks.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Ray Train takes one report of a worker at each look: at its default of 2 s no epoch of a worker group is shorter.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    if not os.environ.get("RAY_ADDRESS"):  # nobody takes this machine away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not ray.is_initialized():
        progress.tell(doing="while starting Ray", starting_ray=True)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if address := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(**quiet)
            except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
                raise PlanError(f"RAY_ADDRESS: {_not_joined(address, error)}") from error
        else:
            if not os.environ.get("RAY_TMPDIR"):  # the supervisor's, or the user's
                quiet["_temp_dir"] = str(_sessions() / "ray")  # which Ray opens to all users
            ray.init(address="local", num_cpus=cores() + STREAM_CPUS, include_dashboard=False, **quiet)
        interrupts.reinstall()
        progress.tell(starting_ray=False)
    configure_data()


def _not_joined(address: str, error: Exception) -> str:
    """Why a cluster cannot be joined, and the remedy. What Ray found stands behind its own message."""
    said = " ".join(str(error.__cause__ or error).split())
    if isinstance(error, ray.exceptions.AuthenticationError):
        return f"the cluster at '{address}' wants a token ({said}): set RAY_AUTH_MODE to token, and RAY_AUTH_TOKEN"
    if said.startswith("Version mismatch"):
        return f"the cluster at '{address}' has other versions ({said}): install those here, or submit a job to it"
    return f"no Ray cluster answers at '{address}' ({said}): start it, or unset this variable to start Ray here"


@cache
def _sessions() -> Path:
    """For the sessions of Ray that this process starts, until it ends. Ray's own folder is open to all users."""
    path, lock = owned.make(owned.short_base())

    def end() -> None:
        ray.shutdown()
        lock.close()
        shutil.rmtree(path, ignore_errors=True)

    atexit.register(end)
    return path


@contextmanager
def importing(*modules: str) -> Iterator[None]:
    """Import modules beside the body, which waits for other processes; all are there when it ends. Not for modules of
    Ray's, which the body may be importing itself. What cannot be imported says so where it is used."""

    def bring() -> None:
        for name in modules:
            with suppress(ImportError):
                importlib.import_module(name)

    thread = threading.Thread(target=bring, name="imports")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def settings_kept() -> AbstractContextManager[None]:
    """What the body sets for streams of Ray Data ends with it: the caller's own keep theirs."""
    return ray.data.DataContext.current(ray.data.DataContext.get_current().copy())


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


def observe() -> Resources:
    """The resources of the cluster that this process is connected to."""
    nodes = [n for n in ray.nodes() if n["Alive"]]
    total = ray.cluster_resources()
    here = ray.get_runtime_context().get_node_id()
    roles: dict[str, tuple[float, float]] = {}
    for node in nodes:
        if (role := (node.get("Labels") or {}).get(ROLE)) is not None:
            cpus, gpus = roles.get(role, (0.0, 0.0))
            roles[role] = (cpus + node["Resources"].get("CPU", 0.0), gpus + node["Resources"].get("GPU", 0.0))
    machines = tuple(
        Machine(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            role=(node.get("Labels") or {}).get(ROLE, ""),
        )
        for node in nodes
    )
    return Resources(
        nodes=len(nodes),
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        # A head that declares no CPUs is not to be worked on, even where it is alone.
        in_process=len(nodes) == 1 and nodes[0]["NodeID"] == here and total.get("CPU", 0.0) > 0,
        roles=roles,
        machines=machines,
        autoscaler=autoscaler(),
        shared=bool(os.environ.get("RAY_ADDRESS")),
    )


def cpus_now() -> float:
    """CPUs of the cluster at this moment: an autoscaler may have brought most of them since the run began."""
    return ray.cluster_resources().get("CPU", 0.0) if ray.is_initialized() else 0.0


def training_threads(macs_per_step: float, cores_: int) -> int:
    """Threads of a training inside the driver."""
    return cores_ if macs_per_step >= MACS_WORTH_THREADS else 1


def plan_scoring(scoring: cfg.Scoring, has: Resources, macs: float, rows: float = math.inf) -> ScoringPlan:
    """The actor pool for a cluster, as it is or as its autoscaler can make it; PlanError, with the numbers, where not
    even the smallest one would fit.

    Args:
        macs: multiply-accumulates of scoring the whole pool once, by which the default number of actors is bounded.
        rows: samples of the pool.
    """
    if scoring.backend != AUTO and (lacks := BACKENDS[scoring.backend].lacks()):
        raise PlanError(f"scoring.backend: {lacks}")
    labeled = has.has_role("scoring")
    by_cpu = int((has.cpus - STREAM_CPUS) // scoring.cpus)
    together = min(by_cpu, times(has.gpus, scoring.gpus)) if scoring.gpus else by_cpu
    fits = int(min(together, has.holds(scoring.cpus, scoring.gpus, lambda role: not labeled or role != "head")))
    could = max(fits, _actors_when_grown(scoring, has.autoscaler))
    smallest, largest = scoring.actors or (1, max(1, min(could, math.ceil(macs / MACS_WORTH_AN_ACTOR))))
    needed = (
        f"scoring.actors: {smallest} actors of {scoring.cpus} CPUs and {scoring.gpus:g} GPUs, with {STREAM_CPUS} "
        f"CPUs for reading and writing, do not fit {has.cpus:g} CPUs and {has.gpus:g} GPUs{has.largest}"
    )
    if smallest > could:
        raise PlanError(
            f"{needed}{_growth(has.autoscaler, could, 'actors')}: lower scoring.actors "
            "or scoring.cpus, or start Ray with more (--num-cpus)"
        )
    small = macs < MACS_WORTH_AN_ACTOR and rows < ROWS_WORTH_AN_ACTOR
    return ScoringPlan(
        min_actors=smallest,
        max_actors=min(largest, could),
        cpus=scoring.cpus,
        gpus=scoring.gpus,
        here=_here(scoring, has, small),
        threads=max(1, (has.cores or cores()) // scoring.cpus),
        alone=has.in_process and not scoring.gpus,
        labeled=labeled,
        waits=f"{needed} yet; waiting for the autoscaler" if smallest > fits else None,
    )


def as_asked(scoring: cfg.Scoring) -> ScoringPlan:
    """The smallest actor pool that a configuration asks for, whatever machines there are here."""
    smallest = scoring.actors[0] if scoring.actors else 1
    return ScoringPlan(min_actors=smallest, max_actors=smallest, cpus=scoring.cpus, gpus=scoring.gpus)


def _here(scoring: cfg.Scoring, has: Resources, small: bool) -> bool:
    """Whether the driver scores the pool itself."""
    mine = has.in_process and has.autoscaler is None and scoring.actors is None and not scoring.gpus
    return mine and (small or (has.cores or cores()) <= CORES_HERE)


def beside_decoding(plan: ScoringPlan, *, decode: float, network: float) -> ScoringPlan:
    """The plan for a pass that decodes as well: fewer actors, so that as many CPUs decode as keep these busy.

    Args:
        decode, network: seconds of one CPU that a sample takes to be decoded, and to be scored.
    """
    if plan.alone or plan.gpus:  # there the operating system shares the cores out; here others do the decoding
        return plan
    most = int(plan.max_actors * network / (network + decode))
    return dataclasses.replace(plan, max_actors=max(plan.min_actors, most, 1))


def _actors_when_grown(scoring: cfg.Scoring, grows: Autoscaler | None) -> int:
    if grows is None:
        return 0
    actors, cpus = grows.units(scoring.cpus, scoring.gpus)
    return min(actors, int((cpus - STREAM_CPUS) // scoring.cpus))


def _growth(grows: Autoscaler | None, could: int, what: str) -> str:
    """The rest of a refusal's first half, where there is an autoscaler."""
    return f", and the autoscaler could bring them to {max(0, could)} {what} at most" if grows else ""


def idle_gpus(workers: cfg.Workers, scoring: cfg.Scoring, has: Resources) -> str | None:
    """What to tell where the cluster has GPUs and the run asks for none."""
    if not has.gpus or workers.gpu or scoring.gpus:
        return None
    there = "1 GPU is" if has.gpus == 1 else f"{has.gpus:g} GPUs are"
    return (
        f"{there} there, and the run uses none: workers.gpu: true trains on them, scoring.gpus: 1 (or a share) scores"
    )


def plan_training(workers: cfg.Workers, has: Resources) -> TrainingPlan:
    """Inside the driver for one worker on one machine, whose GPU no other run may be given; else a worker group.
    PlanError where it would not fit even the
    cluster that the autoscaler can make."""
    smallest = workers.count[0]
    plan = TrainingPlan(
        workers=(0, 0),
        cpus=workers.cpus,
        gpu=workers.gpu,
        max_failures=workers.max_failures,
        cores=has.cores,
        sample_bytes=int(workers.sample_memory_gb * 2**30),
    )
    if workers.count == (1, 1) and has.in_process and (not workers.gpu or (has.gpus >= 1 and not has.shared)):
        return plan
    labeled = has.has_role("training")
    cpus, gpus = has.roles.get("training", (0.0, 0.0)) if labeled else (has.cpus, has.gpus)
    together = not (smallest * workers.cpus > cpus or (workers.gpu and smallest > gpus))
    held = has.holds(workers.cpus, 1 if workers.gpu else 0, lambda role: not labeled or role == "training")
    fits = together and smallest <= held
    roles = ("training",) if labeled else ()
    could = has.autoscaler.units(workers.cpus, 1 if workers.gpu else 0, roles)[0] if has.autoscaler else 0
    needed = (
        f"workers.count: {smallest} workers of {workers.cpus} CPUs{' and a GPU' if workers.gpu else ''} do not fit "
        f"{cpus:g} CPUs and {gpus:g} GPUs{f' of the nodes with the label {ROLE}=training' if labeled else ''}"
        f"{has.largest}"
    )
    if not fits and smallest > could:
        raise PlanError(
            f"{needed}{_growth(has.autoscaler, could, 'workers')}: lower workers.count or workers.cpus, or add machines"
        )
    return dataclasses.replace(
        plan,
        workers=workers.count,
        labeled=labeled,
        waits=None if fits else f"{needed} yet; waiting for the autoscaler",
    )
