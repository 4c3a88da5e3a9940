"""The strong view of a sample, for training on samples without labels: a whole batch at once, in tensor code.

In the manner of RandAugment (Cubuk et al. 2020, arXiv 1909.13719), as FixMatch has it: two operations a sample, drawn
from those below at random strength, then cutout. Turns, shears and shifts are one affine map, sampled once. As in
`augmentation.py` the random numbers are made for the global batch and indexed per sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse_ray.training.augmentation import cutout_mask

SLOTS = 2
"""Operations of one sample."""
DRAWS = 2 * SLOTS + 2
"""Random numbers of one sample."""
GRAY = 0.5
"""Of what a shift uncovers, and of what is cut out."""
LARGEST = {"rotate": math.pi / 6, "shear_x": 0.3, "shear_y": 0.3, "shift_x": 0.6, "shift_y": 0.6}
"""Radians; tangents; shares of half the side."""


def _brightness(x: Tensor, strength: Tensor) -> Tensor:
    return x * (1 + 0.9 * strength)


def _contrast(x: Tensor, strength: Tensor) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1 + 0.9 * strength)


def _saturation(x: Tensor, strength: Tensor) -> Tensor:
    gray = x.mean(1, keepdim=True)
    return gray + (x - gray) * (1 + 0.9 * strength)


def _autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=1 / 255)


def _posterize(x: Tensor, strength: Tensor) -> Tensor:
    levels = 2 ** (4 + 4 * strength.abs()).floor()
    return (x * levels).floor() / levels


def _solarize(x: Tensor, strength: Tensor) -> Tensor:
    return torch.where(x >= strength.abs(), 1 - x, x)


RECOLORS = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "autocontrast": _autocontrast,
    "posterize": _posterize,
    "solarize": _solarize,
}
"""(N, C, H, W) in [0, 1] and strengths (N, 1, 1, 1) in [-1, 1) to what is clamped to [0, 1]."""
OPERATIONS = ("identity", *RECOLORS, *LARGEST)


def strong_view(pixels_NHWC: Tensor, uniform_KN: Tensor) -> Tensor:
    """uint8 (N, H, W, C), distorted; same shape and type.

    Args:
        uniform_KN: (DRAWS, N) random numbers in [0, 1).
    """
    device = pixels_NHWC.device
    uniform_KN = uniform_KN.to(device)
    x = pixels_NHWC.permute(0, 3, 1, 2).float().div_(255)  # a copy, to change in place
    affine_N23 = torch.eye(2, 3, device=device).repeat(len(x), 1, 1)
    for slot in range(SLOTS):
        operation_N = (uniform_KN[2 * slot] * len(OPERATIONS)).long()
        strength_N = 2 * uniform_KN[2 * slot + 1] - 1
        x = _recolored(x, operation_N, strength_N)
        affine_N23 = _compose(affine_N23, operation_N, strength_N, x.shape[3] / x.shape[2])
    grid_NHW2 = functional.affine_grid(affine_N23, list(x.shape), align_corners=False)
    x = functional.grid_sample(x.sub_(GRAY), grid_NHW2, mode="bilinear", padding_mode="zeros", align_corners=False)
    x = x.add_(GRAY).masked_fill_(cutout_mask(uniform_KN[-2], uniform_KN[-1], x.shape[2:])[:, None], GRAY)
    return x.clamp_(0, 1).mul_(255).round_().to(pixels_NHWC.dtype).permute(0, 2, 3, 1)


def _is(operation_N: Tensor, name: str) -> Tensor:
    return operation_N == OPERATIONS.index(name)


def _recolored(x: Tensor, operation_N: Tensor, strength_N: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1], where an operation changes colors; the others as they are."""
    for name, recolor in RECOLORS.items():
        mine = _is(operation_N, name).nonzero().flatten()
        if len(mine):  # a twelfth of the samples: computing each operation for all of them took 2.3 times as long
            x[mine] = recolor(x[mine], strength_N[mine, None, None, None]).clamp(0, 1)
    return x


def _compose(affine_N23: Tensor, operation_N: Tensor, strength_N: Tensor, aspect: float) -> Tensor:
    """Each sample's map, and then the one of its operation. A map's coordinates have their unit in half of each side,
    so turns and shears know the aspect (width over height)."""
    amount = {n: torch.where(_is(operation_N, n), LARGEST[n] * strength_N, 0.0) for n in LARGEST}
    cos_N, sin_N = amount["rotate"].cos(), amount["rotate"].sin()
    rows = (
        (cos_N, (amount["shear_x"] - sin_N) / aspect, amount["shift_x"]),
        ((amount["shear_y"] + sin_N) * aspect, cos_N, amount["shift_y"]),
    )
    step_N23 = torch.stack([torch.stack(row, 1) for row in rows], 1)
    moved_N23 = affine_N23[:, :, :2] @ step_N23
    return torch.cat([moved_N23[:, :, :2], moved_N23[:, :, 2:] + affine_N23[:, :, 2:]], 2)
