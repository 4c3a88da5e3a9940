"""`sharing`: a sweep on photographs, whose trials share what they can, against the same trials as runs of their own."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

from prunefuse_ray.benchmarks import measure
from prunefuse_ray.benchmarks.photographs import photograph
from prunefuse_ray.distributed.machine import cores

BAR = 0.5


@dataclass(frozen=True, kw_only=True)
class Sizes:
    rows: int
    tests: int = 100
    width: int = 500
    height: int = 375
    input: int = 64
    architecture: str = "resnet20"
    ratios: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8)
    budgets: tuple[tuple[int, ...], ...] = ((40, 80), (40, 80, 120))


def write(directory: Path, rows: int, sizes: Sizes) -> None:
    """A folder of photographs with one of classes for each of scikit-learn's two."""
    rng = np.random.default_rng(rows)
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        (directory / name).mkdir(parents=True)
        for number in range(rows // 2):
            jpeg = photograph(rng, [Image.fromarray(pixels)], sizes.width, sizes.height)
            (directory / name / f"{number:06d}.jpg").write_bytes(jpeg)


def base(directory: Path, sizes: Sizes) -> dict[str, Any]:
    """What all trials have in common. Networks are trained on a few passes over few labels."""
    recipe = {"epochs": 5, "min_steps": 0, "batch_size": 32, "lr": 0.05, "augment": ["crop", "flip"]}
    return {
        "pool": {
            "source": "images",
            "path": str(directory / "pool"),
            "test_path": str(directory / "test"),
            "image_size": [sizes.input, sizes.input],
        },
        "network": {"architecture": sizes.architecture},
        "selection": {"strategy": "margin"},
        "training": recipe,
        "finetuning": recipe,
        "report": {"baseline": False},
    }


def prunefuse(*words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "prunefuse_ray", *words],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def sweep(directory: Path, root: Path, sizes: Sizes) -> None:
    tree = {
        "base": {**base(directory, sizes), "run": {"name": "sharing", "directory": str(root)}},
        "space": {
            "pruning.ratio": {"grid": list(sizes.ratios)},
            "selection.budgets": {"grid": [list(budgets) for budgets in sizes.budgets]},
        },
        "seeds": [0],
    }
    file = directory / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    prunefuse("sweep", "--config", str(file))


def apart(directory: Path, root: Path, sizes: Sizes) -> None:
    """The same trials, as many at a time, each in a directory of its own, so that nothing is shared."""

    def one(numbered: tuple[int, tuple[float, tuple[int, ...]]]) -> None:
        number, (ratio, budgets) = numbered
        tree = base(directory, sizes)
        tree["run"] = {"name": "alone", "directory": str(root / str(number))}
        tree["pruning"] = {"ratio": ratio}
        tree["selection"] = {**tree["selection"], "budgets": list(budgets)}
        file = directory / f"alone-{number}.yaml"
        file.write_text(yaml.safe_dump(tree))
        prunefuse("run", "--config", str(file))

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(one, enumerate(itertools.product(sizes.ratios, sizes.budgets))))


def run(directory: Path, sizes: Sizes, repeats: int) -> dict[str, Any]:
    write(directory / "pool", sizes.rows, sizes)
    write(directory / "test", sizes.tests, sizes)
    number = itertools.count()
    seconds = measure.side_by_side(
        {
            "sweep": lambda: sweep(directory, directory / f"swept-{next(number)}", sizes),
            "apart": lambda: apart(directory, directory / f"apart-{next(number)}", sizes),
        },
        repeats,
    )
    return {
        "rows": sizes.rows,
        "trials": len(sizes.ratios) * len(sizes.budgets),
        "at_a_time": cores(),
        "seconds": seconds,
        "sweep_over_apart": measure.ratio(seconds, "sweep", "apart"),
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py sharing", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--directory", help="parent of the temporary files")
    given = parser.parse_args(argv)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        figures = run(Path(directory), Sizes(rows=given.rows), given.repeats)
    figures["benchmark_seconds"] = time.perf_counter() - started
    lines = [(name, measure.spread_of(taken), "") for name, taken in figures["seconds"].items()]
    lines += [("sweep_over_apart", f"{figures['sweep_over_apart']:.2f}", f"<= {BAR:g}")]
    title = f"{figures['trials']} trials on {given.rows:,} photographs, {figures['at_a_time']} at a time"
    measure.report(title, lines, figures)
    return 0
