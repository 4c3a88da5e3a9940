"""Names of a network in the names of a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefuse_ray.networks import NetworkError
from prunefuse_ray.networks.weight_names import WRAPPER_PARTS, match

WANTED = ["stem.weight", "layers.0.conv.weight", "layers.0.conv.bias", "head.weight", "head.bias"]
HEAD = {"head.weight", "head.bias"}


@given(data=st.data())
def test_whatever_wraps_a_network_its_names_are_found(data):
    """Wrappers before any part of a name, and one attribute before all of them."""
    parts = st.lists(st.sampled_from(sorted(WRAPPER_PARTS)), max_size=2)
    start = data.draw(st.sampled_from(["", "model.", "net.backbone."]))
    wrapped = {
        name: start + ".".join(p for part in name.split(".") for p in [*data.draw(parts), part]) for name in WANTED
    }
    others = ["criterion.weight", "n_averaged", "ema.decay"]
    found = match([*wrapped.values(), *others], WANTED, optional=HEAD)
    assert found.names == wrapped
    assert (found.unknown, found.left_out) == ([], sorted(others))


def test_names_of_the_network_s_own_are_no_wrappers():
    wanted = ["module.weight", "weight"]
    assert match(wanted, wanted, optional=()).names == {name: name for name in wanted}
    assert match(["module.module.weight"], ["module.weight"], optional=()).names == {
        "module.weight": "module.module.weight"
    }


def test_the_beginning_with_most_of_the_network_counts():
    given = [f"backbone.{name}" for name in WANTED[:3]] + HEAD_OF_ANOTHER
    found = match(given, WANTED, optional=HEAD)
    assert found.names == {name: f"backbone.{name}" for name in WANTED[:3]}
    assert found.left_out == sorted(HEAD_OF_ANOTHER)


HEAD_OF_ANOTHER = ["head.weight", "head.bias"]


def test_parts_of_the_network_that_it_does_not_have_are_unknown():
    more = ["layers.1.conv.weight", "stem.bias", "7.weight"]
    found = match([*WANTED, *more, "loss.weight"], WANTED, optional=HEAD)
    assert (found.unknown, found.left_out) == (sorted(more), ["loss.weight"])


def test_a_network_that_is_there_twice_is_not_guessed():
    twice = [f"{of}.{name}" for of in ("student", "teacher") for name in WANTED]
    with pytest.raises(NetworkError, match=r"twice, as student\.\* and as teacher"):
        match(twice, WANTED, optional=HEAD)
    found = match([*WANTED, *twice], WANTED, optional=HEAD)
    assert found.names == {name: name for name in WANTED}, "its own names go before others'"
    assert found.left_out == sorted(twice)
