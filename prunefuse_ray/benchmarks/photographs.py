"""`photographs`: JPEGs through a pruned ResNet-50, decoded and from the prepared pool, against the dense network and
what one would write instead."""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from prunefuse_ray import config as cfg
from prunefuse_ray import networks
from prunefuse_ray.benchmarks import measure, passes
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.pool import Prepared, Source
from prunefuse_ray.data.prepared import decoded, usage
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import observe, plan_scoring, start_ray
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.scoring.backend_choice import Arithmetic, fastest
from prunefuse_ray.scoring.scorer import ScoringJob
from prunefuse_ray.storage import Place

BARS = {"again_over_dense": 6.0, "first_over_dense": 2.0, "again_over_dataloader": 3.0}
LARGE = 1e13
"""Multiply-accumulates of a pool that is worth measuring for, however small the benchmark's is."""
ROWS_PER_FILE = 100
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    rows: int
    loader_rows: int
    """Of the DataLoader, which is an order of magnitude slower, and whose process has started before."""
    width: int = 500
    height: int = 375
    input: int = 224
    ratio: float = 0.75
    architecture: str = "torchvision:resnet50"

    @property
    def loaded(self) -> int:
        """Rows that the DataLoader reads: whole files, of those that there are."""
        return min(self.rows, -(-self.loader_rows // ROWS_PER_FILE) * ROWS_PER_FILE)


def photograph(rng: np.random.Generator, originals: Sequence[Image.Image], width: int, height: int) -> bytes:
    """A JPEG of quality 88: a crop of one of scikit-learn's photographs, brighter or darker, with grain."""
    original = originals[int(rng.integers(len(originals)))]
    left, top = (int(rng.integers(0, most + 1)) for most in (original.width - width, original.height - height))
    crop = np.asarray(original.crop((left, top, left + width, top + height)), np.float32)
    pixels = crop * rng.uniform(0.7, 1.3) + rng.normal(0, 4, crop.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def write(directory: Path, sizes: Sizes) -> Source:
    """A pool of photographs."""
    directory.mkdir(parents=True)
    rng, paths = np.random.default_rng(0), []
    originals = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for start in range(0, sizes.rows, ROWS_PER_FILE):
        numbers = range(start, min(start + ROWS_PER_FILE, sizes.rows))
        images = [photograph(rng, originals, sizes.width, sizes.height) for _ in numbers]
        paths.append(directory / f"{start:06d}.parquet")
        pq.write_table(pa.table({"id": pa.array(numbers, pa.int64()), "image": images}), paths[-1])
    return Source(
        fs=Place.at(str(directory)).fs,
        files=tuple(map(str, paths)),
        sizes=tuple(path.stat().st_size for path in paths),
        label_column=None,
    )


class Bench:
    """A dense network and its proxy on disk, and a pool of photographs."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        self.directory, self.sizes = directory, sizes
        self.apart = measure.process_apart()
        side = sizes.input
        self.form = ImageForm(height=side, width=side, channels=3, crop_ratio=0.875, mean=MEAN, std=STD)
        spec = networks.NetworkSpec(architecture=sizes.architecture, classes=10, input_shape=self.form.network_shape)
        dense = networks.build(spec, seed=0)
        saved: dict[str, networks.Selector | networks.Dense] = {
            "dense": networks.Dense(network=dense, spec=spec),
            "proxy": networks.prune(dense, spec, networks.PruningSpec(ratio=sizes.ratio)),
        }
        self.networks = {name: passes.save(directory / name, one) for name, one in saved.items()}
        self.macs = {name: networks.macs(one.network, spec.input_shape) for name, one in saved.items()}
        self.pool = write(directory / "pool", sizes)
        plain = ScoringJob(strategy="margin", form=self.form, batch_size=64, features=False, threads=1, gpu=False)
        self.chosen = {name: fastest(cfg.Scoring(), place, plain, LARGE) for name, place in self.networks.items()}
        self.jobs = {name: Arithmetic(**found["chosen"]).of(plain) for name, found in self.chosen.items()}
        self.plan = plan_scoring(cfg.Scoring(), observe(), LARGE, sizes.rows)
        self.prepared = Prepared(place=Place.at(str(directory / "prepared")))

    def part(self, rows: int) -> Source:
        files = -(-rows // ROWS_PER_FILE)
        return replace(self.pool, files=self.pool.files[:files], sizes=self.pool.sizes[:files])

    def score(self, name: str, source: Source, rows: int) -> Callable[[], None]:
        return lambda: passes.score(self.directory, source, self.networks[name], self.jobs[name], self.plan, rows)

    def first(self) -> None:
        """Round 1: decoding, preparing and scoring."""
        self.prepared.place.delete()
        self.score("proxy", replace(self.pool, prepared=self.prepared), self.sizes.rows)()

    def dataloader(self, rows: int) -> Callable[[], None]:
        """What one would write instead, in a process of its own: two workers that decode by Pillow, and the proxy as it
        is, in float32."""
        args = self.networks["proxy"].path, list(self.part(rows).files), self.sizes.input
        return lambda: self.apart.submit(_dataloader, *args).result()


def _dataloader(network: str, files: list[str], side: int) -> None:
    torch.set_num_threads(cores())
    model = networks.from_files(network_files(Place.at(network))).network.eval()
    with torch.inference_mode():
        for x in torch.utils.data.DataLoader(_Photographs(files, side), batch_size=64, num_workers=2):
            torch.softmax(model(x), 1).topk(2, 1)


class _Photographs(torch.utils.data.Dataset):
    """As torchvision's reference does: shorter side to 256, center crop of 224, normalized."""

    def __init__(self, files: list[str], side: int) -> None:
        self.images, self.side = pq.read_table(files, columns=["image"])["image"].to_pylist(), side
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self.images[i])) as opened:
            image = opened.convert("RGB")
        scale = self.side / 0.875 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        pixels = np.asarray(image.crop((left, top, left + self.side, top + self.side)))
        return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - self.mean) / self.std


def decoding(bench: Bench, rows: int) -> dict[str, float]:
    """Milliseconds a sample, of one thread: decoding alone, decoding and writing, and reading what was written."""
    source = bench.part(rows)
    place = Place.at(str(bench.directory / "timed"))
    kept = replace(source, prepared=Prepared(place=place))
    found = {}
    for name, one in (("decode", source), ("decode_and_write", kept), ("read", kept)):
        started = time.perf_counter()
        for _ in decoded(one, bench.form):
            pass
        found[name] = 1_000 * (time.perf_counter() - started) / rows
    return found


def run(directory: Path, sizes: Sizes, repeats: int) -> dict[str, Any]:
    bench = Bench(directory, sizes)
    prepared = replace(bench.pool, prepared=bench.prepared)
    bench.dataloader(1)()  # starts its process
    seconds = measure.side_by_side(
        {
            "first": bench.first,
            "again": bench.score("proxy", prepared, sizes.rows),
            "dense": bench.score("dense", prepared, sizes.rows),
            "dense_decoding": bench.score("dense", bench.pool, sizes.rows),
            "dataloader": bench.dataloader(sizes.loaded),
        },
        repeats,
    )
    rates = {
        name: (sizes.loaded if name == "dataloader" else sizes.rows) / statistics.median(taken)
        for name, taken in seconds.items()
    }
    bench.apart.shutdown()
    kept = usage(bench.prepared, bench.form)
    return {
        "rows": sizes.rows,
        "chosen": bench.chosen,
        "macs": bench.macs,
        "here": bench.plan.here,
        "seconds": seconds,
        "samples_per_second": rates,
        "again_over_dense": rates["again"] / rates["dense_decoding"],
        "first_over_dense": rates["first"] / rates["dense_decoding"],
        "again_over_dense_prepared": rates["again"] / rates["dense"],
        "again_over_dataloader": rates["again"] / rates["dataloader"],
        "milliseconds": decoding(bench, sizes.loaded),
        "prepared_bytes_per_sample": kept["bytes"] / sizes.rows,
        "original_bytes_per_sample": sum(bench.pool.sizes) / sizes.rows,
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py photographs", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--loader-rows", type=int, default=300, help="of the DataLoader")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--architecture", default="torchvision:resnet50")
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    start_ray()
    sizes = Sizes(rows=given.rows, loader_rows=given.loader_rows, ratio=given.ratio, architecture=given.architecture)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        figures = run(Path(directory), sizes, given.repeats)
    figures["benchmark_seconds"] = time.perf_counter() - started
    lines = [(f"{n}, samples per second", f"{rate:,.0f}", "") for n, rate in figures["samples_per_second"].items()]
    lines += [(f"{name}, ms a sample", f"{value:.2f}", "") for name, value in figures["milliseconds"].items()]
    lines += [(name, f"{figures[name]:.2f}", f">= {bar:g}") for name, bar in BARS.items()]
    measure.report(f"{sizes.rows:,} photographs with {sizes.architecture}", lines, figures)
    ray.shutdown()
    return 0
