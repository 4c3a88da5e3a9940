"""What a baseline (`tasks/baseline.py`) reads of samples, by their kind. Plain scikit-learn and torch; no Ray.

Texts: TF-IDF of words and pairs of words. Images: k-means features of whitened patches (Coates, Ng and Lee 2011, "An
Analysis of Single-Layer Networks in Unsupervised Feature Learning": 6 x 6 pixels, 800 centroids, triangle activation,
sums over quadrants). Vectors: themselves, standardized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from prunefuse_ray.tasks.baseline import Features

LABELED = 10_000
"""Of more labels so many are used: as many images take a minute or two of one core, texts seconds."""
PATCH, CENTROIDS, SIDE = 6, 800, 32
"""Pixels of a patch's side, and of the longer side to which larger images are scaled."""
POOL = 2_000
"""Images of the pool, without labels, from which the patches come."""
PATCHES = 50_000
IMAGES_AT_ONCE = 16


def of_texts(labeled: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8]) -> Features:
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
    t = weights.transform(counts(test))
    return Features(labeled=x, test=t, strengths=(1.0, 10.0, 100.0), about="TF-IDF of words and pairs of words")


def _hashes(texts: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    return (texts[..., :3].astype(np.int64) << np.array([0, 8, 16])).sum(-1)


def of_vectors(labeled: npt.NDArray[np.floating], test: npt.NDArray[np.floating]) -> Features:
    """Of vectors (N, D)."""
    x, t = _standardized(labeled, test)
    return Features(labeled=x, test=t, strengths=(0.01, 0.1, 1.0, 10.0), about="the vectors")


def of_images(labeled: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8], pool: npt.NDArray[np.uint8]) -> Features:
    """Of images, uint8 (N, H, W, C).

    Args:
        pool: images for the patches.
    """
    from sklearn.cluster import MiniBatchKMeans

    patches, whitening, center = _whitened(pool)
    found = MiniBatchKMeans(min(CENTROIDS, len(patches)), batch_size=2048, n_init=1, max_iter=30, random_state=0)
    centroids = torch.from_numpy(found.fit(patches.numpy()).cluster_centers_.astype(np.float32))

    def features(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.concatenate([_pooled(images[i : i + IMAGES_AT_ONCE], whitening, center, centroids)
                               for i in range(0, len(images), IMAGES_AT_ONCE)])  # fmt: skip

    x, t = _standardized(features(labeled), features(test))
    scaled = f", images scaled to {SIDE} pixels" if max(labeled.shape[1:3]) > SIDE else ""
    return Features(labeled=x, test=t, strengths=(1e-4, 1e-3, 1e-2, 1e-1), about=f"k-means features of patches{scaled}")


# --- k-means features ---


def _patches(images: npt.NDArray[np.uint8]) -> tuple[Tensor, int, int]:
    """Every patch of some images, normalized for brightness and contrast: (N, P, D), and P as rows and columns."""
    x = torch.from_numpy(np.require(images, requirements="W")).permute(0, 3, 1, 2).float()
    if max(x.shape[2:]) > SIDE:
        scale = SIDE / max(x.shape[2:])
        # Of long images the shorter side keeps the size of a patch: of one pixel nothing could be told.
        x = functional.interpolate(x, [max(min(side, PATCH), round(side * scale)) for side in x.shape[2:]], mode="area")
    side = min(PATCH, *x.shape[2:])
    found = functional.unfold(x, side).transpose(1, 2)
    found = found - found.mean(-1, keepdim=True)
    spread = found.var(-1, keepdim=True, correction=min(1, found.shape[-1] - 1))  # of one number: 0
    return found / (spread + 10).sqrt(), x.shape[2] - side + 1, x.shape[3] - side + 1


def _whitened(pool: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor, Tensor]:
    """Some patches of the pool, whitened (ZCA); and what whitens them, (D, D) and (D,)."""
    generator = torch.Generator().manual_seed(0)
    some = []
    for start in range(0, len(pool), 64):
        patches = _patches(pool[start : start + 64])[0].flatten(0, 1)
        each = max(1, PATCHES * len(pool[start : start + 64]) // len(pool))
        some.append(patches[torch.randperm(len(patches), generator=generator)[:each]])
    patches = torch.cat(some)
    center = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - center).T @ (patches - center) / max(1, len(patches) - 1))
    whitening = vectors @ torch.diag((values.clamp(min=0) + 0.1).rsqrt()) @ vectors.T
    return (patches - center) @ whitening, whitening, center


def _pooled(
    images: npt.NDArray[np.uint8], whitening: Tensor, center: Tensor, centroids: Tensor
) -> npt.NDArray[np.float32]:
    """max(0, mean distance - distance) to each centroid, summed over the four quadrants: (N, 4 K)."""
    patches, rows, columns = _patches(images)
    distances = torch.cdist((patches - center) @ whitening, centroids)
    near = functional.relu(distances.mean(-1, keepdim=True) - distances)
    grid = near.transpose(1, 2).unflatten(2, (rows, columns))
    return functional.adaptive_avg_pool2d(grid, 2).flatten(1).numpy()


FINE, FAR = 2.0**-22, 1e6
"""Of a column's largest number the share below which a deviation is rounding alone; and the largest deviation."""


def _standardized(x: npt.NDArray[np.floating], t: npt.NDArray[np.floating]) -> tuple[Any, Any]:
    # In float64: what stands for a missing value (-3.4e38) has no square in float32.
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    std = np.where(std > FINE * np.abs(x).max(0), std, 1.0)
    labeled, test = (((some - mean) / std).clip(-FAR, FAR).astype(x.dtype) for some in (x, t))
    return labeled, test
