"""A committee: proxies with disjoint channels that together fill the whole dense network; trained, asked and saved as
one. How it is fused is in fusion/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunefuse_ray.networks.indices import Proxy
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec


def _each(members: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """The outputs of each; a network may work in place, and the others read the same inputs."""
    return [member(x.clone()) for member in members]


class Ensemble(nn.Module):
    """The mean of the members' logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(_each(self.members, x)).mean(0)


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
            return torch.stack(_each(self.members, x))
        logits = []
        for member in self.members:
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                logits += _each([member], x)
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
