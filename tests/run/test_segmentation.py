"""Whole runs with a class for every pixel: from Parquet, from folders, with masks from people, ranking and export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import prunefuse_ray
from prunefuse_ray import networks
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import ConfigError, LabelError, LabelsWaiting, PoolError
from prunefuse_ray.inference.onnx import to_onnx
from prunefuse_ray.method.steps import BASELINE, LABEL, SCORE, TRAIN, Step
from prunefuse_ray.run import loop
from prunefuse_ray.run.rank import Ranking, rank
from prunefuse_ray.tasks.segmentation import decoded, encoded
from tests.support.masks import CLASSES, scenes_with_masks, write_masks
from tests.support.runs import carried_out, tiny

PIXELS = {
    "task": "segmentation",
    "pool": {"label_column": "mask", "classes": CLASSES, "image_size": [16, 16]},
    "network": {"architecture": "fcn_resnet8"},
    "training": {"augment": ["crop", "flip"], "epochs": 2},
    "finetuning": {"augment": ["crop", "flip"], "epochs": 2},
    "selection": {"budgets": [8, 12], "strategy": "margin", "pixel_share": 0.1},
}


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    write_masks(root, 40, 16)
    return root


@pytest.fixture(scope="module")
def finished(local_ray, where):
    return loop.run(tiny(where, where / "runs", **PIXELS, report={"baseline": True}))


def test_a_run_keeps_the_masks_and_reports_what_they_hold(finished, where):
    given = dict(zip(*pq.read_table(where / "pool", columns=["id", "mask"]).to_pydict().values(), strict=True))
    labels = pq.read_table(where / "runs/tiny/rounds/000/labels.parquet").to_pylist()
    assert len(labels) == 8
    assert all(row["label"] == given[row["id"]] for row in labels)
    counts = finished.require(Step(0, LABEL)).metrics["class_counts"]
    assert counts == [sum((decoded(row["label"]) == c).any() for row in labels) for c in range(11)]
    assert {"test_miou", "test_pixel_accuracy"} <= finished.require(Step(1, TRAIN)).metrics.keys()
    result = json.loads((where / "runs/tiny/result.json").read_text())
    assert "each pixel by the 3 x 3 values around it" in result["baseline"]["about"]
    assert 0 < result["baseline_miou"] < 1
    page = (where / "runs/tiny/report.html").read_text()
    assert "mIoU" in page
    assert "nothing 8" in page or "nothing 7" in page, "the shares of a mask"
    assert finished.require(Step(0, SCORE)).metrics["samples"] == 32


@pytest.mark.slow
def test_predictions_are_masks_and_the_exported_network_gives_their_logits(finished):
    onnxruntime = pytest.importorskip("onnxruntime")
    predictor = prunefuse_ray.load(f"{finished.root.path}/fused")
    images, _ = scenes_with_masks(3, 5)
    small = np.stack([np.asarray(Image.fromarray(i).resize((16, 16))) for i in images])
    found = list(predictor.predict(list(small)))
    session = onnxruntime.InferenceSession(to_onnx(predictor))
    logits = session.run(None, {"samples": small[..., None]})[0]
    assert logits.shape == (3, 11, 16, 16)
    assert (np.stack([p.mask for p in found]) == logits.argmax(1)).mean() > 0.99
    assert (decoded(found[0].png) == found[0].mask).all()


def test_its_proxy_ranks_another_pool(finished, where, tmp_path):
    ranking = Ranking.model_validate(
        {"pool": {"source": "parquet", "path": str(where / "test")}, "selection": {"strategy": "entropy"}}
    )
    ranked = rank(ranking, f"{finished.root.path}/rounds/001/proxies/0", str(tmp_path / "ranked"), 5)
    assert (ranked.scored, ranked.ranked) == (16, 5)
    rank(ranking, f"{finished.root.path}/rounds/001/proxies/0", str(tmp_path / "ranked"), 5, predictions=True)
    written = pq.read_table(tmp_path / "ranked" / "predictions")
    assert written.num_rows == 16
    assert all(decoded(mask).shape == (16, 16) for mask in written["prediction"].to_pylist())


def test_people_give_masks_as_files(finished, where, tmp_path):
    more = {"annotation": {"kind": "files"}, "selection": {"budgets": [12, 14], "strategy": "entropy"},
            "pool": PIXELS["pool"] | {"known_labels": f"{finished.root.path}/labels.csv"}}  # fmt: skip
    config = tiny(where, tmp_path / "runs", **(PIXELS | more))
    with pytest.raises(LabelsWaiting, match="the name of a PNG file beside it"):
        loop.run(config)
    folder = tmp_path / "runs/tiny/rounds/001/to_label"
    known = pq.read_table(tmp_path / "runs/tiny/known/labels.parquet")["label"].to_pylist()
    assert all(decoded(mask).shape == (32, 32) for mask in known)
    ids = pq.read_table(tmp_path / "runs/tiny/rounds/001/request.parquet")["id"].to_pylist()
    for n, side in enumerate((32, 31)):
        (folder / f"{n}.png").write_bytes(encoded(np.full((side, side), n, np.uint8)))
    (folder / "labels.csv").write_text("id,label\n" + "".join(f"{i},{n}.png\n" for n, i in enumerate(ids)))
    with pytest.raises(PoolError, match=r"1 labels do not fit their images .*31 x 31 pixels, the image 32 x 32"):
        loop.run(config)
    (folder / "1.png").write_bytes(encoded(np.full((32, 32), 11, np.uint8)))
    with pytest.raises(LabelError, match=r"'1\.png': no masks: PNG, gray or palette, of the numbers 0 to 10"):
        loop.run(config)
    (folder / "1.png").write_bytes(encoded(np.full((32, 32), 255, np.uint8)))
    ledger = carried_out(config, Step(1, LABEL))
    assert ledger.require(Step(1, LABEL)).metrics["labels"] == 14


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_folders_of_images_have_a_folder_of_masks(local_ray, tmp_path, whole):
    for part, n in (("pool", 24), ("test", 8)):
        images, masks = scenes_with_masks(n, 3 + len(part), test=part == "test")
        for name, values in (("images", images), ("masks", masks)):
            (tmp_path / part / name / "a").mkdir(parents=True)
            for i, value in enumerate(values):
                (tmp_path / part / name / "a" / f"{i}.png").write_bytes(encode_png(value))
    pool = {"source": "images", "path": str(tmp_path / "pool/images"), "test_path": str(tmp_path / "test/images"),
            "mask_folder": "masks", "classes": CLASSES, "channels": 1, "image_size": [16, 16]}  # fmt: skip
    tree = {k: v for k, v in PIXELS.items() if k != "pool"} | {"pruning": {"committee": 2}}
    tree["selection"] = {"budgets": [8], "strategy": "entropy"}
    config = tiny(tmp_path, tmp_path / "runs", **tree, pool=pool)
    (tmp_path / "pool/masks/a/3.png").rename(tmp_path / "3.png")
    with pytest.raises(PoolError, match=r"1 of 24 images have no mask that can be used: no .*pool/masks/a/3\.png"):
        loop.run(config)
    (tmp_path / "3.png").rename(tmp_path / "pool/masks/a/3.png")
    if not whole:
        found = survey(config.pool, task="segmentation")
        assert found.indexes["path"].labels[0] == 24, "images with nothing somewhere"
        return
    loop.run(config)
    assert json.loads((tmp_path / "runs/tiny/result.json").read_text())["fused_miou"] > 0


def test_what_does_not_fit_is_refused(local_ray, where, tmp_path):
    with pytest.raises(ConfigError, match="resnet8 says one class for a whole image; for task 'segmentation' use"):
        loop.run(tiny(where, tmp_path / "runs", **(PIXELS | {"network": {"architecture": "resnet8"}})))
    table = pq.read_table(where / "test")
    bad = [encoded(np.full((2, 2), 99, np.uint8)), *table["mask"].to_pylist()[1:]]
    (tmp_path / "test").mkdir()
    pq.write_table(table.set_column(2, "mask", pa.array(bad, pa.binary())), tmp_path / "test" / "a.parquet")
    pool = PIXELS["pool"] | {"test_path": str(tmp_path / "test")}
    with pytest.raises(PoolError, match=r"pool\.test_path: column 'mask' has 1 labels that are no masks"):
        loop.run(tiny(where, tmp_path / "others", **(PIXELS | {"pool": pool})))


@pytest.mark.parametrize(
    "name",
    [
        "fcn_resnet8",
        pytest.param("torchvision:lraspp_mobilenet_v3_large", marks=pytest.mark.slow),
        pytest.param("torchvision:fcn_resnet50", marks=pytest.mark.slow),
        pytest.param("torchvision:deeplabv3_resnet50", marks=pytest.mark.slow),
        pytest.param("torchvision:deeplabv3_mobilenet_v3_large", marks=pytest.mark.slow),
    ],
)
def test_networks_of_pixels_are_pruned_and_fused_exactly(name):
    import torch

    spec = networks.NetworkSpec(architecture=name, classes=5, input_shape=(3, 64, 64))
    dense = networks.build(spec, seed=0)
    assert networks.says_pixels(dense, spec)
    proxy = networks.prune(dense, spec, networks.PruningSpec(ratio=0.5, seed=0))
    assert networks.parameters(proxy.network) < 0.3 * networks.parameters(dense)
    x = torch.randn(2, 3, 64, 64)
    proxy.network.train()(x)
    fused = networks.fuse(dense, proxy, "function_preserving").eval()
    with torch.no_grad():
        assert torch.allclose(fused(x), proxy.network.eval()(x), atol=1e-5)


def test_detectors_are_refused_by_name():
    spec = networks.NetworkSpec(architecture="torchvision:fasterrcnn_resnet50_fpn", classes=5, input_shape=(3, 64, 64))
    with pytest.raises(networks.NetworkError, match="finds boxes, and there is no task for them"):
        networks.build(spec, seed=0)


def test_the_baseline_says_no_more_of_pixels_than_fits(finished, where, tmp_path, monkeypatch):
    root = Path(shutil.copytree(finished.root.path, tmp_path / "runs/tiny"))
    for name in ("baseline", "report"):  # as if it had been killed before
        (root / f"commits/{name}.json").unlink()
    monkeypatch.setattr("prunefuse_ray.run.phases.baseline.PIXEL_OUTPUTS", 5 * 11 * 16 * 16)
    config = tiny(where, tmp_path / "runs", **PIXELS, report={"baseline": True})
    found = carried_out(config, Step(-1, BASELINE)).require(Step(-1, BASELINE)).metrics
    assert (found["tested"], found["of_tested"]) == (5, 16)


def test_a_test_set_may_be_drawn_from_the_pool(local_ray, where, tmp_path):
    more = {
        "pool": PIXELS["pool"] | {"test_path": None, "test_samples": 10},
        "selection": {"budgets": [8], "strategy": "margin"},
    }
    ledger = carried_out(tiny(where, tmp_path / "runs", **(PIXELS | more)), Step(0, TRAIN))
    told = ledger.require(Step(0, LABEL)).metrics
    assert (told["test_samples"], len(told["test_counts"])) == (10, len(CLASSES))
    assert "test_miou" in ledger.require(Step(0, TRAIN)).metrics
