"""Scenes of several digits: images whose label is the set of digits that are to be seen.

`python -m tests.support.scenes FOLDER` writes 1,500 for a pool and 600 for a test set.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from prunefuse_ray.data.images import encode_png

SIDE = 18


def scenes(samples: int, seed: int, *, test: bool = False) -> tuple[np.ndarray, list[list[int]]]:
    """(images uint8 (N, 18, 18), sets of digits): up to four of scikit-learn's digits on a grid of 2 x 2, a place empty
    in two of five cases, a pixel off; those of every fifth digit are kept for the test set. Faint noise keeps
    empty scenes apart."""
    rng, digits = np.random.default_rng(seed), load_digits()
    numbers = np.flatnonzero((np.arange(len(digits.target)) % 5 == 0) == test)
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images, sets = rng.integers(0, 16, (samples, SIDE, SIDE), np.uint8), []
    for image in images:
        there = set()
        for row in (0, 9):
            for column in (0, 9):
                if rng.random() < 0.6:
                    n = rng.choice(numbers)
                    y, x = row + rng.integers(2), column + rng.integers(2)
                    image[y : y + 8, x : x + 8] |= pixels[n]
                    there.add(int(digits.target[n]))
        sets.append(sorted(there))
    return images, sets


def write_scenes(where: Path, pool: int, test: int, seed: int = 0) -> None:
    """Parquet files (id, image, label) below `where`/pool and `where`/test; labels are lists of digits."""
    for part, samples in (("pool", pool), ("test", test)):
        images, sets = scenes(samples, seed + 1000 * (part == "test"), test=part == "test")
        (where / part).mkdir(parents=True)
        columns = {
            "id": [f"{part}-{n}" for n in range(samples)],
            "image": pa.array([encode_png(image) for image in images], pa.binary()),
            "label": pa.array(sets, pa.list_(pa.int64())),
        }
        pq.write_table(pa.table(columns), where / part / "scenes.parquet")


if __name__ == "__main__":
    write_scenes(Path(sys.argv[1]), 1500, 600)
