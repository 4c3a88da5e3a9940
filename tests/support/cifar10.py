"""Harder pools made of CIFAR-10's training files: a long tail, or ten near copies of every image.

`python -m tests.support.cifar10 long-tail FILES FOLDER --factor 50`, `... redundant FILES FOLDER`. FILES is a pattern
of Parquet files (id, image as PNG bytes, label); the result is FOLDER/pool.parquet of the same columns.
"""

import argparse
import glob
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from prunefuse_ray.data.images import encode_png

CLASSES = 10
COPIES = 10


def long_tail(samples: pa.Table, factor: float) -> pa.Table:
    """So many of each class that class 0 has all of its samples and class 9 one in `factor`, geometrically between (Cui
    et al. 2019, section 5.1); which ones, the order in the files decides."""
    kept = []
    for label in range(CLASSES):
        mine = samples.filter(pc.equal(samples["label"], label))
        kept.append(mine.slice(0, round(mine.num_rows * factor ** (-label / (CLASSES - 1)))))
    return pa.concat_tables(kept).combine_chunks()


def redundant(samples: pa.Table, originals: int, seed: int = 0) -> pa.Table:
    """COPIES of each of the first `originals`: shifted by up to two pixels, a little brighter or darker, with faint
    noise."""
    rng, rows = np.random.default_rng(seed), []
    for row in samples.slice(0, originals).to_pylist():
        image = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"), np.float32)
        for copy in range(COPIES):
            y, x = rng.integers(0, 5, 2)
            moved = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")[y : y + 32, x : x + 32]
            changed = moved * rng.uniform(0.9, 1.1) + rng.normal(0, 3, moved.shape)
            png = encode_png(np.clip(changed, 0, 255).astype(np.uint8))
            rows.append({"id": f"{row['id']}-{copy}", "image": png, "label": row["label"]})
    return pa.Table.from_pylist(rows, samples.schema)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["long-tail", "redundant"])
    parser.add_argument("files")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--factor", type=float, default=50)
    parser.add_argument("--originals", type=int, default=5_000)
    given = parser.parse_args()
    files = sorted(glob.glob(given.files))
    samples = pa.concat_tables(pq.read_table(file, columns=["id", "image", "label"]) for file in files)
    kinds = {
        "long-tail": lambda: long_tail(samples, given.factor),
        "redundant": lambda: redundant(samples, given.originals),
    }
    made = kinds[given.kind]()
    given.folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, given.folder / "pool.parquet", row_group_size=5_000)
    print(f"{made.num_rows:,} samples: {given.folder}/pool.parquet")


if __name__ == "__main__":
    main()
