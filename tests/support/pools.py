"""Small pools for the tests."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import encode_png


def random_images(n: int, *, size: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    """n random images (n, size, size, channels), whose brightness tells their class (i mod 2)."""
    rng = np.random.default_rng(seed)
    base = np.where(np.arange(n) % 2, 170, 60)[:, None, None, None]
    return np.clip(base + rng.normal(0, 25, (n, size, size, channels)), 0, 255).astype(np.uint8)


def write_pool(directory, pixels, *, files: int = 1, first_id: int = 0, label=None, **columns) -> list[str]:
    """A Parquet pool of PNGs with ids s0000, s0001, ... and labels i mod 2; returns the ids."""
    directory.mkdir(parents=True, exist_ok=True)
    n = len(pixels)
    ids = [f"s{first_id + i:04d}" for i in range(n)]
    table = pa.table(
        {
            "id": columns.get("id", ids),
            "image": columns.get("image", pa.array([encode_png(p) for p in pixels], pa.binary())),
            "label": pa.array([i % 2 for i in range(n)] if label is None else label, pa.int64()),
        }
    )
    step = -(-n // files)
    for f in range(files):
        pq.write_table(table.slice(f * step, step), directory / f"part-{f}.parquet")
    return ids


def parquet_pool(tmp_path, **more) -> cfg.Pool:
    return cfg.Pool(
        source="parquet", path=str(tmp_path / "pool"), test_path=str(tmp_path / "test"), classes=2, channels=1, **more
    )


def rows(dataset) -> dict:
    table = pa.concat_tables(list(dataset.iter_batches(batch_format="pyarrow", batch_size=None)))
    return {r["id"]: r for r in table.to_pylist()}
