"""Names and numbers of classes."""

import pytest

from prunefuse_ray.data.classes import class_number, classes_of
from prunefuse_ray.errors import PoolError
from tests.support.pools import parquet_pool


def test_labels_are_names_before_they_are_numbers():
    assert class_number("dog", ["cat", "dog"]) == 1
    assert class_number("1", ["1", "0"]) == 0
    assert class_number(1, ["1", "0"]) == 1
    assert class_number(" 1 ", ["a", "b"]) == 1
    assert [class_number(v, ["a", "b"]) for v in ("2", -1, "", None, "1.0")] == [None] * 5


@pytest.mark.parametrize(
    ("configured", "named", "found"),
    [
        (["x", "y"], ["a", "b", "c"], ["x", "y"]),
        (None, ["a", "b"], ["a", "b"]),
        (2, ["a", "b"], ["a", "b"]),
        (3, None, ["0", "1", "2"]),
        (None, None, []),
    ],
)
def test_the_configuration_goes_before_the_files(tmp_path, configured, named, found):
    pool = parquet_pool(tmp_path).model_copy(update={"classes": configured})
    assert classes_of(pool, named, "pool.path") == found


def test_another_number_of_classes_than_the_files_name_is_refused(tmp_path):
    with pytest.raises(PoolError, match=r"pool\.classes: 2, but pool\.path names 3 classes \(a, b, c\); leave it out"):
        classes_of(parquet_pool(tmp_path), ["a", "b", "c"], "pool.path")
