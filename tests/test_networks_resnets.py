"""The CIFAR residual networks through every stage: build, prune, save, load, fuse."""

from fractions import Fraction

import pytest
import torch

from prunefuse_ray.networks import (
    NetworkSpec,
    Proxy,
    PruningSpec,
    build,
    example_input,
    from_files,
    fuse,
    gather,
    macs,
    prune,
    to_files,
)

RATIOS = (0.5, 0.6, 0.7, 0.8)
SPEC = NetworkSpec(architecture="resnet20", classes=10, input_shape=(1, 8, 8))


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_proxy_holds_the_dense_weights_of_its_kept_channels(ratio):
    dense = build(SPEC, seed=1)
    proxy = prune(dense, SPEC, PruningSpec(ratio=ratio))
    expected = gather(dense.state_dict(), proxy.kept)
    for name, tensor in proxy.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for width in (16, 32, 64):
        kept = int(width * (1 - Fraction(str(ratio))))
        conv = next(m for m in dense.modules() if getattr(m, "out_channels", None) == width)
        name = next(n for n, m in dense.named_modules() if m is conv)
        assert proxy.network.get_submodule(name).out_channels == kept


def test_a_saved_proxy_returns_bit_equal_logits():
    proxy = prune(build(SPEC, seed=1), SPEC, PruningSpec(ratio=0.5))
    loaded = from_files(to_files(proxy))
    assert isinstance(loaded, Proxy)
    x = example_input(SPEC, samples=4)
    assert torch.equal(loaded.network.eval()(x), proxy.network.eval()(x))


@pytest.mark.parametrize("ratio", RATIOS)
def test_function_preserving_fusion_computes_what_the_proxy_computes(ratio):
    dense = build(SPEC, seed=1)
    proxy = prune(dense, SPEC, PruningSpec(ratio=ratio))
    x = example_input(SPEC, samples=4)
    fused = fuse(dense, proxy, "function_preserving")
    torch.testing.assert_close(fused.eval()(x), proxy.network.eval()(x), atol=1e-4, rtol=1e-4)


def test_macs_of_a_resnet20():
    spec = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 32, 32))
    stem = 9 * 3 * 16 * 32 * 32
    first = 6 * 9 * 16 * 16 * 32 * 32
    second = (16 * 32 + 9 * 16 * 32 + 5 * 9 * 32 * 32) * 16 * 16
    third = (32 * 64 + 9 * 32 * 64 + 5 * 9 * 64 * 64) * 8 * 8
    assert macs(build(spec, seed=0), spec.input_shape) == stem + first + second + third + 64 * 10
