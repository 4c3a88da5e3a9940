"""Classification: one class a sample, a softmax over all classes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.acquisition import STRATEGIES, Strategy
from prunefuse_ray.acquisition.probabilities import softmax
from prunefuse_ray.tasks.baseline import Answer, Compared, of_classes
from prunefuse_ray.tasks.task import Evaluation, Metric, Probabilities, Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says of one sample."""

    label: str
    """Name of the most probable class."""
    probability: float
    probabilities: dict[str, float]
    """Of every class, by name."""


class Classification(Task):
    """Labels are numbers of classes, 0 .. C-1; outputs are logits (N, C)."""

    name = "classification"
    about = "one class per sample"
    metric = Metric(name="accuracy", title="Accuracy")
    baseline = True

    @property
    def strategies(self) -> Mapping[str, Strategy]:
        return STRATEGIES

    # --- labels ---

    @property
    def label_type(self) -> pa.DataType:
        return pa.int64()

    def label(self, given: Any, classes: Sequence[str]) -> int | None:
        """The number of a class, from its name or its number. Text is a name first; and it is nothing else where the
        names look like numbers themselves, but mean others (classes 1, 2, 3)."""
        if isinstance(given, int | np.integer):
            return int(given) if 0 <= given < len(classes) and not isinstance(given, bool) else None
        if given is None:
            return None
        text, (numbers, only_names) = unicodedata.normalize("NFC", str(given).strip()), _numbers_of(tuple(classes))
        if text in numbers:
            return numbers[text]
        number = int(text) if text.isdecimal() and not only_names else -1
        return number if 0 <= number < len(classes) else None

    def invalid_labels(self, labels: pa.ChunkedArray, classes: int) -> pa.ChunkedArray:
        if not pa.types.is_integer(labels.type):
            raise TypeError("integers 0 .. classes-1, or names that are listed in pool.classes")
        valid = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, classes))
        return pc.invert(pc.fill_null(valid, False))

    def named(self, label: int, classes: Sequence[str]) -> str:
        return classes[label]

    def counts(self, labels: pa.ChunkedArray, classes: int) -> list[int]:
        return np.bincount(labels.drop_null().to_numpy(), minlength=classes).tolist()

    # --- training ---

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
        """(1 - w) CE + w T^2 KL(softmax(teacher/T) || softmax(outputs/T)) (Hinton et al. 2015)."""
        from torch.nn import functional as F

        if outputs.ndim == 3:  # every member learns from every sample
            members = len(outputs)
            outputs, targets_N = outputs.flatten(0, 1), targets_N.repeat(members)
            teacher = None if teacher is None else teacher.repeat(members, 1)
        hard = F.cross_entropy(outputs, targets_N, label_smoothing=smoothing, reduction="sum")
        if teacher is None or weight == 0.0:
            return hard
        return (1.0 - weight) * hard + weight * temperature**2 * divergence(outputs, teacher, temperature)

    def consensus(self, outputs: Tensor) -> Tensor:
        """Of a committee's logits (M, N, C) the logarithm of the members' mean probability."""
        return outputs if outputs.ndim == 2 else mean_of_members(outputs, -1)

    def evaluation(self) -> Evaluation:
        return _Evaluation()

    def members(self, targets_N: Tensor, classes: int) -> Tensor:
        import torch

        return targets_N[:, None] == torch.arange(classes, device=targets_N.device)

    def baseline_of(self, compared: Compared) -> Answer:
        return of_classes(compared.features(), compared.targets_N, len(compared.classes))

    # --- predictions ---

    def probabilities(self, outputs: npt.NDArray[np.floating]) -> Probabilities:
        return softmax(outputs)

    def guesses(self, p_NC: Probabilities) -> tuple[npt.NDArray[np.int64], Probabilities]:
        guess_N = p_NC.argmax(axis=1)
        return guess_N, p_NC[np.arange(len(p_NC)), guess_N]

    def label_probabilities(self, p_NC: Probabilities, labels_N: npt.NDArray[np.int64]) -> Probabilities:
        return p_NC[np.arange(len(p_NC)), labels_N]

    def prediction(self, p_C: Probabilities, classes: Sequence[str]) -> Prediction:
        best = int(p_C.argmax())
        return Prediction(
            label=classes[best],
            probability=float(p_C[best]),
            probabilities=dict(zip(classes, p_C.tolist(), strict=True)),
        )


def divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(outputs / T)) over the classes, the axis 1 of logits (N, C, ...); summed over
    all others."""
    from torch.nn import functional as F

    return F.kl_div(
        F.log_softmax(outputs / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        log_target=True,
        reduction="sum",
    )


def mean_of_members(outputs: Tensor, classes_axis: int) -> Tensor:
    """Of a committee's logits (M, N, ...) the logarithm of the members' mean probability (N, ...). In logarithms
    throughout: a probability that underflows would make an infinite loss."""
    return outputs.float().log_softmax(classes_axis).logsumexp(0) - math.log(len(outputs))


class _Evaluation(Evaluation):
    """Accuracy (share) and mean cross-entropy (nats)."""

    def __init__(self) -> None:
        self.tested_C = self.correct_C = np.zeros(1, np.int64)  # of any number of classes
        self.loss = 0.0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        from torch.nn import functional as F

        right, classes = targets[outputs.argmax(1) == targets], outputs.shape[1]
        self.tested_C = self.tested_C + np.bincount(targets.cpu().numpy(), minlength=classes)
        self.correct_C = self.correct_C + np.bincount(right.cpu().numpy(), minlength=classes)
        self.loss += float(F.cross_entropy(outputs, targets, reduction="sum"))

    def result(self) -> dict[str, float]:
        samples = int(self.tested_C.sum())
        return {"accuracy": int(self.correct_C.sum()) / samples, "loss": self.loss / samples}

    def shown(self) -> dict[str, Any]:
        """`recall`: of each class the share of its samples that is recognized; None of a class without any."""
        pairs = zip(self.correct_C.tolist(), self.tested_C.tolist(), strict=True)
        return {"recall": [correct / tested if tested else None for correct, tested in pairs]}


NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?")
"""What looks like a number to people."""


@lru_cache(maxsize=16)
def _numbers_of(classes: tuple[str, ...]) -> tuple[dict[str, int], bool]:
    """The number of each class by its name; and whether some names look like numbers, and other ones than theirs."""
    numbers = {unicodedata.normalize("NFC", name.strip()): n for n, name in enumerate(classes)}
    return numbers, any(NUMBER.fullmatch(name) and float(name.replace(",", ".")) != n for name, n in numbers.items())


CLASSIFICATION = Classification()
