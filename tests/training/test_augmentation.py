"""Augmentation in tensor code against the same thing done image by image with slices."""

import dataclasses

import numpy as np
import pytest
import torch

from prunefuse_ray.training.augmentation import augment, center, draw

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (64, 16, 24, 3), dtype=np.uint8))
DRAWS = draw(64, torch.Generator().manual_seed(0))


def reference_crop(image, top, left):
    pad_h, pad_w = 2, 3  # an eighth of 16 and of 24
    padded = np.pad(image, ((pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    y, x = int(top * (2 * pad_h + 1)), int(left * (2 * pad_w + 1))
    return padded[y : y + 16, x : x + 24]


def test_crop_is_a_window_of_the_padded_image():
    out = augment(PIXELS, DRAWS, ["crop"])
    for i in range(64):
        expected = reference_crop(PIXELS[i].numpy(), DRAWS.top_B[i].item(), DRAWS.left_B[i].item())
        np.testing.assert_array_equal(out[i], expected)


def test_every_crop_position_occurs():
    starts = {int(t * 5) for t in draw(1000, torch.Generator().manual_seed(1)).top_B}
    assert starts == set(range(5))


def test_flip_mirrors_half_of_the_images():
    out = augment(PIXELS, DRAWS, ["flip"])
    flipped = [bool((out[i] == PIXELS[i].flip(1)).all()) for i in range(64)]
    same = [bool((out[i] == PIXELS[i]).all()) for i in range(64)]
    assert [not f for f in flipped] == same
    assert 16 < sum(flipped) < 48


def test_cutout_blanks_one_rectangle_of_at_most_half_the_sides():
    out = augment(PIXELS, DRAWS, ["cutout"])
    for i in range(64):
        blank = (out[i] == 0).all(-1).numpy()
        rows, columns = np.flatnonzero(blank.any(1)), np.flatnonzero(blank.any(0))
        assert blank.sum() == len(rows) * len(columns) > 0
        assert len(rows) <= 8
        assert len(columns) <= 12
        np.testing.assert_array_equal(out[i].numpy()[~blank], PIXELS[i].numpy()[~blank])


def test_nothing_asked_changes_nothing():
    assert augment(PIXELS, DRAWS, []) is PIXELS


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_a_sample_is_augmented_alike_however_many_workers_share_the_batch(workers):
    kinds = ["crop", "flip", "cutout"]
    whole = augment(PIXELS, DRAWS, kinds)
    for rank in range(workers):
        mine = slice(rank, None, workers)
        assert torch.equal(augment(PIXELS[mine], DRAWS[mine], kinds), whole[mine])


# --- random resized crops ---


def ramp(n, h, w):
    """Images whose two channels are the coordinates of each pixel's center, times 4."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([4 * y, 4 * x], -1).to(torch.uint8).expand(n, h, w, 2)


def test_a_resized_crop_is_a_stretch_of_the_image_of_the_asked_size():
    """On an image of coordinates every crop is linear in both directions, and lies inside the image."""
    draws = draw(200, torch.Generator().manual_seed(0))
    out = augment(ramp(200, 40, 60), draws, ["resized_crop"], size=(24, 24), smallest=0.1).float() / 4
    assert out.shape == (200, 24, 24, 2)
    heights = (out[:, -1, 0, 0] - out[:, 0, 0, 0]) * 24 / 23
    widths = (out[:, 0, -1, 1] - out[:, 0, 0, 1]) * 24 / 23
    areas = heights * widths / (40 * 60)
    assert areas.min() > 0.05
    assert areas.max() < 1.05
    assert areas.std() > 0.15
    inner = (widths < 55) & (heights < 36)  # where nothing was cut off, the aspect is within 3/4 .. 4/3
    aspects = (widths / heights)[inner]
    assert aspects.min() > 0.7
    assert aspects.max() < 1.43
    middle = out[:, 11:13, 11:13].mean((1, 2))
    ends = (out[:, 0, 0] + out[:, -1, -1]) / 2
    torch.testing.assert_close(middle, ends, atol=0.3, rtol=0)


def test_a_crop_of_the_whole_image_at_its_own_size_is_the_image():
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    draws = draw(4, torch.Generator().manual_seed(0))
    still = dataclasses.replace(draws, ratio_B=torch.full((4,), 0.5))
    assert torch.equal(augment(pixels, still, ["resized_crop"], smallest=1.0), pixels)


def test_the_centre_is_the_middle():
    assert torch.equal(center(ramp(2, 10, 8), (4, 4)), ramp(2, 10, 8)[:, 3:7, 2:6])
