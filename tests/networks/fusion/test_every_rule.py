"""What every registered fusion rule promises: shapes, exactness, committees."""

import functools

import pytest
import torch

from prunefuse_ray.networks import (
    FUSION_RULES,
    Committee,
    Ensemble,
    NetworkError,
    NetworkSpec,
    PruningSpec,
    build,
    example_input,
    fuse,
    prune,
    split,
)
from tests.networks.test_architectures import train_a_little

TOLERANCE = 1e-4
NETWORKS = {
    "resnet20": (3, 8, 8),
    "textcnn": (40,),
    "tests.networks.test_pruning:DepthwiseGrouped": (3, 8, 8),
    "tests.networks.test_pruning:OneChannelGroups": (3, 8, 8),
    "tests.networks.test_architectures:small_vit": (3, 16, 16),
    "tests.support.nets:grouped": (3, 8, 8),
}
REFUSED = {(rule, "tests.support.nets:grouped") for rule in ("function_preserving", "scaled")} | {
    ("net2wider", "tests.networks.test_architectures:small_vit")
}
"""Networks to which a rule does not apply, as its `holds_for` says; to all others it does."""


@functools.cache
def trained(name, members):
    """Once for all rules, none of which changes what it is given (`check`)."""
    spec = NetworkSpec(architecture=name, classes=5, input_shape=NETWORKS[name])
    dense = build(spec, seed=0)
    if members == 1:
        selector = prune(dense, spec, PruningSpec(ratio=0.5))
        networks = [selector.network]
    else:
        selector = Committee(split(dense, spec, PruningSpec(ratio=1 - 1 / members), members))
        networks = [member.network for member in selector.members]
    for network in networks:
        train_a_little(network, spec)
    return spec, dense, selector, Ensemble(networks).eval()


def check(rule, spec, dense, selector, proxies):
    states = [{n: t.clone() for n, t in network.state_dict().items()} for network in (dense, proxies)]
    if (rule, spec.architecture) in REFUSED:
        assert FUSION_RULES[rule].holds_for != "any network"
        with pytest.raises(NetworkError, match=r"^fusion\.rule: "):
            fuse(dense, selector, rule)
        return
    fused = fuse(dense, selector, rule)
    for network, before in zip((dense, proxies), states, strict=True):
        assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items()), "it changed what it was given"
    state, again = fused.state_dict(), fuse(dense, selector, rule).state_dict()
    assert {n: (t.shape, t.dtype) for n, t in state.items()} == {n: (t.shape, t.dtype) for n, t in states[0].items()}
    assert all(torch.equal(t, again[n]) for n, t in state.items()), "twice the same, twice something else"
    x = example_input(spec, samples=4, seed=3)
    with torch.no_grad():
        found, expected = fused.eval()(x), proxies(x)
    assert found.isfinite().all()
    if FUSION_RULES[rule].exact:
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", FUSION_RULES)
def test_a_proxy_is_fused(rule, name):
    check(rule, *trained(name, 1))


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("textcnn", "tests.networks.test_pruning:DepthwiseGrouped")),
    ],
)
@pytest.mark.parametrize("rule", FUSION_RULES)
def test_a_committee_is_fused_or_refused_as_declared(rule, name):
    made = trained(name, 2)
    if FUSION_RULES[rule].committees:
        check(rule, *made)
    else:
        with pytest.raises(NetworkError, match=rf"fusion\.rule: '{rule}' takes no committee"):
            fuse(made[1], made[2], rule)


@pytest.mark.parametrize("rule", FUSION_RULES)
def test_it_says_what_it_is(rule):
    found = FUSION_RULES[rule]
    assert found.name == rule
    assert found.about in found.help
    assert ("no committees" in found.help) != found.committees
    assert all(f"fusion.{name}" in found.help for name in found.parameters)
