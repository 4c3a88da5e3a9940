"""The code blocks of the documents, and the folders that they speak of."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from prunefuse_ray.data.images import encode_png
from tests.support import ROOT
from tests.support.diabetes import write_diabetes
from tests.support.masks import scenes_with_masks
from tests.support.pools import random_images, write_pool
from tests.support.scenes import write_scenes

GENERATED = {"commands.md", "python.md", "configuration.md"}
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Code between fences."""

    page: str
    """README.md, or a path below docs/."""
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Of the file that it is, by a first line like `# birds.yaml`; '' where it has none."""
        found = re.match(r"# (\S+\.\w+)\n", self.text)
        return found[1] if found else ""

    @property
    def commands(self) -> list[str]:
        """Its lines as a shell reads them: continued lines joined, without remarks."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := line.partition(" # ")[0].strip())]


def blocks() -> list[Block]:
    found = []
    generated = {ROOT / "docs" / "reference" / name for name in GENERATED}
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if path in generated:
            continue
        text = path.read_text(encoding="utf-8")
        page = path.relative_to(ROOT / "docs" if path.is_relative_to(ROOT / "docs") else ROOT).as_posix()
        found += [
            Block(page=page, line=text.count("\n", 0, m.start()) + 1, language=m[2], text=m[3])
            for m in BLOCK.finditer(text)
        ]
    return found


# --- the folders that the pages speak of ----------------------------------------------------------------------------


def photographs(folder: Path, names: list[str], size: int = 64, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(names, random_images(len(names), size=size, channels=3, seed=seed), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name, quality=88)


def labeled(folder: Path, each: int, seed: int) -> None:
    photographs(folder, [f"{c}/{n:04d}.jpg" for n in range(each) for c in ("cat", "dog")], seed=seed)


def flats(where: Path) -> None:
    write_diabetes(where)
    for old, new in (("pool", "flats"), ("test", "flats-test")):
        text = (where / f"{old}.csv").read_text().replace("progression", "price")
        (where / f"{new}.csv").write_text(text)


def street(where: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 20)):
        images, masks = scenes_with_masks(count, seed=count)
        for folder in ("images", "masks"):
            (where / "street" / part / folder).mkdir(parents=True)
        for n, (image, mask) in enumerate(zip(images, masks, strict=True)):
            colors = np.repeat(image[..., None], 3, 2) // rng.integers(1, 3, 3, np.uint8)
            Image.fromarray(colors.astype(np.uint8)).resize((64, 64)).save(where / f"street/{part}/images/{n}.jpg")
            classes = Image.fromarray(np.minimum(mask, 3)).resize((64, 64), Image.Resampling.NEAREST)
            (where / f"street/{part}/masks/{n}.png").write_bytes(encode_png(np.asarray(classes)))


def scenes(where: Path) -> None:
    write_scenes(where / "s", 80, 30)
    (where / "scenes").mkdir()
    for old, new in (("pool", "scenes/a.parquet"), ("test", "test.parquet")):
        table = pq.read_table(where / "s" / old)
        labels = [[digit for digit in row if digit < 3] for row in table["label"].to_pylist()]
        pq.write_table(table.set_column(2, "label", pa.array(labels, pa.list_(pa.int64()))), where / new)


def reviews(where: Path) -> None:
    (where / "reviews").mkdir()
    words = {"negative": "bad dull awful boring weak", "positive": "good bright lovely clever strong"}
    for name, count in (("reviews/a.csv", 120), ("test.csv", 40)):
        rng = np.random.default_rng(count)
        with (where / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "label"])
            for n in range(count):
                label = ("negative", "positive")[n % 2]
                text = " ".join(rng.choice([*words[label].split(), "the", "film", "is", "and", "a", "plot"], 30))
                writer.writerow([f"{name[:4]}{n}", text, label])


def embeddings(where: Path) -> None:
    (where / "embeddings").mkdir()
    for name, count in (("embeddings/a.parquet", 200), ("test.parquet", 60)):
        rng = np.random.default_rng(count)
        labels = np.arange(count) % 10
        vectors = (np.eye(10)[labels] * 3 + rng.normal(size=(count, 10))).astype(np.float32)
        pq.write_table(
            pa.table({"id": [f"{name}-{n}" for n in range(count)], "embedding": list(vectors), "label": labels}),
            where / name,
        )


def photos(where: Path) -> None:
    photographs(where / "photos", [f"{n:04d}.jpg" for n in range(400)])
    labeled(where / "photos-test", 20, seed=1)
    photographs(where, ["image.png", "street.jpg"], seed=2)


def birds(where: Path) -> None:
    photos(where)
    photographs(where / "birds/pool", [f"{n:04d}.jpg" for n in range(900)])
    labeled(where / "birds/test", 20, seed=1)


def pools(where: Path) -> None:
    photographs(where / "photos/unlabeled", [f"{n:04d}.jpg" for n in range(60)])
    labeled(where / "photos/test", 10, seed=1)


def images(where: Path) -> None:
    photographs(where, ["image.png", "street.jpg"])


def python(where: Path) -> None:
    """What the block on a network of one's own takes as given, and a configuration."""
    (where / "given.py").write_text(
        "import torch\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),\n"
        "                            torch.nn.Flatten(), torch.nn.Linear(16, 2))\n"
        "images = torch.randn(300, 1, 8, 8)\n"
        "labeled = torch.utils.data.TensorDataset(images[:50], torch.arange(50) % 2)\n"
        "unlabeled = torch.utils.data.TensorDataset(images[50:])\n"
        "def train(network, data):\n"
        "    optimizer = torch.optim.SGD(network.parameters(), lr=.1)\n"
        "    for x, y in torch.utils.data.DataLoader(data, 10):\n"
        "        optimizer.zero_grad()\n"
        "        torch.nn.functional.cross_entropy(network(x), y).backward()\n"
        "        optimizer.step()\n"
    )
    write_pool(where / "pool", random_images(80))
    write_pool(where / "test", random_images(40, seed=1), first_id=900)
    (where / "my.yaml").write_text(
        "pool: {source: parquet, path: pool, test_path: test, classes: 2, channels: 1}\n"
        "network: {architecture: resnet8}\nselection: {budgets: [10, 20]}\n"
        "training: {epochs: 1, min_steps: 0, warmup_epochs: 0, augment: []}\n"
        "finetuning: {epochs: 1, min_steps: 0, warmup_epochs: 0, augment: []}\n"
    )


FOLDERS: dict[str, Callable[[Path], None]] = {
    "getting-started.md": birds, "how-to/labels.md": photos, "how-to/pools.md": pools, "how-to/results.md": images,
    "how-to/python.md": python, "scenes": scenes, "flats": flats, "street": street, "reviews": reviews,
    "embeddings": embeddings,
}  # fmt: skip
