"""The proof that fusion preserved the function."""

import pytest
import torch

from prunefuse_ray.networks import Committee, NetworkError, NetworkSpec, Parts, PruningSpec, build, prune, split
from prunefuse_ray.networks.fusion.placement import in_blocks
from prunefuse_ray.networks.fusion.verification import verify
from prunefuse_ray.networks.structure import filled

EXACT = ["resnet20", "tests.networks.test_pruning:Casting"]
"""The second one computes in single precision whatever it is given."""


def parts_of(name, members):
    spec = NetworkSpec(architecture=name, classes=5, input_shape=(3, 8, 8))
    dense = build(spec, seed=0)
    if members > 1:
        proxies = Committee(split(dense, spec, PruningSpec(ratio=1 - 1 / members), members)).members
    else:
        proxies = [prune(dense, spec, PruningSpec(ratio=0.5))]
    return Parts(dense=dense, members=proxies, parameters={})


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("name", EXACT)
def test_right_and_wrong_are_told_apart(name, members):
    parts = parts_of(name, members)
    verify(filled(parts.dense, in_blocks(parts, 0.0)), parts)
    said = r"fusion\.rule: no function-preserving form" if members == 1 else r"pruning\.committee: \S+ cannot hold one"
    state = in_blocks(parts, 0.0)
    state["classifier.bias"][0] += 0.01
    with pytest.raises(NetworkError, match=said):
        verify(filled(parts.dense, state), parts)


def test_a_proxy_that_diverged_is_called_that():
    parts = parts_of("resnet20", 1)
    fused = filled(parts.dense, in_blocks(parts, 0.0))
    with torch.no_grad():
        parts.members[0].network.stem.weight.fill_(float("nan"))
    with pytest.raises(NetworkError, match="not finite"):
        verify(fused, parts)
