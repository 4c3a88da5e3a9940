"""Backends of torch's own: the plain network, its inference form, and that compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunefuse_ray.networks.backends.backend import Backend, Runner
from prunefuse_ray.networks.specs import NetworkError, PrecisionError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def _eager(
    network: nn.Module, *, precision: str, device: torch.device, example: Tensor, threads: int, features: bool
) -> Runner:
    from prunefuse_ray.networks.inference import WithFeatures

    plain = network.eval().requires_grad_(False).to(device)
    return WithFeatures(plain, example) if features else plain


def _torch(
    network: nn.Module, *, precision: str, device: torch.device, example: Tensor, threads: int, features: bool
) -> Runner:
    return _form(network, precision, example, features)


def _form(network: nn.Module, precision: str, example: Tensor, features: bool) -> nn.Module:
    """The form for scoring, tried once where its weights were converted: a network may make tensors of its own, which
    stay float32. In training autocast brings both to one precision, so that scoring is the first to meet them."""
    import torch

    from prunefuse_ray.networks.inference import scoring_form

    form = scoring_form(network, precision, example, features=features)
    if precision == "fp32":
        return form
    try:
        with torch.inference_mode():
            form(example[:2])
    except Exception as error:  # of the network's own code, so anything may come
        raise PrecisionError(
            f"scoring.precision: this network does not run in {precision} ({first_line(error)}); set it to fp32"
        ) from error
    return form


def _compile(
    network: nn.Module, *, precision: str, device: torch.device, example: Tensor, threads: int, features: bool
) -> Runner:
    import torch

    compiled = torch.compile(_form(network, precision, example, features), dynamic=False)
    try:
        # It compiles when it is first called: now, not in the middle of the pool. A copy made in this mode is of the
        # kind that scoring gives it; for another kind it would compile again.
        with torch.inference_mode():
            compiled(example.clone())
    except Exception as error:  # of the tracer, of the code generator, of a C++ compiler that is not there
        raise NetworkError(
            f"scoring.backend: torch.compile cannot compile this network here ({first_line(error)}); use torch, or auto"
        ) from error
    return compiled


EAGER = Backend(
    name="eager",
    about="the network as it was trained",
    build=_eager,
    precisions=("fp32",),
    portable=True,
)
TORCH = Backend(
    name="torch",
    about="its batch norms folded into the convolutions",
    build=_torch,
    portable=True,
    auto={"cpu": 0, "cuda": 0},
)
COMPILE = Backend(
    name="compile",
    about="the folded network by torch.compile, which takes about a minute in every actor",
    build=_compile,
    auto={"cuda": 1e15},
)
