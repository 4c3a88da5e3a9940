"""`scaling`: scoring with 1 to 32 actors whose network is a wait, as long as a GPU would take, so that what is left is
what Ray, the driver, reading and writing cost; on any machine."""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import torch

from prunefuse_ray import networks
from prunefuse_ray.benchmarks import measure, passes
from prunefuse_ray.benchmarks.memory import write
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import STREAM_CPUS, ScoringPlan, configure_data
from prunefuse_ray.networks.backends import Backend, Runner
from prunefuse_ray.scoring.scorer import FILES_PER_POOL, ScoringJob, score_pool
from prunefuse_ray.storage import Place

if TYPE_CHECKING:
    from torch import Tensor, nn

assert ray  # its import puts psutil, which comes with it, on the path
import psutil  # noqa: E402

BAR = 0.9
"""Of the efficiency at 16 actors."""
CALLS = "PRUNEFUSE_SCALING_CALLS"
"""Environment variable: the directory in which each actor notes when its network was busy."""
WAIT_SECONDS = "PRUNEFUSE_SCALING_SECONDS"
BATCH = 64
LOOK_SECONDS = 0.5
CLASSES = 10
LARGE = (10**9, 100)
"""Rows and GPUs of the pass that is planned on paper."""


def _build(
    network: nn.Module, *, precision: str, device: torch.device, example: Tensor, threads: int, features: bool
) -> Runner:
    seconds, logits = float(os.environ[WAIT_SECONDS]), torch.zeros(len(example), CLASSES)
    calls = open(Path(os.environ[CALLS]) / f"{os.getpid()}.csv", "a", buffering=1)  # noqa: SIM115 (as long as it lives)

    def run(x: Tensor) -> Tensor:
        started = time.time()
        time.sleep(seconds)
        calls.write(f"{started},{time.time()}\n")
        return logits

    return run


WAIT = Backend(name="prunefuse_ray.benchmarks.scaling:WAIT", about="waits as long as a GPU would take", build=_build)


@dataclass(frozen=True, kw_only=True)
class Steady:
    """The time in which every actor was at work."""

    start: float
    """The last actor's first call."""
    end: float
    """The end of the last call of the actor that was done first."""
    efficiency: float
    """Share of that time in which the networks were busy: 1 is as many times the speed of one as there are actors."""
    calls: float


def steady(calls: Sequence[Sequence[tuple[float, float]]]) -> Steady:
    """Of the (start, end) of the calls of each actor.

    Raises:
        ValueError: at no time were all at work; the pool is too small.
    """
    start = max(actor[0][0] for actor in calls)
    end = min(actor[-1][1] for actor in calls)
    if end <= start:
        raise ValueError("at no time were all actors at work: give more --batches")
    inside = [(max(s, start), min(e, end), e - s) for actor in calls for s, e in actor if s < end and e > start]
    return Steady(
        start=start,
        end=end,
        efficiency=sum(e - s for s, e, _ in inside) / (len(calls) * (end - start)),
        calls=sum((e - s) / whole for s, e, whole in inside),
    )


def on_paper(microseconds: Mapping[str, float], per_gpu: float, rows: int, gpus: int) -> dict[str, Any]:
    """What a pass over so many rows on so many GPUs comes to, by what one row costs here.

    Args:
        microseconds: CPU time of a row, by what spends it.
        per_gpu: rows per second of one.
    """
    rate = per_gpu * gpus
    return {
        "rows": rows,
        "gpus": gpus,
        "rows_per_second": rate,
        "hours": rows / rate / 3600,
        "driver_cores": rate * microseconds["driver"] / 1e6,
        "scheduler_cores": rate * microseconds["scheduler"] / 1e6,
        "stream_cores": rate * microseconds["stream"] / 1e6,
        "score_files": FILES_PER_POOL,
        "rows_per_second_at_which_the_driver_is_full": 1e6 / microseconds["driver"],
    }


class CpuTimes:
    """CPU time of this process, of Ray's own processes, of its scoring actors and of its other workers, looked at twice
    a second: what a process has spent cannot be asked any more when it has ended."""

    def __init__(self) -> None:
        self._looks: list[tuple[float, dict[tuple[int, str], float]]] = []
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CpuTimes:
        self._looks.append((time.time(), self._look()))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._looks.append((time.time(), self._look()))

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._looks.append((time.time(), self._look()))

    @staticmethod
    def _look() -> dict[tuple[int, str], float]:
        me, spent = psutil.Process(), {}
        for process in [me, *me.children(recursive=True)]:
            try:
                times, title = process.cpu_times(), (process.cmdline() or [""])[0]
            except psutil.Error:  # it has ended
                continue
            kind = "driver" if process.pid == me.pid else "stream" if title.startswith("ray::") else "scheduler"
            spent[process.pid, "actors" if "Scorer" in title else kind] = times.user + times.system
        return spent

    def between(self, start: float, end: float) -> dict[str, float]:
        """Seconds of CPU by kind from the last look before `start` to the last one before `end`."""
        first = max((look for look in self._looks if look[0] <= start), default=self._looks[0], key=itemgetter(0))[1]
        spent = dict.fromkeys(("driver", "scheduler", "actors", "stream"), 0.0)
        known = dict(first)
        for when, look in self._looks:
            if start < when <= end:
                for key, value in look.items():
                    spent[key[1]] += value - known.get(key, value)
                    known[key] = value
        return spent


def scored(directory: Path, actors: int, batches: int, seconds: float, size: int) -> dict[str, Any]:
    """One pass with so many actors, each of about `batches` batches."""
    rows = actors * batches * BATCH
    source = write(directory / "pool", rows, size, max(BATCH, rows // (4 * actors)))
    form = ImageForm(height=size, width=size, channels=3)
    spec = networks.NetworkSpec(architecture="resnet8", classes=CLASSES, input_shape=form.network_shape)
    network = passes.save(directory / "network", networks.Dense(network=networks.build(spec, seed=0), spec=spec))
    per_second = max(1, round(1 / seconds))
    job = ScoringJob(
        strategy="margin", form=form, batch_size=BATCH, features=False, threads=1, gpu=False, backend=WAIT.name,
        call_rows=BATCH * per_second,
    )  # fmt: skip
    plan = ScoringPlan(min_actors=actors, max_actors=actors, cpus=1, gpus=0.0)
    out, done = (Place.at(str(directory / name)) for name in ("scores", "checkpoint"))
    for place in (out, done):
        place.fs.create_dir(place.path, recursive=True)
    begun = time.time()
    with measure.memory_growth() as driver, CpuTimes() as cpu:
        score_pool(source, network, job, plan, exclude=pa.array([], pa.int64()), rows=rows, out=out, checkpoint=done)
    found = steady([_calls(path) for path in sorted(Path(os.environ[CALLS]).iterdir())])
    spent = cpu.between(found.start, found.end)
    return {
        "actors": actors,
        "rows": rows,
        "seconds": time.time() - begun,
        "efficiency": found.efficiency,
        "steady_seconds": found.end - found.start,
        "first_call": found.start - begun,
        "driver_mb": driver.mb,
        "microseconds": {kind: 1e6 * value / (found.calls * BATCH) for kind, value in spent.items()},
    }


def _calls(path: Path) -> list[tuple[float, float]]:
    with path.open() as file:
        return [(float(start), float(end)) for start, end in csv.reader(file)]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py scaling", description=__doc__)
    parser.add_argument("--actors", default="1,4,16,32", metavar="N,...")
    parser.add_argument("--batches", type=int, default=300, help="of 64 rows, for each actor")
    parser.add_argument("--seconds", type=float, default=0.1, help="that a batch takes")
    parser.add_argument("--size", type=int, default=32, help="of an image, in pixels")
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    found = []
    for actors in map(int, given.actors.split(",")):
        with tempfile.TemporaryDirectory(dir=given.directory) as directory:
            os.environ[CALLS] = f"{directory}/calls"
            os.environ[WAIT_SECONDS] = str(given.seconds)
            Path(os.environ[CALLS]).mkdir()
            # A Ray of its own each time: its workers take the environment over, and no actor is left of the last pass.
            ray.init(
                address="local",
                num_cpus=actors + STREAM_CPUS + cores(),
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=f"{directory}/ray",
            )
            configure_data()
            found.append(scored(Path(directory), actors, given.batches, given.seconds, given.size))
            ray.shutdown()
        print({key: value for key, value in found[-1].items() if key != "microseconds"}, flush=True)
    last = found[-1]["microseconds"]
    paper = on_paper(last, BATCH / given.seconds, *LARGE)
    at_16 = next((f["efficiency"] for f in found if f["actors"] == 16), None)
    lines = [(f"efficiency with {f['actors']} actors", f"{f['efficiency']:.3f}", "") for f in found]
    if at_16 is not None:
        lines.append(("efficiency_16", f"{at_16:.3f}", f">= {BAR}"))
    lines += [(f"{kind}, µs of CPU a row", f"{value:.1f}", "") for kind, value in last.items()]
    lines.append((f"driver's cores at {paper['rows_per_second']:,.0f} rows/s", f"{paper['driver_cores']:.2f}", ""))
    figures = {"passes": found, "efficiency_16": at_16, "on_paper": paper}
    measure.report(f"batches of {given.seconds:g} s", lines, figures)
    return 0
