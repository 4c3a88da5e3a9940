"""`survey`: what the driver does with pools of many rows and files, with many labels and with large sweeps: seconds and
memory of doubling sizes. Samples are chosen at random, so that nothing is scored: what is left is the driver's own."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from prunefuse_ray.benchmarks import measure
from prunefuse_ray.config.files import config_from_tree, merge
from prunefuse_ray.distributed.resources import start_ray
from prunefuse_ray.run.loop import run
from prunefuse_ray.sweep.config import sweep_from_tree, trials
from prunefuse_ray.sweep.runner import in_order
from prunefuse_ray.sweep.sharing import inputs_keys

BAR_MB = 300
"""Of the driver's memory, beyond that of a run on a small pool."""
LENGTH = 16
"""Numbers of a vector."""
ROWS_PER_FILE = 10_000
TEST_ROWS = 1_000
SMALL = 10_000
"""Rows of the pool that the others are compared with."""
LABELS = (60, 120)
RECIPE = {"epochs": 1, "min_steps": 0, "batch_size": 1024, "warmup_epochs": 0, "augment": []}


def write_vectors(directory: Path, rows: int, first: int = 0) -> None:
    """Parquet files of (id, vector, label)."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(first)
    for start in range(first, first + rows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, first + rows - start)
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(rng.standard_normal(count * LENGTH, np.float32)), LENGTH
        )  # fmt: skip
        labels = pa.array(rng.integers(0, 2, count), pa.int64())
        ids = pa.array(range(start, start + count), pa.int64())
        pq.write_table(
            pa.table({"id": ids, "vector": vectors, "label": labels}), directory / f"{start:012d}.parquet"
        )  # fmt: skip


def write_images(directory: Path, files: int, seed: int = 0) -> None:
    """PNG files in two folders, hard links to a hundred of them: their contents are of no account here."""
    for name in ("cat", "dog"):
        (directory / name).mkdir(parents=True)
    rng, originals = np.random.default_rng(seed), directory.parent / f"{directory.name}-originals"
    originals.mkdir()
    for number in range(100):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(originals / f"{number}.png")
    for number in range(files):
        os.link(originals / f"{number % 100}.png", directory / ("cat", "dog")[number % 2] / f"{number:09d}.png")


def of_vectors(where: Path, name: str, **more: Any) -> dict[str, Any]:
    return merge(
        {
            "pool": {
                "source": "parquet",
                "path": str(where / name),
                "test_path": str(where / "test"),
                "vector_column": "vector",
                "classes": 2,
            },
            "network": {"architecture": "mlp"},
            "selection": {"strategy": "random", "budgets": list(LABELS)},
            "training": RECIPE,
            "finetuning": RECIPE,
            "report": {"baseline": False},
            "run": {"directory": str(where / "runs"), "name": name},
        },
        more,
    )


def of_images(where: Path, name: str) -> dict[str, Any]:
    path = {"source": "images", "path": str(where / name), "test_path": str(where / "test-images"), "classes": 2}
    return merge(
        {k: v for k, v in of_vectors(where, name).items() if k != "pool"},
        {"pool": {**path, "channels": 1}, "network": {"architecture": "resnet8"}},
    )


def _carry_out(tree: dict[str, Any]) -> dict[str, float]:
    start_ray()
    started = time.perf_counter()
    run(config_from_tree(tree))
    return {"seconds": time.perf_counter() - started, "mb": _held()}


def _list_trials(count: int) -> dict[str, float]:
    """What a sweep does before its first trial."""
    started = time.perf_counter()
    ratios = [round(0.2 + 0.6 * i / count, 6) for i in range(count)]
    found = trials(sweep_from_tree({"space": {"pruning.ratio": {"grid": ratios}}, "seeds": [0]}))
    in_order(found, {t.name: inputs_keys(t.config, {"rows": 1}) for t in found})
    assert len(found) == count
    return {"seconds": time.perf_counter() - started, "mb": _held()}


def _held() -> float:
    """The most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(function: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
    """In a process of its own, whose memory is that of this alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
        return one.submit(function, *args).result()


def figures_of(where: Path, *, rows: int, files: int, labels: int, sweep: int) -> dict[str, Any]:
    """Seconds and MiB by what there was much of, over a quarter, a half and the whole of it."""
    write_vectors(where / "test", TEST_ROWS, first=10**12)
    write_images(where / "test-images", 200, seed=1)
    write_vectors(where / "small", SMALL)
    small = apart(_carry_out, of_vectors(where, "small"))
    found: dict[str, Any] = {"small": small}
    parts = (4, 2, 1)
    for part in parts:
        name = f"rows-{rows // part}"
        write_vectors(where / name, rows // part)
        found[name] = apart(_carry_out, of_vectors(where, name, pool={"allow_growth": True}))
    write_vectors(where / name, rows // 100, first=rows)
    budgets = [*LABELS, LABELS[-1] + LABELS[0]]
    grown = of_vectors(where, name, pool={"allow_growth": True}, selection={"budgets": budgets})
    found["rows grown by 1 %"] = apart(_carry_out, grown)
    for part in parts:
        known = where / "known.csv"
        ids, classes = np.arange(labels // part), np.random.default_rng(0).integers(0, 2, labels // part)
        known.write_text("id,label\n" + "".join(f"{i},{c}\n" for i, c in zip(ids, classes, strict=True)))
        more = {"pool": {"known_labels": str(known)}, "selection": {"budgets": [labels // part + b for b in LABELS]}}
        tree = merge(of_vectors(where, name), {**more, "run": {"name": f"labels-{labels // part}"}})
        found[f"labels-{labels // part}"] = apart(_carry_out, tree)
    for part in parts:
        name = f"files-{files // part}"
        write_images(where / name, files // part)
        found[name] = apart(_carry_out, of_images(where, name))
    for part in parts:
        found[f"trials-{sweep // part}"] = apart(_list_trials, sweep // part)
    for name, one in found.items():
        one["over_small_mb"] = 0.0 if name.startswith("trials") else one["mb"] - small["mb"]
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py survey", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000, help="of a pool in Parquet files of 10,000")
    parser.add_argument("--files", type=int, default=1_000_000, help="of a pool of images in folders")
    parser.add_argument("--labels", type=int, default=1_000_000, help="known beforehand")
    parser.add_argument("--trials", type=int, default=2_000, help="of a sweep")
    parser.add_argument("--directory", help="parent of the temporary files (about 170 bytes a row)")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        found = figures_of(Path(directory), rows=given.rows, files=given.files, labels=given.labels, sweep=given.trials)
    lines = [
        (name, f"{one['seconds']:.1f} s, {one['over_small_mb']:+.0f} MiB", "" if name == "small" else f"{BAR_MB} MiB")
        for name, one in found.items()
    ]
    measure.report("runs that choose 60 and 60 samples at random; memory over that of the small pool", lines, found)
    return 0 if all(one["over_small_mb"] < BAR_MB for one in found.values()) else 1
