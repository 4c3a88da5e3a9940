"""Vectors."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from prunefuse_ray.data.images import sample_values
from prunefuse_ray.data.vectors import VectorForm, shown
from prunefuse_ray.errors import Rejected

FORM = VectorForm(length=3)


def test_numbers_come_out_as_they_went_in():
    values = np.stack([FORM.decode([1, -2.5, 1e-3]), FORM.decode(np.array([0, 1, 2], np.float64))])
    assert values.dtype == np.uint8
    expected = np.array([[1, -2.5, 1e-3], [0, 1, 2]], np.float32)
    assert np.array_equal(FORM.numbers(values), expected)
    assert np.array_equal(FORM.inputs(torch.from_numpy(values)).numpy()[:, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "null"), ([1, 2], "2 numbers, expected 3"), ([1, 2, np.nan], "NaN"), ([1, 2, np.inf], "infinite"),
        ([1, 2, 1e300], "infinite"), ("text", "str, expected a list"), ([[1, 2, 3]], "shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_rejected(value, why):
    with pytest.raises(Rejected, match=why):
        FORM.decode(value)


def test_people_see_the_first_few_numbers():
    assert shown([0.5, 1]) == "0.5, 1"
    assert shown(range(9)) == "0, 1, 2, 3, 4, 5, ... (9 numbers)"


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)])
def test_lists_of_numbers_are_read_without_an_object_for_each(kind):
    column = pa.chunked_array([pa.array([[9, 9], [1, 2], None, [3, 4]], kind)]).slice(1)
    values = sample_values(column)
    assert [None if v is None else v.tolist() for v in values] == [[1, 2], None, [3, 4]]
    assert all(v is None or v.dtype == np.float32 for v in values)
