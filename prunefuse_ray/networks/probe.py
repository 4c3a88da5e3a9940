"""Trying a network out on random inputs, as precisely as it can compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from prunefuse_ray.networks.architectures import example_input
from prunefuse_ray.networks.specs import NetworkSpec

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative, of what is exact in real numbers. In float64 right ones agree to 1e-12 and wrong ones differ in the first
digits; float32 is for networks that cast to it themselves."""

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
