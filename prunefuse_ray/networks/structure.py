"""What depends on the kind of a module: its width, its heads, which of its weights read which channels.

Pruning and loading both end here, so a proxy that was read from a file is made exactly as one that was just pruned.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from prunefuse_ray.networks.indices import added, grid
from prunefuse_ray.networks.specs import NetworkError, first_line

CROSS_CHANNEL_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)
"""Normalizations whose statistics mix channels: pruning changes what they compute."""

_NUMBERS_OF_HEADS = ("num_heads", "n_heads", "heads", "n_head", "nhead", "num_attention_heads", "head_dim")


def attention_heads(module: nn.Module) -> int | None:
    """Number of heads where the module is an attention whose query, key and value weights are one linear layer `qkv`.

    That is timm's form, and the form to follow for one's own; its output layer is named `proj`.
    """
    heads = getattr(module, "num_heads", None)
    linear = all(isinstance(getattr(module, name, None), nn.Linear) for name in ("qkv", "proj"))
    return heads if linear and isinstance(heads, int) else None


def is_unknown_attention(module: nn.Module) -> bool:
    """Whether the module looks like an attention of another form, whose heads would be cut to pieces."""
    if isinstance(module, nn.MultiheadAttention) or attention_heads(module) is not None:
        return False
    numbers = [getattr(module, name, None) for name in _NUMBERS_OF_HEADS]
    return (
        any(isinstance(n, int) and n > 1 for n in numbers)
        and sum(isinstance(child, nn.Linear) for child in module.children()) > 1
    )


def query_rows(network: nn.Module) -> Iterator[tuple[str, int]]:
    """Every tensor that stacks queries, keys and values along its first dimension, and how many rows are queries."""
    state = network.state_dict()
    for prefix, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            names = ["in_proj_weight", "in_proj_bias"]
        elif attention_heads(module) is not None:
            names = ["qkv.weight", "qkv.bias"]
        else:
            continue
        for name in (f"{prefix}.{name}" if prefix else name for name in names):
            if name in state:
                yield name, len(state[name]) // 3


def refill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replaces, in place, all parameters and persistent buffers by `state`'s tensors, and adapts the modules to them.

    Raises NetworkError where names differ, a tensor changes its number of dimensions, or a module cannot take
    its new shape. `requires_grad` stays as it was.
    """
    present = network.state_dict()
    if present.keys() != state.keys():
        missing, unknown = sorted(present.keys() - state.keys()), sorted(state.keys() - present.keys())
        raise NetworkError(f"weights: tensors {missing[:3]} are missing and {unknown[:3]} unknown; wrong architecture?")
    for name, tensor in state.items():
        if tensor.ndim != present[name].ndim:
            raise NetworkError(f"{name}: {tensor.ndim} dimensions instead of {present[name].ndim}")
    for prefix, module in network.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                tensor = state[f"{prefix}.{name}" if prefix else name]
                module._parameters[name] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        for name in module._buffers.keys() - module._non_persistent_buffers_set:
            if module._buffers[name] is not None:
                module._buffers[name] = state[f"{prefix}.{name}" if prefix else name]
    for prefix, module in network.named_modules():  # an attention looks at its children's new shapes
        _adapt(prefix, module)


def copied(network: nn.Module) -> nn.Module:
    """A copy; NetworkError where torch makes none."""
    try:
        return copy.deepcopy(network)
    except Exception as error:  # of the modules' own code, so anything may come
        raise NetworkError(
            f"network: cannot be copied ({first_line(error)}); take off what a module keeps of its last run, and "
            "weight normalization, and run lazy layers on one input first"
        ) from error


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` in the place of `old`: in all of them, since a module may stand in several."""
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, new)


def filled(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy with these tensors; see `refill`."""
    result = copied(network)
    refill(result, state)
    return result


def is_depthwise(module: nn.Module) -> bool:
    """Whether every input channel of a convolution leads into outputs of its own."""
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1


def damp_cross(
    modules: Mapping[str, nn.Module], name: str, tensor: Tensor, dims: tuple[Tensor | None, ...], factor: float
) -> None:
    """Multiplies, in place, the weights from added inputs into kept outputs by `factor`."""
    axis = reading_axis(modules[name.rpartition(".")[0]], tensor)
    if axis is not None and dims[axis] is not None:
        block = [*dims[:2]]
        block[axis] = added(tensor.shape[axis], dims[axis])
        tensor[grid(tensor.shape[:2], tuple(block), device=tensor.device)] *= factor


def reading_axis(owner: nn.Module, tensor: Tensor) -> int | None:
    """The dimension of a module's tensor along which it reads channels; None: it reads none.

    Only matrices and kernels do (outputs, inputs, ...): an embedding's rows are no channels, and free parameters are
    added, not multiplied.
    """
    if not isinstance(owner, (nn.Linear, _ConvNd, nn.MultiheadAttention)) or tensor.ndim < 2 or is_depthwise(owner):
        return None
    return 0 if getattr(owner, "transposed", False) else 1


def damp_queries(tensor: Tensor, rows: Tensor | None, queries: int, factor: float) -> None:
    """Multiplies, in place, the queries of added head channels by `factor`; the kept ones make up for the softmax,
    which divides by the root of a head's width.

    tensor: of `query_rows`, with `queries` of them; rows: the kept ones of all its rows.
    """
    new = added(len(tensor), rows)
    old = added(len(tensor), new)
    tensor[new[new < queries]] *= factor
    tensor[old[old < queries]] *= math.sqrt(len(tensor) / len(old))


def _adapt(name: str, module: nn.Module) -> None:
    """Sets the attributes that repeat a shape."""
    if isinstance(module, _ConvNd):
        _adapt_conv(name, module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        reference = module.weight if module.weight is not None else module.running_mean
        if reference is not None:
            module.num_features = len(reference)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        if module.elementwise_affine:
            module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        if module.affine:
            if module.num_groups == module.num_channels:  # one channel per group: as many groups as channels
                module.num_groups = len(module.weight)
            module.num_channels = len(module.weight)
            _divisible(name, "channels", module.num_channels, "num_groups", module.num_groups)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.MultiheadAttention):
        _adapt_multihead(name, module)
    elif (heads := attention_heads(module)) is not None:
        _adapt_attention(name, module, heads)
    elif (size := getattr(module, "attention_head_size", None)) is not None:
        _adapt_heads(module, size, next(child for child in module.children() if isinstance(child, nn.Linear)), 1)
    elif isinstance(joined := getattr(module, "Wqkv", None), nn.Linear):
        _adapt_heads(module, cast(int, module.head_dim), joined, 3)
    elif isinstance(token := getattr(module, "class_token", None), nn.Parameter):
        vars(module).update(hidden_dim=token.shape[-1])  # torchvision's VisionTransformer reshapes its input to this


def _adapt_conv(name: str, module: _ConvNd) -> None:
    rows, columns = module.weight.shape[:2]
    if 1 < module.groups == module.in_channels == module.out_channels:  # depthwise: as many groups as channels
        module.groups = module.in_channels = module.out_channels = rows
    elif module.transposed:
        module.in_channels, module.out_channels = rows, columns * module.groups
    else:
        module.in_channels, module.out_channels = columns * module.groups, rows
    _divisible(name, "out_channels", module.out_channels, "groups", module.groups)
    _divisible(name, "in_channels", module.in_channels, "groups", module.groups)


def _adapt_multihead(name: str, module: nn.MultiheadAttention) -> None:
    width = module.out_proj.weight.shape[0]
    _divisible(name, "embed_dim", width, "num_heads", module.num_heads)
    module.embed_dim = module.kdim = module.vdim = width
    module.head_dim = width // module.num_heads


def _adapt_attention(name: str, module: nn.Module, heads: int) -> None:
    # From the weight: the attention comes before its layers, whose own attributes are still the old ones.
    width = module.get_submodule("proj").get_parameter("weight").shape[1]
    _divisible(name, "attention width", width, "num_heads", heads)
    # Written also where the class lacks one of them: its forward then never looks.
    vars(module).update(head_dim=width // heads, attn_dim=width, scale=1 / math.sqrt(width // heads))


def _adapt_heads(module: nn.Module, size: int, layer: nn.Linear, parts: int) -> None:
    """transformers' attentions, whose heads stay as wide as they are (`encoders.py`)."""
    width = layer.weight.shape[0] // parts
    told = dict.fromkeys(("num_attention_heads", "num_heads", "n_heads"), width // size)
    told |= dict.fromkeys(("all_head_size", "dim"), width)
    vars(module).update({name: value for name, value in told.items() if name in vars(module)})


def _divisible(name: str, what: str, size: int | Tensor, by: str, groups: int) -> None:
    if size % groups:
        raise NetworkError(f"{name}: {what} {size} is not a multiple of {by} {groups}")
