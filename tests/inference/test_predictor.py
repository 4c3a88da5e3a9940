"""Taking a network away: three lines to predictions, and ONNX that computes the same."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import prunefuse_ray
from prunefuse_ray import networks
from prunefuse_ray.cli import main
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.sample_format import (
    PREPROCESSING_FILE,
    Preprocessing,
    preprocessing_from_bytes,
    preprocessing_to_bytes,
)
from prunefuse_ray.data.texts import TextForm
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.errors import LedgerError, Rejected
from prunefuse_ray.inference.predictor import Predictor
from prunefuse_ray.tasks import TASKS

FORM = ImageForm(height=16, width=12, channels=3, crop_ratio=0.8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
CLASSES = ["cat", "cow", "dog"]


def told(form, task="classification"):
    return Preprocessing(task=task, form=form, classes=CLASSES)


def save(where, form, architecture="resnet8", task="classification"):
    spec = networks.NetworkSpec(architecture=architecture, classes=3, input_shape=form.network_shape)
    network = networks.build(spec, seed=0)
    network.train()
    with torch.no_grad():
        network(networks.example_input(spec, samples=8))
    where.mkdir(parents=True)
    for name, data in networks.to_files(networks.Dense(network=network, spec=spec)).items():
        (where / name).write_bytes(data)
    (where / PREPROCESSING_FILE).write_bytes(preprocessing_to_bytes(told(form, task)))
    return network.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    where = tmp_path_factory.mktemp("taken") / "run" / "fused"
    return where, save(where, FORM)


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(3).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def by_hand(network, photo):
    """Scale so that 15 x 20 fits inside, crop 12 x 16 from the center, normalize; with Pillow and torch alone."""
    scaled = Image.fromarray(photo).resize((15, 20), Image.Resampling.BILINEAR).crop((1, 2, 13, 18))
    x = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (FORM.mean, FORM.std))
    with torch.inference_mode():
        return torch.softmax(network((x - mean) / std), 1)[0]


def test_three_lines_from_a_directory_to_a_prediction(saved, photo, tmp_path):
    (tmp_path / "photo.png").write_bytes(encode_png(photo))
    model = prunefuse_ray.load(saved[0])
    (found,) = model.predict([tmp_path / "photo.png"])
    expected = by_hand(saved[1], photo)
    assert found.label == CLASSES[int(expected.argmax())]
    assert found.probability == pytest.approx(float(expected.max()), abs=1e-4)
    assert list(found.probabilities) == CLASSES
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_where_every_pixel_has_an_output_few_images_are_predicted_together(tmp_path, photo):
    """Those of 64 images of 512 x 512 pixels, of 150 classes each, take 10 GB."""
    save(tmp_path / "fused", ImageForm(height=16, width=16, channels=3), "fcn_resnet8", "segmentation")
    model, seen = prunefuse_ray.load(tmp_path / "fused"), []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    alone, *found = model.predict([photo, np.flip(photo, 0).copy()] * 5)
    assert seen == [4, 4, 2]
    assert (alone.mask == found[3].mask).all()


def test_images_may_come_in_any_form_and_number(saved, photo, tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(photo))
    forms = [str(tmp_path / "a.png"), encode_png(photo), Image.fromarray(photo), photo] * 40
    found = [p.probability for p in prunefuse_ray.load(saved[0].parent).predict(iter(forms))]
    assert len(found) == 160
    assert max(found) - min(found) < 1e-5


def test_the_module_is_ready_for_use(saved):
    model = prunefuse_ray.load(str(saved[0]))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.classes == CLASSES
    assert model.form == FORM
    assert model(torch.randn(2, 3, 16, 12)).shape == (2, 3)


@pytest.mark.parametrize("form", ["path", "str", "bytes", "Pillow", "array", "tensor", "stack", "list", "generator"])
def test_one_sample_or_several(saved, photo, tmp_path, form):
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(photo))
    given = {"path": path, "str": str(path), "bytes": encode_png(photo), "Pillow": Image.fromarray(photo),
             "array": photo, "tensor": torch.from_numpy(photo), "stack": photo[None], "list": [photo],
             "generator": (p for p in [photo])}[form]  # fmt: skip
    (found,) = prunefuse_ray.load(saved[0]).predict(given)
    assert found.probability == pytest.approx(float(by_hand(saved[1], photo).max()), abs=1e-4)


def test_an_image_whose_channels_come_first_is_not_taken_for_three_gray_ones(saved, photo):
    model, planes = prunefuse_ray.load(saved[0]), photo.transpose(2, 0, 1)
    for given in (planes, torch.from_numpy(planes.copy())):
        with pytest.raises(Rejected, match=r"\(3, 40, 30\).*\(height, width, channels\)"):
            next(model.predict(given))
    assert len(list(model.predict(list(planes)))) == 3


def test_gray_arrays_may_have_an_axis_of_one_channel(saved, photo):
    model = prunefuse_ray.load(saved[0])
    (flat,), (deep,) = model.predict(photo[:, :, 0]), model.predict(photo[:, :, :1])
    assert flat.label == deep.label
    assert len(list(model.predict(photo[:, :, 0][None]))) == 1, "a stack of gray images"


def test_a_broken_one_among_many_is_named_and_the_others_are_predicted(saved, photo, tmp_path, caplog):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "folder.png").mkdir()
    paths = [
        photo,
        tmp_path / "bad.png",
        str(tmp_path / "gone.png"),
        None,
        np.zeros((4, 4, 3)),
        tmp_path / "folder.png",
    ]
    model = prunefuse_ray.load(saved[0])
    found = list(model.predict(iter([*paths, photo])))
    assert [isinstance(f, Rejected) for f in found] == [False, True, True, True, True, True, False]
    assert found[0].label == found[-1].label
    said = [str(f) for f in found[1:-1]]
    for one, expected in zip(said, (
        f"sample 1 ({tmp_path}/bad.png): not an image in a known format", "gone.png): cannot be read: No such file",
        "sample 3: no image", "sample 4: array of float64 and shape (4, 4, 3), expected uint8",
        "folder.png): cannot be read: Is a directory",
    ), strict=True):  # fmt: skip
        assert expected in one
        assert one in caplog.text
    for alone in (tmp_path / "bad.png", b"no image", 7, {"a": photo}):
        with pytest.raises(Rejected):
            list(model.predict(alone))
    with pytest.raises(Rejected, match="sample 1 "):
        model.prepare(paths)
    assert list(model.predict([])) == []
    assert model.prepare([]).shape == (0, 3, 16, 12)


def test_texts_are_predicted_from_strings(tmp_path):
    form = TextForm(length=32)
    network = save(tmp_path / "n", form, "textcnn")
    found = list(prunefuse_ray.load(tmp_path / "n").predict(["a good film", "ein schöner Film"]))
    codes = torch.zeros(1, 32, dtype=torch.int64)
    codes[0, :11] = torch.tensor(list(b"a good film"))
    with torch.inference_mode():
        expected = torch.softmax(network(codes), 1)[0]
    assert found[0].probability == pytest.approx(float(expected.max()), abs=1e-4)
    assert len(found) == 2
    (alone,) = prunefuse_ray.load(tmp_path / "n").predict("a good film")
    assert alone.probability == pytest.approx(found[0].probability, abs=1e-5), "one text, and not its letters"


@pytest.mark.parametrize("form", [FORM, TextForm(length=9)])
def test_preprocessing_survives_its_file(form):
    assert preprocessing_from_bytes(preprocessing_to_bytes(told(form))) == told(form)
    first_version = json.loads(preprocessing_to_bytes(told(form)))
    del first_version["task"], first_version["sha256"]
    assert preprocessing_from_bytes(json.dumps(first_version).encode()) == told(form)


def test_what_is_no_network_is_said(saved, tmp_path):
    with pytest.raises(LedgerError, match=r"holds no network\.json; give a network's directory"):
        prunefuse_ray.load(tmp_path)
    for name in ("network.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((saved[0] / name).read_bytes())
    with pytest.raises(LedgerError, match=r"has no preprocessing\.json"):
        prunefuse_ray.load(tmp_path)
    (tmp_path / PREPROCESSING_FILE).write_text('{"format": 9}')
    with pytest.raises(LedgerError, match="not a description of format 1"):
        prunefuse_ray.load(tmp_path)
    (tmp_path / PREPROCESSING_FILE).write_bytes((saved[0] / PREPROCESSING_FILE).read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(LedgerError, match="not a safetensors file"):
        prunefuse_ray.load(tmp_path)
    assert main(["export", str(tmp_path)]) == 2
    assert not (tmp_path / "model.onnx").exists()


# --- ONNX ---


@pytest.mark.parametrize("kind", ["images", pytest.param("texts", marks=pytest.mark.slow)])
def test_the_onnx_graph_computes_the_networks_logits(saved, photo, tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    directory, samples = saved[0], np.stack([photo[:16, :12], 255 - photo[:16, :12]])
    if kind == "texts":
        directory, samples = tmp_path / "n", np.arange(64, dtype=np.uint8).reshape(2, 32)
        save(directory, TextForm(length=32), "textcnn")
    assert main(["export", str(directory), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    model = prunefuse_ray.load(directory)
    for rows in (samples, samples[:1], np.repeat(samples, 5, 0)):
        found = session.run(None, {"samples": rows})[0]
        with torch.inference_mode():
            expected = model(model.form.inputs(torch.from_numpy(rows))).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    properties = {p.key: p.value for p in onnx.load(io.BytesIO((tmp_path / "m.onnx").read_bytes())).metadata_props}
    assert json.loads(properties["classes"]) == CLASSES


def test_vectors_may_be_tensors_and_none(tmp_path):
    save(tmp_path / "n", VectorForm(length=4), "mlp")
    model = prunefuse_ray.load(tmp_path / "n")
    assert list(model.predict([])) == []
    x = torch.ones(2, 4, requires_grad=True) * 2
    found = [p.probability for p in model.predict(x)]
    assert found == [p.probability for p in model.predict(x.tolist())]
    assert found == [p.probability for p in model.predict(x.detach().bfloat16())]
    assert next(model.predict(x[0])).probability == pytest.approx(found[0])
    assert found == [p.probability for p in model.predict(pd.DataFrame(x.detach().numpy()))], "a sample a row"
    series = pd.Series(x.tolist())
    for column in (series, series.to_numpy()):
        assert found == [p.probability for p in model.predict(column)]


def test_a_task_and_a_network_of_ones_own_are_both_trusted(tmp_path):
    names = ("tests.support.nets:tiny", "prunefuse_ray.tasks.classification:CLASSIFICATION")
    save(tmp_path / "n", FORM, *names)
    for one in names:
        with pytest.raises(LedgerError, match="trusted"):
            prunefuse_ray.load(tmp_path / "n", trusted=one)
    assert prunefuse_ray.load(tmp_path / "n", trusted=names).classes == CLASSES


def test_a_pillow_image_that_is_cut_is_named_like_others(saved, photo):
    """Its pixels are read when they are asked for."""
    cut = Image.open(io.BytesIO(encode_png(photo)[:-200]))
    found = list(prunefuse_ray.load(saved[0]).predict([photo, cut, photo]))
    assert [isinstance(one, Rejected) for one in found] == [False, True, False]
    assert "sample 1: cannot be decoded" in str(found[1])


def test_what_another_network_expects_is_refused(tmp_path):
    save(tmp_path / "n", FORM)
    other = Preprocessing(task="classification", form=FORM, classes=["a", "b"])
    (tmp_path / "n" / PREPROCESSING_FILE).write_bytes(preprocessing_to_bytes(other))
    with pytest.raises(LedgerError, match="another network's: it names 2 classes, and this network has 3"):
        prunefuse_ray.load(tmp_path / "n")


def test_as_a_module_it_speaks_in_the_units_of_the_labels():
    spec = networks.NetworkSpec(architecture="mlp", classes=1, input_shape=(4, 1, 1))
    task = TASKS["regression"].with_units({"mean": [100.0], "std": [10.0], "edges": [1.0, 2.0, 3.0, 4.0]})
    model = Predictor(networks.build(spec, seed=0), task, VectorForm(length=4), ["price"])
    samples = [[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]
    found = [p.values["price"] for p in model.predict(samples)]
    assert model(model.prepare(samples))[:, 0].tolist() == pytest.approx(found, rel=1e-5)


def test_paths_may_come_in_an_array(saved, photo, tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(photo))
    assert len(list(prunefuse_ray.load(saved[0]).predict(np.array([str(tmp_path / "a.png")] * 2)))) == 2
