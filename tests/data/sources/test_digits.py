"""The embedded example."""

import numpy as np
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.sources.digits import digits_tables
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import PoolError

GRAY8 = ImageForm(height=8, width=8, channels=1)


def test_digits_are_the_whole_set_with_a_fifth_held_out():
    pool, test = digits_tables()
    assert (pool.num_rows, test.num_rows) == (1437, 360)
    ids = pool["id"].to_pylist() + test["id"].to_pylist()
    assert sorted(ids) == [f"digit-{i:04d}" for i in range(1797)]
    from sklearn.datasets import load_digits

    digits = load_digits()
    row = int(ids[5].removeprefix("digit-"))
    assert pool["label"][5].as_py() == digits.target[row]
    pixels = GRAY8.decode(pool["image"][5].as_py())[:, :, 0]
    assert np.abs(pixels - digits.images[row] * (255 / 16)).max() <= 0.5


def test_their_classes_are_ten_digits_whatever_they_are_called(local_ray):
    named = [f"digit {n}" for n in range(10)]
    assert survey(cfg.Pool.model_validate({"classes": named})).info.classes == named
    for classes in (5, ["even", "odd"]):
        with pytest.raises(PoolError, match=r"pool\.classes: "):
            survey(cfg.Pool.model_validate({"classes": classes}))


@pytest.mark.parametrize("task", ["regression", "segmentation"])
def test_they_are_neither_numbers_nor_masks(local_ray, task):
    with pytest.raises(PoolError, match=f"task '{task}': the labels of the embedded example are classes"):
        survey(cfg.Pool(), task=task)
