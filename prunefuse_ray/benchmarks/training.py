"""`training`: Ray Train's function, in the driver and in a worker group, against a bare torch loop."""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from prunefuse_ray import networks
from prunefuse_ray.benchmarks import bare, measure
from prunefuse_ray.benchmarks.scoring import generated, read_images, write
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.labeled_set import load_samples
from prunefuse_ray.data.pool import Source
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import TrainingPlan, start_ray, training_threads
from prunefuse_ray.storage import Place
from prunefuse_ray.training.trainer import TrainingJob, train

BAR = 0.95
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Sizes:
    samples: int
    epochs: int
    """Of the longer training; the shorter one has a single epoch, and rates are of what lies between."""
    repeats: int
    batch_size: int
    architecture: str


class Bench:
    """Labeled samples on disk, the dense network and its proxy of half the channels."""

    def __init__(self, directory: Path, sizes: Sizes, images: list[bytes]) -> None:
        self.directory, self.sizes, self.runs = directory, sizes, 0
        self.samples = write(directory / "samples", sizes.samples, images)
        self.labels = pa.table({"id": range(sizes.samples), "label": np.arange(sizes.samples) % CLASSES})
        held = write(directory / "test", CLASSES, images[:CLASSES])
        self.test = Source(fs=held.fs, files=held.files, sizes=held.sizes, label_column="id")
        self.form = ImageForm(height=32, width=32, channels=3)
        spec = networks.NetworkSpec(architecture=sizes.architecture, classes=CLASSES, input_shape=(3, 32, 32))
        dense = networks.build(spec, seed=0)
        self.saved: dict[str, networks.Selector] = {
            "dense": networks.Dense(network=dense, spec=spec),
            "p5": networks.prune(dense, spec, networks.PruningSpec(ratio=0.5)),
        }

    def recipe(self, epochs: int) -> Recipe:
        size = self.sizes.batch_size
        return Recipe(epochs=epochs, min_steps=0, batch_size=size, warmup_epochs=0, augment=["crop", "flip"])

    def threads(self, name: str) -> int:
        """What the package trains with in the driver."""
        macs = networks.macs(self.saved[name].network, self.form.network_shape)
        return training_threads(3 * macs * self.sizes.batch_size, cores())

    def ours(self, name: str, epochs: int, workers: int) -> Callable[[], None]:
        """A whole call of `train`; workers 0: in this process."""
        job = TrainingJob(
            network=networks.to_files(self.saved[name]),
            recipe=self.recipe(epochs),
            samples=self.samples,
            labels=self.labels,
            test=self.test,
            form=self.form,
            seed=0,
        )
        plan = TrainingPlan(workers=(workers, workers), cpus=1, gpu=False, max_failures=0)

        def call() -> None:
            self.runs += 1
            train(job, plan, Place.at(str(self.directory / f"training-{self.runs}")))

        return call

    def bare(self, name: str, epochs: int, threads: int) -> Callable[[], None]:
        """The loop alone, over samples that are decoded already."""
        samples = load_samples(self.samples, self.form, self.labels)

        def call() -> None:
            torch.set_num_threads(threads)
            bare.train(copy.deepcopy(self.saved[name].network), samples, None, self.form, self.recipe(epochs))

        return call


def run(directory: Path, sizes: Sizes, images: list[bytes], workers: int) -> dict[str, Any]:
    """The figures: steady rates, and how long one epoch takes from the call to the result.

    Args:
        workers: of the worker group that is measured as well, one thread each; 0: none is.
    """
    bench = Bench(directory, sizes, images)
    calls: dict[str, Callable[[], None]] = {}
    for name in bench.saved:
        for epochs in (1, sizes.epochs):
            calls[f"{name} ours {epochs}"] = bench.ours(name, epochs, 0)
            calls[f"{name} bare {epochs}"] = bench.bare(name, epochs, bench.threads(name))
            if workers:
                calls[f"{name} group {epochs}"] = bench.ours(name, epochs, workers)
                calls[f"{name} bare-group {epochs}"] = bench.bare(name, epochs, workers)
    threads = torch.get_num_threads()
    try:
        seconds = measure.side_by_side(calls, sizes.repeats)
    finally:
        torch.set_num_threads(threads)
    seen = (sizes.epochs - 1) * (sizes.samples // sizes.batch_size) * sizes.batch_size

    def rate(what: str) -> float:
        longer, shorter = (statistics.median(seconds[f"{what} {e}"]) for e in (sizes.epochs, 1))
        return seen / (longer - shorter)

    kinds = ("ours", "bare", *(("group", "bare-group") if workers else ()))
    rates = {f"{name} {kind}": rate(f"{name} {kind}") for name in bench.saved for kind in kinds}
    figures: dict[str, Any] = {
        "samples": sizes.samples,
        "threads": {name: bench.threads(name) for name in bench.saved},
        "samples_per_second": rates,
        "seconds": seconds,
        "start_seconds": {
            f"{name} {kind}": statistics.median(seconds[f"{name} {kind} 1"])
            - statistics.median(seconds[f"{name} bare{'-group' if kind == 'group' else ''} 1"])
            for name in bench.saved
            for kind in ("ours", *(("group",) if workers else ()))
        },
    }
    for name in bench.saved:
        figures[f"training_over_bare_{name}"] = rates[f"{name} ours"] / rates[f"{name} bare"]
        if workers:
            figures[f"group_over_bare_{name}"] = rates[f"{name} group"] / rates[f"{name} bare-group"]
    figures["training_over_bare"] = min(figures[f"training_over_bare_{name}"] for name in bench.saved)
    return figures


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py training", description=__doc__)
    parser.add_argument("--pool", help="Parquet files of images of 32 x 32 (default: generated ones)")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--architecture", default="resnet20")
    parser.add_argument("--workers", type=int, default=cores(), help="of a worker group; 0 leaves it out")
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    start_ray()
    images = read_images(given.pool, given.image_column) if given.pool else generated(given.samples, 32)
    sizes = Sizes(
        samples=given.samples,
        epochs=given.epochs,
        repeats=given.repeats,
        batch_size=given.batch_size,
        architecture=given.architecture,
    )
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        figures = run(Path(directory), sizes, images, given.workers)
    lines = [
        (f"{what}, samples per second", f"{rate:,.0f}", "") for what, rate in figures["samples_per_second"].items()
    ]
    lines += [(f"{what}, seconds to start and end", f"{s:.1f}", "") for what, s in figures["start_seconds"].items()]
    lines += [(name, f"{value:.2f}", f">= {BAR}") for name, value in figures.items() if "_over_bare" in name]
    measure.report(f"training {sizes.architecture} on {sizes.samples:,} samples", lines, figures)
    ray.shutdown()
    return 0
