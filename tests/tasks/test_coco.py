"""COCO's masks, against its own library."""

import json

import numpy as np
import pytest
from pycocotools import mask as theirs

from prunefuse_ray.data.label_tables import Labels
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import coco
from prunefuse_ray.tasks.segmentation import IGNORED, Prediction, decoded
from prunefuse_ray.tasks.segmentation import SEGMENTATION as TASK

CLASSES = ["sky", "road", "car"]
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 90), (1, 300)])
def test_run_lengths_are_those_of_pycocotools(size, share):
    inside = RNG.random(size) < share
    found = coco.encoded(inside)
    expected = theirs.encode(np.asfortranarray(inside.astype(np.uint8)))
    assert found["counts"] == expected["counts"].decode()
    assert found["size"] == expected["size"]
    assert (coco.decoded(found, size) == inside).all()
    flat = inside.T.reshape(-1).astype(int)
    runs, last = [0], 0
    for value in flat:
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    assert (coco.decoded({"size": list(size), "counts": runs}, size) == inside).all()


def test_long_runs_that_shrink_and_grow_keep_their_signs():
    inside = np.zeros((300, 300), bool)
    inside[:, 3:200] = True
    inside[5:9, 250] = True
    expected = theirs.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
    assert coco.encoded(inside)["counts"] == expected
    assert (coco.decoded({"size": [300, 300], "counts": expected}, (300, 300)) == inside).all()


def test_polygons_are_those_of_pycocotools_but_for_their_edges():
    polygon = [10, 10, 50, 12, 40, 60, 12, 44]
    found = coco.decoded([polygon], (80, 70))
    (rle,) = theirs.frPyObjects([polygon], 80, 70)
    expected = theirs.decode(rle).astype(bool)
    assert (found & expected).sum() / (found | expected).sum() > 0.94


def test_annotations_make_a_mask_the_last_on_top_and_the_rest_left_out_or_named():
    road, car = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    road[3:], car[4:, 2:5] = True, True
    of_image = [{"category": "road", "segmentation": coco.encoded(road)},
                {"category_id": 2, "segmentation": coco.encoded(car)}]  # fmt: skip
    expected = np.where(car, 2, np.where(road, 1, IGNORED))
    for given in (of_image, json.dumps(of_image), json.dumps(of_image).encode()):
        assert (decoded(TASK.label(given, CLASSES)) == expected).all()
    whole = {"height": 6, "width": 8, "rest": "sky", "annotations": of_image}
    assert (decoded(TASK.label(whole, CLASSES)) == np.where(expected == IGNORED, 0, expected)).all()
    empty = {"height": 6, "width": 8, "rest": 0, "annotations": []}
    assert (decoded(TASK.label(empty, CLASSES)) == 0).all()


def test_what_is_written_is_read_again():
    mask = RNG.integers(0, 3, (9, 11)).astype(np.uint8)
    mask[0, :3] = IGNORED
    found = coco.annotations_of(mask, CLASSES, ignored=IGNORED)
    assert [one["category"] for one in found] == CLASSES
    assert (decoded(TASK.label(json.dumps(found), CLASSES)) == mask).all()
    shares = dict.fromkeys(CLASSES, 0.0)
    said = Prediction(mask=mask, probability=np.ones((9, 11), np.float32), shares=shares).coco
    assert said == found


GOOD = coco.encoded(np.eye(4, dtype=bool))


@pytest.mark.parametrize(
    "given",
    [
        "[", "[]", "{}", "[1]", [{"category": "tree", "segmentation": GOOD}], [{"segmentation": GOOD}],
        [{"category": "road", "category_id": 2, "segmentation": GOOD}], [{"category_id": 3, "segmentation": GOOD}],
        [{"category_id": True, "segmentation": GOOD}], [{"category_id": 1, "segmentation": {"size": [4, 4]}}],
        [{"category_id": 1, "segmentation": {"size": [4, 5], "counts": GOOD["counts"]}}],
        [{"category_id": 1, "segmentation": {"size": [4, 4], "counts": GOOD["counts"][:-1]}}],
        [{"category_id": 1, "segmentation": {"size": [4, 4], "counts": [-1, 17]}}],
        [{"category_id": 1, "segmentation": {"size": [10**6, 10**6], "counts": [10**12]}}],
        [{"category_id": 1, "segmentation": {"size": [4, 4], "counts": "o" * 99}}],
        [{"category_id": 1, "segmentation": [[0, 0, 1, 1, 2, 0]]}],
        {"height": 4, "width": 4, "annotations": [{"category_id": 1, "segmentation": [[0, 0, 1, 1]]}]},
        {"height": 4, "width": 4, "rest": "tree", "annotations": []},
        {"height": 5, "width": 4, "annotations": [{"category_id": 1, "segmentation": GOOD}]},
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_no_mask(given):
    assert TASK.label(given, CLASSES) is None


def test_a_table_of_labels_has_them_in_its_cells_or_in_files(tmp_path):
    cell = json.dumps([{"category": "road", "segmentation": GOOD}])
    (tmp_path / "a.json").write_text(cell)
    labels = Labels(task=TASK, classes=CLASSES, beside=Place.at(str(tmp_path)))
    for given in (cell, "a.json"):
        label, why = labels.read(given)
        assert why is None
        assert (decoded(label) == np.where(np.eye(4, dtype=bool), 1, IGNORED)).all()
    label, why = labels.read(cell.replace("road", "tree"))
    assert label is None
    assert "COCO" in why
    assert len(why) < 300
