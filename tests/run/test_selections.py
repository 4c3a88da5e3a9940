"""What a run selected as datasets: read back by the tools' own libraries, or by their published form."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prunefuse_ray import config as cfg
from prunefuse_ray.cli import main
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.run import loop, selections
from prunefuse_ray.run.selections import datasets_schema, run_lengths
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks.multi_label import MULTI_LABEL
from prunefuse_ray.tasks.regression import REGRESSION
from prunefuse_ray.tasks.segmentation import SEGMENTATION, encoded
from tests.support.runs import tiny


@pytest.fixture(scope="module")
def finished(local_ray, tiny_pool, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    loop.run(tiny(tiny_pool, directory, selection={"budgets": [10, 18]}))
    return directory / "tiny"


@pytest.fixture(scope="module")
def rows(finished):
    """(round, rank, id, score, label) as the run has recorded them."""
    labels = {}
    for file in finished.glob("rounds/*/labels.parquet"):
        labels |= {r["id"]: r["label"] for r in pq.read_table(file).to_pylist()}
    chosen = pq.read_table(finished / "selected.parquet").sort_by([("round", "ascending"), ("rank", "ascending")])
    return [{**row, "label": labels[row["id"]]} for row in chosen.to_pylist()]


def test_coco_has_every_selected_image_with_its_label_and_score(finished, rows, capsys):
    assert main(["export", str(finished), "--format", "coco"]) == 0
    assert "18 selected images with labels, scores and rounds" in " ".join(capsys.readouterr().out.split())
    tree = json.loads((finished / "coco/annotations.json").read_text())
    assert [c["id"] for c in tree["categories"]] == [1, 2]
    found = [(i["prunefuse_round"], i["prunefuse_rank"], i["prunefuse_id"], i["score"]) for i in tree["images"]]
    assert found == [(r["round"], r["rank"], r["id"], r["score"]) for r in rows]
    given = {a["image_id"]: a["category_id"] for a in tree["annotations"]}
    assert [given[i["id"]] - 1 for i in tree["images"]] == [r["label"] for r in rows]
    for image in tree["images"]:
        with Image.open(finished / "coco/data" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
    required = {
        "images": {"id", "file_name", "width", "height"},
        "categories": {"id", "name"},
        "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd"},
    }
    for name, fields in required.items():
        assert all(fields <= entry.keys() for entry in tree[name]), name
        assert len({entry["id"] for entry in tree[name]}) == len(tree[name])


def test_cocos_own_library_reads_it(finished, rows):
    library = pytest.importorskip("pycocotools.coco")
    main(["export", str(finished), "--format", "coco"])
    coco = library.COCO(str(finished / "coco/annotations.json"))
    assert len(coco.getImgIds()) == 18
    for category in (1, 2):
        wanted = {n for n, row in enumerate(rows, 1) if row["label"] == category - 1}
        assert set(coco.getImgIds(catIds=[category])) == wanted


def test_fiftyones_form_has_the_scores_as_attributes(finished, rows, tmp_path):
    assert main(["export", str(finished), "--format", "fiftyone", "--out", str(tmp_path / "fo")]) == 0
    tree = json.loads((tmp_path / "fo/labels.json").read_text())
    images = {p.stem for p in (tmp_path / "fo/data").iterdir()}
    assert images == set(tree["labels"]), "an image for each entry, named by it"
    for number, row in enumerate(rows, 1):
        entry = tree["labels"][f"{number:06d}"]
        assert entry["label"] == tree["classes"][row["label"]]
        told = {"pool_id": row["id"], **{name: row[name] for name in ("round", "rank", "score")}}
        assert entry["attributes"] == told, "no `id`, which FiftyOne would take for one of its own"


def test_hugging_faces_own_library_reads_it_with_images_and_names(finished, rows, tmp_path):
    library = pytest.importorskip("datasets")
    assert main(["export", str(finished), "--format", "datasets"]) == 0
    found = library.load_dataset(str(finished / "datasets"), split="train", cache_dir=str(tmp_path / "cache"))
    found = found.sort(["round", "rank"])  # the files of samples decide in which order they come
    assert isinstance(found.features["image"], library.Image)
    names = found.features["label"].names
    assert names == json.loads((finished / "pool.json").read_text())["classes"]
    assert [{k: row[k] for k in rows[0]} for row in found] == rows
    coco = [Image.open(file) for file in sorted(finished.glob("coco/data/*"))]
    assert all(row["image"].size == one.size for row, one in zip(found, coco, strict=False))
    assert np.array_equal(np.asarray(found[3]["image"]), _sample(finished, rows[3]["id"]))
    pool = {"source": "parquet", "path": str(finished / "datasets/data"), "test_samples": 4, "channels": 1}
    assert survey(cfg.Pool.model_validate(pool)).info.classes == names, "and is a pool"


def _sample(finished, id_):
    for file in finished.glob("rounds/*/samples/*.parquet"):
        for row in pq.read_table(file).to_pylist():
            if row["id"] == id_:
                return np.asarray(Image.open(io.BytesIO(row["sample"])))
    raise AssertionError(id_)


@pytest.mark.parametrize(
    ("task", "label", "read"),
    [
        (MULTI_LABEL, [0, 2], [0, 2]),
        (REGRESSION, [0.5, -1.0], [0.5, -1.0]),
        (SEGMENTATION, {"bytes": encoded(np.eye(3, dtype=np.uint8)), "path": None}, np.eye(3)),
    ],
    ids=["several", "numbers", "masks"],
)
def test_labels_of_every_task_are_features_of_hugging_faces(task, label, read, tmp_path):
    library = pytest.importorskip("datasets")
    schema = datasets_schema(task, ["a", "b", "c"])
    row = {"image": {"bytes": encode_png(np.zeros((2, 2), np.uint8))}, "label": label, "id": "x", "round": 0, "rank": 0}
    pq.write_table(pa.Table.from_pylist([row], schema), tmp_path / "a.parquet")
    found = library.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train",
                                 cache_dir=str(tmp_path / "cache"))[0]  # fmt: skip
    assert np.array_equal(np.asarray(found["label"]), np.asarray(read))
    assert found["score"] is None


def test_masks_become_cocos_run_lengths():
    mask = pytest.importorskip("pycocotools.mask")
    label_HW = np.random.default_rng(0).integers(0, 3, (5, 7), dtype=np.uint8)
    label_HW[0, 0] = 1
    label_HW[4] = 255  # nothing: no class
    one = SimpleNamespace(label=encoded(label_HW), size=(7, 5))
    places = list(selections._places(SEGMENTATION, one, ["a", "b", "c"]))
    assert [p["category_id"] for p in places] == [1, 2, 3]
    for place in places:
        lengths = place["segmentation"]
        back = mask.decode(mask.frPyObjects(lengths, *lengths["size"]))
        assert np.array_equal(back.astype(bool), label_HW == place["category_id"] - 1)
        assert place["area"] == mask.area(mask.frPyObjects(lengths, *lengths["size"]))
        assert place["bbox"] == mask.toBbox(mask.frPyObjects(lengths, *lengths["size"])).tolist()


@pytest.mark.parametrize("mask", [np.ones((2, 3), bool), np.zeros((2, 3), bool), np.eye(3, dtype=bool)])
def test_run_lengths_begin_with_what_is_false(mask):
    counts = run_lengths(mask)
    flat = np.concatenate([np.full(n, i % 2 == 1) for i, n in enumerate(counts)])
    assert np.array_equal(flat.reshape(mask.shape, order="F"), mask)


def test_an_export_that_fails_half_way_leaves_no_file(tmp_path, monkeypatch):
    """A Parquet file is whole when it is closed: of a part nobody would know that there is more."""
    one = selections.Selected(number=1, id="a", round=0, rank=0, score=None, label=0, image=b"", size=(1, 1))

    def damaged(*_):
        yield from [one] * 3
        raise LedgerError("damaged")

    monkeypatch.setattr(selections, "selections", damaged)
    monkeypatch.setattr(selections, "seen_info", lambda *_: SimpleNamespace(classes=["a", "b"]))
    monkeypatch.setattr(selections, "ROW_GROUP", 2)
    with pytest.raises(LedgerError):
        selections.write_datasets(cfg.Config(), None, Place.at(str(tmp_path)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_cannot_be_exported_is_said(finished, tmp_path, capsys):
    assert main(["export", str(tmp_path), "--format", "coco"]) == 2
    assert "is this a run directory?" in capsys.readouterr().err
