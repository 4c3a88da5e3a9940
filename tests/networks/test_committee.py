"""A committee: disjoint proxies that cover the dense network, and their fusion into it."""

import dataclasses

import pytest
import torch

from prunefuse_ray.networks import (
    Committee,
    Ensemble,
    NetworkError,
    NetworkSpec,
    PruningSpec,
    build,
    check_partition,
    example_input,
    from_files,
    fuse,
    macs,
    split,
    to_files,
)
from prunefuse_ray.networks.indices import grid
from tests.networks.test_architectures import train_a_little

SMALL = [
    ("resnet20", (3, 8, 8), 2),
    ("resnet20", (1, 8, 8), 4),
    ("textcnn", (40,), 2),
    ("tests.networks.test_architectures:small_densenet", (3, 16, 16), 2),
]
LARGE = [
    ("torchvision:resnet18", (3, 32, 32), 2),
    ("resnet56", (3, 8, 8), 4),
    ("wrn16_8", (3, 8, 8), 2),
    ("vgg16_bn", (3, 32, 32), 4),
    ("torchvision:mobilenet_v2", (3, 32, 32), 2),
    ("torchvision:efficientnet_b0", (3, 32, 32), 2),
    ("torchvision:resnet50", (3, 32, 32), 4),
    ("torchvision:densenet121", (3, 32, 32), 2),
]


def committee_of(name, shape, members, seed=3):
    spec = NetworkSpec(architecture=name, classes=7, input_shape=shape)
    dense = build(spec, seed=seed)
    return spec, dense, split(dense, spec, PruningSpec(ratio=1 - 1 / members), members)


@pytest.mark.parametrize(
    ("name", "shape", "members"), [*SMALL, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE)]
)
def test_the_fused_network_starts_as_the_mean_of_its_members(name, shape, members):
    spec, dense, committee = committee_of(name, shape, members)
    check_partition(committee)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    x = example_input(spec, samples=4, seed=9)
    for trained in (False, True):
        if trained:
            for member in committee:
                train_a_little(member.network, spec)
        for member in committee:
            member.network.eval()
        fused = fuse(dense, Committee(committee), "function_preserving").eval()
        with torch.no_grad():
            mean = torch.stack([member.network(x) for member in committee]).mean(0)
            torch.testing.assert_close(fused(x), mean, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(Ensemble([m.network for m in committee])(x), mean)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items()), "dense was changed"
    # Saved like any proxy, and read back as the same one.
    loaded = from_files(to_files(committee[-1]), (name,))
    with torch.no_grad():
        assert torch.equal(loaded.network.eval()(x), committee[-1].network.eval()(x))


def test_members_have_a_share_of_the_work_and_every_weight_of_the_blocks():
    spec, dense, committee = committee_of("resnet20", (3, 32, 32), 2)
    ratio = sum(macs(member.network, spec.input_shape) for member in committee) / macs(dense, spec.input_shape)
    assert ratio == pytest.approx(1 / 2, rel=0.03)
    for name, tensor in dense.state_dict().items():
        for member in committee:
            expected = tensor[grid(tensor.shape, member.kept[name])] if tensor.ndim else tensor
            assert torch.equal(member.network.state_dict()[name].flatten(), expected.flatten()), name


def test_rules_differ_in_the_weights_between_the_blocks_only():
    _, dense, committee = committee_of("resnet20", (3, 8, 8), 2)
    name = "blocks.3.convs.0.weight"
    initial = dense.state_dict()[name]
    between = torch.ones_like(initial, dtype=torch.bool)
    for member in committee:
        between[grid(initial.shape, member.kept[name])] = False
    assert between.float().mean() == 0.5
    for rule, factor in (("keep", 1.0), ("function_preserving", 0.0), ("scaled", 0.1)):
        fused = fuse(dense, Committee(committee), rule).state_dict()[name]
        assert torch.equal(fused[between], initial[between] * factor), rule
        assert torch.equal(fused[~between], initial[~between]), rule


def test_what_cannot_be_a_committee_is_refused():
    spec = NetworkSpec(architecture="resnet20", classes=7, input_shape=(3, 8, 8))
    dense = build(spec, seed=0)
    with pytest.raises(NetworkError, match=r"3 members cannot share the \d+ channels of \S+ evenly"):
        split(dense, spec, PruningSpec(ratio=2 / 3), 3)
    for wrong in (PruningSpec(ratio=0.7), PruningSpec(ratio=0.5, steps=2), PruningSpec(ratio=0.5, round_to=8)):
        with pytest.raises(NetworkError, match="committee"):
            split(dense, spec, wrong, 2)
    committee = split(dense, spec, PruningSpec(ratio=0.5), 2)
    with pytest.raises(NetworkError, match="not disjoint"):
        Committee([committee[0], committee[0]])


def test_layers_that_mix_the_members_channels_are_refused_by_name():
    with pytest.raises(NetworkError, match=r"small_vit cannot hold one: module \S*ln\S* normalizes"):
        committee_of("tests.networks.test_architectures:small_vit", (3, 16, 16), 2)


def test_members_are_about_as_good_as_each_other():
    """Dealt out by importance: no member has the strong channels to itself."""
    spec, dense, _ = committee_of("resnet20", (3, 8, 8), 2)
    with torch.no_grad():
        for parameter in dense.parameters():
            if parameter.ndim == 4:  # channels of very different norms
                parameter *= torch.linspace(0.1, 2, len(parameter))[:, None, None, None]
    committee = split(dense, spec, PruningSpec(ratio=0.5), 2)
    norms = [sum(p.detach().norm().item() ** 2 for p in member.network.parameters()) for member in committee]
    assert max(norms) / min(norms) < 1.3
    assert dataclasses.replace(committee[0].pruning, ratio=0.5) == committee[1].pruning
