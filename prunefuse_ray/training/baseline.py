"""The baseline: the simplest model that anyone would try first on the same labels, so that nobody pays for a network
that loses to it. Plain scikit-learn and torch; no Ray.

Texts: TF-IDF of words and pairs of words. Images: k-means features of whitened patches (Coates, Ng and Lee 2011, "An
Analysis of Single-Layer Networks in Unsupervised Feature Learning": 6 x 6 pixels, 800 centroids, triangle activation,
sums over quadrants). Each with logistic regression, whose strength a held-out quarter of the labels decides; of numbers
with ridge regression, whose strength is the one of least error on each label left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

LABELED = 10_000
"""Of more labels so many are used: as many images take a minute or two of one core, texts seconds."""
PATCH, CENTROIDS, SIDE = 6, 800, 32
"""Pixels of a patch's side, and of the longer side to which larger images are scaled."""
POOL = 2_000
"""Images of the pool, without labels, from which the patches come."""
PATCHES = 50_000
PIXELS = 20_000
"""Pixels of the labeled images to which the model of pixels is fitted."""
IMAGES_AT_ONCE = 16
UNLIKELY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a baseline says of the test samples."""

    outputs_NC: npt.NDArray[np.floating]
    """As a network has them: logarithms of probabilities, logits of several labels, or numbers as they were fitted."""
    about: str
    """The model in words, as it was fitted."""


def of_texts(
    labeled: npt.NDArray[np.uint8], y_N: npt.NDArray[Any], test: npt.NDArray[np.uint8], classes: int
) -> Answer:
    """Of n-grams (`NgramForm`), uint8 (N, L, 4); what no labeled text has counts nothing."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfTransformer

    known = np.unique(_hashes(labeled)[labeled[..., 3] > 0])

    def counts(texts: npt.NDArray[np.uint8]) -> sparse.csr_matrix:
        hash_NL = _hashes(texts)
        column_NL = np.searchsorted(known, hash_NL).clip(max=len(known) - 1)
        text_M, place_M = np.nonzero((texts[..., 3] > 0) & (known[column_NL] == hash_NL))
        values = texts[text_M, place_M, 3].astype(np.float32)
        return sparse.csr_matrix((values, (text_M, column_NL[text_M, place_M])), shape=(len(texts), len(known)))

    weights = TfidfTransformer(sublinear_tf=True)
    x = weights.fit_transform(counts(labeled))
    outputs_NC, model = _fitted(x, y_N, weights.transform(counts(test)), classes, (1.0, 10.0, 100.0))
    return Answer(outputs_NC=outputs_NC, about=f"TF-IDF of words and pairs of words, {model}")


def _hashes(texts: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    return (texts[..., :3].astype(np.int64) << np.array([0, 8, 16])).sum(-1)


def of_vectors(
    labeled: npt.NDArray[np.floating], y_N: npt.NDArray[Any], test: npt.NDArray[np.floating], classes: int
) -> Answer:
    """Of vectors (N, D)."""
    x, t = _standardised(labeled, test)
    outputs_NC, model = _fitted(x, y_N, t, classes, (0.01, 0.1, 1.0, 10.0))
    return Answer(outputs_NC=outputs_NC, about=f"the vectors, {model}")


def of_images(
    labeled: npt.NDArray[np.uint8], y_N: npt.NDArray[Any], test: npt.NDArray[np.uint8], classes: int,
    pool: npt.NDArray[np.uint8],
) -> Answer:  # fmt: skip
    """Of images, uint8 (N, H, W, C).

    Args:
        pool: images for the patches.
    """
    from sklearn.cluster import MiniBatchKMeans

    patches, whitening, centre = _whitened(pool)
    found = MiniBatchKMeans(min(CENTROIDS, len(patches)), batch_size=2048, n_init=1, max_iter=30, random_state=0)
    centroids = torch.from_numpy(found.fit(patches.numpy()).cluster_centers_.astype(np.float32))

    def features(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.concatenate([_pooled(images[i : i + IMAGES_AT_ONCE], whitening, centre, centroids)
                               for i in range(0, len(images), IMAGES_AT_ONCE)])  # fmt: skip

    x, t = _standardised(features(labeled), features(test))
    outputs_NC, model = _fitted(x, y_N, t, classes, (1e-4, 1e-3, 1e-2, 1e-1))
    scaled = f", images scaled to {SIDE} pixels" if max(labeled.shape[1:3]) > SIDE else ""
    return Answer(
        outputs_NC=outputs_NC,
        about=f"k-means features of patches{scaled}, {model}",
    )


def of_pixels(
    labeled: npt.NDArray[np.uint8], masks_NHW: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8], classes: int
) -> Answer:
    """Of the pixels of images, uint8 (N, H, W, C), one by one: the values of the 3 x 3 pixels around each, and where it
    lies. Pixels of 255 are left out."""
    x, y = _neighbourhoods(labeled).reshape(-1, 9 * labeled.shape[-1] + 5), masks_NHW.reshape(-1)
    known = np.flatnonzero(y != 255)
    some = np.random.default_rng(0).permutation(known)[:PIXELS]
    x, y = x[some], y[some].astype(np.int64)
    mean, std = x.mean(0), x.std(0) + 1e-6
    t_NHWD = (_neighbourhoods(test) - mean) / std
    flat, model = _fitted((x - mean) / std, y, t_NHWD.reshape(-1, t_NHWD.shape[-1]), classes, (0.01, 0.1, 1.0, 10.0))
    outputs_NHWC = flat.astype(np.float32).reshape(*t_NHWD.shape[:3], classes)
    return Answer(
        outputs_NC=np.moveaxis(outputs_NHWC, -1, 1),
        about=f"each pixel by the 3 x 3 values around it and its place, {model}",
    )


def _neighbourhoods(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N, H, W, 9 C + 5): the values around each pixel, of the edge beyond it, its place and the squares of that."""
    n, h, w, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32) / 255
    around = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    place = np.stack([x, y, x * x, y * y, x * y], axis=-1).astype(np.float32)
    return np.concatenate([*around, np.broadcast_to(place, (n, h, w, 5))], axis=-1)


# --- k-means features ---


def _patches(images: npt.NDArray[np.uint8]) -> tuple[Tensor, int, int]:
    """Every patch of some images, normalised for brightness and contrast: (N, P, D), and P as rows and columns."""
    x = torch.from_numpy(np.require(images, requirements="W")).permute(0, 3, 1, 2).float()
    if max(x.shape[2:]) > SIDE:
        scale = SIDE / max(x.shape[2:])
        x = functional.interpolate(x, [max(1, round(side * scale)) for side in x.shape[2:]], mode="area")
    side = min(PATCH, *x.shape[2:])
    found = functional.unfold(x, side).transpose(1, 2)
    found = found - found.mean(-1, keepdim=True)
    return found / (found.var(-1, keepdim=True) + 10).sqrt(), x.shape[2] - side + 1, x.shape[3] - side + 1


def _whitened(pool: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor, Tensor]:
    """Some patches of the pool, whitened (ZCA); and what whitens them, (D, D) and (D,)."""
    generator = torch.Generator().manual_seed(0)
    some = []
    for start in range(0, len(pool), 64):
        patches = _patches(pool[start : start + 64])[0].flatten(0, 1)
        each = max(1, PATCHES * len(pool[start : start + 64]) // len(pool))
        some.append(patches[torch.randperm(len(patches), generator=generator)[:each]])
    patches = torch.cat(some)
    centre = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - centre).T @ (patches - centre) / max(1, len(patches) - 1))
    whitening = vectors @ torch.diag((values.clamp(min=0) + 0.1).rsqrt()) @ vectors.T
    return (patches - centre) @ whitening, whitening, centre


def _pooled(
    images: npt.NDArray[np.uint8], whitening: Tensor, centre: Tensor, centroids: Tensor
) -> npt.NDArray[np.float32]:
    """max(0, mean distance - distance) to each centroid, summed over the four quadrants: (N, 4 K)."""
    patches, rows, columns = _patches(images)
    distances = torch.cdist((patches - centre) @ whitening, centroids)
    near = functional.relu(distances.mean(-1, keepdim=True) - distances)
    grid = near.transpose(1, 2).unflatten(2, (rows, columns))
    return functional.adaptive_avg_pool2d(grid, 2).flatten(1).numpy()


# --- linear models ---


def _fitted(
    x: Any, y_N: npt.NDArray[Any], t: Any, classes: int, strengths: Sequence[float]
) -> tuple[npt.NDArray[np.float64], str]:
    """Outputs (N, C) for `t` of the linear model that suits `y_N`, and the model in words."""
    if np.issubdtype(y_N.dtype, np.floating):
        return _ridge(x, y_N, t)
    outputs_NC, strength = _logistic(x, y_N, t, classes, strengths)
    return outputs_NC, f"logistic regression (C = {strength:g})"


def _ridge(x: Any, y_NT: npt.NDArray[np.floating], t: Any) -> tuple[npt.NDArray[np.float64], str]:
    """Numbers (N, T) for `t`; the strength of each target's penalty is the one of least error on labels left out."""
    from sklearn.linear_model import RidgeCV

    if len(y_NT) < 3:
        return np.tile(y_NT.mean(axis=0), (t.shape[0], 1)), "too few labels for ridge regression: their mean"
    models = [RidgeCV(alphas=np.logspace(-2, 5, 15)).fit(x, y_N) for y_N in y_NT.T]
    strength = float(np.median([model.alpha_ for model in models]))
    return np.stack([model.predict(t) for model in models], axis=1), f"ridge regression (alpha = {strength:.3g})"


def _standardised(x: npt.NDArray[np.floating], t: npt.NDArray[np.floating]) -> tuple[Any, Any]:
    mean, std = x.mean(0), x.std(0) + 1e-6
    return (x - mean) / std, (t - mean) / std


def _logistic(
    x: Any, y_N: npt.NDArray[np.int64], t: Any, classes: int, strengths: Sequence[float]
) -> tuple[npt.NDArray[np.float64], float]:
    """Logarithms of the probabilities of every class (N, C) for `t`, and the strength C that was best on a held-out
    quarter; where a class is too rare for that, the middle one. Of zeros and ones y (N, C) a model for every class,
    the logits, and the middle one of the strengths."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    if y_N.ndim == 2:
        each = [_logistic(x, y, t, 2, strengths) for y in y_N.T]
        return np.stack([p[:, 1] - p[:, 0] for p, _ in each], axis=1), float(np.median([c for _, c in each]))
    p_NC = np.full((t.shape[0], classes), UNLIKELY)
    present, counts = np.unique(y_N, return_counts=True)
    strength = strengths[len(strengths) // 2]
    if len(present) == 1:
        p_NC[:, present[0]] = 1.0
        return np.log(p_NC), strength
    if counts.min() >= 4 and len(y_N) // 4 >= len(present):
        train, held = train_test_split(np.arange(len(y_N)), test_size=0.25, random_state=0, stratify=y_N)
        scores = [
            LogisticRegression(C=c, max_iter=200).fit(x[train], y_N[train]).score(x[held], y_N[held]) for c in strengths
        ]
        strength = strengths[int(np.argmax(scores))]
    fitted = LogisticRegression(C=strength, max_iter=200).fit(x, y_N)
    p_NC[:, fitted.classes_] = fitted.predict_proba(t).clip(UNLIKELY)
    return np.log(p_NC), strength
