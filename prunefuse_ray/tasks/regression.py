"""Regression: one number a sample, or several.

A label is a list of numbers, one a target, in the user's units. Networks learn them standardized by mean and standard
deviation of the labeled set (`fitted`), which are kept beside a trained network: outputs (N, T) are in deviations,
whatever people get is in their units. So the recipe need not know how large a target is, and several weigh alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.acquisition import STRATEGIES, Strategy
from prunefuse_ray.acquisition.strategy import Scores
from prunefuse_ray.schemas import is_list
from prunefuse_ray.tasks.baseline import Answer, Compared, of_numbers
from prunefuse_ray.tasks.multi_label import SEPARATORS
from prunefuse_ray.tasks.task import Evaluation, Metric, Probabilities, Task

if TYPE_CHECKING:
    from torch import Tensor

QUANTILES = 5
"""Groups of equally many labels that predictions fall into."""
CLUSTERS = 10
"""Groups of alike samples for strategies that look for as many as there are classes: a number has none."""
SHOWN = 400
"""Test samples of which a report shows the prediction beside the truth."""
MAE = Metric(name="mae", title="MAE", share=False)
RMSE = Metric(name="rmse", title="RMSE", share=False)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says of one sample."""

    values: dict[str, float]
    """Of every target, by name, in the units of the labels."""


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Labels are lists of T floats; outputs (N, T) are in standard deviations of the labels, from their mean."""

    name = "regression"
    about = "one number per sample, or several"
    metric = Metric(name="r2", title="R2", share=False)
    beside = (MAE, RMSE)
    baseline = True
    one_class = False
    numbers = True
    fewest_classes = 1
    defaults = {  # noqa: RUF012 (read only)
        "selection": {"strategy": "variance"},
        "training": {"label_smoothing": 0.0},
        "finetuning": {"label_smoothing": 0.0},
    }

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Of each target over the labels of the training; none: of no training yet, and outputs are as they are."""
    edges: tuple[float, ...] = ()
    """The QUANTILES - 1 values between the groups of equally many labels, of the first target."""

    @cached_property
    def strategies(self) -> Mapping[str, Strategy]:
        """Those that need no probabilities of classes. One network alone is not unsure of a number: those that look at
        features write a score of 0, those that go by uncertainty need a committee."""
        by_features = ("k_centers", "typiclust", "prob_cover", "max_herding", "facility_location")
        by_both = replace(STRATEGIES["uncertainty_herding"], score=variance, largest=_whole, members=True)
        return {
            "variance": replace(STRATEGIES["variance"], score=variance, largest=_whole),
            "random": STRATEGIES["random"],
            **{name: replace(STRATEGIES[name], score=nothing) for name in by_features},
            "uncertainty_herding": by_both,
        }

    # --- labels ---

    @property
    def label_type(self) -> pa.DataType:
        return pa.list_(pa.float64())

    def label(self, given: Any, classes: Sequence[str]) -> list[float] | None:
        """The numbers from a list of them, a number alone, or text: a list in JSON, or numbers with one kind of
        separator (`;`, `|`, `,`) between. None where these are not as many as targets, or not finite."""
        if isinstance(given, str):
            text = given.strip()
            if text.startswith("["):
                try:
                    return self.label(json.loads(text), classes)
                except (ValueError, RecursionError):
                    return None
            between = next((s for s in SEPARATORS if s in text), None) if len(classes) > 1 else None
            given = text.split(between) if between else [text]
        cells = list(given) if isinstance(given, list | tuple | np.ndarray) else [given]
        numbers = [_number(cell) for cell in cells]
        known = [n for n in numbers if n is not None]
        return known if len(known) == len(numbers) == len(classes) else None

    def label_of_cells(self, cells: Sequence[Any], classes: Sequence[str]) -> list[float] | None:
        return self.label(list(cells), classes)

    def not_a_label(self, classes: int) -> str:
        return "no finite number" if classes == 1 else f"not {classes} finite numbers"

    def joined(self, columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
        for column in columns:
            _check_numbers(column.type)
        x_NT = np.stack([_floats(c) for c in columns], axis=1)
        return pa.chunked_array([_lists(x_NT)])

    def values(self, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        if is_list(labels.type):
            return labels.cast(self.label_type, safe=False)
        return pa.chunked_array([_lists(_floats(labels)[:, None])])

    def targets(self, labels: pa.ChunkedArray, form: Any = None) -> npt.NDArray[np.float64]:
        """(N, T), in the units of the labels."""
        flat = pc.list_flatten(labels).to_numpy().astype(np.float64)
        return flat.reshape(len(labels), -1 if len(labels) else max(1, len(self.mean)))

    def blank_targets(self, samples: int, classes: int, form: Any) -> npt.NDArray[np.float64]:
        return np.zeros((samples, classes))

    def agreed(self, labels: Sequence[Any]) -> tuple[Any, float, bool]:
        """The median of each target."""
        median = np.median(np.array(labels), axis=0).tolist()
        return median, sum(list(label) == median for label in labels) / len(labels), False

    def invalid_labels(self, labels: pa.ChunkedArray, classes: int) -> pa.ChunkedArray:
        kind = labels.type.value_type if is_list(labels.type) else labels.type
        _check_numbers(kind)
        if not is_list(labels.type):
            wrong_N = ~np.isfinite(_floats(labels)) if classes == 1 else np.ones(len(labels), bool)
            return pa.chunked_array([pa.array(wrong_N)])
        wrong = []
        for chunk in labels.chunks:
            bad_N = (pc.fill_null(pc.list_value_length(chunk), -1).to_numpy() != classes).copy()
            known = chunk.drop_null()  # lists of one size have values under a null, too
            place_N = np.flatnonzero(chunk.is_valid().to_numpy(zero_copy_only=False))
            finite = np.isfinite(_floats(pc.list_flatten(known)))
            bad_N[place_N[pc.list_parent_indices(known).to_numpy()[~finite]]] = True
            wrong.append(pa.array(bad_N))
        return pa.chunked_array(wrong, pa.bool_())

    def named(self, label: Sequence[float], classes: Sequence[str]) -> str:
        return ";".join(f"{n:.0f}" if n == round(n) and abs(n) < 2**53 else repr(float(n)) for n in label)

    def counts(self, labels: pa.ChunkedArray, classes: int) -> list[int]:
        """There are no classes to count by."""
        return []

    def group_name(self, group: int, classes: Sequence[str]) -> str:
        return f"{classes[0]}, fifth {group + 1} of the labels"

    def clusters(self, classes: int) -> int:
        return CLUSTERS

    # --- units ---

    def fitted(self, labels: pa.ChunkedArray) -> Regression:
        """With mean, standard deviation (1 of a target that is always the same) and quantiles of these labels."""
        y_NT = self.targets(labels)
        if not len(y_NT):
            return self
        std_T = np.where(np.ptp(y_NT, axis=0) > 0, y_NT.std(axis=0), 0.0)  # a mean is rounded, equal labels are not
        quantiles = np.quantile(y_NT[:, 0], np.arange(1, QUANTILES) / QUANTILES)
        return Regression(
            mean=tuple(y_NT.mean(axis=0).tolist()),
            std=tuple(np.where(std_T > 0, std_T, 1.0).tolist()),
            edges=tuple(quantiles.tolist()),
        )

    @property
    def units(self) -> dict[str, Any] | None:
        return {"mean": list(self.mean), "std": list(self.std), "edges": list(self.edges)} if self.mean else None

    def with_units(self, units: Mapping[str, Any] | None) -> Regression:
        if units is None:
            return Regression()
        return Regression(**{name: tuple(map(float, units[name])) for name in ("mean", "std", "edges")})

    def standardized(self, targets_NT: Tensor) -> Tensor:
        """Targets as outputs have them."""
        if not self.mean:
            return targets_NT.float()
        y = targets_NT.double()
        return ((y - y.new_tensor(self.mean)) / y.new_tensor(self.std)).float()

    def in_units(self, z_NT: Any) -> Any:
        """Outputs, of numpy or torch, in the units of the labels."""
        if not self.mean:
            return z_NT
        if isinstance(z_NT, np.ndarray):
            return z_NT * np.array(self.std) + np.array(self.mean)
        return z_NT * z_NT.new_tensor(self.std) + z_NT.new_tensor(self.mean)

    # --- training ---

    def tells(self, targets_N: Tensor) -> bool:
        """R² of numbers that are all the same is 0, whatever a network says."""
        return bool((targets_N != targets_N[:1]).any())

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
        """Half the squared error in standard deviations, beyond one of them linear (Huber 1964): a slope of at most 1,
        as that of a cross-entropy, so that the same learning rates hold; as the mean over the targets. Distillation is
        towards the teacher's outputs; there is nothing for a temperature to soften, and nothing to smooth."""
        from torch.nn import functional as F

        targets = outputs.shape[-1]
        wanted_NT = self.standardized(targets_N).expand(outputs.shape)
        hard = F.huber_loss(outputs, wanted_NT, reduction="sum") / targets
        if teacher is None or weight == 0.0:
            return hard
        soft = F.huber_loss(outputs, teacher.expand(outputs.shape), reduction="sum") / targets
        return (1.0 - weight) * hard + weight * soft

    def consensus(self, outputs: Tensor) -> Tensor:
        """Of a committee's outputs (M, N, T) the mean of its members."""
        return outputs if outputs.ndim == 2 else outputs.float().mean(0)

    def evaluation(self) -> Evaluation:
        return _Evaluation(self)

    def members(self, targets_N: Tensor, classes: int) -> Tensor:
        """Which samples are above the mean of each target."""
        return self.standardized(targets_N) > 0

    def deviations(self, targets_NT: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Targets as outputs have them, of numpy and float64; once the task is `fitted`."""
        return (targets_NT - np.array(self.mean)) / np.array(self.std)

    def baseline_of(self, compared: Compared) -> Answer:
        return of_numbers(compared.features(), self.deviations(compared.targets_N))

    def baseline_remark(self, compared: Compared, figures: Callable[[Any], Mapping[str, float]], answer: Answer) -> str:
        """The figures beside, and those of the mean."""
        found, told = figures(answer.outputs_NC), figures(np.zeros_like(answer.outputs_NC))
        of_model, of_mean = (", ".join(f"{m.title} {m.text(f[m.name])}" for m in self.beside) for f in (found, told))
        return f"{of_model}; the mean of the labels alone: {of_mean}"

    # --- predictions ---

    def probabilities(self, outputs: npt.NDArray[np.floating]) -> Probabilities:
        """The outputs themselves: strategies of numbers score these."""
        return outputs.astype(np.float64)

    def guesses(self, p_NC: Probabilities) -> tuple[npt.NDArray[np.float64], Probabilities]:
        """To six digits, for people; of numbers far from 0 to as many digits of their deviation."""
        std = self.std or (math.inf,) * p_NC.shape[1]
        rounded = [
            [float(f"{value:.{_digits(value, deviation)}g}") for value, deviation in zip(row, std, strict=True)]
            for row in self.in_units(p_NC)
        ]
        return np.array(rounded).reshape(p_NC.shape), np.full(len(p_NC), np.nan)

    def label_probabilities(self, p_NC: Probabilities, labels_N: npt.NDArray[Any]) -> Probabilities:
        """How likely a value as far from the prediction as the label is would be, were errors normal with the standard
        deviation of the labels: of several targets the least likely. The order is that of the error."""
        error_NT = np.abs(p_NC - self.deviations(labels_N)) / math.sqrt(2)
        return np.vectorize(math.erfc)(error_NT.max(axis=1)) if len(error_NT) else np.zeros(0)

    def prediction(self, p_C: Probabilities, classes: Sequence[str]) -> Prediction:
        return Prediction(values=dict(zip(classes, self.in_units(p_C).tolist(), strict=True)))

    def exported(self, outputs: Tensor) -> Tensor:
        """In the units of the labels."""
        return self.in_units(outputs)

    def group(self, p_NC: Probabilities) -> npt.NDArray[np.int64]:
        """The fifth of the labels into which the prediction of the first target falls."""
        return np.searchsorted(np.array(self.edges), self.in_units(p_NC)[:, 0], side="right")


def _digits(value: float, deviation: float) -> int:
    """Significant digits that tell a number to a hundred-thousandth of a deviation, six at least."""
    return min(17, 6 + (math.floor(math.log10(abs(value) / deviation)) if deviation < abs(value) < math.inf else 0))


def variance(z_MNT: Probabilities) -> Scores:
    """How far the members of a committee lie apart, in standard deviations of the labels: the root of the mean over the
    targets of the members' variance. Histograms of it end at 1."""
    return np.sqrt(z_MNT.var(axis=0).mean(axis=-1)).astype(np.float32)


def nothing(z_NT: Probabilities) -> Scores:
    """0 for every sample; NaN for one of which the network says NaN."""
    return np.where(np.isfinite(z_NT).all(axis=-1), 0.0, np.nan).astype(np.float32)


def _whole(classes: int, members: int) -> float:
    return 1.0


def _number(cell: Any) -> float | None:
    """A finite number; None for what is none. `1_000`, which Python takes, is no number to people."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        return None
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _check_numbers(kind: pa.DataType) -> None:
    """TypeError where a column of this type holds none."""
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise TypeError("numbers, or lists of numbers")


def _floats(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float64]:
    """Numbers (N,); NaN for nulls."""
    found: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy()
    return found


def _lists(x_NT: npt.NDArray[np.float64]) -> pa.Array:
    offsets = np.arange(len(x_NT) + 1, dtype=np.int32) * x_NT.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(x_NT.reshape(-1), pa.float64()))


class _Evaluation(Evaluation):
    """R², the share of the variance of the test labels that is explained (0 where they are all the same), as the mean
    over the targets; MAE and RMSE in the units of the labels, of several targets as the mean too; mean loss."""

    def __init__(self, task: Regression) -> None:
        self.task = task
        self.outputs: list[npt.NDArray[np.float64]] = []
        self.targets: list[npt.NDArray[np.float64]] = []
        self.loss = 0.0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self.outputs.append(self.task.in_units(outputs.double()).cpu().numpy())
        self.targets.append(targets.double().cpu().numpy())
        self.loss += float(self.task.loss_sum(outputs, targets))

    def result(self) -> dict[str, float]:
        found_NT, y_NT = np.concatenate(self.outputs), np.concatenate(self.targets)
        error_NT = found_NT - y_NT
        spread_T = np.where(np.ptp(y_NT, axis=0) > 0, ((y_NT - y_NT.mean(axis=0)) ** 2).sum(axis=0), 0.0)
        rest_T = (error_NT**2).sum(axis=0)
        r2_T = np.where(spread_T > 0, 1.0 - rest_T / np.where(spread_T > 0, spread_T, 1.0), 0.0)
        mae_T, rmse_T = np.abs(error_NT).mean(axis=0), np.sqrt((error_NT**2).mean(axis=0))
        found = {"r2": float(r2_T.mean()), "mae": float(mae_T.mean()), "rmse": float(rmse_T.mean())}
        if len(r2_T) > 1:
            each = {"r2": r2_T, "mae": mae_T, "rmse": rmse_T}
            found |= {f"{name}_{t}": float(v) for name, x_T in each.items() for t, v in enumerate(x_T)}
        return {**found, "loss": self.loss / len(y_NT)}

    def shown(self) -> dict[str, Any]:
        """`points`: (truth, prediction) of the first target, of test samples evenly drawn."""
        pairs_N2 = np.stack([np.concatenate(self.targets)[:, 0], np.concatenate(self.outputs)[:, 0]], axis=1)
        some = pairs_N2[:: -(-len(pairs_N2) // SHOWN)]
        return {"points": [[float(f"{value:.6g}") for value in pair] for pair in some]}


REGRESSION = Regression()
