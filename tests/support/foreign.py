"""How well `selection.hold_back` tells samples that belong to no class.

    python -m tests.support.foreign 'cifar10/train-*.parquet' FOLDER [--seed 0] [--labels 1000]

A proxy (ResNet-20, p = .5) learns eight classes of CIFAR-10. Foreign to it are samples of the other two, photographs
below FOLDER, and digits. Prints JSON: the area under the curve (AUROC) by which the distance to the nearest labeled
sample tells each of them from the pool's own, and the shares that values of `hold_back` hold back; with features as
they are and at unit length, and what is usual told by the labels that were learned or by held-out ones.
"""

import argparse
import glob
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

import prunefuse_ray
from prunefuse_ray import networks
from prunefuse_ray.selection.hold_back import USUAL

CLASSES, OTHERS, POOL, EPOCHS, BATCH = 8, 1_000, 5_000, 40, 64
TIMES = (0.8, 1.0, 1.25, 1.5, 2.0)
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


def inputs(images: list[Image.Image]) -> torch.Tensor:
    pixels_NHWC = np.stack([np.asarray(image.convert("RGB").resize((32, 32))) for image in images])
    return ((torch.from_numpy(pixels_NHWC).float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def cifar10(samples: pa.Table, rows: np.ndarray) -> torch.Tensor:
    return inputs([Image.open(io.BytesIO(data)) for data in samples["image"].take(rows).to_pylist()])


def train(network: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int) -> None:
    steps, chance = EPOCHS * -(-len(x) // BATCH), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=chance).split(BATCH):
            top, left = torch.randint(0, 9, (2,), generator=chance).tolist()
            batch = functional.pad(x[rows], (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]
            batch = batch.flip(3) if torch.rand((), generator=chance) < 0.5 else batch
            optimizer.zero_grad()
            functional.cross_entropy(network(batch), y[rows], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.inference_mode()
def features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    *_, head = (m for m in network.modules() if isinstance(m, nn.Linear))
    hook = head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    for batch in x.split(500):
        network(batch)
    hook.remove()
    return torch.cat(found)


def nearest(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    distances = torch.cdist(a, b)
    return (distances.fill_diagonal_(torch.inf) if a is b else distances).min(1).values.numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files")
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", type=int, default=1_000)
    given = parser.parse_args()
    samples = pa.concat_tables(pq.read_table(f, columns=["image", "label"]) for f in sorted(glob.glob(given.files)))
    y = samples["label"].to_numpy()
    order = np.random.default_rng(given.seed).permutation(len(y))
    own, others = order[y[order] < CLASSES], order[y[order] >= CLASSES][:OTHERS]
    labeled, unlearned, pool = np.split(
        own[: given.labels + given.labels // 5 + POOL], [given.labels, given.labels * 6 // 5]
    )
    dense = networks.build(
        networks.NetworkSpec(architecture="resnet20", classes=CLASSES, input_shape=(3, 32, 32)), seed=given.seed
    )
    proxy = prunefuse_ray.prune(dense, torch.zeros(1, 3, 32, 32), ratio=0.5).network
    train(proxy, cifar10(samples, labeled), torch.from_numpy(y[labeled]).long(), given.seed)
    photographs = [Image.open(path) for path in sorted(given.photographs.rglob("*.jpg"))[:500]]
    digits = [Image.fromarray((16 * image).clip(0, 255).astype(np.uint8)) for image in load_digits().images[:500]]
    raw = {
        "labeled": features(proxy, cifar10(samples, labeled)),
        "unlearned": features(proxy, cifar10(samples, unlearned)),
        "pool": features(proxy, cifar10(samples, pool)),
        "other classes": features(proxy, cifar10(samples, others)),
        "photographs": features(proxy, inputs(photographs)),
        "digits": features(proxy, inputs(digits)),
    }
    told = {"seed": given.seed, "labels": given.labels}
    for kind, found in (("raw", raw), ("unit", {k: functional.normalize(v) for k, v in raw.items()})):
        far = {name: nearest(v, found["labeled"]) for name, v in found.items()}
        own_and = {name: np.r_[far["pool"], far[name]] for name in ("other classes", "photographs", "digits")}
        told[kind] = {
            "auroc": {n: round(roc_auc_score(np.arange(len(d)) >= len(pool), d), 3) for n, d in own_and.items()},
            **{
                f"held back, usual by {by}": {
                    str(times): {
                        name: round(float((far[name] > times * np.quantile(far[by], USUAL)).mean()), 3)
                        for name in ("pool", *own_and)
                    }
                    for times in TIMES
                }
                for by in ("labeled", "unlearned")
            },
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
