"""Importances: what each one ranks channels by, on a layer where it can be worked out by hand."""

import pytest
import torch

from prunefuse_ray.networks import IMPORTANCES, NetworkSpec, PruningSpec, build, prune

SPEC = NetworkSpec(architecture="tests.support.nets:tiny", classes=2, input_shape=(1, 8, 8))


def kept(name, *, kernels=1.0, gains=1.0):
    """Which of eight channels stay, of which everything is alike but what is given."""
    dense = build(SPEC, seed=0)
    with torch.no_grad():
        dense[0].weight.copy_(torch.as_tensor(kernels).expand(8, 9).reshape(8, 1, 3, 3))
        dense[1].weight.copy_(torch.as_tensor(gains))
        dense[3].weight.fill_(1)
    return prune(dense, SPEC, PruningSpec(ratio=0.5, importance=name)).kept["0.weight"][0].tolist()


FALLING, RISING = torch.linspace(8, 1, 8), torch.linspace(1, 8, 8)


def test_large_kernels_stay():
    for name in ("magnitude", "magnitude_l1", "lamp"):
        assert kept(name, kernels=FALLING[:, None]) == [0, 1, 2, 3], name
        assert kept(name, kernels=RISING[:, None]) == [4, 5, 6, 7], name


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_lamp_keeps_what_magnitude_keeps(ratio):
    """It weighs layers against each other, and here every layer loses the same share."""
    spec = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 8, 8))
    dense = build(spec, seed=0)
    found, expected = (
        prune(dense, spec, PruningSpec(ratio=ratio, importance=name)).kept for name in ("lamp", "magnitude")
    )
    for name, dims in expected.items():
        assert [i if i is None else i.tolist() for i in found[name]] == [i if i is None else i.tolist() for i in dims]


def test_large_gains_stay_whatever_the_kernels():
    assert kept("bn_scale", kernels=FALLING[:, None], gains=RISING) == [4, 5, 6, 7]


def test_what_is_unlike_the_others_stays():
    alike = torch.ones(8, 9)
    alike[[1, 3, 6, 7]] = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 3
    assert kept("fpgm", kernels=alike) == [1, 3, 6, 7]


def test_one_large_weight_counts_more_in_the_second_norm():
    kernels = torch.full((8, 9), 0.5)  # L2 1.5, L1 4.5
    kernels[:4] = 0
    kernels[:4, 0] = 2  # L2 2, L1 2
    assert kept("magnitude", kernels=kernels) == [0, 1, 2, 3]
    assert kept("magnitude_l1", kernels=kernels) == [4, 5, 6, 7]


def test_each_says_what_it_is():
    assert all(importance.about for importance in IMPORTANCES.values())


def test_a_kernel_and_its_negative_are_unlike():
    kernels = torch.ones(8, 9)
    kernels[:2] = -1
    assert kept("fpgm", kernels=kernels)[:2] == [0, 1]
