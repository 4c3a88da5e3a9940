"""Fusing a committee: proxies with disjoint channels that together fill the whole dense network.

The members lie block by block on the diagonal of every layer; the classifier, whose classes they share, averages them.
What lies between the blocks the rules of fusion.py decide: with zeros there the fused network computes exactly the mean
of the members' logits, so it starts as their ensemble.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunefuse_ray.networks.fusion import filled, verify
from prunefuse_ray.networks.indices import Proxy, check_names, grid
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec

COMMITTEE_RULES = ("keep", "function_preserving", "scaled")


class Ensemble(nn.Module):
    """The mean of the members' logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Members(nn.Module):
    """Several networks side by side: inputs (N, ...) to logits (M, N, C).

    In training every member draws its random numbers (dropout, stochastic depth) from where they stood before the first
    member, and so is trained as if it were alone.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return torch.stack([member(x) for member in self.members])
        logits = []
        for member in self.members:
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                logits.append(member(x))
        return torch.stack(logits)


@dataclass
class Committee:
    """Disjoint proxies of one dense network (`split`), trained, asked and saved as one."""

    members: list[Proxy]
    network: Members = field(init=False)
    """Holds the members' own modules."""

    def __post_init__(self) -> None:
        check_partition(self.members)
        self.network = Members([member.network for member in self.members])

    @property
    def spec(self) -> NetworkSpec:
        return self.members[0].spec


def consensus(logits: Tensor) -> Tensor:
    """Logits (N, C) of a network's outputs: as they are; of a committee's (M, N, C), those of the members' mean
    probability."""
    if logits.ndim == 2:
        return logits
    # In logarithms throughout: a probability that underflows would make an infinite loss.
    return logits.float().log_softmax(-1).logsumexp(0) - math.log(len(logits))


def check_partition(committee: Sequence[Proxy]) -> None:
    """Raises NetworkError unless the members' channels are disjoint and cover the dense network."""
    for name, dims in committee[0].kept.items():
        for dim in range(len(dims)):
            parts = [member.kept[name][dim] for member in committee]
            if all(part is None for part in parts):
                continue
            indices = [part for part in parts if part is not None]
            together = torch.cat(indices).sort().values
            if len(indices) < len(parts) or not torch.equal(together, torch.arange(len(together))):
                raise NetworkError(
                    f"pruning.committee: the members' channels of {name} are not disjoint, or do not cover the dense "
                    "network"
                )


def fuse_committee(dense: nn.Module, committee: Sequence[Proxy], rule: str, *, epsilon: float = 0.1) -> nn.Module:
    """A new network of dense's shape that holds all members; dense is unchanged.

    Args:
        rule: `function_preserving` sets the weights between the members' blocks to zero: the logits are then the mean
            of the members' logits in eval mode. `keep` leaves them as in `dense`, `scaled` multiplies them by
            `epsilon`.

    Raises:
        NetworkError: an unknown rule, members that are not a partition of `dense`, or an architecture whose layers mix
            the members' channels, so that no exact form exists (layer normalisation, for one).
    """
    if rule not in COMMITTEE_RULES:
        raise NetworkError(f"fusion.rule: unknown {rule!r} for a committee; use one of {', '.join(COMMITTEE_RULES)}")
    for member in committee:
        for state in (dense.state_dict(), member.network.state_dict()):
            check_names(state, member.kept)
    check_partition(committee)
    exact = filled(dense, _state(dense, committee, 0.0))
    try:
        verify(exact, Ensemble([member.network for member in committee]), committee[0].spec)
    except NetworkError as error:
        raise NetworkError(f"pruning.committee: {committee[0].spec.architecture} cannot hold one ({error})") from error
    if rule == "function_preserving":
        return exact
    return filled(dense, _state(dense, committee, 1.0 if rule == "keep" else epsilon))


def _state(dense: nn.Module, committee: Sequence[Proxy], between: float) -> dict[str, Tensor]:
    """The fused tensors; weights that belong to no member are the dense network's times `between`."""
    states = [member.network.state_dict() for member in committee]
    modules = dict(dense.named_modules())
    fused = {}
    for name, tensor in dense.state_dict().items():
        kept = [member.kept[name] for member in committee]
        values = [state[name].to(tensor) for state in states]
        if all(index is None for index in kept[0]):
            # Shared by all: the classifier's bias, or a counter.
            fused[name] = torch.stack(values).mean(0) if tensor.is_floating_point() else values[0].clone()
            continue
        result = tensor * between
        for dims, value in zip(kept, values, strict=True):
            # Whole outputs that read the members' channels, as the classifier's do, sum over the members.
            sums = isinstance(modules[name.rpartition(".")[0]], (nn.Linear, _ConvNd)) and len(dims) > 1
            result[grid(tensor.shape, dims, device=tensor.device)] = (
                value / len(committee) if sums and dims[0] is None else value
            )
        fused[name] = result
    return fused
