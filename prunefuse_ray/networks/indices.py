"""Kept indices: which positions of every dense tensor a proxy's tensor came from.

The committee of disjoint proxies and the plain method differ only in these values, so everything here is pure
tensor code that knows no network.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, PruningSpec

KeptIndices = dict[str, tuple[Tensor | None, ...]]
"""State-dict name -> for each dimension the sorted int64 positions that were kept, or None for all of them."""


@dataclass
class Proxy:
    """A pruned network, and where in the dense network its weights belong."""

    network: nn.Module
    kept: KeptIndices
    spec: NetworkSpec
    pruning: PruningSpec
    origin: str = ""
    """Digest of the dense network's parameters, where `prunefuse_ray.prune` has pruned it; '' is not compared."""


def gather(state: Mapping[str, Tensor], kept: KeptIndices) -> dict[str, Tensor]:
    """The kept positions of every dense tensor: fresh, contiguous tensors of the proxy's shapes."""
    check_names(state, kept)
    return {name: _take(name, tensor, kept[name]).clone() for name, tensor in state.items()}


def scatter(dense: Mapping[str, Tensor], proxy: Mapping[str, Tensor], kept: KeptIndices) -> dict[str, Tensor]:
    """Copies of the dense tensors with the proxy's values written into the kept positions.

    gather(scatter(dense, proxy, kept), kept) is proxy, and scatter(dense, gather(dense, kept), kept) is dense.
    """
    check_names(dense, kept)
    check_names(proxy, kept)
    result = {name: tensor.clone() for name, tensor in dense.items()}
    for name, tensor in result.items():
        write(name, tensor, proxy[name], kept[name])
    return result


def write(name: str, tensor: Tensor, values: Tensor, dims: tuple[Tensor | None, ...]) -> None:
    """Puts `values` into the kept positions of a tensor, in place."""
    if (expected := kept_shape(tensor.shape, dims)) != tuple(values.shape):
        raise NetworkError(f"{name}: the proxy's shape {tuple(values.shape)} is not the kept shape {expected}")
    tensor[grid(tensor.shape, dims, device=tensor.device)] = values.to(tensor)


def compose(first: KeptIndices, second: KeptIndices) -> KeptIndices:
    """The indices of pruning by `first`, and the result by `second`, in terms of the first network."""
    return {name: tuple(map(_compose, dims, second[name])) for name, dims in first.items()}


def whole(state: Mapping[str, Tensor]) -> KeptIndices:
    """Every position of every tensor."""
    return {name: (None,) * tensor.ndim for name, tensor in state.items()}


def kept_shape(shape: tuple[int, ...], dims: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    return tuple(size if index is None else len(index) for size, index in zip(shape, dims, strict=True))


def grid(
    shape: tuple[int, ...], dims: tuple[Tensor | None, ...], *, device: torch.device | str = "cpu"
) -> tuple[Tensor, ...]:
    """Broadcastable index tensors that address the kept block of a tensor of this shape; () for a scalar."""
    indices = [
        (torch.arange(size) if index is None else index).to(device) for size, index in zip(shape, dims, strict=True)
    ]
    return torch.meshgrid(*indices, indexing="ij") if indices else ()


def added(size: int, kept: Tensor | None) -> Tensor:
    """The positions of a dimension that the proxy does not have."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[slice(None) if kept is None else kept] = False
    return mask.nonzero().flatten()


def product_indices(name: str, flat: Tensor, shape: tuple[int, ...]) -> tuple[Tensor | None, ...]:
    """Per-dimension kept indices from the flat positions that survived in a tensor of the dense `shape`.

    flat: int64, the shape of the pruned tensor. Raises NetworkError unless the positions are a product set, that is
    whole channels along each dimension.
    """
    if flat.ndim != len(shape):
        raise NetworkError(f"{name}: pruning changed its dimensions from {shape} to {tuple(flat.shape)}")
    # Of a product set the first line along each dimension names the dimension's positions: sorting all is slow.
    lines = [flat[tuple(slice(None) if d == dim else slice(1) for d in range(flat.ndim))] for dim in range(flat.ndim)]
    dims = tuple(torch.unravel_index(line.flatten(), shape)[dim].unique() for dim, line in enumerate(lines))
    positions = torch.arange(torch.Size(shape).numel()).view(shape)[grid(shape, dims)]
    if tuple(positions.shape) != tuple(flat.shape) or not (
        torch.equal(positions, flat) or torch.equal(positions.flatten(), flat.flatten().sort().values)
    ):
        raise NetworkError(f"{name}: the kept positions are not whole channels, so they cannot be fused back")
    return tuple(None if len(index) == size else index for index, size in zip(dims, shape, strict=True))


def _take(name: str, tensor: Tensor, dims: tuple[Tensor | None, ...]) -> Tensor:
    if len(dims) != tensor.ndim:
        raise NetworkError(f"{name}: kept indices for {len(dims)} dimensions, but the tensor has {tensor.ndim}")
    for dim, index in enumerate(dims):
        if index is not None:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def _compose(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first[second]


def check_names(state: Mapping[str, Tensor], kept: KeptIndices) -> None:
    """Raises NetworkError unless the indices are those of exactly these tensors."""
    if state.keys() != kept.keys():
        missing, unknown = sorted(kept.keys() - state.keys()), sorted(state.keys() - kept.keys())
        raise NetworkError(f"kept indices: tensors {missing[:3]} are missing and {unknown[:3]} unknown; wrong network?")
