"""Scenes of digits with a class for every pixel: nothing, or one of the ten digits.

`python -m tests.support.masks FOLDER` writes 1,000 for a pool and 300 for a test set.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from prunefuse_ray.data.images import encode_png

SIDE, DIGIT = 32, 14
CLASSES = ["nothing", *map(str, range(10))]


def scenes_with_masks(samples: int, seed: int, *, test: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (N, 32, 32), masks uint8 (N, 32, 32)): up to four of scikit-learn's digits, scaled and of any
    brightness, on a grid of 2 x 2, a place empty in a third of the cases, over smooth noise; those of every fifth digit
    are kept for the test set. The class of a pixel is 1 plus the digit, where its stroke is at least half as bright as
    can be; 0 elsewhere."""
    rng, digits = np.random.default_rng(seed), load_digits()
    numbers = np.flatnonzero((np.arange(len(digits.target)) % 5 == 0) == test)
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    coarse = rng.integers(0, 120, (samples, 8, 8), np.uint8)
    images = np.stack([np.asarray(Image.fromarray(c).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for c in coarse])
    masks = np.zeros_like(images)
    for image, mask in zip(images, masks, strict=True):
        for row in (0, 16):
            for column in (0, 16):
                if rng.random() < 2 / 3:
                    n = rng.choice(numbers)
                    y, x = row + rng.integers(3), column + rng.integers(3)
                    digit = Image.fromarray(pixels[n]).resize((DIGIT, DIGIT), Image.Resampling.BILINEAR)
                    stroke = np.asarray(digit).astype(float) / 255
                    part = np.s_[y : y + DIGIT, x : x + DIGIT]
                    light = rng.uniform(150, 255)
                    image[part] = (image[part] * (1 - stroke) + light * stroke).astype(np.uint8)
                    mask[part][stroke >= 0.5] = 1 + digits.target[n]
    return images, masks


def write_masks(where: Path, pool: int, test: int, seed: int = 0) -> None:
    """Parquet files (id, image, mask) below `where`/pool and `where`/test."""
    for part, samples in (("pool", pool), ("test", test)):
        images, masks = scenes_with_masks(samples, seed + 1000 * (part == "test"), test=part == "test")
        (where / part).mkdir(parents=True)
        columns = {
            "id": [f"{part}-{n}" for n in range(samples)],
            "image": pa.array([encode_png(image) for image in images], pa.binary()),
            "mask": pa.array([encode_png(mask) for mask in masks], pa.binary()),
        }
        pq.write_table(pa.table(columns), where / part / "scenes.parquet")


if __name__ == "__main__":
    write_masks(Path(sys.argv[1]), 1000, 300)
