"""`topk`: the exact top k over score files, against reading all of them into one process."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from prunefuse_ray.benchmarks import measure
from prunefuse_ray.distributed.resources import start_ray
from prunefuse_ray.selection.top_k import top_k
from prunefuse_ray.storage import Place

ROWS_PER_FILE = 1_000_000
BAR_TIME, BAR_MB = 1.3, 500


def write(directory: Path, rows: int, rows_per_file: int = ROWS_PER_FILE) -> list[str]:
    """Score files with shuffled ids, and scores of which many are equal. By tasks: they leave no memory here."""
    task = ray.remote(num_cpus=1)(_write)
    starts = range(0, rows, rows_per_file)
    return ray.get([task.remote(directory, start, min(rows_per_file, rows - start)) for start in starts])


def _write(directory: Path, start: int, rows: int) -> str:
    rng = np.random.default_rng(start)
    # An odd factor permutes the 64-bit numbers: ids that are unique and in no order.
    ids = (np.arange(start, start + rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
    scores = np.round(rng.beta(2, 8, rows) * 2**20).astype(np.float32) / np.float32(2**20)
    path = directory / f"{start:012d}.parquet"
    pq.write_table(pa.table({"id": ids, "score": scores, "rejected": pa.nulls(rows, pa.string())}), path)
    return str(path)


def single(files: list[str], k: int) -> pa.Table:
    """What one would write for one process that has the memory."""
    table = pa.concat_tables([pq.read_table(file, columns=["id", "score"]) for file in files])
    scores = table["score"].to_numpy()
    return table.take(pa.array(np.argpartition(scores, len(scores) - k)[-k:]))


def by_full_sort(files: list[str], k: int) -> list[int]:
    """The reference: all rows sorted by falling score, ties by rising id."""
    table = pa.concat_tables([pq.read_table(file, columns=["id", "score"]) for file in files])
    return table.sort_by([("score", "descending"), ("id", "ascending")])["id"][:k].to_pylist()


def run(directory: Path, rows: int, k: int, subset: int, repeats: int, rows_per_file: int) -> dict[str, Any]:
    """The figures; the comparison with a full sort is over the first files, of about `subset` rows."""
    files, where = write(directory, rows, rows_per_file), Place.at(str(directory))
    some = files[: max(1, subset // rows_per_file)]
    few = max(1, k * len(some) // len(files))
    with measure.memory_growth() as driver:  # first of all: later on there is freed memory that would be used again
        top_k(files, where, k)
    same = top_k(some, where, few)["id"].to_pylist() == by_full_sort(some, few)
    seconds = measure.side_by_side(
        {"single": lambda: single(files, k), "top_k": lambda: top_k(files, where, k)}, repeats
    )
    return {
        "rows": rows,
        "k": k,
        "same_as_full_sort": same,
        "subset_rows": min(rows, len(some) * rows_per_file),
        "seconds": seconds,
        "time_over_single": measure.ratio(seconds, "top_k", "single"),
        "driver_mb": driver.mb,
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py topk", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--k", type=int, default=1_000_000)
    parser.add_argument("--subset", type=int, default=10_000_000, help="rows compared with a full sort")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", help="parent of the temporary files (13 bytes a row)")
    given = parser.parse_args(argv)
    start_ray()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        figures = run(Path(directory), given.rows, given.k, given.subset, given.repeats, ROWS_PER_FILE)
    lines = [
        ("one process, read and np.argpartition", measure.spread_of(figures["seconds"]["single"]), ""),
        ("top_k", measure.spread_of(figures["seconds"]["top_k"]), ""),
        ("time_over_single", f"{figures['time_over_single']:.2f}", f"<= {BAR_TIME:g}"),
        ("driver's growth (driver_mb)", f"{figures['driver_mb']:.0f} MiB", f"< {BAR_MB}"),
        (f"same ids as a full sort of {figures['subset_rows']:,}", str(figures["same_as_full_sort"]), "True"),
    ]
    measure.report(f"top {given.k:,} of {given.rows:,}, medians of {given.repeats}", lines, figures)
    ray.shutdown()
    return 0 if figures["same_as_full_sort"] else 1
