"""Checks of a Parquet pool: ids, labels, columns, fingerprint."""

import pyarrow as pa
import pytest

from prunefuse_ray.data import inspection
from prunefuse_ray.data.ids import id_hashes
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import PoolError
from tests.support.pools import parquet_pool, random_images, source, write_pool

GRAY8 = ImageForm(height=8, width=8, channels=1)

pytestmark = pytest.mark.usefixtures("either_way")


def test_the_fingerprint_does_not_depend_on_the_files_a_pool_is_cut_into(made, tmp_path):
    pool, pixels, _ = made
    write_pool(tmp_path / "other" / "pool", pixels, files=5)
    write_pool(tmp_path / "other" / "test", pixels[:2], first_id=900)
    assert survey(parquet_pool(tmp_path / "other")).info.id_digest == survey(pool).info.id_digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_column": "img"}, ["pool.image_column", "'img'", "it has id, image, label"]),
        ({"label_column": "y"}, ["pool.label_column", "'y'"]),
        ({"id_column": "key"}, ["pool.id_column", "'key'"]),
        ({"id_column": "image"}, ["pool.id_column", "strings or integers"]),
        ({"path": "/nowhere/at/all"}, ["pool.path", "no files that end in .parquet"]),
    ],
)
def test_a_pool_that_is_not_what_was_said_is_refused(made, change, said):
    pool = made[0].model_copy(update=change)
    with pytest.raises(PoolError) as caught:
        survey(pool)
    for part in said:
        assert part in str(caught.value)


def test_labels_outside_the_classes_are_refused_with_their_ids(tmp_path, local_ray):
    write_pool(tmp_path / "pool", random_images(4), label=[0, 1, 2, 1])
    write_pool(tmp_path / "test", random_images(4))
    with pytest.raises(PoolError, match=r"labels that are none of the 2 classes, e\.g\. 2 \(id 's0002'\)"):
        survey(parquet_pool(tmp_path))


def test_duplicate_ids_are_refused_wherever_they_lie(tmp_path, local_ray):
    write_pool(tmp_path / "pool", random_images(6), files=3, id=["a", "b", "c", "d", "e", "a"])
    write_pool(tmp_path / "test", random_images(2))
    with pytest.raises(PoolError, match=r"duplicate ids, e\.g\. 'a'"):
        survey(parquet_pool(tmp_path))


def test_null_ids_are_refused(tmp_path, local_ray):
    write_pool(tmp_path / "pool", random_images(3), id=["a", None, "c"])
    write_pool(tmp_path / "test", random_images(2))
    with pytest.raises(PoolError) as caught:
        survey(parquet_pool(tmp_path))
    assert str(caught.value) == "pool.id_column: 'id' has 1 null ids; fill them in"


def test_empty_ids_are_refused(tmp_path, local_ray):
    """A table of labels cannot name them: their labels would be paid for and never be taken."""
    write_pool(tmp_path / "pool", random_images(3), id=["a", "", "c"])
    write_pool(tmp_path / "test", random_images(2))
    with pytest.raises(PoolError, match="'id' has 1 empty ids, which no table of labels can name"):
        survey(parquet_pool(tmp_path))


def test_an_id_that_most_rows_have_is_counted_where_it_lies(tmp_path):
    write_pool(tmp_path / "pool", random_images(6), files=3, id=["a", "a", "a", "a", "b", "a"])
    found = inspection._ids_of_hashes(source(tmp_path / "pool"), id_hashes(pa.array(["a"])))
    assert found == {"a": 5}
