"""Augmentation in tensor code: a whole batch at once, on the device it lies on.

The random draws are made for the global batch and indexed per sample, so a sample is augmented alike however many
workers share the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import ImageForm

if TYPE_CHECKING:
    from prunefuse_ray.data.sample_format import Form  # which knows Ray


@dataclass(frozen=True)
class Draws:
    """Random numbers of one global batch, (B,) each: uniform in [0, 1)."""

    top_B: Tensor
    left_B: Tensor
    flip_B: Tensor
    cut_top_B: Tensor
    cut_left_B: Tensor
    area_B: Tensor
    ratio_B: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Draws:
        return Draws(*(getattr(self, f)[rows] for f in self.__dataclass_fields__))


def draw(batch: int, generator: torch.Generator) -> Draws:
    """Draws for `batch` samples; always the same count, so augmentations can be switched without moving others."""
    return Draws(*torch.rand(len(Draws.__dataclass_fields__), batch, generator=generator))


def held_form(form: Form, recipe: cfg.Recipe) -> Form:
    """The form in which samples are held: larger than the network's input where random crops need it."""
    crops = isinstance(form, ImageForm) and "resized_crop" in recipe.augment
    return form.uncropped if crops else form  # type: ignore[union-attr]


def weak_view(held_N: Tensor, draws: Draws, recipe: cfg.Recipe, form: Form) -> Tensor:
    """Samples in `held_form`, uint8, augmented by the recipe: (N, *form.shape)."""
    size = form.shape[:2] if isinstance(form, ImageForm) else None
    return augment(held_N, draws, recipe.augment, size=size, smallest=recipe.smallest_crop)


def masked_view(
    held_N: Tensor, masks_NHW: Tensor, draws: Draws, recipe: cfg.Recipe, form: Form
) -> tuple[Tensor, Tensor]:
    """`weak_view` of images with their masks, uint8, which are moved as one more channel. Pixels around an image are
    left out: in this channel 0, which crops put there, stands for 255."""
    together = torch.cat([held_N, (masks_NHW + 1)[..., None]], -1)
    moved = weak_view(together, draws, recipe, form)
    return moved[..., :-1], moved[..., -1] - 1


def network_inputs(form: Form, values_N: Tensor) -> Tensor:
    """Samples, uint8 (N, *form.shape), as the input of a network in `networks.channels_last` form."""
    x = form.inputs(values_N)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def augment(
    pixels_NHWC: Tensor,
    draws: Draws,
    kinds: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    smallest: float = 0.08,
) -> Tensor:
    """Crop, flip and cut out a batch of uint8 pixels (N, H, W, C); same type, and same shape but for `resized_crop`.

    Args:
        size: (height, width) that `resized_crop` scales to; default: as it was.
        smallest: smallest share of the area that `resized_crop` takes.
    """
    x = pixels_NHWC
    if not kinds:
        return x
    if "resized_crop" in kinds:
        x = _resized_crop(x, draws, size or (x.shape[1], x.shape[2]), smallest)
    device = x.device
    n, h, w, c = x.shape
    if "crop" in kinds:
        pad = max(1, h // 8), max(1, w // 8)
        top_N, left_N = _start(draws.top_B, pad[0], device), _start(draws.left_B, pad[1], device)
        # Zeros around the image. Of all its windows, a view, every sample takes its own, row by row: pixel by pixel a
        # gather is many times slower.
        padded = functional.pad(x, (0, 0, pad[1], pad[1], pad[0], pad[0])).flatten(2)
        windows = padded.unfold(1, h, 1).unfold(2, w * c, c)
        x = windows[torch.arange(n, device=device), top_N, left_N].unflatten(2, (w, c))
    if "flip" in kinds:
        flip_N = (draws.flip_B < 0.5).to(device)
        x = torch.where(flip_N[:, None, None, None], x.flip(2), x)
    if "cutout" in kinds:
        x = x.masked_fill(cutout_mask(draws.cut_top_B, draws.cut_left_B, (h, w)).to(device)[..., None], 0)
    return x


def _resized_crop(x: Tensor, draws: Draws, size: tuple[int, int], smallest: float) -> Tensor:
    """A random part of every image, scaled bilinearly: its share of the area uniform in [smallest, 1], its aspect
    log-uniform in [3/4, 4/3] (Szegedy et al. 2015), cut off where it would not fit."""
    _, h, w, _ = x.shape
    area_N = (smallest + (1 - smallest) * draws.area_B) * h * w
    aspect_N = torch.exp((2 * draws.ratio_B - 1) * math.log(4 / 3))
    height_N, width_N = (area_N / aspect_N).sqrt().clamp(max=h), (area_N * aspect_N).sqrt().clamp(max=w)
    rows_NH = _places(draws.top_B * (h - height_N), height_N, size[0], h)
    columns_NW = _places(draws.left_B * (w - width_N), width_N, size[1], w)
    grid_NHW2 = torch.stack(torch.broadcast_tensors(columns_NW[:, None, :], rows_NH[:, :, None]), dim=-1).to(x.device)
    planes = x.permute(0, 3, 1, 2).float()
    cut = functional.grid_sample(planes, grid_NHW2, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.round().to(x.dtype).permute(0, 2, 3, 1).contiguous()


def _places(start_N: Tensor, length_N: Tensor, count: int, whole: int) -> Tensor:
    """(N, count) centers of `count` equal cells of each stretch, from -1 to 1 over `whole` pixels."""
    centers = (torch.arange(count) + 0.5) / count
    return 2 * (start_N[:, None] + length_N[:, None] * centers) / whole - 1


def center(pixels_NHWC: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of every image, (height, width)."""
    top, left = (pixels_NHWC.shape[1] - size[0]) // 2, (pixels_NHWC.shape[2] - size[1]) // 2
    return pixels_NHWC[:, top : top + size[0], left : left + size[1]]


def _start(uniform_N: Tensor, pad: int, device: torch.device) -> Tensor:
    """(N,) where a window starts: anywhere in [0, 2 pad]."""
    return (uniform_N * (2 * pad + 1)).long().to(device)


def cutout_mask(top_N: Tensor, left_N: Tensor, size: Sequence[int]) -> Tensor:
    """(N, H, W) masks of rectangles of half the height and width around random centers (DeVries and Taylor 2017)."""
    return _span(top_N, size[0])[:, :, None] & _span(left_N, size[1])[:, None, :]


def _span(uniform_N: Tensor, size: int) -> Tensor:
    """(N, size) mask of a stretch of half the size around a random center."""
    centre_N = (uniform_N * size).long()
    return (torch.arange(size, device=uniform_N.device) - centre_N[:, None]).abs() < max(1, size // 4)
