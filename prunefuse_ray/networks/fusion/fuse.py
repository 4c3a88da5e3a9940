"""Fusing a trained proxy, or a committee of them, by a rule."""

from __future__ import annotations

from torch import nn

from prunefuse_ray.networks.committee import Committee
from prunefuse_ray.networks.fusion import FUSION_RULES
from prunefuse_ray.networks.fusion.placement import in_blocks
from prunefuse_ray.networks.fusion.rule import Parts
from prunefuse_ray.networks.fusion.verification import verify
from prunefuse_ray.networks.indices import Proxy, check_names
from prunefuse_ray.networks.specs import NetworkError
from prunefuse_ray.networks.structure import filled


def fuse(dense: nn.Module, selector: Proxy | Committee, rule: str, **parameters: float) -> nn.Module:
    """A new network of dense's shape that holds the trained weights and batch-norm statistics; dense is unchanged.

    Args:
        selector: pruned from `dense`, and trained.
        rule: a name in FUSION_RULES, or `module:name`.
        parameters: those of the rule; else its defaults.

    Raises:
        NetworkError: proxies of another network, a rule that takes no committees or not these parameters, a network to
            which it cannot be applied, or in which no committee can live.
        ConfigError: no such rule.
    """
    found = FUSION_RULES[rule]
    members = selector.members if isinstance(selector, Committee) else [selector]
    if len(members) > 1 and not found.committees:
        raise NetworkError(f"fusion.rule: '{rule}' takes no committee; use one that does, such as keep")
    if unknown := parameters.keys() - found.parameters.keys():
        raise NetworkError(f"fusion.rule: '{rule}' reads no {', '.join(sorted(unknown))}")
    for member in members:
        for state in (dense.state_dict(), member.network.state_dict()):
            check_names(state, member.kept)
    parts = Parts(dense=dense, members=members, parameters={**found.parameters, **parameters})
    if len(members) > 1 and not found.exact:
        verify(filled(dense, in_blocks(parts, 0.0)), parts)
    state = dict(found.apply(parts))
    shapes = {name: tuple(tensor.shape) for name, tensor in dense.state_dict().items()}
    if wrong := sorted({name for name, _ in shapes.items() ^ {n: tuple(t.shape) for n, t in state.items()}.items()}):
        raise NetworkError(f"fusion.rule: '{rule}' makes other tensors than the dense network has: {wrong[:5]}")
    fused = filled(dense, state)
    if found.exact:
        verify(fused, parts)
    return fused
