"""How a pool is scored: backend, precision and batch size, chosen once per run, and how far they are from the plain
network in float32."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from prunefuse_ray import config as cfg
from prunefuse_ray import networks
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import head
from prunefuse_ray.data.sample_format import decode_column, random_samples
from prunefuse_ray.distributed.machine import cache, cpu
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.networks.backends import AUTO, BACKENDS, Backend
from prunefuse_ray.networks.specs import first_line
from prunefuse_ray.progress import temporary
from prunefuse_ray.scoring.scorer import Scorer, ScoringJob
from prunefuse_ray.storage import Place, sealed
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

MACS_WORTH_MEASURING = 1e11
"""A pass over the pool with less work than this (some ten seconds of one core) is over before measuring pays, and its
scores may as well be float32."""

SMALL_BATCH = 64
BATCH_SIZES = {False: (64, 128, 256, 32), True: (512, 2048, 128)}
"""Without and with a GPU; the likeliest first. On CPUs a batch of 512 was 2.4 times slower than one of 64 (it leaves
the caches)."""
BATCH_OUTPUTS = 2**25
"""Of networks that answer for every pixel a batch has no more outputs than this: as float32, and as probabilities in
float64, every scorer holds all of them."""

CALL_SECONDS = 1.0
"""What an actor is given at once keeps it busy for about so long: enough to hide what a call costs, little enough to
share the pool out evenly and to lose little with a killed actor."""
MEASURED_SECONDS = 0.5
"""Of forward passes of one candidate."""
MEASURING_SHARE, MEASURING_SECONDS = 0.05, 5.0
"""Measuring ends when it has taken this share of the pass, by the rates so far, and at least so many seconds."""

CHECKED = 256
TOP_SHARE = 0.1
FEW_ALIKE = 0.5
"""Of the top, below which the arithmetic selects other samples for the better part, and that is said."""
FILE = "scoring.json"


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What fixes a score to its last bit, and how much an actor is given.

    The promise: with the same network, backend, precision, batch size and threads, on the same kind of CPU or GPU, a
    sample gets the same score to the last bit, whatever else shares its batch, however many actors score and however
    often the pass is resumed; so the same configuration selects the same ids. Another batch size, or another kind of
    machine, computes with other kernels: scores then agree to rounding, and samples whose scores differ by no more
    than that may change places.
    """

    backend: str
    precision: str
    batch_size: int
    call_rows: int

    def of(self, job: ScoringJob) -> ScoringJob:
        return replace(job, **asdict(self))


def worth_trying(
    scoring: cfg.Scoring, *, macs: float, features: bool, gpu: bool
) -> tuple[dict[str, Backend], dict[str, str]]:
    """The backends that come into question for a pass of so many multiply-accumulates, by their names in the
    configuration; and those that would, but cannot be used here, with the reasons."""
    if scoring.backend != AUTO:
        return {scoring.backend: BACKENDS[scoring.backend]}, {}
    device, precision = _device_type(gpu), None if scoring.precision == "auto" else scoring.precision
    found: dict[str, Backend] = {}
    left_out = BACKENDS.broken()  # other packages', which this run did not ask for
    for name, backend in BACKENDS.loadable().items():
        if macs < backend.auto.get(device, math.inf) or backend.refusal(
            device=device, precision=precision, features=features
        ):
            continue
        if lacks := backend.lacks():
            left_out[name] = lacks
        else:
            found[name] = backend
    return found, left_out


def candidates(
    scoring: cfg.Scoring,
    backends: Mapping[str, Backend],
    *,
    macs: float,
    gpu: bool,
    fast_bf16: bool,
    most: int | None = None,
) -> list[Arithmetic]:
    """The backends with each precision and batch size that comes into question, in the order in which they are tried:
    the special ones before the general, the likeliest batch size of each before the others. Of a pass too small to be
    worth a measurement, the general one's.

    Args:
        most: samples of a batch, where the configuration does not say how many.
    """
    large = macs >= MACS_WORTH_MEASURING
    batches = BATCH_SIZES[gpu] if large else (SMALL_BATCH,)
    if most is not None:
        batches = tuple(dict.fromkeys(min(size, most) for size in batches))
    if scoring.batch_size is not None:
        batches = (scoring.batch_size,)
    ordered = list(backends.items())[::-1] if large else list(backends.items())[:1]

    def precision(backend: Backend) -> str:
        if scoring.precision != "auto":
            return scoring.precision
        return "bf16" if large and fast_bf16 and "bf16" in backend.precisions else backend.precisions[0]

    return [
        Arithmetic(backend=name, precision=precision(backend), batch_size=size, call_rows=4 * size)
        for size in batches
        for name, backend in ordered
    ]


def next_to_try(untried: Sequence[Arithmetic], rates: Mapping[Arithmetic, float]) -> Arithmetic | None:
    """Every backend is tried with its first batch size; then those of the fastest alone."""
    tried = {known.backend for known in rates}
    if new := [one for one in untried if one.backend not in tried]:
        return new[0]
    best = max(rates, key=rates.__getitem__).backend
    return next((one for one in untried if one.backend == best), None)


def call_rows(per_second: float, batch_size: int, sample_bytes: int) -> int:
    """Whole batches that take about CALL_SECONDS, of at most 64 MiB of decoded samples."""
    most = min(per_second * CALL_SECONDS, 2**26 / sample_bytes)
    return batch_size * max(1, round(most / batch_size))


def choose(
    root: Place,
    scoring: cfg.Scoring,
    network: Place,
    job: ScoringJob,
    plan: ScoringPlan,
    rows: int,
    macs: float,
    record: Callable[[str, bytes], object],
) -> ScoringJob:
    """The job with the arithmetic of its run: what the run directory says, or else what is fastest, which is noted
    there. Measured where the pool will be scored.

    Args:
        root: the run directory.
        rows: of one pass over the pool.
        macs: multiply-accumulates of that.
        record: writes a file of this name there.
    """
    place = root / FILE
    if place.exists():
        noted = place.read_sealed()
        # An earlier version measured with the whole GPU: what it chose is scored as it was, without a limit.
        return replace(Arithmetic(**noted["chosen"]).of(job), gpu_share=noted.get("gpu_share", 1.0))
    little = macs < MACS_WORTH_MEASURING
    asked = scoring, network, job, macs, rows / plan.max_actors
    found = fastest(*asked) if little else _there(fastest, plan, *asked)
    for name, why in found["left_out"].items():
        logger.warning("scoring goes without %s: %s", name, why)
    record(FILE, sealed({**found, "gpu_share": job.gpu_share}))
    return Arithmetic(**found["chosen"]).of(job)


def measured_rate(root: Place) -> float | None:
    """Samples per second of one actor with the arithmetic that was chosen for a run; None where it was not worth a
    measurement."""
    tree = (root / FILE).read_sealed()
    chosen = Arithmetic(**tree["chosen"])
    return next((m["samples_per_second"] for m in tree["measured"] if _describes(m, chosen)), None)


def fastest(
    scoring: cfg.Scoring, network: Place, job: ScoringJob, macs: float, rows: float = math.inf
) -> dict[str, Any]:
    """The fastest candidate in this process, `chosen`; the rates that were `measured`; which backends and
    precisions might have been faster but cannot be used here, or for this network, `left_out`; and whether they were
    measured by an earlier run on this machine, `remembered`.

    Args:
        macs: multiply-accumulates of the pass.
        rows: that are scored by one actor; measuring takes a small share of that time.
    """
    backends, left_out = worth_trying(scoring, macs=macs, features=job.features, gpu=job.gpu)
    fast_bf16 = networks.fast_bf16(torch.device(_device_type(job.gpu)))
    most = _largest_batch(network, job) if TASKS[job.task].pixels else None
    found = candidates(scoring, backends, macs=macs, gpu=job.gpu, fast_bf16=fast_bf16, most=most)
    if macs < MACS_WORTH_MEASURING:
        return {"chosen": asdict(found[0]), "measured": [], "left_out": {}}
    memory = cache() / "scoring" / f"{_memory_key(network, job, found)}.json"
    if (remembered := _remembered(memory)) is not None:
        return {**remembered, "remembered": True}
    started, limit = time.perf_counter(), math.inf
    rates: dict[Arithmetic, float] = {}
    while found and time.perf_counter() - started < limit:
        if (candidate := next_to_try(found, rates)) is None:
            break
        found.remove(candidate)
        try:
            rates[candidate] = rate_of(network, candidate.of(job))
        except (networks.NetworkError, torch.OutOfMemoryError) as error:
            name = candidate.backend
            if isinstance(error.__cause__ or error, torch.OutOfMemoryError):  # of a GPU; a backend may have wrapped it
                left_out[f"{name} in batches of {candidate.batch_size}"] = first_line(error)
                found = [one for one in found if one.backend != name or one.batch_size < candidate.batch_size]
                smaller = candidate.batch_size // 4
                if smaller and scoring.batch_size is None and all(one.backend != name for one in found):
                    # Large images, or a small GPU.
                    found.append(replace(candidate, batch_size=smaller, call_rows=4 * smaller))
                continue
            chosen = scoring.precision == "auto" and candidate.precision != "fp32"
            if chosen and isinstance(error, networks.PrecisionError):
                left_out[f"{name} in {candidate.precision}"] = str(error)
                found = [replace(a, precision="fp32") if a.backend == name else a for a in (candidate, *found)]
                continue
            if len(backends) == 1:
                raise
            left_out[name] = str(error)
            found = [one for one in found if one.backend != name]
            continue
        limit = max(MEASURING_SECONDS, MEASURING_SHARE * rows / max(rates.values()))
    if not rates:
        full = any(" in batches of " in name for name in left_out)
        remedy = "; lower scoring.batch_size or pool.image_size, in a run of another run.name" if full else ""
        told = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise networks.NetworkError(f"scoring.backend: none can run this network ({told}){remedy}")
    best = max(rates, key=rates.__getitem__)
    given = call_rows(rates[best], best.batch_size, int(np.prod(job.form.shape)))
    measured = [
        {"backend": a.backend, "precision": a.precision, "batch_size": a.batch_size, "samples_per_second": rate}
        for a, rate in rates.items()
    ]
    result = {"chosen": asdict(replace(best, call_rows=given)), "measured": measured, "left_out": left_out}
    with contextlib.suppress(OSError):  # a home directory that is not there, or read-only: the next run measures again
        memory.write_bytes(sealed(result))
    return {**result, "remembered": False}


def _largest_batch(network: Place, job: ScoringJob) -> int:
    """How many samples have BATCH_OUTPUTS together, at least one: by the outputs of one."""
    one = replace(job, backend="eager", precision="fp32", batch_size=1, features=False, gpu=False)
    outputs, _ = Scorer(network, one).forward(np.zeros((1, *job.form.shape), np.uint8))
    return max(1, BATCH_OUTPUTS // outputs.size)


def _memory_key(network: Place, job: ScoringJob, found: Sequence[Arithmetic]) -> str:
    """What rates depend on: the network's structure, not its weights; the form of its inputs; the machine; the
    libraries; and what was to be compared."""
    selector = networks.from_files(network_files(network), job.trusted)
    structure = [str(selector.spec), [(name, list(t.shape)) for name, t in selector.network.state_dict().items()]]
    where = [cpu()[0], sorted(cpu()[1]), torch.cuda.get_device_name() if job.gpu else None]
    libraries = [(name, version(name)) for name in ("torch", "openvino") if find_spec(name)]
    how = [job.task, asdict(job.form), job.features, job.masks, job.threads, [asdict(one) for one in found]]
    how += [job.gpu_share] if job.gpu_share < 1 else []
    return hashlib.sha256(json.dumps([structure, where, libraries, how]).encode()).hexdigest()[:32]


def _remembered(memory: Place) -> dict[str, Any] | None:
    """What was measured before; None where nothing was, or where the file is damaged."""
    try:
        return memory.read_sealed() if memory.exists() else None
    except (LedgerError, OSError) as error:
        logger.warning("scoring: measured again, since what was kept cannot be read (%s)", error)
        return None


def rate_here(
    scoring: cfg.Scoring, selector: networks.Selector, job: ScoringJob, macs: float, rows: float = math.inf
) -> float:
    """Samples per second of a network's forward passes in this process, as `fastest` would run it; its arguments."""
    with tempfile.TemporaryDirectory(dir=temporary()) as directory:
        place = Place.at(directory)
        for name, content in networks.to_files(selector).items():
            (place / name).write_bytes(content)
        found = fastest(scoring, place, job, macs, rows)
        chosen = Arithmetic(**found["chosen"])
        measured = (m["samples_per_second"] for m in found["measured"] if _describes(m, chosen))
        return next(measured, None) or rate_of(place, chosen.of(job))


def _describes(measured: Mapping[str, Any], chosen: Arithmetic) -> bool:
    return all(measured[name] == getattr(chosen, name) for name in ("backend", "precision", "batch_size"))


def rate_of(network: Place, job: ScoringJob) -> float:
    """Samples per second of the job's forward passes in this process."""
    scorer = Scorer(network, job)
    decoded_N = random_samples(job.form, job.batch_size, 0)
    scorer.forward(decoded_N)
    taken: list[float] = []
    while sum(taken) < MEASURED_SECONDS or not taken:
        started = time.perf_counter()
        scorer.forward(decoded_N)
        taken.append(time.perf_counter() - started)
    return job.batch_size / statistics.median(taken)


def check(source: Source, network: Place, job: ScoringJob, plan: ScoringPlan) -> dict[str, Any]:
    """How the job's arithmetic differs from the plain network in float32, on the pool's first samples; see
    `deviation`."""
    rows = head(source, CHECKED)
    # On a GPU only where there is one, which the driver's machine need not have.
    anywhere = BACKENDS[job.backend].portable and job.precision == "fp32" and not job.gpu
    return deviation(network, job, rows) if anywhere else _there(deviation, plan, network, job, rows)


def deviation(network: Place, job: ScoringJob, rows: pa.Table) -> dict[str, Any]:
    """The largest difference of a probability, and the share of the top tenth by score that is the same."""
    decoded_N, reasons = decode_column(rows["sample"], job.form)
    decoded_N = decoded_N[np.array([reason is None for reason in reasons], dtype=bool)]
    found: dict[str, Any] = {
        "backend": job.backend,
        "precision": job.precision,
        "batch_size": job.batch_size,
        "checked": len(decoded_N),
    }
    if not len(decoded_N):
        return found
    # In float32, unfolded, a batch takes several times the memory of the job's own.
    size = max(1, job.batch_size // 4) if job.gpu else job.batch_size
    plain = replace(job, backend="eager", precision="fp32", batch_size=min(size, SMALL_BATCH))
    scorers = [Scorer(network, j) for j in (job, plain)]
    scores: list[Any] = []
    apart: list[float] = []
    for start in range(0, len(decoded_N), job.batch_size):  # the outputs of all may not fit into memory
        some_N = decoded_N[start : start + job.batch_size]
        used, exact = (s.task.probabilities(s.forward(some_N)[0]) for s in scorers)
        scores.append([s.score(p) for s, p in zip(scorers, (used, exact), strict=True)])
        apart.append(np.abs(used - exact).max())
    k = max(1, round(TOP_SHARE * len(decoded_N)))
    tops = [set(np.argsort(-s_N, kind="stable")[:k].tolist()) for s_N in np.concatenate(scores, axis=1)]
    return found | {"largest_difference": float(np.max(apart)), "same_top": len(tops[0] & tops[1]) / k}


def unlike(found: Mapping[str, Any]) -> str | None:
    """What people should know where a pass, by its `deviation`, hardly ranks samples as the plain network does."""
    if found["checked"] < CHECKED // 2 or found["same_top"] >= FEW_ALIKE:
        return None
    return (
        f"scoring by {found['backend']} in {found['precision']} finds {found['same_top']:.0%} of the top tenth that "
        f"the plain network finds in float32 ({found['checked']} samples compared, probabilities up to "
        f"{found['largest_difference']:.2g} apart): set scoring.precision to fp32, or scoring.backend to torch, in a "
        "run of another run.name"
    )


def _there(function: Callable[..., dict[str, Any]], plan: ScoringPlan, *args: Any) -> dict[str, Any]:
    """The function's result from a machine on which the pool is scored."""
    if plan.alone:
        return function(*args)
    task = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, **plan.placement)(function)
    with plain_errors():
        return ray.get(task.remote(*args))


def _device_type(gpu: bool) -> str:
    return "cuda" if gpu else "cpu"
