"""A finished network in use: `load` a directory, `predict` on images or texts. Starts no Ray, needs no run."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from prunefuse_ray import networks
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, Form, Preprocessing, preprocessing_from_bytes
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.errors import LedgerError, Rejected
from prunefuse_ray.inference.saved_networks import network_files, network_place
from prunefuse_ray.registry import named
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task

logger = logging.getLogger(__name__)

BATCH, PIXELS_BATCH = 64, 4
"""Samples that are predicted together, and of a task that says something of every pixel, whose outputs are large: 150
classes of 64 images of 512 x 512 pixels would take 10 GB."""
CHANNELS = (1, 2, 3, 4)
"""Of gray and color images, with and without alpha."""


class Predictor(nn.Module):
    """A network in evaluation mode, with what it expects of its samples and what its outputs mean.

    As a module it maps prepared inputs (`prepare`) to logits (N, C), or to numbers in the units of the labels.
    """

    def __init__(self, network: nn.Module, task: Task, form: Form, classes: list[str]) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.form = form
        self.classes = classes
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.task.exported(self._outputs(x))

    def _outputs(self, x: Tensor) -> Tensor:
        return self.task.consensus(self.network(x))

    def prepare(self, samples: Any) -> Tensor:
        """Samples as the network's input, on its device: (N, C, H, W), or (N, L) of texts.

        Args:
            samples: one or many (a list, an iterator, an array with one more axis): images as paths, encoded bytes,
                Pillow images or uint8 arrays (height, width[, channels]); texts as strings; vectors as lists or
                arrays of numbers.

        Raises:
            Rejected: a sample that cannot be read, by its number and name, with the reason.
        """
        decoded = [self._decoded(number, sample) for number, sample in enumerate(self._each(samples))]
        return self._inputs(decoded)

    def predict(self, samples: Any) -> Iterator[Any]:
        """A prediction for every sample, in their order (`Prediction` in the task's file below `tasks`); see `prepare`
        for what samples may be. If one of several samples cannot be read, a `Rejected` that names it takes its place,
        and it is logged.

        Raises:
            Rejected: the only sample, given by itself, cannot be read.
        """
        single = self._is_one(samples)
        remaining = enumerate(self._each(samples))
        size = PIXELS_BATCH if self.task.pixels else BATCH
        while batch := list(islice(remaining, size)):
            found: list[Any] = []
            for number, sample in batch:
                try:
                    found.append(self._decoded(number, sample))
                except Rejected as rejected:
                    if single:
                        raise
                    logger.warning("%s", rejected)
                    found.append(rejected)
            predictions = self._predictions([one for one in found if not isinstance(one, Rejected)])
            for one in found:
                yield one if isinstance(one, Rejected) else next(predictions)

    @torch.inference_mode()
    def _predictions(self, decoded: list[npt.NDArray[np.uint8]]) -> Iterator[Any]:
        if not decoded:
            return iter(())
        outputs = self._outputs(self._inputs(decoded)).float().cpu().numpy()
        return iter([self.task.prediction(p_C, self.classes) for p_C in self.task.probabilities(outputs)])

    def _inputs(self, decoded: list[npt.NDArray[np.uint8]]) -> Tensor:
        stacked = np.stack(decoded) if decoded else np.zeros((0, *self.form.shape), np.uint8)
        return self.form.inputs(torch.from_numpy(stacked).to(next(self.network.parameters()).device))

    def _each(self, samples: Any) -> Iterable[Any]:
        if self._is_one(samples):
            return [samples]
        if getattr(samples, "ndim", 1) == 2 and hasattr(samples, "iloc"):  # of pandas, which goes through its columns
            samples = samples.to_numpy()
        if isinstance(samples, Mapping) or not isinstance(samples, Iterable):
            raise Rejected(f"a {type(samples).__name__}, expected a sample or several of them")
        if isinstance(samples, np.ndarray | Tensor) and isinstance(self.form, ImageForm):
            self._check_channels(tuple(samples.shape))
        return samples

    def _check_channels(self, shape: tuple[int, ...]) -> None:
        """Rejected where several gray images may be meant as one whose channels come first, as torch has them."""
        if len(shape) == 3 and shape[0] == self.form.shape[-1] == 3:
            raise Rejected(
                f"an array of shape {shape}: three gray images, or one whose channels come first? Give an image as "
                "(height, width, channels), several as a list"
            )

    def _is_one(self, samples: Any) -> bool:
        """Whether this is one sample, and not several. An array of three axes is one image where the last one can be
        channels."""
        if isinstance(samples, np.ndarray | Tensor) and isinstance(self.form, ImageForm):
            return samples.ndim in (0, 2) or (samples.ndim == 3 and samples.shape[2] in CHANNELS)
        if isinstance(self.form, VectorForm):
            column = str(getattr(samples, "dtype", None)) == "object" and samples.ndim == 1  # of pandas, say
            listed = column or isinstance(samples, Sequence)
            if listed and not len(samples):
                return False
            first: Any = next(iter(samples), None) if listed else samples
            return np.ndim(first) == (0 if listed else 1)
        return isinstance(samples, str | bytes | bytearray | memoryview | os.PathLike | Image.Image)

    def _decoded(self, number: int, sample: Any) -> npt.NDArray[np.uint8]:
        if isinstance(sample, Tensor) and isinstance(self.form, VectorForm):
            sample = sample.float().numpy(force=True)
        try:
            return self.form.decode(_encoded(sample) if isinstance(self.form, ImageForm) else sample)
        except Rejected as rejected:
            name = f" ({os.fspath(sample)})" if isinstance(sample, os.PathLike) or _is_path(sample, self.form) else ""
            raise Rejected(f"sample {number}{name}: {rejected}") from rejected


def _is_path(sample: Any, form: Form) -> bool:
    return isinstance(sample, str) and isinstance(form, ImageForm)


def _encoded(sample: Any) -> Any:
    """An image in a form that is decoded, from any that people have it in."""
    if isinstance(sample, str | os.PathLike):
        try:
            with open(sample, "rb") as file:
                return file.read()
        except (OSError, ValueError) as error:
            raise Rejected(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(sample, Tensor):
        sample = sample.numpy(force=True)
    if not isinstance(sample, np.ndarray):
        return sample
    plane = sample[:, :, 0] if sample.ndim == 3 and sample.shape[2] == 1 else sample
    try:
        return Image.fromarray(plane)
    except (TypeError, ValueError) as error:
        raise Rejected(
            f"array of {sample.dtype} and shape {sample.shape}, expected uint8 (height, width[, channels])"
        ) from error


def load(path: str | os.PathLike[str], *, trusted: str | Collection[str] | None = None) -> Predictor:
    """The network in a directory (a run's, its `fused/`, a proxy's, a committee's; a local path or URI), ready to
    predict.

    Args:
        trusted: the network's architecture where that is code of your own (`package.module:function`), and the task
            likewise. A directory that names such code is refused unless you name the same.

    Raises:
        LedgerError: no network there, or damaged files.
    """
    place = network_place(os.fspath(path))
    files = network_files(place)
    if PREPROCESSING_FILE not in files:
        raise LedgerError(
            f"{place.path}: has no {PREPROCESSING_FILE}, which says how samples become inputs; give a trained network"
        )
    told = preprocessing_from_bytes(files[PREPROCESSING_FILE])
    check_task(told, place, trusted)
    found = read_network(files, place, trusted)
    check_classes(told, place, found.spec)
    return Predictor(found.network, TASKS[told.task].with_units(told.units), told.form, told.classes)


def check_task(told: Preprocessing, place: Place, trusted: str | Collection[str] | None) -> None:
    """LedgerError where files name a task of somebody's own, which to use is to import, that is not `trusted`."""
    if ":" in told.task and told.task not in named(trusted):
        raise LedgerError(f"{place.path}: names a task of its own, '{told.task}'; give it as `trusted` if you trust it")


def check_classes(told: Preprocessing, place: Place, spec: networks.NetworkSpec) -> None:
    """LedgerError where what lies beside a network says how another one's outputs are read."""
    if len(told.classes) != spec.classes:
        raise LedgerError(
            f"{place.path}: {PREPROCESSING_FILE} is another network's: it names {len(told.classes)} classes, and this "
            f"network has {spec.classes}; take both from the same directory"
        )


def read_network(files: dict[str, bytes], place: Place, trusted: str | Collection[str] | None) -> networks.Selector:
    """The network that the files hold; LedgerError where they do not, or name code that is not `trusted`."""
    try:
        return networks.from_files(files, named(trusted))
    except networks.NetworkError as error:
        raise LedgerError(f"{place.path}: {error}") from error
