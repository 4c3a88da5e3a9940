"""The form that the samples of a run are brought to: images or texts of one shape, uint8 up to the network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import ImageForm, sample_values
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.texts import TextForm
from prunefuse_ray.errors import LedgerError, Rejected

Form: TypeAlias = ImageForm | TextForm

PREPROCESSING_FILE = "preprocessing.json"

FORMAT = 1


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


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a network expects of its samples and what its outputs mean: `preprocessing.json` beside its weights."""

    task: str
    """`tasks.TASKS`"""
    form: Form
    classes: list[str]


def preprocessing_to_bytes(told: Preprocessing) -> bytes:
    """The contents of PREPROCESSING_FILE."""
    kind = "image" if isinstance(told.form, ImageForm) else "text"
    tree = {"format": FORMAT, "task": told.task, "kind": kind, "classes": told.classes, "form": asdict(told.form)}
    return (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode()


def preprocessing_from_bytes(content: bytes) -> Preprocessing:
    """What `preprocessing_to_bytes` wrote. Raises LedgerError for anything else."""
    try:
        tree: dict[str, Any] = json.loads(content)
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']!r}")
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in tree["form"].items()}
        form: Form = {"image": ImageForm, "text": TextForm}[tree["kind"]](**fields)
        # The first version knew one task and did not name it.
        task = str(tree.get("task", "classification"))
        return Preprocessing(task=task, form=form, classes=[str(name) for name in tree["classes"]])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"{PREPROCESSING_FILE}: not a description of format {FORMAT} ({error}); take it from the run again"
        ) from error
