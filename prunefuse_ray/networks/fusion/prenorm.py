"""The function-preserving fusion of transformers that normalize before every block (pre-LN).

LayerNorm looks at all channels of the residual stream, so zeroing weights is not enough: the added channels would
change its mean and variance. With k of D channels kept and r = k / D, the fused network computes the same if

- every layer that writes into the stream is centered over the kept channels (each reader starts with LayerNorm, which
  subtracts the mean anyway) and scaled by 1 / sqrt(r), and writes nothing into the added ones: mean 0 and the proxy's
  variance over all D channels;
- LayerNorm's kept gains are multiplied by sqrt(r) and its added offsets are zero;
- queries of added head channels are zero, and the kept ones make up for the changed softmax temperature;
- the layers inside a block do not lead from added hidden units to kept channels.

Weights from added channels of the stream into kept hidden units keep the dense network's values: they meet zeros, and
through them the new channels receive gradients from the first step on.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from prunefuse_ray.networks.indices import KeptIndices, added, scatter
from prunefuse_ray.networks.specs import NetworkError
from prunefuse_ray.networks.structure import damp_cross, damp_queries, query_rows


def residual_stream(dense: nn.Module, kept: KeptIndices) -> Tensor | None:
    """The kept channels of the one residual stream that all LayerNorms normalize, or None if all are kept."""
    streams: list[Tensor | None] = []
    for name, module in dense.named_modules():
        if isinstance(module, nn.LayerNorm):
            if not module.elementwise_affine or len(module.normalized_shape) != 1:
                raise _no_form(f"module {name} has no gain per channel")
            stream = kept[f"{name}.weight"][0]
            if not any(_same(stream, other) for other in streams):
                streams.append(stream)
        elif isinstance(module, nn.GroupNorm):
            raise _no_form(f"module {name} normalizes groups of channels")
    if len(streams) != 1:
        raise _no_form("its LayerNorms do not all normalize one residual stream")
    return streams[0]


def fuse_prenorm(
    dense: nn.Module, proxy_state: Mapping[str, Tensor], kept: KeptIndices, stream: Tensor | None, factor: float
) -> dict[str, Tensor]:
    """The fused state; what must vanish for exactness is multiplied by `factor`."""
    dense_state, modules = dense.state_dict(), dict(dense.named_modules(remove_duplicate=False))
    owners = {name: modules[name.rpartition(".")[0]] for name in dense_state}
    axes = {name: _written_axis(owners[name], dims, stream) for name, dims in kept.items()}
    queries = dict(query_rows(dense))
    values = {}
    for name, tensor in proxy_state.items():
        values[name] = tensor.clone()
        if (axis := axes[name]) is not None:
            share = tensor.shape[axis] / dense_state[name].shape[axis]
            values[name] = (tensor - tensor.mean(axis, keepdim=True)) / math.sqrt(share)
        elif isinstance(owners[name], nn.LayerNorm) and name.endswith("weight"):
            values[name] *= math.sqrt(len(tensor) / len(dense_state[name]))
    state = scatter(dense_state, values, kept)
    for name, tensor in state.items():
        dims = kept[name]
        if (axis := axes[name]) is not None:
            tensor.movedim(axis, 0)[added(tensor.shape[axis], dims[axis])] *= factor
        elif isinstance(owners[name], nn.LayerNorm) and name.endswith("bias"):
            tensor[added(len(tensor), dims[0])] *= factor
        elif name in queries:
            damp_queries(tensor, dims[0], queries[name], factor)
        if axis is not None or not (stream is not None and len(dims) > 1 and _same(dims[1], stream)):
            damp_cross(modules, name, tensor, dims, factor)
    return state


def _written_axis(owner: nn.Module, dims: tuple[Tensor | None, ...], stream: Tensor | None) -> int | None:
    """The dimension along which a tensor is added to the residual stream, or None."""
    if stream is None or isinstance(owner, (nn.LayerNorm, _BatchNorm, nn.MultiheadAttention)):
        return None
    if isinstance(owner, (nn.Linear, _ConvNd)):
        return 0 if _same(dims[0], stream) else None
    axes = [axis for axis, index in enumerate(dims) if index is not None]
    return axes[0] if len(axes) == 1 and _same(dims[axes[0]], stream) else None


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _no_form(reason: str) -> NetworkError:
    return NetworkError(f"fusion.rule: no function-preserving form is known here: {reason}; use the rule 'keep'")
