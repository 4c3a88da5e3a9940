"""A finished network in use: `load` a directory, `predict` on images or texts. Starts no Ray, needs no run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from prunefuse_ray import networks
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, Form, preprocessing_from_bytes
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.inference.saved_networks import network_files, network_place
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task

BATCH = 64


class Predictor(nn.Module):
    """A network in evaluation mode, with what it expects of its samples and what its outputs mean.

    As a module it maps prepared inputs (`prepare`) to logits (N, C).
    """

    def __init__(self, network: nn.Module, task: Task, form: Form, classes: list[str]) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.form = form
        self.classes = classes
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.task.consensus(self.network(x))

    def prepare(self, samples: Iterable[Any]) -> Tensor:
        """Samples as the network's input, on its device: (N, C, H, W), or (N, L) of texts.

        Args:
            samples: images as paths, encoded bytes, Pillow images or uint8 arrays (height, width[, channels]);
                texts as strings.

        Raises:
            Rejected: a sample that cannot be read, with the reason.
        """
        decoded = [self.form.decode(self._encoded(sample)) for sample in samples]
        device = next(self.network.parameters()).device
        return self.form.inputs(torch.from_numpy(np.stack(decoded)).to(device))

    @torch.inference_mode()
    def predict(self, samples: Iterable[Any]) -> Iterator[Any]:
        """A prediction for every sample, in their order (of a class: `tasks.classification.Prediction`); see `prepare`
        for what a sample may be."""
        remaining = iter(samples)
        while batch := list(islice(remaining, BATCH)):
            outputs = self(self.prepare(batch)).float().cpu().numpy()
            for p_C in self.task.probabilities(outputs):
                yield self.task.prediction(p_C, self.classes)

    def _encoded(self, sample: Any) -> Any:
        if not isinstance(self.form, ImageForm):
            return sample
        if isinstance(sample, str | os.PathLike):
            with open(sample, "rb") as file:
                return file.read()
        if isinstance(sample, np.ndarray):
            return Image.fromarray(sample)
        return sample


def load(path: str | os.PathLike[str], *, trusted: str | None = None) -> Predictor:
    """The network in a directory (a run's, its `fused/`, a proxy's, a committee's; a local path or URI), ready to
    predict.

    Args:
        trusted: the network's architecture where that is code of your own (`package.module:function`). A directory
            that names such code is refused unless you name the same.

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
    if ":" in told.task and told.task != trusted:
        raise LedgerError(f"{place.path}: names a task of its own, '{told.task}': name the same as `trusted` if you do")
    network = read_network(files, place, trusted).network
    return Predictor(network, TASKS[told.task], told.form, told.classes)


def read_network(files: dict[str, bytes], place: Place, trusted: str | None) -> networks.Selector:
    """The network that the files hold; LedgerError where they do not, or name code that is not `trusted`."""
    try:
        return networks.from_files(files, () if trusted is None else (trusted,))
    except networks.NetworkError as error:
        raise LedgerError(f"{place.path}: {error}") from error
