"""Multi-label classification: any number of classes a sample, a sigmoid for each.

A label is the set of the sample's classes: in tables a rising list of their numbers, in tensors a row of them that is
filled up with NOBODY.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.acquisition import STRATEGIES, Strategy
from prunefuse_ray.acquisition.probabilities import entropy_of
from prunefuse_ray.acquisition.strategy import Scores
from prunefuse_ray.schemas import is_list
from prunefuse_ray.tasks.baseline import Answer, Compared, of_classes
from prunefuse_ray.tasks.classification import CLASSIFICATION
from prunefuse_ray.tasks.task import Evaluation, Metric, Probabilities, Task

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD = 0.5
"""Probability from which a class counts as there."""
SEPARATORS = ";|,"
YES, NO = ("1", "true", "1.0"), ("0", "false", "0.0")
"""Cells of a column for one class, in lower case."""
NOBODY = -1
"""The number of no class."""
NONE = "[]"
"""The set without a class, as text: an empty cell is a missing label."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says of one sample."""

    labels: tuple[str, ...]
    """Names of the classes whose probability reaches the threshold, in the order of the classes."""
    probabilities: dict[str, float]
    """Of every class, by name."""


class MultiLabel(Task):
    """Labels are sets of classes, as lists; outputs are logits (N, C), one binary decision each."""

    name = "multi_label"
    about = "any number of classes per sample"
    metric = Metric(name="map", title="mAP")
    baseline = True
    one_class = False
    several = True

    @cached_property
    def strategies(self) -> Mapping[str, Strategy]:
        """Those without probabilities of classes that exclude each other. The ones that look at features write `margin`
        beside them."""
        by_features = (
            "badge",
            "cluster_margin",
            "k_centers",
            "typiclust",
            "prob_cover",
            "max_herding",
            "uncertainty_herding",
            "facility_location",
        )
        found = {
            "least_confidence": replace(
                STRATEGIES["least_confidence"], score=least_confidence, largest=lambda classes, members: classes * LOG_2
            ),
            "margin": replace(STRATEGIES["margin"], score=margin),
            "entropy": replace(STRATEGIES["entropy"], score=entropy, largest=lambda classes, members: LOG_2),
            "bald": replace(STRATEGIES["bald"], score=bald, largest=lambda classes, members: classes * LOG_2),
            "random": STRATEGIES["random"],
        }
        return found | {name: replace(STRATEGIES[name], score=margin) for name in by_features}

    def group(self, p_NC: Probabilities) -> npt.NDArray[np.int64]:
        """The class that the network is least sure about, whether it is there: a label tells most of that one."""
        return np.abs(p_NC - THRESHOLD).argmin(axis=1)

    def gradient_factor(self, p_NC: Probabilities) -> npt.NDArray[np.float32]:
        """p - y, y the set that the network would give itself: of the binary cross-entropies, class by class."""
        return (p_NC - (p_NC >= THRESHOLD)).astype(np.float32)

    # --- labels ---

    @property
    def label_type(self) -> pa.DataType:
        return pa.list_(pa.int32())

    def label(self, given: Any, classes: Sequence[str]) -> list[int] | None:
        """A set from a list of classes (names or numbers, none of them twice), a class alone, or text: a list in JSON
        (what begins with `[` is nothing else), a name, or names and numbers with one kind of separator (`;`, `|`, `,`)
        between. None where it is none, or may be two different ones."""
        if isinstance(given, list | tuple | np.ndarray):
            numbers = [CLASSIFICATION.label(one, classes) for one in given]
            known = {n for n in numbers if n is not None}
            return sorted(known) if len(known) == len(numbers) else None
        text = "" if given is None else str(given).strip()
        if text.startswith("["):
            try:
                return self.label(json.loads(text), classes)
            except (ValueError, RecursionError):
                return None
        alone = CLASSIFICATION.label(given, classes)
        readings: set[tuple[int, ...]] = set() if alone is None else {(alone,)}
        for separator in SEPARATORS:
            if separator in text and (found := self.label(text.split(separator), classes)) is not None:
                readings.add(tuple(found))
        return list(readings.pop()) if len(readings) == 1 else None

    def joined(self, columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
        """Of a column of zeros and ones for every class; null where another value stands."""
        if not all(pa.types.is_integer(c.type) or pa.types.is_boolean(c.type) for c in columns):
            kinds = ", ".join(sorted({str(c.type) for c in columns}))
            raise TypeError(f"columns of zeros and ones, and these are of type {kinds}")
        x_NC = np.stack([c.cast(pa.int64()).fill_null(-1).to_numpy() for c in columns], axis=1)
        sets = [np.flatnonzero(x_C).tolist() if np.isin(x_C, (0, 1)).all() else None for x_C in x_NC]
        return pa.chunked_array([pa.array(sets, pa.list_(pa.int64()))])

    def label_of_cells(self, cells: Sequence[Any], classes: Sequence[str]) -> list[int] | None:
        """From zeros and ones, a cell for every class."""
        there = ["" if cell is None else str(cell).strip().lower() for cell in cells]
        if len(there) != len(classes) or not set(there) <= {*YES, *NO}:
            return None
        return [c for c, cell in enumerate(there) if cell in YES]

    def values(self, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        return as_sets(labels)

    def targets(self, labels: pa.ChunkedArray, form: Any = None) -> npt.NDArray[np.int64]:
        """(N, K), K the size of the largest set, at least 1."""
        sizes_N = pc.fill_null(pc.list_value_length(labels), 0).to_numpy()
        found_NK = np.full((len(labels), max(1, int(sizes_N.max(initial=0)))), NOBODY, np.int64)
        found_NK[np.arange(found_NK.shape[1]) < sizes_N[:, None]] = pc.list_flatten(labels).to_numpy()
        return found_NK

    def blank_targets(self, samples: int, classes: int, form: Any) -> npt.NDArray[np.int64]:
        return np.full((samples, 1), NOBODY, np.int64)

    def agreed(self, labels: Sequence[Any]) -> tuple[Any, float, bool]:
        label, share, tie = super().agreed([tuple(one) for one in labels])
        return list(label), share, tie

    def named(self, label: Sequence[int], classes: Sequence[str]) -> str:
        """The names with `;` between; a list in JSON where that would not be read as the same set again."""
        names = self.names(label, classes)
        text = ";".join(names)
        return text if names and self.label(text, classes) == list(label) else json.dumps(names, ensure_ascii=False)

    def names(self, label: Sequence[int], classes: Sequence[str]) -> list[str]:
        return [classes[c] for c in label]

    def counts(self, labels: pa.ChunkedArray, classes: int) -> list[int]:
        return np.bincount(pc.list_flatten(labels).to_numpy(), minlength=classes).tolist()

    def invalid_labels(self, labels: pa.ChunkedArray, classes: int) -> pa.ChunkedArray:
        if not is_set(labels.type):
            raise TypeError(
                "lists of integers 0 .. classes-1, or of names that are listed in pool.classes (an empty one: no class)"
            )
        wrong = []
        for chunk in labels.chunks:
            bad_N = pc.is_null(chunk).to_numpy(zero_copy_only=False).copy()
            known = chunk.drop_null()  # lists of one size have values under a null, too
            values, parents = pc.list_flatten(known), np.flatnonzero(~bad_N)[pc.list_parent_indices(known).to_numpy()]
            inside = pc.and_(pc.greater_equal(values, 0), pc.less(values, classes))
            bad_N[parents[~pc.fill_null(inside, False).to_numpy(zero_copy_only=False)]] = True
            numbers = values.cast(pa.int64(), safe=False).fill_null(-1).to_numpy()  # of whatever width, also unsigned
            pairs, times = np.unique(np.stack([parents, numbers]), axis=1, return_counts=True)
            bad_N[pairs[0, times > 1]] = True  # a row of zeros and ones is no list of numbers
            wrong.append(pa.array(bad_N))
        return pa.chunked_array(wrong, pa.bool_())

    # --- training ---

    def tells(self, targets_N: Tensor) -> bool:
        """A class that all samples have, or none, has the same average precision under any ranking."""
        times = targets_N[targets_N != NOBODY].unique(return_counts=True)[1]
        return bool((times < len(targets_N)).any())

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
        """The binary cross-entropies of a sample are summed over its classes: the likelihood of the set, on the scale
        of a cross-entropy. Smoothed targets lie between `smoothing / 2` and 1 minus that. Distillation is that of
        `Classification.loss_sum`, with the divergence of every binary distribution."""
        from torch.nn import functional as F

        targets_NC = self.members(targets_N, outputs.shape[-1]).to(outputs.dtype).expand(outputs.shape)
        hard = F.binary_cross_entropy_with_logits(
            outputs, targets_NC * (1.0 - smoothing) + smoothing / 2, reduction="sum"
        )
        if teacher is None or weight == 0.0:
            return hard
        taught = (teacher / temperature).expand(outputs.shape)
        p = taught.sigmoid()
        soft = F.binary_cross_entropy_with_logits(outputs / temperature, p, reduction="sum")
        soft = soft - F.binary_cross_entropy_with_logits(taught, p, reduction="sum")
        return (1.0 - weight) * hard + weight * temperature**2 * soft

    def consensus(self, outputs: Tensor) -> Tensor:
        """Of a committee's logits (M, N, C) the logit of the members' mean probability."""
        from torch.nn import functional as F

        if outputs.ndim == 2:
            return outputs
        z = outputs.float()
        # In logarithms throughout: a probability that underflows would make an infinite loss.
        return F.logsigmoid(z).logsumexp(0) - F.logsigmoid(-z).logsumexp(0)

    def evaluation(self) -> Evaluation:
        return _Evaluation()

    def members(self, targets_N: Tensor, classes: int) -> Tensor:
        import torch

        there = torch.zeros(len(targets_N), classes + 1, dtype=torch.bool, device=targets_N.device)
        return there.scatter_(1, targets_N + 1, True)[:, 1:]

    def baseline_of(self, compared: Compared) -> Answer:
        """A logistic regression for every class."""
        classes = len(compared.classes)
        return of_classes(compared.features(), _columns(compared.targets_N, classes), classes)

    # --- predictions ---

    def probabilities(self, outputs: npt.NDArray[np.floating]) -> Probabilities:
        z = outputs.astype(np.float64)
        e = np.exp(-np.abs(z))
        return np.where(z >= 0, 1.0, e) / (1.0 + e)

    def guesses(self, p_NC: Probabilities) -> tuple[npt.NDArray[Any], Probabilities]:
        """The likeliest set, which is that of all classes above a half, with the product of its probabilities."""
        guess_N = np.empty(len(p_NC), object)
        guess_N[:] = [np.flatnonzero(p_C >= THRESHOLD).tolist() for p_C in p_NC]
        return guess_N, np.maximum(p_NC, 1.0 - p_NC).prod(axis=1)

    def label_probabilities(self, p_NC: Probabilities, labels_N: npt.NDArray[Any]) -> Probabilities:
        return np.where(_columns(labels_N, p_NC.shape[1]) == 1, p_NC, 1.0 - p_NC).prod(axis=1)

    def prediction(self, p_C: Probabilities, classes: Sequence[str]) -> Prediction:
        return Prediction(
            labels=tuple(name for name, p in zip(classes, p_C, strict=True) if p >= THRESHOLD),
            probabilities=dict(zip(classes, p_C.tolist(), strict=True)),
        )


# --- scores ---------------------------------------------------------------------------------------------------------

LOG_2 = math.log(2)


def least_confidence(p_NC: Probabilities) -> Scores:
    """-log of the probability of the likeliest set in nats, in [0, C log 2]: the order of 1 minus it, which would be
    1.0 for most of many classes."""
    return -np.log(np.maximum(p_NC, 1.0 - p_NC)).sum(axis=1).astype(np.float32)


def margin(p_NC: Probabilities) -> Scores:
    """1 - the distance between the two answers for the class that is nearest to the threshold, in [0, 1]: also the
    order of the largest binary entropy."""
    return (1.0 - np.abs(2.0 * p_NC - 1.0).min(axis=1)).astype(np.float32)


def entropy(p_NC: Probabilities) -> Scores:
    """The mean of the binary entropies in nats, in [0, log 2]."""
    return _binary_entropy(p_NC).mean(axis=-1).astype(np.float32)


def bald(p_MNC: Probabilities) -> Scores:
    """`acquisition.disagreement.bald` of every class, summed, in [0, C log 2]."""
    each_NC = _binary_entropy(p_MNC.mean(axis=0)) - _binary_entropy(p_MNC).mean(axis=0)
    return np.maximum(each_NC, 0.0).sum(axis=1).astype(np.float32)


def _binary_entropy(p: Probabilities) -> Probabilities:
    return entropy_of(np.stack([p, 1.0 - p], axis=-1))


# --- sets ---------------------------------------------------------------------------------------------------


def is_set(kind: pa.DataType) -> bool:
    """Whether a column of this type holds sets: lists of integers."""
    return is_list(kind) and pa.types.is_integer(kind.value_type)


def as_sets(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of class numbers, each rising."""
    found = [[sorted(one) for one in chunk.to_pylist()] for chunk in labels.chunks]
    return pa.chunked_array([pa.array(some, pa.list_(pa.int32())) for some in found], pa.list_(pa.int32()))


def _columns(targets_NK: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Zeros and ones (N, C)."""
    there = np.zeros((len(targets_NK), classes + 1), np.int64)
    np.put_along_axis(there, targets_NK + 1, 1, axis=1)
    return there[:, 1:]


class _Evaluation(Evaluation):
    """mAP: the mean, over the classes that any sample has, of the average precision; F1 over all decisions (micro) and
    as the mean over those classes (macro), at the threshold; mean loss (nats, summed over the classes)."""

    def __init__(self) -> None:
        self.outputs: list[npt.NDArray[np.float64]] = []
        self.targets: list[npt.NDArray[np.int64]] = []
        self.loss = 0.0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self.outputs.append(outputs.double().cpu().numpy())
        self.targets.append(_columns(targets.cpu().numpy(), outputs.shape[1]))
        self.loss += float(MULTI_LABEL.loss_sum(outputs, targets))

    def result(self) -> dict[str, float]:
        from sklearn.metrics import average_precision_score, f1_score

        z_NC, y_NC = np.concatenate(self.outputs), np.concatenate(self.targets)
        loss = {"loss": self.loss / len(y_NC)}
        there = y_NC.any(axis=0)
        if not there.any() or not np.isfinite(z_NC).all():  # nothing to rank, or no ranking
            return {"map": 0.0, "f1_macro": 0.0, "f1_micro": 0.0, **loss}
        # A logit of 0 is a probability of a half.
        guess_NC, z_NC, y_NC = z_NC[:, there] >= 0, z_NC[:, there], y_NC[:, there]
        f1_C = [f1_score(y_NC[:, c], guess_NC[:, c], zero_division=0.0) for c in range(y_NC.shape[1])]
        # Also a class of which no sample has a label gives wrong alarms.
        everything = np.concatenate([x >= 0 for x in self.outputs]).ravel(), np.concatenate(self.targets).ravel()
        return {
            "map": float(np.mean([average_precision_score(y_NC[:, c], z_NC[:, c]) for c in range(y_NC.shape[1])])),
            "f1_macro": float(np.mean(f1_C)),
            "f1_micro": float(f1_score(everything[1], everything[0], zero_division=0.0)),
            **loss,
        }


MULTI_LABEL = MultiLabel()
