"""Trying a network out on random inputs, as precisely as it can compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from prunefuse_ray.networks.architectures import example_input, isolated_seed
from prunefuse_ray.networks.specs import NetworkSpec

if TYPE_CHECKING:
    from prunefuse_ray.networks.files import Selector

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative, of what is exact in real numbers. In float64 right ones agree to 1e-12 and wrong ones differ in the first
digits; float32 is for networks that cast to it themselves."""
MOVED = 0.1
"""How far `as_trained` moves weights, in shares of the root mean square of their tensor."""

T = TypeVar("T")


def in_highest_precision(run: Callable[[torch.dtype], T]) -> tuple[T, float]:
    """What `run` returns in float64, or else in float32, and the tolerance of a comparison in it."""
    try:
        return run(torch.float64), TOLERANCES[torch.float64]
    except Exception:  # of whatever kind: if it is not about the type it comes again
        return run(torch.float32), TOLERANCES[torch.float32]


def probe_inputs(spec: NetworkSpec, dtype: torch.dtype, *, samples: int = 1) -> Tensor:
    """`example_input` in a floating-point type; bytes stay bytes."""
    inputs = example_input(spec, samples=samples)
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


@torch.no_grad()
def as_trained(selector: Selector) -> Selector:
    """A copy whose weights have moved a little, those of each member for themselves, as training moves them. Before it
    a network may hide what it does afterwards: a last layer of zeros lets nothing through, a learned factor is 1, and a
    slope that the members of a committee share is the same in all of them."""
    moved, generator = copy.deepcopy(selector), torch.Generator().manual_seed(0)
    for weight in moved.network.parameters():
        if weight.requires_grad:
            size = weight.square().mean().sqrt().item() or 1.0
            weight.add_(MOVED * size * torch.randn(weight.shape, generator=generator))
    with isolated_seed(0):  # a batch that all members see moves their running statistics
        moved.network.train()(example_input(moved.spec, samples=2, seed=1))
    return moved
