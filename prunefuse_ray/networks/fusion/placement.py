"""Where proxies' weights go in the dense network, and what becomes of the weights that would disturb them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunefuse_ray.networks.fusion.prenorm import fuse_prenorm, residual_stream
from prunefuse_ray.networks.fusion.rule import Parts
from prunefuse_ray.networks.indices import KeptIndices, added, grid, write
from prunefuse_ray.networks.structure import damp_cross, is_depthwise, reading_axis


def in_blocks(parts: Parts, factor: float) -> dict[str, Tensor]:
    """Every member's weights in the positions that they were pruned from, and the dense network's elsewhere, times
    `factor` where they lead from a member's added inputs into its kept outputs.

    The blocks of a committee lie on the diagonal of every layer. What its members share, they average: the classifier.
    """
    states = [member.network.state_dict() for member in parts.members]
    modules = dict(parts.dense.named_modules(remove_duplicate=False))
    fused = {}
    for name, tensor in parts.dense.state_dict().items():
        kept = [member.kept[name] for member in parts.members]
        values = [state[name].to(tensor) for state in states]
        if len(values) > 1:
            values = _averaged(modules[name.rpartition(".")[0]], kept[0], values)
        result = tensor.clone()
        for dims in kept:
            damp_cross(modules, name, result, dims, factor)
        for dims, value in zip(kept, values, strict=True):
            write(name, result, value, dims)
        fused[name] = result
    return fused


def _averaged(owner: nn.Module, dims: tuple[Tensor | None, ...], values: list[Tensor]) -> list[Tensor]:
    """What each member writes of a tensor of this module."""
    if all(index is None for index in dims):  # the classifier's bias, or a counter
        return [torch.stack(values).mean(0) if values[0].is_floating_point() else values[0]] * len(values)
    outputs = 1 if getattr(owner, "transposed", False) and not is_depthwise(owner) else 0
    if isinstance(owner, (nn.Linear, _ConvNd)) and len(dims) > 1 and dims[outputs] is None:
        # Whole outputs that read the members' channels, as the classifier's do, sum over the members.
        return [value / len(values) for value in values]
    return values


def shrunk(parts: Parts, share: float) -> dict[str, Tensor]:
    """`in_blocks` with the members' parameters drawn towards their initialization: `share` of what was trained, and the
    rest of the dense network's own value at that position. Buffers stay as trained."""
    fused = in_blocks(parts, 1.0)
    for name, initial in parts.dense.named_parameters():
        fused[name] = torch.lerp(initial.detach(), fused[name], share)
    return fused


def at_trained_scale(parts: Parts) -> dict[str, Tensor]:
    """`in_blocks` with the other weights of every matrix and kernel multiplied by what training did to the root mean
    square of the members' weights there."""
    fused = in_blocks(parts, 1.0)
    for name, initial in parts.dense.named_parameters():
        trained = fused[name]
        places = torch.zeros(trained.shape, dtype=torch.bool, device=trained.device)
        for member in parts.members:
            places[grid(trained.shape, member.kept[name], device=trained.device)] = True
        before = initial.detach()[places].square().mean().sqrt()
        if trained.ndim > 1 and before > 0:
            trained[~places] *= trained[places].square().mean().sqrt() / before
    return fused


def widened(parts: Parts) -> dict[str, Tensor]:
    """A network in which every added channel is a copy of one of the proxy's.

    What reads a channel gets a part of the proxy's weight for each of its copies. The parts differ by what the dense
    network's initial weights there differ from their mean, which is zero in sum: the function is the proxy's, but
    copies have gradients of their own from the first step.
    """
    (proxy,) = parts.members
    modules, trained = dict(parts.dense.named_modules(remove_duplicate=False)), proxy.network.state_dict()
    fused = {}
    for name, initial in parts.dense.state_dict().items():
        copied, axis = trained[name].to(initial), reading_axis(modules[name.rpartition(".")[0]], initial)
        sources = {
            dim: _copied(initial.shape[dim], kept).to(initial.device)
            for dim, kept in enumerate(proxy.kept[name])
            if kept is not None
        }
        for dim, source in sources.items():
            copied = copied.index_select(dim, source)
        if axis in sources:
            copied = _shared(copied, initial, axis, sources[axis])
        fused[name] = copied.clone()
    return fused


def _copied(size: int, kept: Tensor) -> Tensor:
    """For every position of a dimension the proxy's (size,) that it is, or is a copy of: the added ones take turns."""
    source = torch.empty(size, dtype=torch.int64)
    source[kept.cpu()] = torch.arange(len(kept))
    new = added(size, kept.cpu())
    source[new] = torch.arange(len(new)) % len(kept)
    return source


def _shared(weight: Tensor, initial: Tensor, axis: int, source: Tensor) -> Tensor:
    """The weight, given to every copy of an input along `axis` whole, in parts that add up to it."""
    copies = torch.bincount(source).to(weight)
    sums = torch.zeros_like(initial.index_select(axis, torch.arange(len(copies), device=source.device)))
    sums.index_add_(axis, source, initial)
    along = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    share = copies[source].view(along)
    return weight / share + initial - sums.index_select(axis, source) / share


def preserving(parts: Parts, factor: float) -> dict[str, Tensor]:
    """Fusion in which the weights that would disturb the proxy's function are multiplied by `factor`."""
    if len(parts.members) == 1 and any(isinstance(module, nn.LayerNorm) for module in parts.dense.modules()):
        (proxy,) = parts.members
        stream = residual_stream(parts.dense, proxy.kept)
        return fuse_prenorm(parts.dense, proxy.network.state_dict(), proxy.kept, stream, factor)
    return in_blocks(parts, factor)


def positional_indices(dense: Mapping[str, Tensor], proxy: Mapping[str, Tensor]) -> KeptIndices:
    """Indices by shape alone: every second position where a dimension was halved, else the leading block."""

    def index(size: int, kept: int) -> Tensor | None:
        if kept == size:
            return None
        return torch.arange(0, size, 2) if 2 * kept == size else torch.arange(kept)

    return {name: tuple(map(index, tensor.shape, proxy[name].shape)) for name, tensor in dense.items()}
