"""The form that the samples of a run are brought to: images or texts of one shape, uint8 up to the network."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray import config as cfg
from prunefuse_ray.data.contents import digests
from prunefuse_ray.data.images import ImageForm, sample_values
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.texts import NgramForm, TextForm, TokenForm, tokenizer_of
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.errors import ConfigError, LedgerError, Rejected
from prunefuse_ray.storage import Place, read_input, sealed, unsealed

Form: TypeAlias = ImageForm | TextForm | NgramForm | TokenForm | VectorForm

FORMS: dict[str, Any] = {
    "image": ImageForm, "text": TextForm, "ngrams": NgramForm, "tokens": TokenForm, "vector": VectorForm
}  # fmt: skip
"""By the name that a saved network has it under."""

KINDS = "; "
"""Between the kinds of conversion of one sample."""

PREPROCESSING_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"

FORMAT = 1


def form_of(pool: cfg.Pool, info: PoolInfo) -> Form:
    """The form that all samples of a run are brought to. ConfigError where its tokenizer cannot be read."""
    if pool.text_column is not None and pool.text_form == "tokens":
        if pool.tokenizer is None:
            raise ConfigError("pool.tokenizer is missing: text_form 'tokens' needs it; set it to a tokenizer.json")
        form = TokenForm(
            length=info.sample_size[0], tokenizer=tokenizer_of(tokenizer_file(pool.tokenizer), pool.tokenizer)
        )
        if form.length < form.fewest:
            raise ConfigError(
                f"pool.text_length: {form.length} tokens leave none for the text beside those that the tokenizer adds; "
                f"set it to {form.fewest} or more"
            )
        return form
    if pool.text_column is not None:
        return (NgramForm if pool.text_form == "ngrams" else TextForm)(length=info.sample_size[0])
    if pool.vector_column is not None:
        return VectorForm(length=info.sample_size[0])
    height, width = info.sample_size
    return ImageForm(
        height=height,
        width=width,
        channels=pool.channels,
        resize=pool.other_sizes == "resize",
        crop_ratio=pool.crop_ratio,
        max_pixels=pool.max_pixels,
        value_range=pool.value_range,
        mean=tuple(pool.mean) * (pool.channels if len(pool.mean) == 1 else 1),
        std=tuple(pool.std) * (pool.channels if len(pool.std) == 1 else 1),
    )


def tokenizer_file(path: str) -> bytes:
    """The content of a file, or of the `tokenizer.json` in a folder. ConfigError where it cannot be read."""
    return read_input("pool.tokenizer", path, TOKENIZER_FILE if Place.at(path).is_directory else None)


def random_samples(form: Form, count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Samples that mean nothing, (count, *form.shape)."""
    rng = np.random.default_rng(seed)
    if isinstance(form, TokenForm):
        return form.of_tokens(rng.integers(0, form.vocabulary, (count, form.length)))
    return rng.integers(0, 256, (count, *form.shape), np.uint8)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A column of decoded samples."""

    values_N: npt.NDArray[np.uint8]
    """(N, *form.shape); all zeros where a sample was rejected."""
    rejected: list[str | None]
    """Per sample, why it was rejected."""
    converted: list[str | None]
    """Per sample, what was converted, by kind."""
    digests: list[int | None]
    """Per sample, that of its content before it was decoded (`contents.digest`)."""
    encoded: bool = True
    """Whether decoding is work: not of tensors."""

    def __getitem__(self, wanted_N: npt.NDArray[np.bool_]) -> Decoded:
        return Decoded(
            values_N=self.values_N[wanted_N],
            rejected=list(itertools.compress(self.rejected, wanted_N)),
            converted=list(itertools.compress(self.converted, wanted_N)),
            digests=list(itertools.compress(self.digests, wanted_N)),
            encoded=self.encoded,
        )

    @classmethod
    def joined(cls, parts: Sequence[Decoded], shape: tuple[int, ...]) -> Decoded:
        """Some columns one after the other, of samples of this shape."""
        return Decoded(
            values_N=np.concatenate([np.zeros((0, *shape), np.uint8), *(part.values_N for part in parts)]),
            rejected=[why for part in parts for why in part.rejected],
            converted=[kinds for part in parts for kinds in part.converted],
            digests=[digest for part in parts for digest in part.digests],
            encoded=all(part.encoded for part in parts),
        )


def read_column(column: pa.ChunkedArray, form: Form) -> Decoded:
    """A column of samples, decoded."""
    decoded = np.zeros((len(column), *form.shape), dtype=np.uint8)
    rejected: list[str | None] = [None] * len(column)
    converted: list[str | None] = [None] * len(column)
    values = sample_values(column)
    for i, value in enumerate(values):
        try:
            decoded[i], kinds = form.read(value)
        except Rejected as reason:
            rejected[i] = str(reason)
        else:
            converted[i] = KINDS.join(kinds) or None
    return Decoded(
        values_N=decoded,
        rejected=rejected,
        converted=converted,
        digests=digests(values),
        encoded=all(value is None or isinstance(value, bytes | str) for value in values),
    )


def decode_column(column: pa.ChunkedArray, form: Form) -> tuple[npt.NDArray[np.uint8], list[str | None]]:
    """A column of samples as uint8 (N, *form.shape) and, per sample, the reason for its rejection (it is all zeros)."""
    found = read_column(column, form)
    return found.values_N, found.rejected


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a network expects of its samples and what its outputs mean: `preprocessing.json` beside its weights."""

    task: str
    """`tasks.TASKS`"""
    form: Form
    classes: list[str]
    units: dict[str, Any] | None = None
    """`Task.units` of the training."""


def preprocessing_to_bytes(told: Preprocessing) -> bytes:
    """The contents of PREPROCESSING_FILE."""
    kind = next(name for name, form in FORMS.items() if isinstance(told.form, form))
    tree = {"format": FORMAT, "task": told.task, "kind": kind, "classes": told.classes, "form": asdict(told.form)}
    tree |= {} if told.units is None else {"units": told.units}
    return sealed(tree)


def preprocessing_from_bytes(content: bytes) -> Preprocessing:
    """What `preprocessing_to_bytes` wrote. Raises LedgerError for anything else."""
    try:
        tree: dict[str, Any] = json.loads(content)
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']!r}")
        tree = unsealed(tree)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in tree["form"].items()}
        form: Form = FORMS[tree["kind"]](**fields)
        # The first version knew one task and did not name it.
        task = str(tree.get("task", "classification"))
        classes = [str(name) for name in tree["classes"]]
        return Preprocessing(task=task, form=form, classes=classes, units=tree.get("units"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"{PREPROCESSING_FILE}: not a description of format {FORMAT} ({error}); take it from the run again"
        ) from error
