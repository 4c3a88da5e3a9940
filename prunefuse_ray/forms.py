"""The form that the samples of a run are brought to: pictures or texts of one shape, uint8 up to the network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray import config as cfg
from prunefuse_ray.errors import Rejected
from prunefuse_ray.images import ImageForm, sample_values
from prunefuse_ray.pool import PoolInfo
from prunefuse_ray.preprocessing import Form
from prunefuse_ray.texts import TextForm

__all__ = ["Form", "decode_column", "form_of"]


def form_of(pool: cfg.Pool, info: PoolInfo) -> Form:
    """The form that all samples of a run are brought to."""
    if pool.text_column is not None:
        return TextForm(length=info.sample_size[0])
    height, width = info.sample_size
    return ImageForm(
        height=height,
        width=width,
        channels=pool.channels,
        resize=pool.other_sizes == "resize",
        crop_ratio=pool.crop_ratio,
        max_pixels=pool.max_pixels,
        mean=tuple(pool.mean) * (pool.channels if len(pool.mean) == 1 else 1),
        std=tuple(pool.std) * (pool.channels if len(pool.std) == 1 else 1),
    )


def decode_column(column: pa.ChunkedArray, form: Form) -> tuple[npt.NDArray[np.uint8], list[str | None]]:
    """A column of samples as uint8 (N, *form.shape) and, per sample, the reason for its rejection (it is all zeros)."""
    decoded = np.zeros((len(column), *form.shape), dtype=np.uint8)
    reasons: list[str | None] = [None] * len(column)
    for i, value in enumerate(sample_values(column)):
        try:
            decoded[i] = form.decode(value)
        except Rejected as rejected:
            reasons[i] = str(rejected)
    return decoded, reasons
