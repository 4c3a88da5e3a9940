"""The simplest model that anyone would try first on the same labels, so that nobody pays for a network that loses to
it. Plain scikit-learn; the features of images, texts and vectors are in `training/baseline.py`.

Logistic regression, whose strength a held-out quarter of the labels decides; of numbers ridge regression, whose
strength is the one of least error on each label left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PIXELS = 20_000
"""Pixels of the labeled images to which the model of pixels is fitted."""
UNLIKELY = 1e-12
JUDGED = 10
"""Where a sample may have several classes, a strength is looked for on so many of them."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a linear model reads of the samples, by their kind."""

    labeled: Any
    """(N, D), dense or sparse."""
    test: Any
    strengths: Sequence[float]
    """Inverse strengths C of the penalty of a logistic regression, to choose from."""
    about: str
    """The features in words."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The samples and labels that a baseline is fitted to and tested on."""

    labeled: npt.NDArray[Any]
    """(N, ...), as forms decode them."""
    targets_N: npt.NDArray[Any]
    """`Task.targets` of their labels."""
    test: npt.NDArray[Any]
    classes: Sequence[str]
    features: Callable[[], Features]
    """Of both, by the kind of the samples; images take a minute."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a baseline says of the test samples."""

    outputs_NC: npt.NDArray[np.floating]
    """As a network has them: logarithms of probabilities, logits of several labels, or numbers as they were fitted."""
    about: str
    """The model in words, as it was fitted."""


def of_classes(features: Features, y_N: npt.NDArray[np.int64], classes: int) -> Answer:
    """Logistic regression. y: classes (N,); or zeros and ones (N, C), a model for every class."""
    outputs_NC, strength = _logistic(features.labeled, y_N, features.test, classes, features.strengths)
    return Answer(outputs_NC=outputs_NC, about=f"{features.about}, logistic regression (C = {strength:g})")


def of_numbers(features: Features, y_NT: npt.NDArray[np.floating]) -> Answer:
    """Ridge regression of numbers (N, T)."""
    outputs_NT, model = _ridge(features.labeled, y_NT, features.test)
    return Answer(outputs_NC=outputs_NT, about=f"{features.about}, {model}")


def of_pixels(
    labeled: npt.NDArray[np.uint8], masks_NHW: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8], classes: int
) -> Answer:
    """Of the pixels of images, uint8 (N, H, W, C), one by one: the values of the 3 x 3 pixels around each, and where it
    lies. Pixels of 255 are left out."""
    y, each = masks_NHW.reshape(-1), math.prod(masks_NHW.shape[1:])
    some = np.random.default_rng(0).permutation(np.flatnonzero(y != 255))[:PIXELS]
    x = np.empty((len(some), 9 * labeled.shape[-1] + 5), np.float32)
    for n in np.unique(some // each):  # an image at a time: the neighborhoods of all pixels would be gigabytes
        mine = some // each == n
        x[mine] = _neighborhoods(labeled[n : n + 1]).reshape(each, -1)[some[mine] % each]
    mean, std = (x.mean(0), x.std(0) + 1e-6) if len(x) else (0.0, 1.0)
    model, strength = _fitted((x - mean) / std, y[some].astype(np.int64), (0.01, 0.1, 1.0, 10.0))
    outputs_NCHW = np.empty((len(test), classes, *test.shape[1:3]), np.float32)
    for n in range(len(test)):
        t = (_neighborhoods(test[n : n + 1]) - mean) / std
        p = _log_probabilities(model, t.reshape(-1, t.shape[-1]), classes)
        outputs_NCHW[n] = p.T.reshape(classes, *test.shape[1:3])
    about = "each pixel by the 3 x 3 values around it and its place"
    return Answer(outputs_NC=outputs_NCHW, about=f"{about}, logistic regression (C = {strength:g})")


def _neighborhoods(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N, H, W, 9 C + 5): the values around each pixel, of the edge beyond it, its place and the squares of that."""
    n, h, w, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32) / 255
    around = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    place = np.stack([x, y, x * x, y * y, x * y], axis=-1).astype(np.float32)
    return np.concatenate([*around, np.broadcast_to(place, (n, h, w, 5))], axis=-1)


def _ridge(x: Any, y_NT: npt.NDArray[np.floating], t: Any) -> tuple[npt.NDArray[np.float64], str]:
    """Numbers (N, T) for `t`; the strength of each target's penalty is the one of least error on labels left out."""
    from sklearn.linear_model import RidgeCV

    if len(y_NT) < 3:
        return np.tile(y_NT.mean(axis=0), (t.shape[0], 1)), "too few labels for ridge regression: their mean"
    models = [RidgeCV(alphas=np.logspace(-2, 5, 15)).fit(x, y_N) for y_N in y_NT.T]
    strength = float(np.median([model.alpha_ for model in models]))
    return np.stack([model.predict(t) for model in models], axis=1), f"ridge regression (alpha = {strength:.3g})"


def _logistic(
    x: Any, y_N: npt.NDArray[np.int64], t: Any, classes: int, strengths: Sequence[float]
) -> tuple[npt.NDArray[np.float64], float]:
    """Logarithms of the probabilities of every class (N, C) for `t`, and the strength C. Of zeros and ones y (N, C) a
    model for every class, the logits, and the middle one of the strengths; of many classes the most common ones decide
    it for the others."""
    if y_N.ndim == 2:
        common = np.argsort(-y_N.sum(axis=0), kind="stable")[:JUDGED].tolist()
        judged = {c: _fitted(x, y_N[:, c], strengths) for c in common}
        strength = float(np.median([found for _, found in judged.values()]))
        models = (judged[c] if c in judged else _fitted(x, y_N[:, c], (strength,)) for c in range(y_N.shape[1]))
        each = [_log_probabilities(model, t, 2) for model, _ in models]
        return np.stack([p[:, 1] - p[:, 0] for p in each], axis=1), strength
    model, strength = _fitted(x, y_N, strengths)
    return _log_probabilities(model, t, classes), strength


def _fitted(x: Any, y_N: npt.NDArray[np.int64], strengths: Sequence[float]) -> tuple[Any, float]:
    """A logistic regression, or the class where there is one alone; and the strength C that was best on a held-out
    quarter, where a class is too rare for that, the middle one."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    present, counts = np.unique(y_N, return_counts=True)
    strength = strengths[len(strengths) // 2]
    if len(present) < 2:  # none: masks of which all pixels are left out
        return int(present[0]) if len(present) else 0, strength
    if len(strengths) > 1 and counts.min() >= 4 and len(y_N) // 4 >= len(present):
        train, held = train_test_split(np.arange(len(y_N)), test_size=0.25, random_state=0, stratify=y_N)
        scores = [
            LogisticRegression(C=c, max_iter=200).fit(x[train], y_N[train]).score(x[held], y_N[held]) for c in strengths
        ]
        strength = strengths[int(np.argmax(scores))]
    return LogisticRegression(C=strength, max_iter=200).fit(x, y_N), strength


def _log_probabilities(model: Any, t: Any, classes: int) -> npt.NDArray[np.float64]:
    """What a `_fitted` model says, (N, C)."""
    p_NC = np.full((t.shape[0], classes), UNLIKELY)
    if isinstance(model, int):
        p_NC[:, model] = 1.0
    else:
        p_NC[:, model.classes_] = model.predict_proba(t).clip(UNLIKELY)
    return np.log(p_NC)
