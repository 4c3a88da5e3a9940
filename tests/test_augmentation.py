"""Augmentation in tensor code against the same thing done picture by picture with slices."""

import numpy as np
import pytest
import torch

from prunefuse_ray.augmentation import augment, draw

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (64, 16, 24, 3), dtype=np.uint8))
DRAWS = draw(64, torch.Generator().manual_seed(0))


def reference_crop(picture, top, left):
    pad_h, pad_w = 2, 3  # an eighth of 16 and of 24
    padded = np.pad(picture, ((pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    y, x = int(top * (2 * pad_h + 1)), int(left * (2 * pad_w + 1))
    return padded[y : y + 16, x : x + 24]


def test_crop_is_a_window_of_the_padded_picture():
    out = augment(PIXELS, DRAWS, ["crop"])
    for i in range(64):
        expected = reference_crop(PIXELS[i].numpy(), DRAWS.top_B[i].item(), DRAWS.left_B[i].item())
        np.testing.assert_array_equal(out[i], expected)


def test_every_crop_position_occurs():
    starts = {int(t * 5) for t in draw(1000, torch.Generator().manual_seed(1)).top_B}
    assert starts == set(range(5))


def test_flip_mirrors_half_of_the_pictures():
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
