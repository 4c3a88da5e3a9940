"""Following channels through a network: which weights go with which, and what is left once some channels are removed.

Groups of coupled channels come from torch-pruning's dependency graph (Fang et al., "DepGraph", arXiv 2301.12900). To
learn which position every surviving weight came from, without code per operator: once all scores are known, each tensor
of a copy is overwritten by its own flat positions (float64, exact to 2^53), the copy is pruned, and the positions are
read back.
"""

import copy
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunefuse_ray.networks.architectures import example_input, isolated_seed
from prunefuse_ray.networks.importance import IMPORTANCES
from prunefuse_ray.networks.indices import KeptIndices, product_indices
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, first_line, unsuited
from prunefuse_ray.networks.structure import attention_heads

# Imported where a network is pruned: it brings torchvision's models and torch's compiler, half of the seconds in which
# a worker process starts that only trains or scores.
if TYPE_CHECKING:
    import torch_pruning

# An embedding is no root for torch-pruning by default; left out, the first layer of a text network would stay wide.
_ROOTS = (_ConvNd, nn.Linear, nn.Embedding)
logger = logging.getLogger(__name__)

_SIMPLEST = "magnitude"
"""The importance that can be computed for every group that is one."""


@dataclass(frozen=True)
class Group:
    """Coupled channels: removing channel i of the root removes positions of other layers with it."""

    root: str
    module: nn.Module
    prune: Callable
    channels: int
    blocks: int
    """The channels are this many equal blocks (heads, groups of a convolution), which must stay equally wide."""
    scores: Tensor
    """(channels / blocks,) importances, averaged over the blocks."""


def surviving(
    network: nn.Module, spec: NetworkSpec, choose: Callable[[Group], list[int]], *, importance: str, seed: int
) -> KeptIndices:
    """The positions of `network` that are left when the channels that `choose` names of each group are removed.

    `network` is not changed. Raises NetworkError, naming the module, where channels cannot be followed.

    Args:
        importance: a name in IMPORTANCES, for the groups' scores.
        seed: of the random importance.
    """
    try:
        return _surviving(network, spec, choose, importance, seed)
    except NetworkError:
        raise
    except Exception as error:  # torch-pruning fails in many ways on structures that it does not know
        raise NetworkError(
            f"network.architecture: the channels of {spec.architecture} cannot be followed: {first_line(error)}"
        ) from error


def _surviving(
    network: nn.Module, spec: NetworkSpec, choose: Callable[[Group], list[int]], importance: str, seed: int
) -> KeptIndices:
    tagged = copy.deepcopy(network).eval().requires_grad_(True)
    graph = _trace(tagged, spec)
    with isolated_seed(seed), torch.no_grad():
        groups = list(_groups(graph, importance, spec.classes))
        if not groups:
            raise NetworkError(f"network.architecture: {spec.architecture} has no channels that could be pruned")
        choices = [choose(group) for group in groups]
        # All choices are made: from here on the copy's values are positions, not weights.
        shapes = {name: tuple(tensor.shape) for name, tensor in tagged.state_dict().items()}
        _tag(tagged)
        for group, surplus in zip(groups, choices, strict=True):
            if surplus:
                _remove(graph, group, surplus)
    return {
        name: product_indices(name, tensor.long(), shapes[name]) if tensor.ndim else ()
        for name, tensor in tagged.state_dict().items()
    }


def _remove(graph: "torch_pruning.DependencyGraph", group: Group, surplus: list[int]) -> None:
    try:
        graph.get_pruning_group(group.module, group.prune, surplus).prune()
    except Exception as error:
        raise _lost(group.root, error) from error


def _lost(module: str, error: Exception) -> NetworkError:
    return unsuited(
        module, f"its channels cannot be followed ({first_line(error)}); this architecture cannot be pruned"
    )


def _trace(network: nn.Module, spec: NetworkSpec) -> "torch_pruning.DependencyGraph":
    import torch_pruning

    called: set[nn.Module] = set()
    hooks = [m.register_forward_hook(lambda module, *_: called.add(module)) for m in network.modules()]
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-pruning announces parameters outside layers; they are handled
        graph = torch_pruning.DependencyGraph().build_dependency(
            network, example_inputs=example_input(spec), verbose=False
        )
    for hook in hooks:
        hook.remove()
    attentions = [module for module in network.modules() if isinstance(module, nn.MultiheadAttention)]
    inside = {child for attention in attentions for child in attention.children()}
    for name, module in network.named_modules():
        if isinstance(module, nn.EmbeddingBag):
            _say_once(
                f"network.architecture: module {name} keeps all its channels, because they cannot be followed out of "
                "an nn.EmbeddingBag; an nn.Embedding and the mean over the text would be pruned"
            )
        if isinstance(module, _ROOTS) and module not in graph.module2node and module not in inside:
            why = "it is not called as a module when the network runs on one sample"
            if module in called:
                why = "no gradient reaches it (no_grad, detach, or an output that nothing uses)"
            raise unsuited(name, f"{why}, so its channels cannot be followed; this architecture cannot be pruned")
    return graph


def _groups(graph: "torch_pruning.DependencyGraph", importance: str, classes: int) -> Iterator[Group]:
    """Every group of coupled channels except the one that leads to the network's output."""
    from torch_pruning import prune_linear_in_channels

    judge = IMPORTANCES[importance].make()
    output = next(iter(graph.module2node))  # the graph is walked backwards from the logits
    attentions = [module for module in graph.model.modules() if attention_heads(module) is not None]
    projections = {module.qkv: module for module in attentions}
    for group in _followed(graph):
        changed = {dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
        layers = [module for module in changed if isinstance(module, _ROOTS) and not _is_depthwise(module)]
        if output in changed:
            _name_whole(graph, layers, classes)
            continue
        if not layers:  # channels that only depthwise convolutions pass on are those of the network's input
            continue
        blocks = [_blocks(graph, dep) for dep, _ in group]
        inner = [projections[module] for module in changed if isinstance(module, nn.Linear) and module in projections]
        if inner:
            # Head channels are addressed from the layer behind the attention: in front of it they come three times.
            module = inner[0].proj
            group = graph.get_pruning_group(module, prune_linear_in_channels, list(range(module.in_features)))
            blocks.append(attention_heads(inner[0]) or 1)
        scored = _scored(graph, group, math.lcm(*blocks), importance, judge)
        # The layer behind the heads may be the root of what it writes, too.
        yield replace(scored, root=graph._module2name[inner[0].qkv]) if inner else scored


def _name_whole(graph: "torch_pruning.DependencyGraph", layers: list, classes: int) -> None:
    """Where no layer makes the logits, they are made of the last layers' channels, which then have to stay."""
    for layer in layers:
        if graph.get_out_channels(layer) != classes:
            _say_once(
                f"network.architecture: module {graph._module2name[layer]} keeps all its channels, because no layer "
                "behind it turns them into logits; a nn.Linear or a convolution at the end would"
            )


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _followed(graph: "torch_pruning.DependencyGraph") -> list:
    """torch-pruning's groups. Raises NetworkError with the first module from which it loses its way."""
    try:
        return list(graph.get_all_groups(root_module_types=_ROOTS))
    except Exception as error:
        for module in (m for m in graph.module2node if isinstance(m, _ROOTS)):
            pruner = graph.get_pruner_of_module(module)
            try:
                graph.get_pruning_group(module, pruner.prune_out_channels, list(range(pruner.get_out_channels(module))))
            except Exception as same:
                raise _lost(graph._module2name[module], same) from same
        raise error


def _scored(graph: "torch_pruning.DependencyGraph", group, blocks: int, importance: str, judge: Callable) -> Group:
    module, handler = group[0].dep.target.module, group[0].dep.handler
    root = graph._module2name[module]
    channels = len(group[0].idxs)
    scores = None
    try:
        scores = judge(group)
    except (IndexError, RuntimeError) as error:
        if importance == _SIMPLEST:  # its members do not agree in how many channels they share
            raise _lost(root, error) from error
        _scored(graph, group, blocks, _SIMPLEST, IMPORTANCES[_SIMPLEST].make())
    if scores is None or len(scores) != channels or channels % blocks:
        raise NetworkError(
            f"pruning.importance: {importance} cannot be computed for the {channels} channels of module {root}; use "
            "another one, such as magnitude"
        )
    return Group(root, module, handler, channels, blocks, scores.view(blocks, -1).float().mean(0))


def _blocks(graph: "torch_pruning.DependencyGraph", dependency) -> int:
    """In how many equal blocks this member of a group needs its channels."""
    module = dependency.target.module
    if isinstance(module, nn.MultiheadAttention):
        return module.num_heads
    if isinstance(module, nn.GroupNorm):
        return 1 if module.num_groups == module.num_channels else module.num_groups
    if isinstance(module, _ConvNd) and not _is_depthwise(module):
        return module.groups
    return 1


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and 1 < module.groups == module.out_channels == module.in_channels


def _tag(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.data = _positions(parameter)
    for module in network.modules():
        for name in module._buffers.keys() - module._non_persistent_buffers_set:
            if (buffer := module._buffers[name]) is not None:
                module._buffers[name] = _positions(buffer)


def _positions(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)
