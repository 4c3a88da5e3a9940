"""The strong view: what it does to pixels, and that a sample's does not depend on the batch."""

import pytest
import torch

from prunefuse_ray.training import strong_view as sv


def seen(x_NHWC, first, strength=0.5, second="identity", cut=(0.999, 0.999)):
    """The view with the operations named, at a strength in [0, 1) (0.5: none)."""
    n, names = len(x_NHWC), sv.OPERATIONS
    slots = [(names.index(name) + 0.5) / len(names) for name in (first, second)]
    rows = [slots[0], strength, slots[1], 0.5, *cut]
    return sv.strong_view(x_NHWC, torch.tensor(rows)[:, None].expand(-1, n))


@pytest.fixture
def x():
    return torch.randint(256, (4, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def uncut(view):
    return view[:, :12, :12]


def test_nothing_but_the_cut_changes_where_the_operation_is_none(x):
    view = seen(x, "identity")
    assert torch.equal(uncut(view), uncut(x))
    assert (view[:, 13:, 13:] == 128).all()


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "shift_x", "shift_y", "brightness", "contrast"])
def test_an_operation_of_no_strength_changes_nothing(x, name):
    assert (uncut(seen(x, name)).int() - uncut(x).int()).abs().max() <= 1


def test_colors_and_places_change_as_they_should(x):
    assert (uncut(seen(x, "brightness", 0.0)).float().mean() / uncut(x).float().mean()).item() == pytest.approx(
        0.1, abs=0.01
    )
    bland = seen(x, "saturation", 0.0)
    assert uncut(bland).float().std(-1).mean() < 0.2 * uncut(x).float().std(-1).mean()
    solarized = uncut(seen(x, "solarize", 0.999)).int()
    assert torch.equal(solarized, torch.where(uncut(x) > 254, 255 - uncut(x).int(), uncut(x).int()))
    assert uncut(seen(x, "posterize", 0.5)).unique().numel() <= 18  # 17, and 127.5 either way
    moved = seen(x, "shift_x", (1 + 0.25 / 0.6) / 2)  # by an eighth of the width: two columns
    assert (moved[:, :12, :10].int() - x[:, :12, 2:12].int()).abs().max() <= 1
    assert (moved[:, :, 14:] == 128).all()


def test_a_turned_image_keeps_its_angles_whatever_its_sides():
    """An image twice as wide as high, turned by 30 degrees: a vertical line leans as far as a horizontal one."""
    operation = torch.tensor([sv.OPERATIONS.index("rotate")])
    found = sv._compose(torch.eye(2, 3)[None], operation, torch.ones(1), 2.0)[0, :, :2]
    pixels = torch.diag(torch.tensor([2.0, 1.0]))  # a unit of each side, in pixels
    turned = pixels @ found @ pixels.inverse()
    assert torch.allclose(turned @ turned.T, torch.eye(2), atol=1e-6)
    assert turned[0, 0].item() == pytest.approx(3**0.5 / 2)


def test_shapes_are_kept_and_a_view_does_not_depend_on_the_batch():
    for shape in ((5, 8, 8, 1), (5, 12, 20, 3)):
        x = torch.randint(256, shape, dtype=torch.uint8)
        uniform = torch.rand(sv.DRAWS, 5)
        whole = sv.strong_view(x, uniform)
        assert whole.shape == x.shape
        assert whole.dtype == torch.uint8
        assert torch.equal(whole[3:], sv.strong_view(x[3:], uniform[:, 3:]))
