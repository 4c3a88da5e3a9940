"""`coverage`: the strategies that cover a pool, in two rounds: their time beside k-centers', their quality beside exact
greedy selection's and that of chance."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.acquisition.coverage import gaussian
from prunefuse_ray.acquisition.fixed_point import Points
from prunefuse_ray.acquisition.max_coverage import Coverage
from prunefuse_ray.benchmarks import measure
from prunefuse_ray.benchmarks.centers import CHANCE, write
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import start_ray
from prunefuse_ray.selection.rows import Files, read
from prunefuse_ray.selection.set_selection import in_two_rounds, pairwise, select_set
from prunefuse_ray.selection.shards import Shards

BAR = 1.5
SHOWN = 2_048
"""Samples on which coverage is judged, none of which a selection has seen as a reference on purpose."""


def time(directory: Path, rows: int, dimensions: int, k: int, strategy: str) -> dict[str, Any]:
    """Seconds of a strategy and of k-centers, from files, as in a run."""
    files, known = write(directory, rows, dimensions, 100, heaps=k)
    things = {
        name: lambda name=name: select_set(STRATEGIES[name], files, known, k, CHANCE, cores())
        for name in (strategy, "k_centers")
    }
    seconds = measure.side_by_side(things, 1)
    return {"seconds": seconds, "time_over_k_centers": measure.ratio(seconds, strategy, "k_centers")}


def quality(directory: Path, rows: int, dimensions: int, k: int) -> dict[str, float]:
    """How well a random part of the pool is covered: by max_herding in two rounds, by exact greedy, by chance."""
    files, known = write(directory, rows, dimensions, 100, heaps=k)
    strategy = STRATEGIES["max_herding"]
    pool = read(files).sorted()
    found = {
        "two_rounds": in_two_rounds(strategy, files, known, k, CHANCE, pairwise(rows, k))["id"],
        "chance": pool.ids.take(np.random.default_rng(0).permutation(rows)[:k]),
    }
    with Shards(pool, 0, known) as shards:
        assert strategy.select is not None
        found["exact"] = strategy.select(shards, k, CHANCE)["id"]
    return {name: covered(files, known, np.array(ids), k) for name, ids in found.items()}


def covered(files: Files, known: Files, ids: np.ndarray, k: int) -> float:
    """The mean similarity of SHOWN samples to the nearest selected or labeled one, by the kernel of all."""
    pool = read(files).sorted()
    with Shards(pool, 0, known) as shards:
        part = shards.whole()
        shown = part.points.take(np.random.default_rng(1).permutation(len(pool.ids))[:SHOWN])
        kernel = gaussian(shards, part, shown, k, CHANCE)
        selected = part.points.take(np.flatnonzero(np.isin(pool.ids.to_numpy(), ids)))
        cover = Coverage(kernel, Points.of([np.zeros_like(shown.factors[0][:1])]), shown, np.ones(len(shown)))
        cover.cover([*part.labeled(), selected])
        return cover.value()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py coverage", description=__doc__)
    parser.add_argument("--strategy", default="max_herding")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--k", type=int, default=10_000)
    parser.add_argument("--quality-rows", type=int, default=20_000, help="rows of which a fiftieth is selected exactly")
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    start_ray()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        figures = time(Path(directory) / "time", given.rows, given.dimensions, given.k, given.strategy)
        rows = given.quality_rows
        values = quality(Path(directory) / "quality", rows, given.dimensions, rows // 50)
    figures |= {"strategy": given.strategy, "rows": given.rows, "k": given.k, "covered": values}
    lines = [(name, measure.spread_of(figures["seconds"][name]), "") for name in (given.strategy, "k_centers")]
    lines += [
        ("time_over_k_centers", f"{figures['time_over_k_centers']:.2f}", f"<= {BAR}"),
        (f"covered of {rows:,}, two rounds / exact", f"{values['two_rounds'] / values['exact']:.3f}", ""),
        ("by chance / exact", f"{values['chance'] / values['exact']:.3f}", ""),
    ]
    measure.report(f"coverage: {given.k:,} of {given.rows:,} x {given.dimensions}", lines, figures)
    ray.shutdown()
    return 0
