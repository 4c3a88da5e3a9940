"""Augmentation in tensor code: a whole batch at once, on the device it lies on.

The random draws are made for the global batch and indexed per sample, so a sample is augmented alike however many
workers share the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Random numbers of one global batch, (B,) each: uniform in [0, 1)."""

    top_B: Tensor
    left_B: Tensor
    flip_B: Tensor
    cut_top_B: Tensor
    cut_left_B: Tensor

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(*(getattr(self, f)[rows] for f in self.__dataclass_fields__))


def draw(batch: int, generator: torch.Generator) -> Draws:
    """Draws for `batch` samples; always the same count, so augmentations can be switched without moving others."""
    return Draws(*torch.rand(len(Draws.__dataclass_fields__), batch, generator=generator))


def augment(pixels_NHWC: Tensor, draws: Draws, kinds: Sequence[str]) -> Tensor:
    """Crop, flip and cut out a batch of uint8 pixels (N, H, W, C); same shape and type."""
    x = pixels_NHWC
    if not kinds:
        return x
    device = x.device
    n, h, w, _ = x.shape
    if "crop" in kinds:
        pad = max(1, h // 8), max(1, w // 8)
        rows_NH = _window(draws.top_B, pad[0], h, device)
        columns_NW = _window(draws.left_B, pad[1], w, device)
        # Zeros around the picture; one gather takes every sample's own window out of it.
        padded = torch.nn.functional.pad(x, (0, 0, pad[1], pad[1], pad[0], pad[0]))
        x = padded[torch.arange(n, device=device)[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :]]
    if "flip" in kinds:
        flip_N = (draws.flip_B < 0.5).to(device)
        x = torch.where(flip_N[:, None, None, None], x.flip(2), x)
    if "cutout" in kinds:
        inside = _span(draws.cut_top_B, h, device)[:, :, None] & _span(draws.cut_left_B, w, device)[:, None, :]
        x = x.masked_fill(inside[..., None], 0)
    return x


def _window(uniform_N: Tensor, pad: int, size: int, device: torch.device) -> Tensor:
    """(N, size) positions of a window that starts anywhere in [0, 2 pad]."""
    start_N = (uniform_N * (2 * pad + 1)).long().to(device)
    return start_N[:, None] + torch.arange(size, device=device)


def _span(uniform_N: Tensor, size: int, device: torch.device) -> Tensor:
    """(N, size) mask of a stretch of half the size around a random centre (DeVries and Taylor 2017)."""
    half = max(1, size // 4)
    centre_N = (uniform_N * size).long().to(device)
    return (torch.arange(size, device=device) - centre_N[:, None]).abs() < half
