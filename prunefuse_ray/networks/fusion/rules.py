"""The rules that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunefuse_ray.networks.fusion.rule import FusionRule, Parts
from prunefuse_ray.networks.specs import NetworkError

if TYPE_CHECKING:
    from torch import Tensor

PAPER = "Kousar, Bhatti and Moon 2026 (arXiv 2603.26138)"
EXACT_FOR = (
    "convolutions with batch normalization, transformers that normalize before every block, and encoders of texts"
)


def _share(parts: Parts, name: str) -> float:
    value = parts.parameters[name]
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise NetworkError(f"fusion.{name}: {value!r} is no share from 0 to 1")
    return value


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
    return preserving(parts, _share(parts, "epsilon"))


def _shrink_perturb(parts: Parts) -> Mapping[str, Tensor]:
    from prunefuse_ray.networks.fusion.placement import shrunk

    return shrunk(parts, _share(parts, "shrink"))


def _variance_transfer(parts: Parts) -> Mapping[str, Tensor]:
    from prunefuse_ray.networks.fusion.placement import at_trained_scale

    return at_trained_scale(parts)


def _net2wider(parts: Parts) -> Mapping[str, Tensor]:
    from prunefuse_ray.networks.fusion.placement import widened

    return widened(parts)


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
    about="are zero where they lead into the proxy's outputs: the fused network starts as the proxy",
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

SHRINK_PERTURB = FusionRule(
    name="shrink_perturb",
    about="stay as initialized; the proxy's are shrunk towards their own initial values (fusion.shrink of them stays)",
    paper="Ash and Adams 2020 (arXiv 1910.08475), whose noise is here the dense network's initialization",
    apply=_shrink_perturb,
    committees=True,
    parameters={"shrink": 0.5},
)

VARIANCE_TRANSFER = FusionRule(
    name="variance_transfer",
    about="are scaled to the size of the trained ones in their layer",
    paper="after Yuan, Savarese and Maire 2023 (arXiv 2306.12700), without their learning rates by age",
    apply=_variance_transfer,
    committees=True,
)

NET2WIDER = FusionRule(
    name="net2wider",
    about="make their channels copies of the proxy's; the layer that reads them splits the proxy's weight unevenly "
    "between a channel and its copies, so that the fused network starts as the proxy",
    paper="after Chen, Goodfellow and Shlens 2016 (arXiv 1511.05641); unequal shares: Wang et al. 2024 (LEMON, arXiv "
    "2310.07999)",
    apply=_net2wider,
    exact=True,
    holds_for="convolutions with batch normalization; where these are grouped or joined, at pruning.ratio 0.5",
)

POSITIONAL = FusionRule(
    name="positional",
    about="stay as initialized, but the proxy's go to every second or the first positions: the authors' public rule, "
    "for ablations",
    paper=PAPER,
    apply=_positional,
)
