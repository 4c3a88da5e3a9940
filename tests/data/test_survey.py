"""Before a run: what pool and test set are, found without writing anything."""

import pyarrow as pa
import pytest

from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import PoolError
from tests.support.pools import parquet_pool, random_images, write_pool


def test_the_survey_finds_what_the_configuration_left_open(made):
    pool, _, _ = made
    info = survey(pool).info
    assert (info.rows, info.files, info.id_type, info.classes, info.sample_size) == (
        40,
        3,
        "string",
        ["0", "1"],
        (8, 8),
    )


def test_tensors_cannot_be_scaled_for_a_crop(tmp_path, local_ray):
    for part, first in (("pool", 0), ("test", 900)):
        write_pool(tmp_path / part, random_images(12), first_id=first, image=pa.array(random_images(12).tolist()))
    assert survey(parquet_pool(tmp_path)).info.sample_size == (8, 8)
    with pytest.raises(PoolError, match=r"crop_ratio 0\.875 crops scaled images, but column 'image' holds tensors"):
        survey(parquet_pool(tmp_path, crop_ratio=0.875))
