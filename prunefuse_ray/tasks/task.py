"""The seam for tasks: what labels are, what a network's outputs mean, how it is trained, judged and asked.

To add one: write a subclass in a file of its own and name its instance in `tasks/__init__.py` (or register it from
elsewhere, see `prunefuse_ray/registry.py`). torch is imported inside the methods that need it: a configuration is
checked without.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray.acquisition import Strategy

if TYPE_CHECKING:
    from torch import Tensor

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The figure by which networks are compared; higher is better."""

    name: str
    """As a part of keys: `test_accuracy`."""
    title: str
    """As people read it: `Accuracy`."""
    share: bool = True
    """Whether it is one of a whole, and read in per cent."""

    @property
    def measured(self) -> str:
        """Its key among the figures of a trained network."""
        return f"test_{self.name}"

    def text(self, value: float) -> str:
        return f"{value:.1%}" if self.share else f"{value:.3f}"

    def spread(self, mean: float, std: float, places: int = 1) -> str:
        """Mean and standard deviation; the latter is NaN where there is but one value."""
        factor, places, unit = (100, places, "%") if self.share else (1, places + 2, "")
        around = "" if math.isnan(std) else f" ± {factor * std:.{places}f}"
        return f"{factor * mean:.{places}f}{around}{unit}"

    def difference(self, value: float) -> str:
        """In percentage points where it is a share."""
        return (f"{100 * value:+.1f} points" if self.share else f"{value:+.3f}").replace("-", "−")


class Evaluation(Protocol):
    """The figures of a network on a set of samples, batch by batch."""

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in the outputs (N, ...) of some samples, a committee's joined by `Task.consensus`."""

    def result(self) -> dict[str, float]:
        """The task's metric and the mean `loss` of all samples so far."""


class Task(ABC):
    """One kind of labels and outputs. Stateless: every method is a function of its arguments."""

    name: ClassVar[str]
    about: ClassVar[str]
    """One line of help."""
    metric: ClassVar[Metric]
    baseline: ClassVar[bool] = False
    """Whether labels are classes, so that logistic regression is the model to compare with."""
    one_class: ClassVar[bool] = True
    """Whether a sample has exactly one class. What weighs, guesses or votes by class is refused where it has not."""
    most_classes: ClassVar[int | None] = None
    """How many classes there may be; None: any number."""

    @property
    @abstractmethod
    def strategies(self) -> Mapping[str, Strategy]:
        """The acquisition strategies that make sense here, by name."""

    # --- labels ---

    @property
    @abstractmethod
    def label_type(self) -> pa.DataType:
        """How labels stand in the tables of a run."""

    @abstractmethod
    def label(self, given: Any, classes: Sequence[str]) -> Any:
        """A label as people write it, as one of `label_type`; None where it is none."""

    @abstractmethod
    def invalid_labels(self, labels: pa.ChunkedArray, classes: int) -> pa.ChunkedArray:
        """Which labels (N,) of a column are none (bool); TypeError, saying what they should be, for another type."""

    @abstractmethod
    def named(self, label: Any, classes: Sequence[str]) -> str:
        """A label as people read it, and as `label` takes it."""

    @abstractmethod
    def counts(self, labels: pa.ChunkedArray, classes: int) -> list[int]:
        """How many of the labels (N,) have each class; nulls have none."""

    # --- training ---

    @abstractmethod
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
        """The loss summed over the samples, and over the members of a committee (outputs (M, N, ...)).

        Args:
            teacher: outputs (N, ...) of the network to distil from, with its `weight` and `temperature`.
        """

    @abstractmethod
    def consensus(self, outputs: Tensor) -> Tensor:
        """Outputs (N, ...) of a network as they are; of a committee's (M, N, ...) those that stand for its members."""

    @abstractmethod
    def evaluation(self) -> Evaluation:
        """A fresh evaluation."""

    @abstractmethod
    def members(self, targets_N: Tensor, classes: int) -> Tensor:
        """Of which classes each sample is, bool (N, C)."""

    @abstractmethod
    def baseline_targets(self, labels_N: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
        """What the baseline is fitted to: classes (N,), or zeros and ones (N, C)."""

    # --- predictions ---

    @abstractmethod
    def probabilities(self, outputs: npt.NDArray[np.floating]) -> Probabilities:
        """What strategies score: the outputs (N, C) or (M, N, C) as probabilities of the same shape, float64."""

    @abstractmethod
    def guesses(self, p_NC: Probabilities) -> tuple[npt.NDArray[np.int64], Probabilities]:
        """The likeliest label of each sample, (N,), and its probability (N,)."""

    @abstractmethod
    def label_probabilities(self, p_NC: Probabilities, labels_N: npt.NDArray[np.int64]) -> Probabilities:
        """The probability (N,) of the label that each sample was given."""

    @abstractmethod
    def prediction(self, p_C: Probabilities, classes: Sequence[str]) -> Any:
        """What people get for one sample."""
