"""The rules that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunefuse_ray.networks.fusion.rule import FusionRule, Parts

if TYPE_CHECKING:
    from torch import Tensor

PAPER = "Kousar, Bhatti and Moon 2026 (arXiv 2603.26138)"
EXACT_FOR = (
    "convolutions with batch normalization, transformers that normalize before every block, and encoders of texts"
)


def _keep(parts: Parts) -> Mapping[str, Tensor]:
    from prunefuse_ray.networks.fusion.placement import in_blocks

    return in_blocks(parts, 1.0)


def _function_preserving(parts: Parts) -> Mapping[str, Tensor]:
    from prunefuse_ray.networks.fusion.placement import preserving

    return preserving(parts, 0.0)


def _scaled(parts: Parts) -> Mapping[str, Tensor]:
    from prunefuse_ray.networks.fusion.placement import preserving
    from prunefuse_ray.networks.fusion.verification import verify
    from prunefuse_ray.networks.structure import filled

    verify(filled(parts.dense, preserving(parts, 0.0)), parts)  # else the weights that it scales are the wrong ones
    return preserving(parts, parts.parameters["epsilon"])


def _positional(parts: Parts) -> Mapping[str, Tensor]:
    from prunefuse_ray.networks.fusion.placement import positional_indices
    from prunefuse_ray.networks.indices import scatter

    (proxy,) = parts.members
    dense, small = parts.dense.state_dict(), proxy.network.state_dict()
    return scatter(dense, small, positional_indices(dense, small))


KEEP = FusionRule(
    name="keep",
    about="stay as initialized",
    paper=PAPER,
    apply=_keep,
    committees=True,
)
"""Batch-norm statistics are wrong until they are recalibrated: kept channels have new inputs."""

FUNCTION_PRESERVING = FusionRule(
    name="function_preserving",
    about="are zero where they lead into the proxy's outputs: it starts as the proxy",
    paper="after Net2Net: Chen, Goodfellow and Shlens 2016 (arXiv 1511.05641)",
    apply=_function_preserving,
    committees=True,
    exact=True,
    holds_for=EXACT_FOR,
)

SCALED = FusionRule(
    name="scaled",
    about="are multiplied by fusion.epsilon where function_preserving has zeros",
    apply=_scaled,
    committees=True,
    holds_for=EXACT_FOR,
    parameters={"epsilon": 0.1},
)

POSITIONAL = FusionRule(
    name="positional",
    about="stay as initialized, but the proxy's go to every second or the first positions: the authors' public rule, "
    "for ablations",
    paper=PAPER,
    apply=_positional,
)
