"""Fusion: a trained proxy's weights go back to the places in the dense network that they were pruned from.

PruneFuse: Kousar, Bhatti and Moon, arXiv 2603.26138 (2026). The rules differ in what happens to the other weights:

- `keep`, the paper's: they keep the dense network's values. Batch-norm statistics are then wrong until they are
  recalibrated.
- `function_preserving`: weights from added inputs into kept outputs become zero, so the fused network computes what
  the proxy computes. Exact for convolutions with batch normalisation, and for transformers that normalise before
  every block (see prenorm.py); refused for others.
- `scaled`: those weights are multiplied by epsilon instead.
- `positional`: ignores where weights came from: every second position of a halved dimension, else the first ones. It
  is the form of the authors' public code, kept as an ablation.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunefuse_ray.networks.architectures import example_input
from prunefuse_ray.networks.indices import KeptIndices, Proxy, check_names, scatter
from prunefuse_ray.networks.prenorm import fuse_prenorm, residual_stream
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec
from prunefuse_ray.networks.structure import damp_cross, refill

FUSION_RULES = ("keep", "function_preserving", "scaled", "positional")

CROSS_CHANNEL_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)
"""Normalisations whose statistics mix channels: pruning changes what they compute."""

_PROBE_TOLERANCE = 1e-6  # relative, in float64: exact forms agree to 1e-12, wrong ones differ in the first digits


def fuse(
    dense: nn.Module, proxy: Proxy | tuple[nn.Module, KeptIndices], rule: str, *, epsilon: float = 0.1
) -> nn.Module:
    """A new network of dense's shape that holds the proxy's weights and batch-norm statistics; dense is unchanged.

    `epsilon` is the factor of the rule `scaled` only. Raises NetworkError for an unknown rule, a proxy of another
    network, or where `function_preserving` and `scaled` have no exact form; a bare (network, kept) lacks the input
    shape that is needed to verify the form, so there the caller vouches for it.
    """
    if rule not in FUSION_RULES:
        raise NetworkError(f"fusion.rule: unknown {rule!r}; use one of {', '.join(FUSION_RULES)}")
    network, kept = (proxy.network, proxy.kept) if isinstance(proxy, Proxy) else proxy
    for state in (dense.state_dict(), network.state_dict()):
        check_names(state, kept)
    if rule == "keep":
        return filled(dense, scatter(dense.state_dict(), network.state_dict(), kept))
    if rule == "positional":
        positions = positional_indices(dense.state_dict(), network.state_dict())
        return filled(dense, scatter(dense.state_dict(), network.state_dict(), positions))
    exact = fuse_preserving(dense, network, kept, factor=0.0)
    if isinstance(proxy, Proxy):
        verify(exact, network, proxy.spec)
    return exact if rule == "function_preserving" else fuse_preserving(dense, network, kept, factor=epsilon)


def fuse_preserving(dense: nn.Module, network: nn.Module, kept: KeptIndices, *, factor: float) -> nn.Module:
    """Fusion in which weights that would disturb the proxy's function are multiplied by `factor`."""
    proxy_state = network.state_dict()
    modules = dict(dense.named_modules())
    if any(isinstance(module, nn.LayerNorm) for module in modules.values()):
        stream = residual_stream(dense, kept)
        return filled(dense, fuse_prenorm(dense, proxy_state, kept, stream, factor))
    state = scatter(dense.state_dict(), proxy_state, kept)
    for name, tensor in state.items():
        damp_cross(modules, name, tensor, kept[name], factor)
    return filled(dense, state)


def positional_indices(dense: Mapping[str, Tensor], proxy: Mapping[str, Tensor]) -> KeptIndices:
    """Indices by shape alone: every second position where a dimension was halved, else the leading block."""

    def index(size: int, kept: int) -> Tensor | None:
        if kept == size:
            return None
        return torch.arange(0, size, 2) if 2 * kept == size else torch.arange(kept)

    return {name: tuple(map(index, tensor.shape, proxy[name].shape)) for name, tensor in dense.items()}


def verify(fused: nn.Module, network: nn.Module, spec: NetworkSpec) -> None:
    """Raises NetworkError unless both networks compute the same on a random sample, in float64."""
    inputs = example_input(spec)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        expected, found = (copy.deepcopy(each).cpu().double().eval()(inputs) for each in (network, fused))
    if not expected.isfinite().all():
        raise NetworkError("proxy: its logits are not finite; did its training diverge?")
    error = (expected - found).abs().max().item()
    if not error <= _PROBE_TOLERANCE * expected.abs().max().item():
        raise NetworkError(
            f"fusion.rule: no function-preserving form is known for {spec.architecture} "
            f"(its logits would be off by {error:.2g}); use the rule 'keep'"
        )


def filled(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    result = copy.deepcopy(network)
    refill(result, state)
    return result
