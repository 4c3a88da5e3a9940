"""`memory`: a pool several times larger than the object store, scored; what the driver and the disk hold meanwhile."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from prunefuse_ray import networks
from prunefuse_ray.benchmarks import measure, passes
from prunefuse_ray.config.scoring import Scoring
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.pool import Source
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import ScoringPlan, configure_data
from prunefuse_ray.scoring.backend_choice import MACS_WORTH_MEASURING, Arithmetic, fastest
from prunefuse_ray.scoring.scorer import ScoringJob, score_pool
from prunefuse_ray.scoring.summary import summarize
from prunefuse_ray.storage import Place

BAR_MB = 300
WATCH_SECONDS = 0.5


def write(directory: Path, rows: int, size: int, rows_per_file: int) -> Source:
    """Random images (size, size, 3) as plain bytes of tensors, uncompressed. By tasks: they leave no memory here."""
    directory.mkdir(parents=True)
    task = ray.remote(num_cpus=1)(_write)
    starts = range(0, rows, rows_per_file)
    paths = ray.get([task.remote(directory, s, min(rows_per_file, rows - s), size) for s in starts])
    return Source(
        fs=Place.at(str(directory)).fs,
        files=tuple(paths),
        sizes=tuple(Path(p).stat().st_size for p in paths),
        id_column="id",
        sample_column="image",
    )


def _write(directory: Path, start: int, rows: int, size: int) -> str:
    pixels = np.random.default_rng(start).integers(0, 256, (rows, size, size, 3), np.uint8)
    table = pa.table(
        {
            "id": pa.array(np.arange(start, start + rows), pa.int64()),
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        }
    )
    path = directory / f"{start:012d}.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=5_000)
    return str(path)


class Spilled:
    """The most bytes that lay in a directory while measured."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.most, self._over = directory, 0, Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            held = 0
            for parent, _, files in os.walk(self.directory):
                for file in files:
                    try:
                        held += os.path.getsize(os.path.join(parent, file))
                    except OSError:  # it was removed meanwhile
                        continue
            self.most = max(self.most, held)

    def __enter__(self) -> Spilled:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def run(
    directory: Path, spill: Path, *, rows: int, size: int, architecture: str, actors: int, rows_per_file: int
) -> dict[str, Any]:
    """The figures of one pass over generated samples."""
    source = write(directory / "pool", rows, size, rows_per_file)
    form = ImageForm(height=size, width=size, channels=3)
    spec = networks.NetworkSpec(architecture=architecture, classes=10, input_shape=form.network_shape)
    proxy = networks.prune(networks.build(spec, seed=0), spec, networks.PruningSpec(ratio=0.8))
    network = passes.save(directory / "network", proxy)
    out, done = (Place.at(str(directory / name)) for name in ("scores", "checkpoint"))
    for place in (out, done):
        place.fs.create_dir(place.path, recursive=True)
    job = ScoringJob(strategy="least_confidence", form=form, batch_size=64, features=False, threads=1, gpu=False)
    found = ray.get(ray.remote(num_cpus=1)(fastest).remote(Scoring(), network, job, MACS_WORTH_MEASURING))
    job = Arithmetic(**found["chosen"]).of(job)
    plan = ScoringPlan(min_actors=actors, max_actors=actors, cpus=1, gpus=0.0)
    started = time.perf_counter()
    with measure.memory_growth() as driver, Spilled(spill) as spilled:
        score_pool(
            source, network, job, plan, exclude=pa.array([], pa.int64()), rows=rows, out=out, checkpoint=done
        )  # fmt: skip
    seconds = time.perf_counter() - started
    summary = summarize([f.path for f in out.files()], out, 1.0)
    return {
        "rows": rows,
        "pool_mb": rows * size * size * 3 / measure.MIB,
        "scored": summary.scored,
        "driver_mb": driver.mb,
        "spilled_mb": spilled.most / measure.MIB,
        "seconds": seconds,
        "samples_per_second": rows / seconds,
        "chosen": found["chosen"],
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--object-store-mb", type=int, default=1_000)
    parser.add_argument("--architecture", default="resnet20")
    parser.add_argument("--actors", type=int, default=cores())
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        spill = Path(directory) / "spilled"
        spill.mkdir()
        # A Ray of its own: no other cluster has the small object store that this is about.
        ray.init(
            address="local",
            num_cpus=cores() + 1,
            object_store_memory=given.object_store_mb * 10**6,
            object_spilling_directory=str(spill),
            include_dashboard=False,
            log_to_driver=False,
        )
        configure_data()
        figures = run(
            Path(directory),
            spill,
            rows=given.rows,
            size=32,
            architecture=given.architecture,
            actors=given.actors,
            rows_per_file=50_000,
        )
        ray.shutdown()
    figures["object_store_mb"] = given.object_store_mb
    lines = [
        ("samples as bytes", f"{figures['pool_mb']:,.0f} MiB", ""),
        ("object store", f"{given.object_store_mb:,} MB", ""),
        ("driver's growth (driver_mb)", f"{figures['driver_mb']:.0f} MiB", f"< {BAR_MB}"),
        ("most on disk for the object store", f"{figures['spilled_mb']:.0f} MiB", ""),
        ("samples per second", f"{figures['samples_per_second']:,.0f}", ""),
        ("scored", f"{figures['scored']:,}", f"{given.rows:,}"),
    ]
    measure.report(f"scoring {given.rows:,} samples beside a small object store", lines, figures)
    return 0 if figures["scored"] == given.rows else 1
