"""gather and scatter as pure tensor functions."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunefuse_ray.networks import NetworkError, compose, gather, scatter
from prunefuse_ray.networks.indices import product_indices


@st.composite
def kept_tensors(draw):
    """A dense tensor of distinct values, and kept indices for it."""
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    return tensor, tuple(draw(kept_indices(size)) for size in shape)


@st.composite
def kept_indices(draw, size):
    if draw(st.booleans()):
        return None
    chosen = draw(st.sets(st.integers(0, size - 1), min_size=1))
    return torch.tensor(sorted(chosen))


def positions(shape, dims):
    """Reference: the kept coordinates, by plain Python."""
    axes = [range(size) if index is None else index.tolist() for size, index in zip(shape, dims, strict=True)]
    return list(itertools.product(*axes))


@given(kept_tensors())
def test_gather_takes_the_kept_positions_in_order(case):
    tensor, dims = case
    expected = [tensor[at].item() for at in positions(tensor.shape, dims)]
    assert gather({"w": tensor}, {"w": dims})["w"].flatten().tolist() == expected


@given(kept_tensors())
def test_scatter_of_gather_is_the_identity(case):
    tensor, dims = case
    dense, kept = {"w": tensor}, {"w": dims}
    assert torch.equal(scatter(dense, gather(dense, kept), kept)["w"], tensor)


@given(kept_tensors())
def test_gather_of_scatter_is_the_identity_and_the_rest_stays(case):
    tensor, dims = case
    kept = {"w": dims}
    proxy = {name: -1 - value for name, value in gather({"w": tensor}, kept).items()}
    fused = scatter({"w": tensor}, proxy, kept)
    assert torch.equal(gather(fused, kept)["w"], proxy["w"])
    written = set(positions(tensor.shape, dims))
    for at in itertools.product(*map(range, tensor.shape)):
        assert (fused["w"][at] == tensor[at]) == (at not in written)


@given(kept_tensors(), st.data())
def test_composed_indices_gather_twice(case, data):
    tensor, first = case
    kept = {"w": first}
    smaller = gather({"w": tensor}, kept)["w"]
    again = {"w": tuple(data.draw(kept_indices(size)) for size in smaller.shape)}
    assert torch.equal(gather({"w": tensor}, compose(kept, again))["w"], gather({"w": smaller}, again)["w"])


@given(kept_tensors(), st.randoms())
def test_indices_are_read_back_from_flat_positions_in_any_order(case, rng):
    tensor, dims = case
    flat = gather({"w": tensor}, {"w": dims})["w"].long()
    if flat.ndim == 0:
        return
    order = list(range(flat.shape[0]))
    rng.shuffle(order)
    found = product_indices("w", flat[order], tuple(tensor.shape))
    assert torch.equal(gather({"w": tensor}, {"w": found})["w"].long(), flat)


def test_positions_that_are_no_product_set_are_refused_by_name():
    with pytest.raises(NetworkError, match=r"layer\.weight"):
        product_indices("layer.weight", torch.tensor([[0, 1], [4, 5]]), (2, 3))
    with pytest.raises(NetworkError, match=r"layer\.weight"):
        product_indices("layer.weight", torch.tensor([0, 1]), (2, 3))


def test_foreign_tensors_are_refused():
    state, kept = {"w": torch.zeros(3)}, {"w": (torch.tensor([0, 2]),)}
    with pytest.raises(NetworkError, match="wrong network"):
        gather({"v": torch.zeros(3)}, kept)
    with pytest.raises(NetworkError, match="shape"):
        scatter(state, {"w": torch.zeros(3)}, kept)
