"""Semantic segmentation: a class for every pixel.

A label is a mask, the bytes of a PNG file whose values (gray or palette) are class numbers, 255 where nobody can tell.
COCO's run lengths and polygons (`coco.py`) become such a file where they are read.
Networks learn it at the size of their input, scaled and cropped as its image is; outputs are logits (N, C, H, W).
"""

from __future__ import annotations

import base64
import binascii
import colorsys
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from prunefuse_ray.acquisition import STRATEGIES, Strategy
from prunefuse_ray.acquisition.disagreement import bald as bald_of_rows
from prunefuse_ray.acquisition.strategy import Scores
from prunefuse_ray.acquisition.uncertainty import entropy, least_confidence, margin
from prunefuse_ray.tasks.baseline import Answer, Compared, of_pixels
from prunefuse_ray.tasks.classification import divergence, mean_of_members
from prunefuse_ray.tasks.coco import MOST_PIXELS, annotations_of, mask_of
from prunefuse_ray.tasks.task import Evaluation, Metric, Probabilities, Task

if TYPE_CHECKING:
    from torch import Tensor

Mask = npt.NDArray[np.uint8]

IGNORED = 255
"""The value of pixels that are learned and counted as nothing."""
URI = "data:image/png;base64,"
"""What a mask begins with where it stands in a table of text."""
MODES = ("L", "P", "1")
"""Pillow's modes of images whose pixels are small whole numbers."""
SCALED = ("L;2", "L;4")
"""How Pillow unpacks gray of 2 and 4 bits: scaled to 0..255, so that it is no number of a class any more."""
NAMED = 4
"""Classes that are named in a caption."""
ACCURACY = Metric(name="pixel_accuracy", title="Pixel accuracy")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says of one sample, at the size of its input."""

    mask: Mask
    """(H, W) numbers of classes."""
    probability: npt.NDArray[np.float32]
    """(H, W), of these."""
    shares: dict[str, float]
    """Share of the pixels of every class, by name."""

    @property
    def png(self) -> bytes:
        """The mask as the bytes of a PNG file, as labels are."""
        return encoded(self.mask)

    @property
    def coco(self) -> list[dict[str, Any]]:
        """The mask as COCO's annotations with run lengths, one for every class that it has."""
        return annotations_of(self.mask, list(self.shares), ignored=IGNORED)


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """Labels are masks, as PNG; targets are uint8 (N, H, W), outputs logits (N, C, H, W)."""

    name = "segmentation"
    about = "a class for every pixel"
    metric = Metric(name="miou", title="mIoU")
    beside = (ACCURACY,)
    baseline = True
    baseline_samples = 300
    one_class = False
    by_group = False
    pixels = True
    left_out = IGNORED
    output_axes = 4
    most_classes = 255
    defaults = {"network": {"architecture": "fcn_resnet20"}}  # noqa: RUF012 (read only)

    share: float = 1.0
    """Share of an image's pixels, those with the highest scores, whose mean is its score."""

    @cached_property
    def strategies(self) -> Mapping[str, Strategy]:
        """Those that score a pixel by its probabilities: an image has the mean over its pixels."""
        of_pixels: dict[str, Callable[[Probabilities], Scores]] = {
            "least_confidence": least_confidence, "margin": margin, "entropy": entropy, "bald": bald_of_rows,
        }  # fmt: skip
        return {
            **{name: replace(STRATEGIES[name], score=_Pixels(score, self.share)) for name, score in of_pixels.items()},
            "random": STRATEGIES["random"],
        }

    def of_share(self, share: float) -> Segmentation:
        return replace(self, share=share)

    # --- labels ---

    @property
    def label_type(self) -> pa.DataType:
        return pa.binary()

    def label(self, given: Any, classes: Sequence[str]) -> bytes | None:
        """A mask from the bytes of a PNG file, as Hugging Face's images have them or not, from such as text (`URI`),
        from an array (H, W) of class numbers, or from COCO's annotations of the image (`coco.mask_of`)."""
        if isinstance(given, Mapping) and given.keys() == {"bytes", "path"}:  # an image, as Hugging Face has it
            given = given["bytes"]
        if is_coco(given):
            mask = mask_of(given, classes, ignored=IGNORED)
            return None if mask is None else encoded(mask)
        if isinstance(given, str):
            try:
                given = base64.b64decode(given.removeprefix(URI), validate=True) if given.startswith(URI) else None
            except binascii.Error:
                return None
        if isinstance(given, np.ndarray):
            given = encoded(given.astype(np.uint8)) if given.ndim == 2 and np.isin(given, range(256)).all() else None
        if isinstance(given, bytes) and _fault(given, len(classes)) is None:
            return given
        return None

    def not_a_label(self, classes: int) -> str:
        return (
            f"no masks: PNG, gray or palette, of the numbers 0 to {classes - 1} (and {IGNORED}: left out), gray of 8 "
            "bits or 1, or COCO's annotations of the image"
        )

    def agreed(self, labels: Sequence[Any]) -> tuple[Any, float, bool]:
        """The mask that most of them gave, whatever programs wrote it into files."""
        given: dict[tuple[tuple[int, ...], bytes], bytes] = {}
        votes = []
        for label in sorted(labels):
            mask = decoded(label)
            votes.append(given.setdefault((mask.shape, mask.tobytes()), label))
        return super().agreed(votes)

    def values(self, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        return _bytes_of(labels).cast(pa.binary())

    def targets(self, labels: pa.ChunkedArray, form: Any) -> Mask:
        found = np.full((len(labels), *form.shape[:2]), IGNORED, np.uint8)
        for n, value in enumerate(labels):
            found[n] = form.mask(value.as_py(), IGNORED)
        return found

    def blank_targets(self, samples: int, classes: int, form: Any) -> Mask:
        return np.zeros((samples, *form.shape[:2]), np.uint8)

    def invalid_labels(self, labels: pa.ChunkedArray, classes: int) -> pa.ChunkedArray:
        column = _bytes_of(labels)
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            raise TypeError("masks, the bytes of PNG files")
        bad = [not value.is_valid or _fault(value.as_py(), classes) is not None for value in column]
        return pa.chunked_array([pa.array(bad, pa.bool_())])

    def unlike(self, label: bytes, size: tuple[int, int]) -> str | None:
        with Image.open(io.BytesIO(label)) as mask:
            if mask.size == size[::-1]:
                return None
            return f"its mask has {mask.height} x {mask.width} pixels, the image {size[0]} x {size[1]}"

    def numbers_in(self, label: bytes) -> set[int]:
        return set(np.unique(decoded(label)).tolist())

    def named(self, label: bytes, classes: Sequence[str]) -> str:
        return URI + base64.b64encode(label).decode()

    def caption(self, label: bytes, classes: Sequence[str]) -> str:
        mask = decoded(label)
        counts = np.bincount(mask.reshape(-1), minlength=256)
        most = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
        names = [f"{classes[c] if c < len(classes) else 'left out'} {counts[c] / mask.size:.0%}" for c in most]
        return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")

    def drawn(self, image: bytes, label: bytes) -> bytes:
        """The image in gray with the classes of the mask in colors over it; black where it is left out."""
        mask = decoded(label)
        with Image.open(io.BytesIO(image)) as opened:
            gray = opened.convert("L").convert("RGB")
        if gray.size != mask.shape[::-1]:  # a guess, of the network's size
            mask = np.asarray(Image.fromarray(mask).resize(gray.size, Image.Resampling.NEAREST))
        mixed = 0.5 * np.asarray(gray, np.float32) + 0.5 * _colors()[mask]
        buffer = io.BytesIO()
        Image.fromarray(mixed.astype(np.uint8)).save(buffer, format="PNG")
        return buffer.getvalue()

    def counts(self, labels: pa.ChunkedArray, classes: int) -> list[int]:
        """How many masks have each class."""
        found = np.zeros(classes, np.int64)
        for value in labels:
            if value.is_valid:
                there = np.bincount(decoded(value.as_py()).reshape(-1), minlength=256) > 0
                found += there[:classes]
        return found.tolist()

    # --- training ---

    def tells(self, targets_N: Tensor) -> bool:
        return bool((targets_N != IGNORED).any())

    def loss_sum(
        self,
        outputs: Tensor,
        targets_N: Tensor,
        *,
        smoothing: float = 0.0,
        teacher: Tensor | None = None,
        weight: float = 0.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """That of `Classification.loss_sum` for every pixel, as the mean over those of an image that are not left out;
        the soft part over all."""
        from torch.nn import functional as F

        if outputs.ndim == 5:
            losses = [
                self.loss_sum(one, targets_N, smoothing=smoothing, teacher=teacher, weight=weight,
                              temperature=temperature)
                for one in outputs
            ]  # fmt: skip
            return sum(losses[1:], losses[0])
        target = targets_N.long()
        each_NHW = F.cross_entropy(outputs, target, label_smoothing=smoothing, ignore_index=IGNORED, reduction="none")
        known_N = (target != IGNORED).sum((1, 2)).clamp(min=1)
        hard = (each_NHW.sum((1, 2)) / known_N).sum()
        if teacher is None or weight == 0.0:
            return hard
        soft = divergence(outputs, teacher, temperature) / (outputs.shape[2] * outputs.shape[3])
        return (1.0 - weight) * hard + weight * temperature**2 * soft

    def consensus(self, outputs: Tensor) -> Tensor:
        return outputs if outputs.ndim == 4 else mean_of_members(outputs, -3)

    def evaluation(self) -> Evaluation:
        return _Evaluation()

    def members(self, targets_N: Tensor, classes: int) -> Tensor:
        import torch

        return torch.stack([(targets_N == c).flatten(1).any(1) for c in range(classes)], 1)

    def baseline_of(self, compared: Compared) -> Answer:
        """Every pixel by itself."""
        return of_pixels(compared.labeled, compared.targets_N, compared.test, len(compared.classes))

    def baseline_remark(self, compared: Compared, figures: Callable[[Any], Mapping[str, float]], answer: Answer) -> str:
        """The metric of the commonest class alone."""
        known = compared.targets_N[compared.targets_N != IGNORED]
        common = int(np.bincount(known, minlength=len(compared.classes)).argmax())
        alone = np.zeros_like(answer.outputs_NC)
        alone[:, common] = 1.0
        found = self.metric.text(figures(alone)[self.metric.name])
        return f"the commonest class alone, {compared.classes[common]}: {found}"

    # --- predictions ---

    def probabilities(self, outputs: npt.NDArray[np.floating]) -> Any:
        """A softmax over the classes of each pixel, float32: there are many."""
        z = outputs.astype(np.float32)
        e = np.exp(z - z.max(axis=-3, keepdims=True))
        return e / e.sum(axis=-3, keepdims=True)

    def guesses(self, p_NC: Probabilities) -> tuple[npt.NDArray[Any], Probabilities]:
        """Masks as PNG, at the size of the network's input, and the mean probability of their pixels."""
        masks_NHW = p_NC.argmax(axis=1).astype(np.uint8)
        found = np.empty(len(masks_NHW), object)
        found[:] = [encoded(mask) for mask in masks_NHW]
        return found, p_NC.max(axis=1).mean(axis=(1, 2)).astype(np.float64)

    def label_probabilities(self, p_NC: Probabilities, labels_N: npt.NDArray[Any]) -> Probabilities:
        """The mean probability of the given classes over the pixels that are not left out; 1 where all are."""
        known_NHW = labels_N != IGNORED
        own_NHW = np.take_along_axis(p_NC, np.where(known_NHW, labels_N, 0)[:, None].astype(np.int64), axis=1)[:, 0]
        count_N = known_NHW.sum(axis=(1, 2))
        mean_N = (own_NHW * known_NHW).sum(axis=(1, 2)) / np.maximum(count_N, 1)
        return np.where(count_N > 0, mean_N, 1.0).astype(np.float64)

    def prediction(self, p_C: Probabilities, classes: Sequence[str]) -> Prediction:
        mask = p_C.argmax(axis=0).astype(np.uint8)
        shares = np.bincount(mask.reshape(-1), minlength=len(classes)) / mask.size
        return Prediction(
            mask=mask,
            probability=p_C.max(axis=0).astype(np.float32),
            shares=dict(zip(classes, shares.tolist(), strict=True)),
        )


# --- scores ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pixels:
    """Scores (N,) of images from the probabilities of their pixels (N, C, H, W), of a committee (M, N, C, H, W)."""

    of_rows: Callable[[Probabilities], Scores]
    """Of rows of probabilities (R, C), or (M, R, C)."""
    share: float

    def __call__(self, p: Probabilities) -> Scores:
        *members, n, classes, height, width = p.shape
        # One image at a time: rows of float64 of many would be gigabytes.
        each = [self.of_rows(np.moveaxis(p[..., i, :, :, :], -3, -1).reshape(*members, -1, classes).astype(np.float64))
                for i in range(n)]  # fmt: skip
        pixels_NP = np.array(each).reshape(n, height * width)
        count = max(1, round(self.share * pixels_NP.shape[1]))
        if count < pixels_NP.shape[1]:
            broken_N = ~np.isfinite(pixels_NP).all(axis=1)
            pixels_NP = np.partition(pixels_NP, -count, axis=1)[:, -count:]
            pixels_NP[broken_N] = np.nan
        return pixels_NP.mean(axis=1, dtype=np.float64).astype(np.float32)


# --- masks ----------------------------------------------------------------------------------------------------------


def is_coco(given: Any) -> bool:
    """Whether this is to be read as COCO's annotations: JSON, or what it parses to."""
    if isinstance(given, str | bytes):
        return given[:1] in ("{", "[", b"{", b"[")
    return isinstance(given, dict | list)


def decoded(label: bytes) -> Mask:
    """(H, W) class numbers of a mask that was found good."""
    with Image.open(io.BytesIO(label)) as image:
        return np.asarray(image if image.mode != "1" else image.convert("L").point(lambda v: v // 255), np.uint8)


def encoded(mask: Mask) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask)).save(buffer, format="PNG")
    return buffer.getvalue()


def _bytes_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Of a column of images {bytes, path} the bytes."""
    import pyarrow.compute as pc

    has_bytes = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
    return pc.struct_field(column, "bytes") if has_bytes else column


def _fault(data: bytes, classes: int) -> str | None:
    """What is wrong with the bytes of a mask."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MOST_PIXELS:
                return "too large"
            if image.mode not in MODES or any(tile[3] in SCALED for tile in image.tile):
                return f"of mode {image.mode}"
        mask = decoded(data)
    except Exception:  # Pillow's decoders raise whatever their parser meets in damaged data
        return "no PNG"
    return None if ((mask < classes) | (mask == IGNORED)).all() else "other numbers"


def _colors() -> npt.NDArray[np.float32]:
    """(256, 3) colors that neighboring numbers do not share; black for what is left out."""
    hues = [colorsys.hsv_to_rgb((n * 0.618034) % 1.0, 0.75, 1.0) for n in range(256)]
    hues[IGNORED] = (0.0, 0.0, 0.0)
    return np.array(hues, np.float32) * 255


class _Evaluation(Evaluation):
    """mIoU: the mean, over the classes that any mask has, of intersection over union, by the pixels of all images
    together; share of right pixels; mean loss (nats)."""

    def __init__(self) -> None:
        self.samples, self.loss = 0, 0.0
        self.confusion: npt.NDArray[np.int64] | None = None

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        classes = outputs.shape[1]
        truth, guess = targets.long().flatten(), outputs.argmax(1).flatten()
        known = truth != IGNORED
        found = (truth[known] * classes + guess[known]).bincount(minlength=classes * classes)
        matrix = found.reshape(classes, classes).cpu().numpy()
        self.confusion = matrix if self.confusion is None else self.confusion + matrix
        self.samples += len(targets)
        self.loss += float(SEGMENTATION.loss_sum(outputs, targets))

    def result(self) -> dict[str, float]:
        assert self.confusion is not None
        right_C, truth_C = np.diag(self.confusion), self.confusion.sum(axis=1)
        union_C = truth_C + self.confusion.sum(axis=0) - right_C
        there = truth_C > 0
        return {
            "miou": float((right_C[there] / union_C[there]).mean()) if there.any() else 0.0,
            "pixel_accuracy": float(right_C.sum() / max(1, truth_C.sum())),
            "loss": self.loss / self.samples,
        }


SEGMENTATION = Segmentation()
