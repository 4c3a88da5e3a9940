"""The form of samples: what the configuration and the pool say together."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.sample_format import decode_column, form_of
from prunefuse_ray.data.texts import TextForm
from prunefuse_ray.errors import Rejected


def info(size):
    return PoolInfo(
        source="parquet", path="p", rows=1, bytes=1, files=1, listing_digest="", id_digest="", id_type="string",
        classes=["a", "b"], sample_size=size,
    )  # fmt: skip


def test_images():
    pool = cfg.Pool(source="parquet", path="a", test_path="b", classes=2, mean=[0.5], std=[0.1, 0.2, 0.4])
    form = form_of(pool, info((4, 6)))
    assert isinstance(form, ImageForm)
    assert (form.shape, form.network_shape) == ((4, 6, 3), (3, 4, 6))
    x = form.inputs(torch.full((2, 4, 6, 3), 255, dtype=torch.uint8))
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([5.0, 2.5, 1.25]))
    assert x.shape == (2, 3, 4, 6)


def test_texts():
    pool = cfg.Pool(source="parquet", path="a", test_path="b", classes=2, text_column="t", text_length=7)
    form = form_of(pool, info((7,)))
    assert isinstance(form, TextForm)
    assert form.network_shape == (7,)
    assert form.decode("né").tolist() == [110, 195, 169, 0, 0, 0, 0]
    assert bytes(form.decode("longer than seven")) == b"longer "
    assert form.inputs(torch.zeros(2, 7, dtype=torch.uint8)).dtype == torch.int64
    values, reasons = decode_column(pa.chunked_array([["a", None, "  "]]), form)
    assert values.shape == (3, 7)
    assert [r is None for r in reasons] == [True, False, False]


@pytest.mark.parametrize("value", [None, "", " \n", 3, np.zeros(3)])
def test_what_is_no_text_is_rejected(value):
    with pytest.raises(Rejected):
        TextForm(length=5).decode(value)
