"""The embedded example: scikit-learn's digits as a Parquet pool."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from prunefuse_ray.data.images import encode_png
from prunefuse_ray.storage import Place


def digits_tables() -> tuple[pa.Table, pa.Table]:
    """scikit-learn's digits as (pool, test): 1,797 grey 8 x 8 images, every fifth of a fixed shuffle held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(order)) % 5 == 0

    def table(rows: np.ndarray) -> pa.Table:
        return pa.table(
            {
                "id": pa.array([f"digit-{i:04d}" for i in rows], pa.string()),
                "image": pa.array([encode_png(pixels[i]) for i in rows], pa.binary()),
                "label": pa.array(digits.target[rows], pa.int64()),
            }
        )

    return table(order[~held_out]), table(order[held_out])


def write_digits(where: Place) -> None:
    """Write the embedded example as a Parquet pool of four files and a test set of one."""
    pool, test = digits_tables()
    quarter = -(-pool.num_rows // 4)
    for n in range(4):
        (where / "pool" / f"digits-{n}.parquet").write_table(pool.slice(n * quarter, quarter))
    (where / "test" / "digits.parquet").write_table(test)
