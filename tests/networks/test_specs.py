"""Specs: validation, exact channel counts, JSON."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefuse_ray.networks import NetworkError, NetworkSpec, PruningSpec

SPEC = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 32, 32))


def test_specs_survive_json():
    pruning = PruningSpec(ratio=0.7, importance="random", steps=3, round_to=4, seed=9)
    assert NetworkSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    few = NetworkSpec(architecture="mine", classes=2, input_shape=(48,), values=5)
    assert NetworkSpec.from_json(json.loads(json.dumps(few.to_json()))) == few
    assert PruningSpec.from_json(json.loads(json.dumps(pruning.to_json()))) == pruning


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": ""},
        {"architecture": 3},
        {"classes": 0},
        {"classes": True},
        {"classes": 2.0},
        {"input_shape": ()},
        {"input_shape": (3, 32)},
        {"input_shape": (3, 0, 32)},
        {"input_shape": [3, 32, 32]},
        {"values": 0},
    ],
)
def test_bad_network_specs_name_the_field(change):
    (field,) = change
    with pytest.raises(NetworkError, match=field):
        NetworkSpec(**{"architecture": "resnet20", "classes": 10, "input_shape": (3, 32, 32)} | change)


@pytest.mark.parametrize(
    "change",
    [
        {"ratio": 1},
        {"ratio": -0.1},
        {"ratio": float("nan")},
        {"ratio": "half"},
        {"importance": "magnitud"},
        {"steps": 0},
        {"round_to": 0},
        {"seed": -1},
    ],
)
def test_bad_pruning_specs_name_the_field(change):
    (field,) = change
    with pytest.raises(NetworkError, match=field):
        PruningSpec(**{"ratio": 0.5} | change)


@pytest.mark.parametrize("data", [[], {"ratio": 0.5}, PruningSpec(ratio=0.5).to_json() | {"extra": 1}])
def test_unknown_and_missing_keys_are_refused(data):
    with pytest.raises(NetworkError, match="PruningSpec"):
        PruningSpec.from_json(data)


def test_counts_that_floating_point_gets_wrong():
    assert PruningSpec(ratio=0.8).kept(160) == 32
    assert PruningSpec(ratio=0.9).kept(10) == 1
    assert PruningSpec(ratio=0.5, round_to=8).kept(36) == 16
    assert PruningSpec(ratio=0.5, round_to=8).kept(40) == 24
    assert PruningSpec(ratio=0.5, steps=5).kept(100, 2) == 80


@given(channels=st.integers(1, 10**6), percent=st.integers(0, 99), steps=st.integers(1, 7))
def test_counts_are_exact(channels, percent, steps):
    pruning = PruningSpec(ratio=percent / 100, steps=steps)
    assert pruning.kept(channels) == max(1, channels * (100 - percent) // 100)
    widths = [pruning.kept(channels, step) for step in range(1, steps + 1)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == max(1, int(channels * (1 - Fraction(percent, 100 * steps))))


@given(channels=st.integers(1, 5000), percent=st.integers(1, 99), multiple=st.integers(1, 64))
def test_rounded_counts_are_the_nearest_multiples_that_prune(channels, percent, multiple):
    exact = PruningSpec(ratio=percent / 100).kept(channels)
    rounded = PruningSpec(ratio=percent / 100, round_to=multiple).kept(channels)
    below = range(multiple, channels, multiple)
    assert rounded in below if below else rounded == exact
    assert all(abs(rounded - exact) <= abs(other - exact) for other in below)
