"""`scoring`: the pruned proxy through Ray Data, against a bare loop, plain float32, the dense network, a DataLoader."""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

from prunefuse_ray import config as cfg
from prunefuse_ray import networks
from prunefuse_ray.acquisition.probabilities import softmax
from prunefuse_ray.acquisition.uncertainty import least_confidence
from prunefuse_ray.benchmarks import measure, passes
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.pool import Prepared, Source
from prunefuse_ray.data.reading import head
from prunefuse_ray.data.sample_format import decode_column
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import observe, plan_scoring, start_ray
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.scoring.backend_choice import Arithmetic, fastest
from prunefuse_ray.scoring.scorer import ScoringJob
from prunefuse_ray.storage import Place

ROWS_PER_FILE = 2_500
"""A short pass takes a quarter of a long one's files."""
FEW = 64
"""Rows of a pass that shows how long one takes to begin."""
LARGE = 1e13
"""Multiply-accumulates of a pool that is worth measuring for, however small the benchmark's is."""
RATIOS = {"p5": 0.5, "p8": 0.8}
BARS = {
    "pipeline_over_bare": 0.97,
    "pipeline_over_bare_50k": 0.85,
    "default_over_eager": 2.0,
    "p5_over_dense": 3.8,
    "p8_over_dense": 5.0,
    "over_dataloader": 3.0,
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    rows: int
    """Of the pipeline and the bare loop."""
    compared: int
    """Of the slower things it is compared with, and of the pipeline beside them."""
    repeats: int
    size: int = 32
    architecture: str = "resnet56"


def write(directory: Path, rows: int, images: list[bytes]) -> Source:
    """A pool of so many rows with ids of their own, whose images repeat."""
    directory.mkdir(parents=True)
    paths = []
    for start in range(0, rows, ROWS_PER_FILE):
        numbers = range(start, min(start + ROWS_PER_FILE, rows))
        table = pa.table(
            {
                "id": pa.array(numbers, pa.int64()),
                "image": pa.array([images[i % len(images)] for i in numbers], pa.binary()),
            }
        )
        paths.append(directory / f"{start:09d}.parquet")
        pq.write_table(table, paths[-1])
    return Source(
        fs=Place.at(str(directory)).fs,
        files=tuple(map(str, paths)),
        sizes=tuple(p.stat().st_size for p in paths),
        id_column="id",
        sample_column="image",
    )


def first(source: Source, files: int) -> Source:
    return replace(source, files=source.files[:files], sizes=source.sizes[:files])


def generated(count: int, size: int) -> list[bytes]:
    """Smooth color images with some noise, as PNGs: about as long to decode as photographs."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).astype(np.uint8)
    pixels = []
    for image in coarse:
        smooth = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), np.int16)
        pixels.append(np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8))
    return [encode_png(p) for p in pixels]


def read_images(path: str, column: str) -> list[bytes]:
    """The images of a Parquet pool of one's own."""
    files = sorted(Path(path).glob("*.parquet")) if Path(path).is_dir() else [Path(path)]
    found = [v for f in files for v in pq.read_table(f, columns=[column])[column].to_pylist()]
    values = [v["bytes"] if isinstance(v, dict) else v for v in found]
    if not values or not all(isinstance(v, bytes) for v in values):
        raise ConfigError(f"--pool: '{path}' holds no encoded images in column '{column}'; give Parquet files of them")
    return values


def check_rows(given: Mapping[str, int], parts: int) -> None:
    """ConfigError unless so many rows are whole files in each of so many parts."""
    for option, rows in given.items():
        if rows <= 0 or rows % (parts * ROWS_PER_FILE):
            raise ConfigError(f"{option} {rows}: give a multiple of {parts * ROWS_PER_FILE:,}")


class Bench:
    """Networks of one architecture on disk, and a pool to score with them."""

    def __init__(
        self, directory: Path, sizes: Sizes, images: list[bytes], ratios: Mapping[str, float] = RATIOS
    ) -> None:
        self.directory, self.sizes = directory, sizes
        self.apart = measure.process_apart()
        with Image.open(io.BytesIO(images[0])) as image:
            width, height = image.size
        self.form = ImageForm(height=height, width=width, channels=3)
        spec = networks.NetworkSpec(architecture=sizes.architecture, classes=10, input_shape=self.form.network_shape)
        dense = networks.build(spec, seed=0)
        self.networks = {"dense": passes.save(directory / "dense", networks.Dense(network=dense, spec=spec))}
        for name, ratio in ratios.items():
            proxy = networks.prune(dense, spec, networks.PruningSpec(ratio=ratio))
            self.networks[name] = passes.save(directory / name, proxy)
        pool = write(directory / "pool", sizes.rows, images)
        self.pool = replace(pool, prepared=Prepared(place=Place.at(str(directory / "prepared"))))
        self.few = write(directory / "few", FEW, images)
        self.plan = plan_scoring(cfg.Scoring(), observe(), LARGE, sizes.rows)
        plain = ScoringJob(
            strategy="least_confidence", form=self.form, batch_size=64, features=False, threads=1, gpu=False
        )
        self.eager = replace(plain, backend="eager")
        # What a run of a large pool would choose; by a task, as there.
        task = ray.remote(num_cpus=1)(fastest)
        self.chosen = {n: ray.get(task.remote(cfg.Scoring(), p, plain, LARGE)) for n, p in self.networks.items()}
        self.jobs = {n: Arithmetic(**c["chosen"]).of(plain) for n, c in self.chosen.items()}

    def pipeline(self, name: str, job: ScoringJob, rows: int) -> Callable[[], None]:
        """Score the first rows of the pool with a network, as a run does from its second round on."""
        source = self.few if rows == FEW else first(self.pool, -(-rows // ROWS_PER_FILE))
        return lambda: passes.score(self.directory, source, self.networks[name], job, self.plan, rows)

    def bare(self, name: str, job: ScoringJob, rows: int) -> Callable[[], None]:
        """The network alone in this process with as many threads as all actors have, over tensors decoded before."""
        decoded_N, _ = decode_column(head(self.pool, min(rows, ROWS_PER_FILE))["sample"], self.form)
        threads = cores()

        def loop() -> None:
            torch.set_num_threads(threads)
            plain = networks.from_files(network_files(self.networks[name])).network
            example = self.form.inputs(torch.from_numpy(decoded_N[: job.batch_size]))
            run = networks.BACKENDS[job.backend].runner(
                plain, precision=job.precision, device=torch.device("cpu"), example=example, threads=threads
            )
            done = 0
            with torch.inference_mode():
                while done < rows:
                    start = done % (len(decoded_N) - job.batch_size + 1)
                    x = self.form.inputs(torch.from_numpy(decoded_N[start : start + job.batch_size]))
                    y = run(x)
                    assert isinstance(y, torch.Tensor)
                    least_confidence(softmax(y.float().numpy()))
                    done += job.batch_size

        return loop

    def dataloader(self, rows: int) -> Callable[[], None]:
        """What one would write instead, in a process of its own: a torch DataLoader with two workers over the same
        files, plain float32."""
        files = list(first(self.pool, -(-rows // ROWS_PER_FILE)).files)
        out = str(self.directory / "dataloader.parquet")
        return lambda: self.apart.submit(_dataloader, self.networks["p5"].path, files, out).result()


def _dataloader(network: str, files: list[str], out: str) -> None:
    torch.set_num_threads(cores())
    model = networks.from_files(network_files(Place.at(network))).network.eval()
    scores = []
    with torch.inference_mode():
        for pixels in torch.utils.data.DataLoader(_Images(files), batch_size=256, num_workers=2):
            x = ((pixels.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
            scores.append(1 - torch.softmax(model(x), 1).max(1).values)
    pq.write_table(pa.table({"score": torch.cat(scores).numpy()}), out)


class _Images(torch.utils.data.Dataset):
    def __init__(self, files: list[str]) -> None:
        table = pq.read_table(files, columns=["image"])
        self.column = table["image"].combine_chunks()

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self.column[i].as_py())) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))


def run(directory: Path, sizes: Sizes, images: list[bytes]) -> dict[str, Any]:
    """The figures. Steady rates are of the rows between a short pass and a long one, so that no start-up counts."""
    bench = Bench(directory, sizes, images)
    bench.pipeline("p5", bench.jobs["p5"], sizes.rows)()  # prepares the pool
    bench.dataloader(FEW)()  # starts its process
    job, quarter, few = bench.jobs["p5"], sizes.rows // 4, sizes.compared // 4
    long = measure.side_by_side(
        {
            "pipeline": bench.pipeline("p5", job, sizes.rows),
            "pipeline_quarter": bench.pipeline("p5", job, quarter),
            "bare": bench.bare("p5", job, sizes.rows),
            "bare_quarter": bench.bare("p5", job, quarter),
            "first_rows": bench.pipeline("p5", job, FEW),
        },
        sizes.repeats,
    )
    things: dict[str, tuple[str, ScoringJob]] = {
        "p5": ("p5", job),
        "p5_eager": ("p5", bench.eager),
        "dense": ("dense", bench.jobs["dense"]),
        "p8": ("p8", bench.jobs["p8"]),
    }
    passes = {f"{n} {rows}": bench.pipeline(*t, rows) for n, t in things.items() for rows in (sizes.compared, few)}
    passes |= {f"dataloader {rows}": bench.dataloader(rows) for rows in (sizes.compared, few)}
    short = measure.side_by_side(passes, sizes.repeats)

    bench.apart.shutdown()

    def steady(seconds: dict[str, list[float]], whole: str, part: str, rows: int) -> float:
        return rows / (statistics.median(seconds[whole]) - statistics.median(seconds[part]))

    rates = {
        n: steady(short, f"{n} {sizes.compared}", f"{n} {few}", sizes.compared - few) for n in (*things, "dataloader")
    }
    bare = steady(long, "bare", "bare_quarter", sizes.rows - quarter)
    return {
        "rows": sizes.rows,
        "compared_rows": sizes.compared,
        "here": bench.plan.here,
        "chosen": bench.chosen,
        "seconds": long | short,
        "samples_per_second": rates
        | {
            "bare": bare,
            "pipeline": steady(long, "pipeline", "pipeline_quarter", sizes.rows - quarter),
            "pipeline_from_call": sizes.rows / statistics.median(long["pipeline"]),
        },
        "pipeline_over_bare": steady(long, "pipeline", "pipeline_quarter", sizes.rows - quarter) / bare,
        "pipeline_over_bare_50k": measure.ratio(long, "bare", "pipeline"),
        "first_rows_seconds": long["first_rows"],
        "default_over_eager": rates["p5"] / rates["p5_eager"],
        "p5_over_dense": rates["p5"] / rates["dense"],
        "p8_over_dense": rates["p8"] / rates["dense"],
        "over_dataloader": rates["p5"] / rates["dataloader"],
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py scoring", description=__doc__)
    parser.add_argument("--pool", help="Parquet files of images of one size (default: generated ones, 32 x 32)")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--rows", type=int, default=50_000, help="the images are repeated to so many")
    parser.add_argument("--compared-rows", type=int, default=40_000, help="of each comparison")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--architecture", default="resnet56")
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    check_rows({"--rows": given.rows, "--compared-rows": given.compared_rows}, parts=4)
    start_ray()
    sizes = Sizes(
        rows=given.rows,
        compared=given.compared_rows,
        repeats=given.repeats,
        architecture=given.architecture,
    )
    images = read_images(given.pool, given.image_column) if given.pool else generated(ROWS_PER_FILE, sizes.size)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        figures = run(Path(directory), sizes, images)
    figures["benchmark_seconds"] = time.perf_counter() - started
    rates = figures["samples_per_second"]
    lines = [(f"{name}, samples per second", f"{rate:,.0f}", "") for name, rate in rates.items()]
    lines += [(name, f"{figures[name]:.2f}", f">= {bar:g}") for name, bar in BARS.items()]
    measure.report(f"scoring {sizes.rows:,} images with {sizes.architecture}", lines, figures)
    ray.shutdown()
    return 0
