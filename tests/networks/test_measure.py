"""Parameters and multiply-accumulates against counts by hand."""

import pytest

from prunefuse_ray.networks import (
    NetworkSpec,
    PruningSpec,
    build,
    inference_form,
    macs,
    parameters,
    prune,
    pruning_table,
)

RESNET20 = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 32, 32))


def resnet20_macs(a: int, b: int, c: int) -> int:
    """By hand, for the stages' widths a, b, c at 32x32."""
    stem = 9 * 3 * a * 32 * 32
    first = 6 * 9 * a * a * 32 * 32
    second = (a * b + 9 * a * b + 5 * 9 * b * b) * 16 * 16
    third = (b * c + 9 * b * c + 5 * 9 * c * c) * 8 * 8
    return stem + first + second + third + c * 10


def resnet20_parameters(a: int, b: int, c: int) -> int:
    convs = 9 * 3 * a + 6 * 9 * a * a + 10 * a * b + 5 * 9 * b * b + 10 * b * c + 5 * 9 * c * c
    norms = 2 * (7 * a + 6 * b + 6 * c)
    return convs + norms + c * 10 + 10


@pytest.mark.parametrize(("ratio", "widths"), [(0, (16, 32, 64)), (0.5, (8, 16, 32)), (0.8, (3, 6, 12))])
def test_a_resnet20_costs_what_it_costs_by_hand(ratio, widths):
    network = prune(build(RESNET20, seed=0), RESNET20, PruningSpec(ratio=ratio)).network
    assert macs(network, RESNET20.input_shape) == resnet20_macs(*widths)
    assert parameters(network) == resnet20_parameters(*widths)
    assert macs(inference_form(network), RESNET20.input_shape) == resnet20_macs(*widths)
    assert network.training


def test_a_text_network_costs_what_it_costs_by_hand():
    spec = NetworkSpec(architecture="textcnn", classes=4, input_shape=(64,))
    by_hand = 3 * 64 * (16 * 64 + 2 * 64 * 64) + 3 * 32 * (64 * 128 + 128 * 128)
    by_hand += 3 * 16 * (128 * 256 + 256 * 256) + 3 * 8 * (256 * 512 + 512 * 512) + 512 * 4
    assert macs(build(spec, seed=0), spec.input_shape) == by_hand


def test_attention_counts():
    """A vision transformer of torchvision on 16x16: 5 tokens of 48, 2 layers, 4 patches."""
    spec = NetworkSpec(architecture="tests.networks.test_architectures:small_vit", classes=10, input_shape=(3, 16, 16))
    tokens, width, hidden = 5, 48, 96
    layer = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    by_hand = 4 * 3 * 8 * 8 * width + 2 * layer + width * 10
    assert macs(build(spec, seed=0), spec.input_shape) == by_hand


def test_the_pruning_table():
    rows = pruning_table(build(RESNET20, seed=0), RESNET20, ratios=(0.5, 0.8))
    assert [row.pruning.ratio for row in rows] == [0.5, 0.8]
    assert rows[0].kept == "16→8 32→16 64→32"
    assert rows[1].kept == "16→3 32→6 64→12"
    for row, widths in zip(rows, [(8, 16, 32), (3, 6, 12)], strict=True):
        assert row.macs == resnet20_macs(*widths)
        assert row.mac_ratio == resnet20_macs(*widths) / resnet20_macs(16, 32, 64)
        assert row.parameter_ratio == resnet20_parameters(*widths) / resnet20_parameters(16, 32, 64)
