"""Structural pruning of a dense network: which channels go, for one proxy or for a committee of disjoint ones.

Counts are exact and nothing is skipped silently: what cannot be pruned is refused by naming the module. How channels
are followed through a network is in groups.py, the proof that they were followed rightly in alignment.py.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from prunefuse_ray.networks import encoders
from prunefuse_ray.networks.alignment import check_alignment
from prunefuse_ray.networks.groups import Group, surviving
from prunefuse_ray.networks.indices import KeptIndices, Proxy, compose, gather, whole
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, PruningSpec, unsuited
from prunefuse_ray.networks.structure import CROSS_CHANNEL_NORMS, is_unknown_attention, refill

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def prune(dense: nn.Module, spec: NetworkSpec, pruning: PruningSpec) -> Proxy:
    """A copy of `dense` without the least important channels; `dense` is not changed.

    Works for a network at initialization and for a trained one. The proxy is on the same device, in training mode.
    Raises NetworkError, naming the module, where no channels would be left or the structure cannot be followed.
    Of an encoder of texts heads and units go.
    """
    if isinstance(dense, encoders.Encoder) and pruning.ratio > 0:
        return _without(dense, spec, pruning, encoders.kept_indices(dense, pruning))
    firsts: dict[str, Group] = {}
    """Every group as it is in the dense network, by the name of its root."""

    def choose(step: int, group: Group) -> list[int]:
        first = firsts.setdefault(group.root, group)
        kept = _kept_width(first, pruning, step)
        # Blocks of one channel look like no blocks at all, but have to stay as many as they were.
        return [] if group.channels == kept * first.blocks else _least_important(group, kept)

    return _pruned(dense, spec, pruning, choose)


def split(dense: nn.Module, spec: NetworkSpec, pruning: PruningSpec, members: int) -> list[Proxy]:
    """A committee: proxies of `dense` whose channels are disjoint and together are all of them.

    Every group of channels is dealt out by importance, so that the members are as good as each other. Each keeps
    1 / members of every layer's channels; `pruning.ratio` must be 1 - 1 / members. One member is the network itself.
    Raises NetworkError as `prune` does, where `members` does not divide the channels of a layer, and where a
    normalization mixes the members' channels.
    """
    if members < 1 or abs(pruning.ratio - (1 - 1 / members)) > 1e-9 or pruning.steps > 1 or pruning.round_to:
        raise NetworkError(
            f"pruning.committee: {members} disjoint members have the ratio {1 - 1 / max(1, members):g}, one step and "
            f"no round_to; not ratio {pruning.ratio:g}, {pruning.steps} steps and round_to {pruning.round_to}"
        )
    for name, module in dense.named_modules():
        if isinstance(module, CROSS_CHANNEL_NORMS):
            raise NetworkError(
                f"pruning.committee: {spec.architecture} cannot hold one: module {name} normalizes over channels of "
                "all members"
            )
    return [_pruned(dense, spec, pruning, partial(_others, member=m, members=members)) for m in range(members)]


def _pruned(
    dense: nn.Module, spec: NetworkSpec, pruning: PruningSpec, choose: Callable[[int, Group], list[int]]
) -> Proxy:
    """The proxy that is left when, step by step, `choose(step, group)` has named the channels of each group that go."""
    _refuse_untraceable(dense)
    network = copy.deepcopy(dense).cpu().float()
    kept = whole(network.state_dict())
    for step in range(1, pruning.steps + 1) if pruning.ratio > 0 else ():
        indices = surviving(
            network, spec, partial(choose, step), importance=pruning.importance, seed=pruning.seed + step
        )
        refill(network, gather(network.state_dict(), indices))
        kept = compose(kept, indices)
    return _without(dense, spec, pruning, kept)


def _without(dense: nn.Module, spec: NetworkSpec, pruning: PruningSpec, kept: KeptIndices) -> Proxy:
    """The proxy of these indices."""
    device = next(iter(dense.state_dict().values())).device
    proxy = copy.deepcopy(dense)
    refill(proxy, {name: tensor.to(device) for name, tensor in gather(dense.state_dict(), kept).items()})
    if pruning.ratio > 0:
        check_alignment(dense, kept, spec)
    return Proxy(proxy.train(), kept, spec, pruning)


def _kept_width(group: Group, pruning: PruningSpec, step: int) -> int:
    """How many channels each block of a group of the dense network keeps after a step."""
    dense_width = group.channels // group.blocks
    kept = pruning.kept(dense_width, step)
    if group.blocks > 1 and kept == dense_width and step == pruning.steps:
        raise unsuited(
            group.root,
            f"its channels are in {group.blocks} groups or heads of {dense_width}, none of which can lose a share of "
            f"{pruning.ratio}; use another ratio, or fewer groups",
        )
    return kept


def _least_important(group: Group, kept: int) -> list[int]:
    """The channels to remove so that every block keeps its `kept` most important ones; ties go by position."""
    width = group.channels // group.blocks
    order = torch.sort(group.scores, stable=True).indices[: width - kept]
    return sorted(int(index) + block * width for block in range(group.blocks) for index in order)


def _others(step: int, group: Group, *, member: int, members: int) -> list[int]:
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


def _refuse_untraceable(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise NetworkError(f"network.architecture: {name} is a {type(tensor).__name__}, no tensor; leave it out")
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
        if is_parametrized(module) or module._parameters.keys() & {"weight_g", "weight_orig"}:
            raise unsuited(
                name,
                "its weights are computed from others (weight normalization or another parametrization); take that "
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
