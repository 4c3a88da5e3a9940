"""`overhead`: of what `make run` takes, the share that is not the work itself, phase by phase."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from prunefuse_ray import networks
from prunefuse_ray.benchmarks import bare, measure
from prunefuse_ray.config.schema import Config
from prunefuse_ray.data.labeled_set import load_samples
from prunefuse_ray.data.pool import PoolInfo, Source
from prunefuse_ray.data.sample_format import form_of
from prunefuse_ray.data.survey import sources
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import training_threads
from prunefuse_ray.method.selector import dense_network, make_selector, network_spec, proxies, trusted
from prunefuse_ray.method.steps import INIT, Step, steps
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place

BAR = 0.25
JOB = Path(__file__).parents[2] / "jobs" / "run.py"


class Bare:
    """The phases of a finished run done again by bare loops, from its own files."""

    def __init__(self, root: Path) -> None:
        self.ledger = Ledger(Place.at(str(root)))
        self.config: Config = self.ledger.read_config()
        self.info = PoolInfo.from_json(self.ledger.read_pool())
        self.form = form_of(self.config.pool, self.info)
        self.pool, self.test = sources(self.config.pool, self.ledger.root)

    def seconds(self, step: Step) -> float:
        """What the step's own work takes; 0 for those that only move a few rows."""
        work: dict[str, Callable[[Step], None]] = {
            INIT: self.init, "train": self.train, "score": self.score, "finetune": self.finetune
        }  # fmt: skip
        if step.phase not in work:
            return 0.0
        started = time.perf_counter()
        work[step.phase](step)
        return time.perf_counter() - started

    def init(self, step: Step) -> None:
        dense, _ = dense_network(self.config, network_spec(self.config, self.info))
        make_selector(self.config, dense)

    def train(self, step: Step) -> None:
        network = self.read(Step(-1, INIT), proxies(self.config))
        self._threads(network, self.config.training.batch_size)
        bare.train(network, *self._data(step), self.form, self.config.training)

    def finetune(self, step: Step) -> None:
        config = self.config
        network = self.read(Step(step.round, "fuse"), "fused-initial")
        teacher = self.read(Step(step.round, "train"), proxies(config)).eval() if config.distillation.weight else None
        self._threads(network, config.finetuning.batch_size)
        bare.train(network, *self._data(step), self.form, config.finetuning, teacher, config.distillation)

    def score(self, step: Step) -> None:
        network = self.read(Step(step.round, "train"), proxies(self.config))
        torch.set_num_threads(cores())
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            bare.score(network, self.pool, self.form, self.config.selection.strategy, file.name)

    def read(self, step: Step, name: str) -> torch.nn.Module:
        return networks.from_files(self.ledger.read_network(step, name), trusted(self.config)).network

    def _threads(self, network: torch.nn.Module, batch_size: int) -> None:
        macs = networks.macs(network, self.form.network_shape)
        torch.set_num_threads(training_threads(3 * macs * batch_size, cores()))

    def _data(self, step: Step) -> tuple[Any, Any]:
        labeled = [Step(r, "label") for r in range(step.round + 1)]
        found = [self.ledger.files(s, "samples") for s in labeled]
        source = Source(
            fs=self.ledger.root.fs,
            sample_column="sample",
            files=tuple(p for paths, _ in found for p in paths),
            sizes=tuple(s for _, sizes in found for s in sizes),
        )
        labels = self.ledger.labels(labeled, self.info.id_type)
        return load_samples(source, self.form, labels), load_samples(self.test, self.form)


def run(directory: Path, arguments: Sequence[str], repeats: int) -> dict[str, Any]:
    """`repeats` runs as a user starts them, each followed by its phases as bare loops; medians of each."""
    taken: dict[str, dict[str, list[float]]] = {"run": {}, "bare": {}}
    walls: list[float] = []

    def note(kind: str, phase: str, seconds: float) -> None:
        taken[kind].setdefault(phase, []).append(seconds)

    for number in range(repeats):
        name = f"run-{number}"
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, str(JOB), *arguments, "--run.directory", str(directory), "--run.name", name,
             "--report.baseline", "false"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ),
        )  # fmt: skip
        walls.append(time.perf_counter() - started)
        again = Bare(directory / name)
        plan = steps(again.config)
        phases = dict.fromkeys(s.phase for s in plan)
        for phase in phases:
            mine = [s for s in plan if s.phase == phase]
            note("run", phase, sum(again.ledger.require(s).metrics["seconds"] for s in mine))
            note("bare", phase, sum(again.seconds(s) for s in mine))
        note("run", "start and end", walls[-1] - sum(taken["run"][phase][-1] for phase in phases))
        note("bare", "start and end", 0.0)
    medians = {kind: {p: statistics.median(s) for p, s in phases.items()} for kind, phases in taken.items()}
    wall = statistics.median(walls)
    shares = [1 - sum(p[n] for p in taken["bare"].values()) / walls[n] for n in range(repeats)]
    return {
        "wall_seconds": walls,
        "phases": {
            p: {"run": medians["run"][p], "bare": b, "overhead_share": (medians["run"][p] - b) / wall}
            for p, b in medians["bare"].items()
        },
        "overhead_share": statistics.median(shares),
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.py overhead", description=__doc__, epilog="Further arguments go to jobs/run.py."
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", help="parent of the temporary files")
    given, arguments = parser.parse_known_args(argv)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        figures = run(Path(directory), arguments, given.repeats)
    torch.set_num_threads(threads)
    lines = [
        (phase, f"{f['run']:.1f} s, of them work {f['bare']:.1f} s", f"{f['overhead_share']:.1%} of the whole")
        for phase, f in figures["phases"].items()
    ]
    lines += [
        ("whole", measure.spread_of(figures["wall_seconds"]), ""),
        ("overhead_share", f"{figures['overhead_share']:.2f}", f"<= {BAR}"),
    ]
    measure.report("what a run takes beside its work", lines, figures)
    return 0
