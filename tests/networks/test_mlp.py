"""The network of vectors."""

import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.networks.inference import scoring_form

SPEC = networks.NetworkSpec(architecture="mlp", classes=3, input_shape=(6, 1, 1))


@pytest.fixture
def learned():
    dense = networks.build(SPEC, seed=0)
    x = torch.randn(50, 6, 1, 1) * torch.tensor([1, 10, 100, 1e-3, 0, 1]).view(1, 6, 1, 1) + 5
    networks.take(dense, networks.statistics("mlp", x))
    return dense, x


def test_vectors_are_standardized_by_the_pool(learned):
    dense, x = learned
    standard = (x.flatten(1) - dense.mean) / dense.deviation
    # In float32 a mean of 5 is known to 2.4e-7, a quarter of a thousandth of the smallest deviation here.
    torch.testing.assert_close(standard.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    wanted = torch.tensor([1.0, 1, 1, 1, 0, 1])  # of one that never changes nothing is left
    torch.testing.assert_close(standard.std(0, correction=0), wanted, atol=1e-3, rtol=0)


def test_it_is_pruned_and_fused_exactly_alone_and_as_a_committee(learned):
    dense, x = learned
    half = networks.PruningSpec(ratio=0.5)
    proxy = networks.prune(dense, SPEC, half)
    assert proxy.network.hidden.weight.shape == (128, 6)
    fused = networks.fuse(dense, proxy, "function_preserving").eval()
    torch.testing.assert_close(fused(x), proxy.network.eval()(x))
    committee = networks.Committee(networks.split(dense, SPEC, half, 2))
    fused = networks.fuse(dense, committee, "function_preserving").eval()
    torch.testing.assert_close(fused(x), committee.network.eval()(x).mean(0))
    features, _ = networks.features_and_logits(dense, x)
    assert features.shape == (50, 384)


@pytest.mark.parametrize("features", [False, True])
def test_vectors_are_standardized_before_they_are_rounded(features):
    """48.85 and 48.95 are one number in bfloat16."""
    dense = networks.build(SPEC, seed=0).eval()
    x = torch.randn(200, 6, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.05 + 48.85
    networks.take(dense, networks.statistics("mlp", x))
    with torch.inference_mode():
        exact = dense(x)
        found = scoring_form(dense, "bf16", x, features=features)(x)
    found = found[0] if features else found
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()
