"""Structural pruning by channel groups, with exact kept indices.

Groups of coupled channels come from torch-pruning's dependency graph (Fang et al., "DepGraph", arXiv 2301.12900).
Which channels of a group go is decided here, so that counts are exact and nothing is skipped silently. To learn which
position every surviving weight came from, without code per operator: once all scores are known, each tensor of a copy
is overwritten by its own flat positions (float64, exact to 2^53), the copy is pruned, and the positions are read back.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from prunefuse_ray.networks.alignment import check_alignment
from prunefuse_ray.networks.architectures import example_input, first_line, isolated_seed
from prunefuse_ray.networks.fusion import CROSS_CHANNEL_NORMS
from prunefuse_ray.networks.indices import KeptIndices, Proxy, compose, gather, product_indices, whole
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, PruningSpec, unsuited
from prunefuse_ray.networks.structure import attention_heads, is_unknown_attention, refill

# Imported where a network is pruned: it brings torchvision's models and torch's compiler, half of the seconds in which
# a worker process starts that only trains or scores.
if TYPE_CHECKING:
    import torch_pruning

# An embedding is no root for torch-pruning by default; left out, the first layer of a text network would stay wide.
_ROOTS = (_ConvNd, nn.Linear, nn.Embedding)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class _Group:
    """Coupled channels: removing channel i of the root removes positions of other layers with it."""

    root: str
    module: nn.Module
    prune: Callable
    channels: int
    blocks: int
    """The channels are this many equal blocks (heads, groups of a convolution), which must stay equally wide."""
    scores: Tensor
    """(channels / blocks,) importances, averaged over the blocks."""


def prune(dense: nn.Module, spec: NetworkSpec, pruning: PruningSpec) -> Proxy:
    """A copy of `dense` without the least important channels; `dense` is not changed.

    Works for a network at initialisation and for a trained one. The proxy is on the same device, in training mode.
    Raises NetworkError, naming the module, where no channels would be left or the structure cannot be followed.
    """
    _refuse_untraceable(dense)
    network = copy.deepcopy(dense).cpu().float()
    kept = whole(network.state_dict())
    firsts: dict[str, _Group] = {}
    """Every group as it is in the dense network, by the name of its root."""
    for step in range(1, pruning.steps + 1) if pruning.ratio > 0 else ():

        def choose(group: _Group, step: int = step) -> list[int]:
            first = firsts.setdefault(group.root, group)
            kept = _kept_width(first, pruning, step)
            # Blocks of one channel look like no blocks at all, but have to stay as many as they were.
            return [] if group.channels == kept * first.blocks else _surplus(group, kept)

        indices = _prune_once(network, spec, pruning, step, choose)
        refill(network, gather(network.state_dict(), indices))
        kept = compose(kept, indices)
    return _proxy(dense, kept, spec, pruning)


def split(dense: nn.Module, spec: NetworkSpec, pruning: PruningSpec, members: int) -> list[Proxy]:
    """A committee: proxies of `dense` whose channels are disjoint and together are all of them.

    Every group of channels is dealt out by importance, so that the members are as good as each other. Each keeps
    1 / members of every layer's channels; `pruning.ratio` must be 1 - 1 / members. One member is the network itself.
    Raises NetworkError as `prune` does, where `members` does not divide the channels of a layer, and where a
    normalisation mixes the members' channels.
    """
    if members < 1 or abs(pruning.ratio - (1 - 1 / members)) > 1e-9 or pruning.steps > 1 or pruning.round_to:
        raise NetworkError(
            f"pruning.committee: {members} disjoint members have the ratio {1 - 1 / max(1, members):g}, one step and "
            f"no round_to; not ratio {pruning.ratio:g}, {pruning.steps} steps and round_to {pruning.round_to}"
        )
    for name, module in dense.named_modules():
        if isinstance(module, CROSS_CHANNEL_NORMS):
            raise NetworkError(
                f"pruning.committee: {spec.architecture} cannot hold one: module {name} normalises over channels of "
                "all members"
            )
    _refuse_untraceable(dense)
    network = copy.deepcopy(dense).cpu().float()
    committee = []
    for member in range(members):

        def choose(group: _Group, member: int = member) -> list[int]:
            return _others(group, member, members)

        indices = _prune_once(network, spec, pruning, 1, choose)
        committee.append(_proxy(dense, indices, spec, pruning))
    return committee


def _proxy(dense: nn.Module, kept: KeptIndices, spec: NetworkSpec, pruning: PruningSpec) -> Proxy:
    device = next(iter(dense.state_dict().values())).device
    proxy = copy.deepcopy(dense)
    refill(proxy, {name: tensor.to(device) for name, tensor in gather(dense.state_dict(), kept).items()})
    if pruning.ratio > 0:
        check_alignment(dense, kept, spec)
    return Proxy(proxy.train(), kept, spec, pruning)


def _prune_once(
    network: nn.Module, spec: NetworkSpec, pruning: PruningSpec, step: int, choose: Callable[[_Group], list[int]]
) -> KeptIndices:
    """The kept indices of one step, in which `choose` names the channels of a group that go."""
    try:
        return _pruned_indices(network, spec, pruning, step, choose)
    except NetworkError:
        raise
    except Exception as error:  # torch-pruning fails in many ways on structures that it does not know
        raise NetworkError(
            f"network.architecture: the channels of {spec.architecture} cannot be followed: {first_line(error)}"
        ) from error


def _pruned_indices(
    network: nn.Module, spec: NetworkSpec, pruning: PruningSpec, step: int, choose: Callable[[_Group], list[int]]
) -> KeptIndices:
    tagged = copy.deepcopy(network).eval().requires_grad_(True)
    graph = _trace(tagged, spec)
    with isolated_seed(pruning.seed + step), torch.no_grad():
        importance = _importance(pruning.importance)
        groups = list(_groups(graph, importance))
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


def _remove(graph: "torch_pruning.DependencyGraph", group: _Group, surplus: list[int]) -> None:
    try:
        graph.get_pruning_group(group.module, group.prune, surplus).prune()
    except Exception as error:
        raise _lost(group.root, error) from error


def _lost(module: str, error: Exception) -> NetworkError:
    return unsuited(
        module, f"its channels cannot be followed ({first_line(error)}); this architecture cannot be pruned"
    )


def _kept_width(group: _Group, pruning: PruningSpec, step: int) -> int:
    """How many channels each block of a group of the dense network keeps after a step."""
    dense_width = group.channels // group.blocks
    kept = pruning.kept(dense_width, step)
    if kept == 0:
        raise NetworkError(
            f"pruning.round_to: {pruning.round_to} leaves none of the {dense_width} channels of {group.root} at ratio "
            f"{pruning.ratio}; use a smaller round_to or ratio"
        )
    if group.blocks > 1 and kept == dense_width and step == pruning.steps:
        raise unsuited(
            group.root,
            f"its channels are in {group.blocks} groups or heads of {dense_width}, none of which can lose a share of "
            f"{pruning.ratio}; use another ratio, or fewer groups",
        )
    return kept


def _surplus(group: _Group, kept: int) -> list[int]:
    """The channels to remove so that every block keeps its `kept` most important ones; ties go by position."""
    width = group.channels // group.blocks
    order = torch.sort(group.scores, stable=True).indices[: width - kept]
    return sorted(int(index) + block * width for block in range(group.blocks) for index in order)


def _others(group: _Group, member: int, members: int) -> list[int]:
    """The channels of a group that belong to other members of a committee; dealt out there and back again, so that no
    member gets the better half of every hand."""
    width = group.channels // group.blocks
    if width % members:
        raise NetworkError(
            f"pruning.committee: {members} members cannot share the {width} channels of {group.root} evenly; "
            "use a number that divides them"
        )
    order = torch.sort(group.scores, stable=True, descending=True).indices.view(-1, members)
    order[1::2] = order[1::2].flip(1)
    others = [int(index) for other in range(members) if other != member for index in order[:, other]]
    return sorted(index + block * width for block in range(group.blocks) for index in others)


def _importance(name: str) -> Callable:
    from torch_pruning import importance

    makers: dict[str, Callable[[], Callable]] = {
        "magnitude": lambda: importance.MagnitudeImportance(p=2),
        "magnitude_l1": lambda: importance.MagnitudeImportance(p=1),
        "random": importance.RandomImportance,
        "lamp": importance.LAMPImportance,
        "fpgm": importance.FPGMImportance,
        "bn_scale": importance.BNScaleImportance,
    }
    return makers[name]()


def _trace(network: nn.Module, spec: NetworkSpec) -> "torch_pruning.DependencyGraph":
    import torch_pruning

    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-pruning announces parameters outside layers; they are handled
        graph = torch_pruning.DependencyGraph().build_dependency(
            network, example_inputs=example_input(spec), verbose=False
        )
    attentions = [module for module in network.modules() if isinstance(module, nn.MultiheadAttention)]
    inside = {child for attention in attentions for child in attention.children()}
    for name, module in network.named_modules():
        if isinstance(module, _ROOTS) and module not in graph.module2node and module not in inside:
            raise unsuited(
                name,
                "it is not called as a module when the network runs on one sample, so its channels cannot be followed; "
                "this architecture cannot be pruned",
            )
    return graph


def _groups(graph: "torch_pruning.DependencyGraph", importance: Callable) -> Iterator[_Group]:
    """Every group of coupled channels except the one that leads to the network's output."""
    from torch_pruning import prune_linear_in_channels

    output = next(iter(graph.module2node))  # the graph is walked backwards from the logits
    attentions = [module for module in graph.model.modules() if attention_heads(module) is not None]
    projections = {module.qkv: module for module in attentions}
    for group in _followed(graph):
        changed = {dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
        # Channels that only depthwise convolutions pass on are those of the network's input.
        if output in changed or not any(isinstance(m, _ROOTS) and not _is_depthwise(m) for m in changed):
            continue
        blocks = [_blocks(graph, dep) for dep, _ in group]
        inner = [projections[module] for module in changed if isinstance(module, nn.Linear) and module in projections]
        if inner:
            # Head channels are addressed from the layer behind the attention: in front of it they come three times.
            module = inner[0].proj
            group = graph.get_pruning_group(module, prune_linear_in_channels, list(range(module.in_features)))
            blocks.append(attention_heads(inner[0]) or 1)
        yield _scored(graph, group, math.lcm(*blocks), importance)


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


def _scored(graph: "torch_pruning.DependencyGraph", group, blocks: int, importance: Callable) -> _Group:
    module, handler = group[0].dep.target.module, group[0].dep.handler
    root = graph._module2name[module]
    channels = len(group[0].idxs)
    try:
        scores = importance(group)
    except (IndexError, RuntimeError) as error:  # its members do not agree in how many channels they share
        raise _lost(root, error) from error
    if scores is None or len(scores) != channels or channels % blocks:
        raise unsuited(root, f"the importance of its {channels} channels cannot be computed; use another one")
    return _Group(root, module, handler, channels, blocks, scores.view(blocks, -1).float().mean(0))


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


def _refuse_untraceable(network: nn.Module) -> None:
    owners: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        # By address, not by storage: tensors read from one file may be different parts of one buffer.
        first = owners.setdefault(parameter.data_ptr(), name)
        if first != name and parameter.numel() > 0:
            raise NetworkError(
                f"network.architecture: {name} shares its weights with {first}; networks with tied weights cannot be "
                "pruned"
            )
    for name, module in network.named_modules():
        if isinstance(module, _RECURRENT):
            raise unsuited(name, "recurrent layers cannot be pruned")
        if isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels < module.out_channels:
            raise unsuited(name, "a depthwise convolution with several outputs per channel cannot be pruned")
        if is_parametrized(module) or {"weight_g", "weight_v"} <= module._parameters.keys():
            raise unsuited(
                name,
                "its weights are computed from others (weight normalisation or another parametrisation); take that "
                "off before pruning",
            )
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is None:
            raise unsuited(name, "an attention with kdim or vdim of their own cannot be pruned")
        if is_unknown_attention(module):
            raise unsuited(
                name,
                "an attention of unknown form cannot be pruned; use nn.MultiheadAttention, or linear layers `qkv` and "
                "`proj` with an integer `num_heads`",
            )
