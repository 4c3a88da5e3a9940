"""`paper`: the paper's table for CIFAR-10 (Kousar, Bhatti, Moon 2026, arXiv 2603.26138) on a GPU, a part in each call.

ResNet-56, label budgets of 10 to 50 %, proxies of p = .5 and .8, the dense network that selects for itself, and random
selection. Networks, pruning, fusion, scores and recipe are the product's; the loops are bare ones that hold the data on
the device and need no Ray. Every round is recorded as it is done; the same call again goes on with the next one.
"""

from __future__ import annotations

import argparse
import copy
import glob
import io
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from prunefuse_ray import networks
from prunefuse_ray.benchmarks import bare
from prunefuse_ray.config.files import PRESETS, load_config
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.tasks.classification import CLASSIFICATION

PROTOCOL = load_config(PRESETS / "cifar10_resnet56.yaml")
RECIPE = PROTOCOL.training
"""The paper's, with falls of the rate to a tenth."""
FORM = ImageForm(height=32, width=32, channels=3, mean=tuple(PROTOCOL.pool.mean), std=tuple(PROTOCOL.pool.std))
ARMS: dict[str, tuple[float, str]] = {
    "PruneFuse, p = .5": (0.5, "least_confidence"),
    "PruneFuse, p = .8": (0.8, "least_confidence"),
    "the dense network selects": (0.0, "least_confidence"),
    "random": (0.0, "random"),
}
"""Pruning ratio and strategy; ratio 0: no proxy, and no fusion."""
RECALIBRATION = 5_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    budgets: tuple[int, ...] = tuple(PROTOCOL.selection.budgets)
    epochs: int = 30
    architecture: str = PROTOCOL.network.architecture
    seconds: float = 450.0
    """After which no further round is begun."""

    @property
    def recipe(self) -> Recipe:
        """The paper's, in fewer epochs."""
        scaled = dict.fromkeys(max(1, round(self.epochs * at / RECIPE.epochs)) for at in RECIPE.milestones)
        fewer = {
            "epochs": self.epochs,
            "min_steps": 0,
            "warmup_epochs": min(RECIPE.warmup_epochs, self.epochs / 4),
            "milestones": [at for at in scaled if at < self.epochs],
        }
        return RECIPE.model_copy(update=fewer)


@dataclass(frozen=True)
class Data:
    """Samples on the device, as `bare.train` takes them."""

    values_N: torch.Tensor
    labels_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def part(self, rows: Sequence[int]) -> Data:
        index = torch.as_tensor(rows, device=self.labels_N.device)
        return Data(self.values_N[index], self.labels_N[index])


def load(pattern: str, device: torch.device) -> Data:
    """Parquet files with the columns `image` (or `img`; encoded, or Hugging Face's struct of bytes) and `label`."""
    pixels, labels = [], list[int]()
    if not (files := sorted(glob.glob(pattern))):
        raise FileNotFoundError(f"--pool, --test: no file is called {pattern}")
    for file in files:
        table = pq.read_table(file)
        column = "image" if "image" in table.column_names else "img"
        for value in table[column].to_pylist():
            encoded = value["bytes"] if isinstance(value, dict) else value
            with Image.open(io.BytesIO(encoded)) as image:
                pixels.append(np.asarray(image.convert("RGB")))
        labels += table["label"].to_pylist()
    return Data(torch.from_numpy(np.stack(pixels)).to(device), torch.tensor(labels).to(device))


def rounds(pool: Data, test: Data, plan: Plan, arm: str, seed: int, done: list[dict[str, Any]]) -> Iterator[dict]:
    """The rounds of an arm that are not done yet. Each names what it would ask for next, so that its records are all
    that the following ones need."""
    ratio, strategy = ARMS[arm]
    classes = int(pool.labels_N.max()) + 1
    spec = networks.NetworkSpec(architecture=plan.architecture, classes=classes, input_shape=FORM.network_shape)
    device = pool.values_N.device
    dense = networks.build(spec, seed=seed)
    proxy = (
        networks.prune(dense, spec, networks.PruningSpec(ratio=ratio, steps=PROTOCOL.pruning.steps)) if ratio else None
    )
    order = np.random.default_rng(seed).permutation(len(pool))  # of all arms of a seed
    labeled: list[int] = done[-1]["labeled"] + done[-1]["next"] if done else order[: plan.budgets[0]].tolist()
    for number in range(len(done), len(plan.budgets)):
        samples = pool.part(labeled)
        selector = copy.deepcopy(dense if proxy is None else proxy.network).to(device)
        torch.manual_seed(seed)
        accuracy = bare.train(selector, samples, test, FORM, plan.recipe)
        record: dict[str, Any] = {"arm": arm, "seed": seed, "labels": len(labeled), "selector": accuracy}
        more = plan.budgets[number + 1] - len(labeled) if number + 1 < len(plan.budgets) else 0
        rest = np.setdiff1d(np.arange(len(pool)), labeled)
        if strategy == "random":
            chosen = order[~np.isin(order, labeled)][:more].tolist()
        else:
            scores = scored(selector, pool, rest, strategy) if more else np.zeros(len(rest))
            chosen = rest[np.lexsort((rest, -scores))[:more]].tolist()
        if proxy is not None:
            fused = networks.fuse(dense, replace(proxy, network=selector.cpu()), "keep").to(device)
            few = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:RECALIBRATION]
            parts = few.split(500)
            networks.recalibrate_batch_norm(fused, (FORM.inputs(samples.part(p.tolist()).values_N) for p in parts))
            accuracy = bare.train(fused, samples, test, FORM, plan.recipe)
        yield record | {"accuracy": accuracy, "labeled": labeled, "next": chosen}
        labeled = labeled + chosen


@torch.inference_mode()
def scored(network: torch.nn.Module, pool: Data, rows: np.ndarray, strategy: str) -> np.ndarray:
    """Scores of these samples of the pool."""
    model, found = networks.inference_form(network), []
    score = CLASSIFICATION.strategies[strategy].score
    assert score is not None
    for part in np.array_split(rows, max(1, len(rows) // 512)):
        logits = model(FORM.inputs(pool.part(part.tolist()).values_N)).float().cpu().numpy()
        found.append(score(CLASSIFICATION.probabilities(logits)))
    return np.concatenate(found)


def table(records: Sequence[dict[str, Any]], plan: Plan) -> str:
    """Test accuracies, mean ± standard deviation over the seeds that are done, as Markdown."""
    heads = [f"{budget:,} labels" for budget in plan.budgets]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm in ARMS:
        cells = []
        for budget in plan.budgets:
            values = [100 * r["accuracy"] for r in records if r["arm"] == arm and r["labels"] == budget]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread} ({len(values)})" if values else "")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(pool: Data, test: Data, plan: Plan, seeds: Sequence[int], file: Path) -> list[dict[str, Any]]:
    """Go on where `file` ends, seed by seed, until the time is over; every round is written as it is done.

    Raises:
        ValueError: the file is of another plan.
    """
    kind = {"epochs": plan.epochs, "budgets": list(plan.budgets), "architecture": plan.architecture}
    fresh: dict[str, Any] = {"plan": kind, "rounds": []}
    tree = json.loads(file.read_text(encoding="utf-8")) if file.exists() else fresh
    if tree["plan"] != kind:
        raise ValueError(f"--out {file}: it was made with {tree['plan']}, not {kind}; name another file")
    started, longest = time.monotonic(), 0.0
    for seed in seeds:
        for arm in ARMS:
            done = [r for r in tree["rounds"] if (r["arm"], r["seed"]) == (arm, seed)]
            since = time.monotonic()
            for record in rounds(pool, test, plan, arm, seed, done):
                tree["rounds"].append(record)
                part = file.with_suffix(".part")
                part.write_text(json.dumps(tree), encoding="utf-8")
                os.replace(part, file)
                longest, since = max(longest, time.monotonic() - since), time.monotonic()
                if since - started + longest > plan.seconds:
                    return tree["rounds"]
    return tree["rounds"]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py paper", description=__doc__)
    parser.add_argument("--pool", required=True, help="CIFAR-10's training images: a pattern of Parquet files")
    parser.add_argument("--test", required=True, help="its test images")
    parser.add_argument("--out", default="paper.json", help="the file that the calls fill")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30, help=f"of every training; the paper's are {RECIPE.epochs}")
    parser.add_argument("--seconds", type=float, default=450.0, help="after which no further round is begun")
    parser.add_argument("--dry-run", action="store_true", help="two budgets, two epochs, a small network")
    given = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(epochs=given.epochs, seconds=given.seconds)
    if given.dry_run:
        plan = Plan(budgets=(40, 80), epochs=2, architecture="resnet8", seconds=given.seconds)
    found = run(load(given.pool, device), load(given.test, device), plan, given.seeds, Path(given.out))
    where = torch.cuda.get_device_name() if device.type == "cuda" else "this CPU"
    print(f"CIFAR-10, {plan.architecture}, {plan.epochs} epochs, on {where}: test accuracy (seeds)\n")
    print(table(found, plan))
    print(json.dumps({"rounds": len(found), "wanted": len(ARMS) * len(plan.budgets) * len(given.seeds)}), flush=True)
    return 0
