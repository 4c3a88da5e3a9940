"""Turned digits: images whose label is the angle, in degrees, by which a digit was turned.

`python -m tests.support.angles FOLDER` writes 2,000 for a pool and 600 for a test set.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from prunefuse_ray.data.images import encode_png

SIDE, MOST = 20, 75.0


def turned(samples: int, seed: int, *, test: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (N, 20, 20), angles (N,) within 75 degrees either way): scikit-learn's digits, scaled twice and
    turned, a pixel off, under faint noise; every fifth digit is kept for the test set."""
    rng, digits = np.random.default_rng(seed), load_digits()
    numbers = np.flatnonzero((np.arange(len(digits.target)) % 5 == 0) == test)
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = rng.integers(0, 16, (samples, SIDE, SIDE), np.uint8)
    angles = np.round(rng.uniform(-MOST, MOST, samples), 1)
    for image, angle in zip(images, angles, strict=True):
        whole = Image.new("L", (SIDE, SIDE))
        digit = Image.fromarray(pixels[rng.choice(numbers)]).resize((16, 16), Image.Resampling.BILINEAR)
        whole.paste(digit, tuple(rng.integers(1, 4, 2).tolist()))
        image |= np.asarray(whole.rotate(angle, Image.Resampling.BILINEAR))
    return images, angles


def write_angles(where: Path, pool: int, test: int, seed: int = 0) -> None:
    """Parquet files (id, image, angle) below `where`/pool and `where`/test."""
    for part, samples in (("pool", pool), ("test", test)):
        images, angles = turned(samples, seed + 1000 * (part == "test"), test=part == "test")
        (where / part).mkdir(parents=True)
        columns = {
            "id": [f"{part}-{n}" for n in range(samples)],
            "image": pa.array([encode_png(image) for image in images], pa.binary()),
            "angle": angles,
        }
        pq.write_table(pa.table(columns), where / part / "angles.parquet")


if __name__ == "__main__":
    write_angles(Path(sys.argv[1]), 2000, 600)
