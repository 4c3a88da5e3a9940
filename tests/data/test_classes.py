"""Names and numbers of classes."""

import json

import pyarrow as pa
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.data.classes import classes_of, features_names
from prunefuse_ray.errors import PoolError
from tests.support.pools import parquet_pool


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


def test_names_that_several_classes_have_get_their_numbers_and_are_said(tmp_path, caplog):
    """ImageNet calls a bird and a machine `crane`: labels by name would mean either."""
    pool = parquet_pool(tmp_path).model_copy(update={"classes": None})
    assert classes_of(pool, ["crane", "dog", "crane"], "pool.path") == ["crane (0)", "dog", "crane (2)"]
    assert classes_of(pool, ["cat", "cat "], "pool.path") == ["cat (0)", "cat  (1)"]
    assert "pool.path names several classes alike: their numbers are added to their names: crane (0), crane (2)" in (
        caplog.text
    )


@pytest.mark.parametrize("names", [["cat", "cat "], ["é", "e\u0301"], ["a", "a"], []])
def test_names_that_are_the_same_to_a_label_are_refused(names):
    """A label 'cat' would mean the last of them."""
    with pytest.raises(ValueError, match="names one twice, none, or one by an empty name"):
        cfg.Pool(source="parquet", path="p", test_path="t", classes=names)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["person", "car"], "name 'person' in another order: its column would be 'car'; give both in the same order"),
        (["car"], "label_column names 2 columns, classes 1: give one for each in order"),
        (3, "label_column names 2 columns, classes 3"),
        (["vehicle", "human"], None),
        (["car", "human"], None),
        (2, None),
        (None, None),
    ],
)
def test_columns_of_labels_stand_in_the_order_of_their_classes(classes, said):
    """Each column would be taken for another class than the one it is named after."""
    fields = {"source": "csv", "path": "p", "test_path": "t", "text_column": "text", "label_column": ["car", "person"]}
    if said is None:
        assert cfg.Pool(**fields, classes=classes).label_column == ["car", "person"]
        return
    with pytest.raises(ValueError, match=said):
        cfg.Pool(**fields, classes=classes)


@pytest.mark.parametrize(
    "feature",
    [
        {"names": ["a", "b"], "_type": "ClassLabel"},
        {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "List"},
        [{"names": ["a", "b"], "_type": "ClassLabel"}],
    ],
)
def test_names_are_found_in_columns_of_lists_too(feature):
    told = json.dumps({"info": {"features": {"label": feature, "n": {"dtype": "int64"}, "l": [{"dtype": "int64"}]}}})
    schema = pa.schema([("label", pa.list_(pa.int64()))], metadata={"huggingface": told})
    assert features_names(schema, "label") == ["a", "b"]
    assert features_names(schema, "n") is None
    assert features_names(schema, "l") is None
