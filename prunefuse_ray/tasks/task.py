"""The seam for tasks: what labels are, what a network's outputs mean, how it is trained, judged and asked.

To add one: write a subclass in a file of its own and name its instance in `tasks/__init__.py` (or register it from
elsewhere, see `prunefuse_ray/registry.py`). torch is imported inside the methods that need it: a configuration is
checked without.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunefuse_ray.acquisition import Strategy
from prunefuse_ray.acquisition.probabilities import gradient_factor

if TYPE_CHECKING:
    from torch import Tensor

    from prunefuse_ray.tasks.baseline import Answer, Compared

Probabilities = npt.NDArray[np.float64]
SMALL = 0.01
"""Figures below it are told by their digits: errors have the units of the labels, whatever these are."""


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

    @property
    def inside(self) -> str:
        """In the middle of a sentence: `accuracy`, but `mAP`."""
        return self.title.lower() if self.title[1:].islower() else self.title

    def text(self, value: float) -> str:
        if self.share:
            return f"{value:.1%}"
        return f"{value:.3g}" if 0 < abs(value) < SMALL else f"{value:.3f}"  # an error has the units of the labels

    def spread(self, mean: float, std: float, places: int = 1) -> str:
        """Mean and standard deviation; the latter is NaN where there is but one value."""
        if not self.share and 0 < abs(mean) < SMALL:
            return f"{mean:.3g}" if math.isnan(std) else f"{mean:.3g} ± {std:.2g}"
        factor, places, unit = (100, places, "%") if self.share else (1, places + 2, "")
        around = "" if math.isnan(std) else f" ± {factor * std:.{places}f}"
        return f"{factor * mean:.{places}f}{around}{unit}"

    def difference(self, value: float) -> str:
        """In percentage points where it is a share."""
        places = "+.3g" if 0 < abs(value) < SMALL else "+.3f"
        text = f"{100 * value:+.1f} points" if self.share else f"{value:{places}}"
        return f"−{text[1:]}" if text.startswith("-") else text


class Evaluation(Protocol):
    """The figures of a network on a set of samples, batch by batch."""

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in the outputs (N, ...) of some samples, a committee's joined by `Task.consensus`."""

    def result(self) -> dict[str, float]:
        """The task's metric and the mean `loss` of all samples so far."""

    def shown(self) -> dict[str, Any]:
        """What else of a final test a report shows, as JSON; by default nothing."""
        return {}


class Task(ABC):
    """One kind of labels and outputs. Stateless: every method is a function of its arguments."""

    name: ClassVar[str]
    about: ClassVar[str]
    """One line of help."""
    metric: ClassVar[Metric]
    baseline: ClassVar[bool] = False
    """Whether there is a simplest model to compare with (`baseline_of`)."""
    baseline_samples: ClassVar[int | None] = None
    """To so many samples at most it is fitted, and on so many it is tested; None: as many as suit their kind."""
    one_class: ClassVar[bool] = True
    """Whether a sample has exactly one class. What weighs, guesses or votes by class is refused where it has not."""
    several: ClassVar[bool] = False
    """Whether a label is a set of classes."""
    numbers: ClassVar[bool] = False
    """Whether labels are numbers, and what else calls classes are the names of the targets."""
    by_group: ClassVar[bool] = True
    """Whether predictions fall into groups (`group`), so that a selection can be shared out among these."""
    fewest_classes: ClassVar[int] = 2
    most_classes: ClassVar[int | None] = None
    """How many classes there may be; None: any number."""
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Section of the configuration -> fields whose defaults are others for this task."""
    pixels: ClassVar[bool] = False
    """Whether labels and outputs are of every pixel, and move with it."""
    left_out: ClassVar[int | None] = None
    """The number in a label of pixels that no class has."""
    output_axes: ClassVar[int] = 2
    """Axes of a network's outputs, the samples' included; a committee's have one more."""
    beside: ClassVar[tuple[Metric, ...]] = ()
    """Other figures of `Evaluation.result` that people want to see beside the metric."""

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

    def not_a_label(self, classes: int) -> str:
        """What is wrong with labels for which `invalid_labels` is true, to follow 'labels that are '."""
        return f"none of the {classes} classes"

    def joined(self, columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
        """Several columns (N,) as the one that `invalid_labels` and `values` take; TypeError, saying what a label is,
        where it has but one."""
        raise TypeError(f"one column, and task '{self.name}' was given {len(columns)}")

    def label_of_cells(self, cells: Sequence[Any], classes: Sequence[str]) -> Any:
        """A label from the cells of several columns, as `label` has it; None where it is none."""
        return None

    def values(self, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        """Labels (N,) of a column that was found good, as a run keeps them: of `label_type`. Those it keeps already
        stay."""
        return labels.cast(self.label_type)

    def targets(self, labels: pa.ChunkedArray, form: Any) -> npt.NDArray[Any]:
        """Labels (N,) of `label_type` as what a network is trained on, (N, ...).

        Args:
            form: what samples are brought to (`sample_format.Form`).
        """
        return labels.to_numpy().astype(np.int64)

    def blank_targets(self, samples: int, classes: int, form: Any) -> npt.NDArray[Any]:
        """Targets of the same shape that mean nothing: for measuring times."""
        return np.zeros(samples, np.int64)

    def agreed(self, labels: Sequence[Any]) -> tuple[Any, float, bool]:
        """What several people say of one sample, as one label: it, the share of them who gave it, whether others have
        as many votes. The majority; among equals the first class."""
        votes = Counter(labels)
        most = max(votes.values())
        winners = sorted(label for label, n in votes.items() if n == most)
        return winners[0], most / len(labels), len(winners) > 1

    @abstractmethod
    def invalid_labels(self, labels: pa.ChunkedArray, classes: int) -> pa.ChunkedArray:
        """Which labels (N,) of a column are none (bool); TypeError, saying what they should be, for another type."""

    @abstractmethod
    def named(self, label: Any, classes: Sequence[str]) -> str:
        """A label as people read it, and as `label` takes it."""

    def names(self, label: Any, classes: Sequence[str]) -> list[str]:
        """The classes of a label, where it has some."""
        return [self.named(label, classes)]

    def caption(self, label: Any, classes: Sequence[str]) -> str:
        """A label in a few words, for people alone."""
        return self.named(label, classes)

    def drawn(self, image: bytes, label: Any) -> bytes:
        """An encoded image as a report shows it with its label; by default as it is."""
        return image

    def unlike(self, label: Any, size: tuple[int, int]) -> str | None:
        """What is wrong with a label for an image of this (height, width); None: nothing."""
        return None

    def numbers_in(self, label: Any) -> set[int]:
        """The class numbers in a label of pixels, `left_out` among them; none where nobody asks."""
        return set()

    @abstractmethod
    def counts(self, labels: pa.ChunkedArray, classes: int) -> list[int]:
        """How many of the labels (N,) have each class; nulls have none."""

    def group_name(self, group: int, classes: Sequence[str]) -> str:
        """A group that a selection may be shared out among (`group`), as people read it."""
        return classes[group]

    def clusters(self, classes: int) -> int:
        """How many groups of alike samples strategies look for that look for as many as there are classes."""
        return classes

    # --- what the labels of a training settle ---

    def of_share(self, share: float) -> Task:
        """The task where of an image's pixels this share decides its score (`selection.pixel_share`)."""
        return self

    def fitted(self, labels: pa.ChunkedArray) -> Task:
        """The task as a training on these labels (N,) has it: of numbers, with their units. Else the same."""
        return self

    @property
    def units(self) -> dict[str, Any] | None:
        """What `fitted` has settled, as JSON, to be kept beside a network."""
        return None

    def with_units(self, units: Mapping[str, Any] | None) -> Task:
        """The task as it was when its `units` were these."""
        return self

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

    def tells(self, targets_N: Tensor) -> bool:
        """Whether the metric can tell networks apart on samples of these targets; where it cannot, the loss has to."""
        return True

    # --- the baseline ---

    def baseline_of(self, compared: Compared) -> Answer:
        """The simplest model that anyone would try; of tasks that have a `baseline`. By `fitted` of the same labels."""
        raise NotImplementedError(f"task '{self.name}' has no baseline")

    def baseline_remark(self, compared: Compared, figures: Callable[[Any], Mapping[str, float]], answer: Answer) -> str:
        """What else to say of it, to follow its name: what knowing the labels' distribution alone would give, say.

        Args:
            figures: of outputs (N, ...) for the test samples what `Evaluation.result` says.
        """
        return ""

    # --- predictions ---

    @abstractmethod
    def probabilities(self, outputs: npt.NDArray[np.floating]) -> Probabilities:
        """What strategies score: the outputs (N, C) or (M, N, C) as probabilities of the same shape, float64."""

    def gradient_factor(self, p_NC: Probabilities) -> npt.NDArray[np.float32]:
        """The gradient (N, C) of the loss with respect to the outputs, at the label that the network would give itself.
        Times the features it is BADGE's gradient embedding."""
        return gradient_factor(p_NC)

    @abstractmethod
    def guesses(self, p_NC: Probabilities) -> tuple[npt.NDArray[Any], Probabilities]:
        """The likeliest label of each sample, of `label_type`, and its probability (N,); NaN: it has none."""

    @abstractmethod
    def label_probabilities(self, p_NC: Probabilities, labels_N: npt.NDArray[np.int64]) -> Probabilities:
        """The probability (N,) of the label, among `targets`, that each sample was given."""

    @abstractmethod
    def prediction(self, p_C: Probabilities, classes: Sequence[str]) -> Any:
        """What people get for one sample."""

    def exported(self, outputs: Tensor) -> Tensor:
        """What an exported network gives: outputs (N, ...) as they are, or what a client would have to make of them."""
        return outputs

    def group(self, p_NC: Probabilities) -> npt.NDArray[np.int64]:
        """Of which group each sample is by its prediction, (N,): by default, of its class."""
        return self.guesses(p_NC)[0]
