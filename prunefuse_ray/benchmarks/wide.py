"""`wide`: ResNet-18 of 64 to 512 channels on images of 32 pixels; a proxy of p = .875 over the dense network."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from prunefuse_ray.benchmarks import measure
from prunefuse_ray.benchmarks.scoring import ROWS_PER_FILE, Bench, Sizes, check_rows, generated
from prunefuse_ray.distributed.resources import start_ray

RATIOS = {"p875": 0.875}
BARS = {"p875_over_dense": 12.0, "of_the_bare_ratio": 0.8}


def run(directory: Path, sizes: Sizes, images: list[bytes], dense_rows: int) -> dict[str, Any]:
    """The figures. All rates are of the rows between a short pass and a long one, so that no start-up counts.

    Args:
        sizes: `compared` rows are scored with the proxy.
        dense_rows: so many with the dense network.
    """
    bench = Bench(directory, sizes, images, RATIOS)
    rows = {"p875": sizes.compared, "dense": dense_rows}
    bench.pipeline("p875", bench.jobs["p875"], sizes.rows)()  # prepares the pool
    things = {}
    for name, most in rows.items():
        for part in (most, most // 2):
            things[f"{name} {part}"] = bench.pipeline(name, bench.jobs[name], part)
            things[f"bare {name} {part}"] = bench.bare(name, bench.jobs[name], part)
    seconds = measure.side_by_side(things, sizes.repeats)
    bench.apart.shutdown()

    def steady(prefix: str, most: int) -> float:
        long, short = (statistics.median(seconds[f"{prefix} {part}"]) for part in (most, most // 2))
        return (most - most // 2) / (long - short)

    rates = {f"{kind}{name}": steady(f"{kind}{name}", most) for name, most in rows.items() for kind in ("", "bare ")}
    over, bare = rates["p875"] / rates["dense"], rates["bare p875"] / rates["bare dense"]
    return {
        "rows": rows,
        "chosen": bench.chosen,
        "seconds": seconds,
        "samples_per_second": rates,
        "p875_over_dense": over,
        "bare_p875_over_dense": bare,
        "of_the_bare_ratio": over / bare,
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py wide", description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000, help="scored with the proxy")
    parser.add_argument("--dense-rows", type=int, default=20_000, help="scored with the dense network")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    check_rows({"--rows": given.rows, "--dense-rows": given.dense_rows}, parts=2)
    start_ray()
    sizes = Sizes(rows=given.rows, compared=given.rows, repeats=given.repeats, architecture="cifar_resnet18")
    images, started = generated(ROWS_PER_FILE, sizes.size), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        figures = run(Path(directory), sizes, images, given.dense_rows)
    figures["benchmark_seconds"] = time.perf_counter() - started
    rates = figures["samples_per_second"]
    lines = [(f"{name}, samples per second", f"{rate:,.0f}", "") for name, rate in rates.items()]
    lines.append(("bare_p875_over_dense", f"{figures['bare_p875_over_dense']:.2f}", ""))
    lines += [(name, f"{figures[name]:.2f}", f">= {bar:g}") for name, bar in BARS.items()]
    measure.report(f"wide: {sizes.architecture}, p = .875", lines, figures)
    ray.shutdown()
    return 0
