"""`centers`: greedy k-centers over shards, against a loop over one matrix in one process."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from prunefuse_ray.acquisition import Chance
from prunefuse_ray.acquisition.greedy import FARTHEST
from prunefuse_ray.acquisition.k_centers import K_CENTERS
from prunefuse_ray.benchmarks import measure
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import start_ray
from prunefuse_ray.selection.rows import Files, vector_column
from prunefuse_ray.selection.set_selection import MAX_PARTS, divided, in_two_rounds, select_set
from prunefuse_ray.selection.shards import Shards
from prunefuse_ray.storage import Place

FILES = 16
BAR = 1.5
CHANCE = Chance(seed=0, round=0)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    rows: int
    dimensions: int
    k: int
    shards: int
    repeats: int


def write(directory: Path, rows: int, dimensions: int, known: int, heaps: int = 0) -> tuple[Files, Files]:
    """Score files of random features (normal, of unequal widths; or in so many heaps of very different size), and of
    some labeled ones. By tasks: they leave no memory here."""
    task = ray.remote(num_cpus=1)(_write)

    def files(name: str, n: int, count: int) -> Files:
        (directory / name).mkdir(parents=True, exist_ok=True)
        parts = np.array_split(np.arange(n), count)
        paths = ray.get(
            [task.remote(directory / name / f"{f:03d}.parquet", ids, dimensions, heaps) for f, ids in enumerate(parts)]
        )
        return Files(
            where=Place.at(str(directory)), paths=tuple(paths), sizes=tuple(Path(p).stat().st_size for p in paths)
        )

    return files("scores", rows, FILES), files("labeled", known, 1)


def _write(path: Path, ids: np.ndarray, dimensions: int, heaps: int) -> str:
    rng = np.random.default_rng([len(str(path.parent.name)), int(ids[0])])
    widths = np.linspace(0.3, 2.0, dimensions, dtype=np.float32)
    features = rng.standard_normal((len(ids), dimensions), np.float32) * widths
    if heaps:
        shared = np.random.default_rng(0)
        middles_HD = shared.standard_normal((heaps, dimensions)) * np.exp(shared.normal(scale=0.5, size=(heaps, 1)))
        features = (middles_HD[rng.zipf(1.3, len(ids)) % heaps] + 0.2 * features).astype(np.float32)
    table = pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "score": pa.array(rng.random(len(ids), np.float32), pa.float32()),
            "feature": vector_column(features.reshape(-1, dimensions)),
        }
    )
    pq.write_table(table, path)
    return str(path)


def matrix(files: Files) -> torch.Tensor:
    table = pq.read_table(list(files.paths)).sort_by("id")
    column = table["feature"].combine_chunks()
    return torch.from_numpy(np.array(column.flatten()).reshape(table.num_rows, -1))


@torch.inference_mode()
def loop(x_ND: torch.Tensor, known_LD: torch.Tensor, k: int) -> list[int]:
    """What one would write for one process: a running minimum of distances, one matrix-vector product per center."""
    squares_N = (x_ND * x_ND).sum(1)

    def to(center_D: torch.Tensor) -> torch.Tensor:
        return squares_N - 2 * (x_ND @ center_D) + center_D @ center_D

    near_N = torch.full((len(x_ND),), torch.inf)
    for center_D in known_LD:
        torch.minimum(near_N, to(center_D), out=near_N)
    chosen = []
    for _ in range(k):
        i = int(near_N.argmax())
        chosen.append(i)
        torch.minimum(near_N, to(x_ND[i]), out=near_N)
        near_N[i] = -torch.inf
    return chosen


def run(directory: Path, sizes: Sizes) -> dict[str, Any]:
    """The figures. Times begin with the features in memory (of the shards, of the one process); `from_files` with the
    files, and with actors that have yet to start, as in a run (which starts none for few features)."""
    files, known = write(directory, sizes.rows, sizes.dimensions, 100)
    x_ND, known_LD = matrix(files), matrix(known)
    chosen = {}

    def sharded() -> None:
        chosen["shards"] = shards.greedy(FARTHEST, sizes.k, from_labeled=True).table["id"].to_pylist()

    def looped() -> None:
        chosen["loop"] = loop(x_ND, known_LD, sizes.k)

    def from_files() -> None:
        chosen["run"] = select_set(K_CENTERS, files, known, sizes.k, CHANCE, cores())["id"].to_pylist()

    def loop_from_files() -> None:
        loop(matrix(files), matrix(known), sizes.k)

    with Shards(files, sizes.shards, known) as shards:
        seconds = measure.side_by_side({"loop": looped, "shards": sharded}, sizes.repeats)
    whole = measure.side_by_side({"loop": loop_from_files, "shards": from_files}, sizes.repeats)
    return {
        "rows": sizes.rows,
        "dimensions": sizes.dimensions,
        "k": sizes.k,
        "shards": sizes.shards,
        "same_choice": len(set(chosen["loop"]) & set(chosen["shards"])) / sizes.k,
        "same_as_run": chosen["run"] == chosen["shards"],
        "seconds": seconds,
        "seconds_from_files": whole,
        "time_over_loop": measure.ratio(seconds, "shards", "loop"),
        "time_over_loop_from_files": measure.ratio(whole, "shards", "loop"),
    }


def rounds(directory: Path, rows: int, dimensions: int, k: int, heaps: int) -> dict[str, float]:
    """Time and covering radius of k-centers in two rounds, over those of the exact choice, from files, as in a run."""
    files, known = write(directory, rows, dimensions, 100, heaps)
    chosen = {}

    def exact() -> None:
        chosen["exact"] = select_set(K_CENTERS, files, known, k, CHANCE, cores())["id"]

    def twice() -> None:
        chosen["twice"] = in_two_rounds(K_CENTERS, files, known, k, CHANCE, divided(k, MAX_PARTS))["id"]

    seconds = measure.side_by_side({"exact": exact, "twice": twice}, 1)
    x_ND, known_LD = matrix(files), matrix(known)
    radius = {name: _radius(x_ND, torch.cat([known_LD, x_ND[ids.to_numpy()]])) for name, ids in chosen.items()}
    return {
        "time_over_exact": measure.ratio(seconds, "twice", "exact"),
        "exact_seconds": seconds["exact"][0],
        "radius_over_exact": radius["twice"] / radius["exact"],
    }


@torch.inference_mode()
def _radius(x_ND: torch.Tensor, centers_KD: torch.Tensor) -> float:
    return max(torch.cdist(some, centers_KD).amin(1).max().item() for some in x_ND.split(8_192))


def memory(directory: Path, rows: int, dimensions: int, k: int, shards: int) -> dict[str, Any]:
    """What the actors' rows take, all together, against the bytes of the features; and the driver's growth."""
    empty, _ = _held(directory / "few", 1_000, dimensions, k, shards)
    held, driver = _held(directory / "many", rows, dimensions, k, shards)
    size = rows * dimensions * 4 / measure.MIB
    return {
        "memory_rows": rows,
        "memory_k": k,
        "features_mb": size,
        "shards_mb": held - empty,
        "shards_over_features": (held - empty) / size,
        "n_times_k_mb": rows * k * 4 / measure.MIB,
        "driver_mb": driver,
    }


def _held(directory: Path, rows: int, dimensions: int, k: int, shards: int) -> tuple[float, float]:
    """MiB that belong to the actors' processes alone after a choice, and by how many this process grew meanwhile."""
    files, known = write(directory, rows, dimensions, 100)
    with measure.memory_growth() as driver, Shards(files, shards, known) as held:
        pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in held.members])
        holders = [measure.psutil.Process(pid) for pid in pids]
        held.greedy(FARTHEST, k, from_labeled=True)
        return sum(p.memory_full_info().uss for p in holders) / measure.MIB, driver.mb


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py centers", description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--k", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=cores(), help="actors")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, default=0, help="also show the memory for so many rows (2000000)")
    parser.add_argument(
        "--two-rounds-rows", type=int, default=0, help="also choose a thirtieth of so many rows in two rounds (300000)"
    )
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    start_ray()
    sizes = Sizes(
        rows=given.rows, dimensions=given.dimensions, k=given.k, shards=given.shards, repeats=given.repeats
    )  # fmt: skip
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        if given.memory_rows:  # first of all: later on there is freed memory that would be used again
            figures |= memory(
                Path(directory) / "memory", given.memory_rows, sizes.dimensions, min(sizes.k, 200), sizes.shards
            )
        figures |= run(Path(directory) / "time", sizes)
        for name, heaps in ("normal", 0), ("heaps", given.two_rounds_rows // 15):
            if rows := given.two_rounds_rows:
                figures[f"two_rounds_{name}"] = rounds(
                    Path(directory) / name, rows, sizes.dimensions, rows // 30, heaps
                )
    seconds, whole = figures["seconds"], figures["seconds_from_files"]
    lines = [
        ("torch loop, one process", measure.spread_of(seconds["loop"]), ""),
        (f"{sizes.shards} shards", measure.spread_of(seconds["shards"]), ""),
        ("time_over_loop", f"{figures['time_over_loop']:.2f}", f"<= {BAR}"),
        ("same samples chosen", f"{figures['same_choice']:.1%}", ""),
        ("from files, loop", measure.spread_of(whole["loop"]), ""),
        ("from files, as a run does it", measure.spread_of(whole["shards"]), ""),
    ]
    if given.memory_rows:
        lines += [
            (f"features of {given.memory_rows:,} rows", f"{figures['features_mb']:.0f} MiB", ""),
            ("held by all shards for them", f"{figures['shards_mb']:.0f} MiB", "O(N d)"),
            ("driver's growth (driver_mb)", f"{figures['driver_mb']:.0f} MiB", ""),
        ]
    for name in ("normal", "heaps") if given.two_rounds_rows else ():
        found = figures[f"two_rounds_{name}"]
        said = f"{found['time_over_exact']:.2f} of {found['exact_seconds']:.1f} s; {found['radius_over_exact']:.2f}"
        lines.append((f"two rounds over exact, {name}: time; radius", said, ""))
    title = f"k-centers: {sizes.k:,} of {sizes.rows:,} x {sizes.dimensions}, medians of {sizes.repeats}"
    measure.report(title, lines, figures)
    ray.shutdown()
    return 0
