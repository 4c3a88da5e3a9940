"""The embedded example: scikit-learn's digits, 8 x 8 gray images. A run writes them into its own directory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from prunefuse_ray import config as cfg
from prunefuse_ray.data.ids import id_digest
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.index import HEAD_ROWS, Index, label_counts
from prunefuse_ray.data.paths import Listing
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError

FILES = 4


class Digits(SourceReader):
    """Pool and test set come with scikit-learn: there is nothing to list, and nothing that could change."""

    directories = {"path": "pool", "test_path": "test"}  # noqa: RUF012 (read only)

    def settings(self, pool: cfg.Pool) -> list[str]:
        return [*self.directories]

    def unique_ids(self, pool: cfg.Pool) -> bool:
        return True

    def listing(self, samples: SampleSet) -> Listing:
        return Listing(roots=(), root_numbers=(), names=(), sizes=())

    def class_names(self, samples: SampleSet, listing: Listing) -> list[str]:
        return [str(n) for n in range(10)]

    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        if samples.task.label(0, classes) is None or samples.task.numbers:
            raise PoolError(
                f"task '{samples.task_name}': the labels of the embedded example are classes, one for a digit; name a "
                "pool of your own (pool.source, pool.path)"
            )
        if len(classes) != 10:
            raise PoolError(f"pool.classes: {len(classes)} names, but there are 10 digits; leave it out")
        pool, test = digits_tables()
        rows = pool if samples.setting == "path" else test
        labels = [samples.task.label(n, classes) for n in rows["label"].to_pylist()]
        rows = rows.set_column(2, "label", pa.array(labels, samples.task.label_type))
        step = -(-rows.num_rows // (FILES if samples.setting == "path" else 1))
        return Index(
            rows=rows.num_rows,
            bytes=sum(len(image) for image in rows["image"].to_pylist()),
            files=FILES,
            listing_digest="",
            id_digest=f"{id_digest(rows['id']):016x}",
            source=self.rows(samples),
            parts=[rows.slice(start, step) for start in range(0, rows.num_rows, step)],
            head=rows.slice(0, HEAD_ROWS),
            labels=label_counts(rows["label"], samples.task, len(classes)),
        )

    def rows(self, samples: SampleSet) -> Source:
        return Source(fs=pafs.LocalFileSystem(), files=(), sizes=(), label_column="label" if samples.labeled else None)


def digits_tables() -> tuple[pa.Table, pa.Table]:
    """scikit-learn's digits as (pool, test): 1,797 gray 8 x 8 images, every fifth of a fixed shuffle held out."""
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


DIGITS = Digits()
