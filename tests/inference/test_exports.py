"""Networks in other formats: each is read back by the library that it is for."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

import prunefuse_ray
from prunefuse_ray import networks
from prunefuse_ray.cli import main
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, Preprocessing, preprocessing_to_bytes
from prunefuse_ray.data.texts import TextForm
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.inference import hub
from prunefuse_ray.inference.predictor import Predictor
from prunefuse_ray.inference.program import to_program
from prunefuse_ray.networks.committee import Members
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS
from tests.inference.test_predictor import CLASSES, FORM, save

RESULT = {
    "name": "birds", "seed": 3, "fused_accuracy": 0.875, "proxy_accuracy": 0.8, "baseline_accuracy": 0.75,
    "rounds": [
        {"labels": 100, "strategy": "random", "proxy_accuracy": 0.7, "fused_accuracy": None},
        {"labels": 150, "strategy": "margin", "proxy_accuracy": 0.8, "fused_accuracy": 0.875},
    ],
    "selector": "proxy", "target": "fused",
    "selection_macs": 25, "dense_selection_macs": 100, "parameters": {"dense": 272_474, "proxy": 70_000},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The end of a run."""
    where = tmp_path_factory.mktemp("run")
    network = save(where / "fused", FORM)
    (where / "result.json").write_text(json.dumps(RESULT))
    return where, network


def test_the_program_of_torch_export_computes_the_networks_logits_for_any_number(run, tmp_path, capsys):
    assert main(["export", str(run[0]), "--format", "torch", "--out", str(tmp_path / "m.pt2")]) == 0
    assert "logits as the network's own" in capsys.readouterr().out
    named = {"prunefuse_ray.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=named).module()
    assert json.loads(named["prunefuse_ray.json"]) == {"classes": CLASSES, "shape": [16, 12, 3]}
    samples = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 16, 12, 3), dtype=np.uint8))
    with torch.inference_mode():
        torch.testing.assert_close(program(samples), run[1](FORM.inputs(samples)), atol=1e-4, rtol=1e-4)
        assert program(samples[:1]).shape == (1, 3)


def test_of_a_committee_the_program_has_the_logits_of_all_members_together():
    spec = networks.NetworkSpec(architecture="resnet8", classes=3, input_shape=FORM.network_shape)
    members = Members([networks.build(spec, seed=seed) for seed in (0, 1)])
    predictor = Predictor(members, TASKS["classification"], FORM, CLASSES)
    program = torch.export.load(io.BytesIO(to_program(predictor))).module()
    samples = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 16, 12, 3), dtype=np.uint8))
    with torch.inference_mode():
        logits = program(samples)
        torch.testing.assert_close(logits, predictor(FORM.inputs(samples)), atol=1e-4, rtol=1e-4)
    assert logits.shape == (5, 3), "and not the members' own, whose first axis is no sample's"


def test_the_hubs_folder_is_loaded_as_it_is_and_its_card_has_the_figures(run, tmp_path, capsys):
    assert main(["export", str(run[0]), "--format", "huggingface", "--out", str(tmp_path / "hub")]) == 0
    assert "card with the run's figures. Add a license" in " ".join(capsys.readouterr().out.split())
    loaded = prunefuse_ray.load(tmp_path / "hub")
    state = run[1].state_dict()
    assert all(torch.equal(t, state[n]) for n, t in loaded.network.state_dict().items())
    assert (loaded.classes, loaded.form) == (CLASSES, FORM)
    with safetensors.safe_open(tmp_path / "hub/model.safetensors", "pt") as file:
        assert set(file.keys()) == set(state)
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert (config["architecture"], config["id2label"]) == ("resnet8", {"0": "cat", "1": "cow", "2": "dog"})
    text = (tmp_path / "hub/README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["pipeline_tag"] == "image-classification"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "test accuracy", "value": 0.875}]
    assert "| 150 | margin | 80.0% | 87.5% |" in text
    assert "The simplest model on the same labels: 75.0%. Scoring the pool took 25.0%" in text
    assert str(run[0]) not in text, "a card that is published names no path"


def test_the_card_is_one_to_the_hubs_own_library(run, tmp_path):
    library = pytest.importorskip("huggingface_hub")
    main(["export", str(run[0]), "--format", "huggingface", "--out", str(tmp_path / "hub")])
    card = library.ModelCard.load(tmp_path / "hub/README.md")
    (result,) = card.data.eval_results
    assert (card.data.model_name, result.metric_type, result.metric_value) == ("birds", "accuracy", 0.875)


@pytest.mark.parametrize(
    ("architecture", "height", "width"), [("timm:resnet10t", 16, 12), ("timm:vit_tiny_patch16_224", 32, 32)]
)
def test_timm_loads_its_own_networks_from_the_folder(tmp_path, architecture, height, width):
    """For their own size of input: left alone it would build a transformer for 224 x 224, and stretch its positions."""
    timm = pytest.importorskip("timm")
    network = save(tmp_path / "run/fused", dataclasses.replace(FORM, height=height, width=width), architecture)
    assert main(["export", str(tmp_path / "run/fused"), "--format", "huggingface", "--out", str(tmp_path / "hub")]) == 0
    found = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True).eval()
    x = torch.randn(2, 3, height, width)
    with torch.inference_mode():
        torch.testing.assert_close(found(x), network(x))
    assert tuple(found.pretrained_cfg["mean"]) == FORM.mean
    assert "model-index" not in (tmp_path / "hub/README.md").read_text(), "no run, no figures"


def exported(where, tmp_path):
    assert main(["export", str(where), "--format", "huggingface", "--out", str(tmp_path / "hub")]) == 0
    return (tmp_path / "hub/README.md").read_text(), json.loads((tmp_path / "hub/config.json").read_text())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ": a pruned proxy of it selected the samples that were labeled, and was fused into it."),
        ({"rounds": [RESULT["rounds"][0] | {"fused_accuracy": 0.875}]}, ": a pruned proxy of it was fused into it."),
        ({"selector": "dense", "target": "scratch"}, "."),
        ({"target": None}, "."),  # of an earlier version
    ],
)
def test_a_card_says_of_proxies_what_is_so(run, tmp_path, change, expected):
    result = {name: value for name, value in (RESULT | change).items() if value is not None}
    shutil.copytree(run[0] / "fused", tmp_path / "run/fused")
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    text, _ = exported(tmp_path / "run", tmp_path)
    assert f"trained by prunefuse_ray {prunefuse_ray.__version__}{expected}\n" in text
    assert ("the proxy has" in text) == (result["selector"] == "proxy")


def test_a_proxy_has_a_card_of_its_own_and_is_not_offered_to_timm(tmp_path):
    pytest.importorskip("timm")
    spec = networks.NetworkSpec(architecture="timm:resnet10t", classes=3, input_shape=FORM.network_shape)
    save(tmp_path / "n", FORM, spec.architecture)
    proxy = networks.prune(networks.build(spec, seed=0), spec, networks.PruningSpec(ratio=0.5))
    for name, content in networks.to_files(proxy).items():
        (tmp_path / "n" / name).write_bytes(content)
    text, config = exported(tmp_path / "n", tmp_path)
    assert "A proxy, pruned from timm:resnet10t, for images of 16 x 12 pixels and 3 channels, trained by" in text
    assert "fused" not in text
    assert config["architecture"] == "timm:resnet10t"
    assert "pretrained_cfg" not in config
    assert type(prunefuse_ray.load(tmp_path / "hub").network) is type(proxy.network)


def test_vectors_are_no_texts(tmp_path):
    save(tmp_path / "n", VectorForm(length=6), "mlp")
    assert yaml.safe_load(exported(tmp_path / "n", tmp_path)[0].split("---")[1])["pipeline_tag"] == (
        "tabular-classification"
    )


def test_texts_have_a_card_too(tmp_path):
    save(tmp_path / "n", TextForm(length=32), "textcnn")
    text, _ = exported(tmp_path / "n", tmp_path)
    assert "texts of length 32" in text
    assert "pipeline_tag: text-classification" in text


def test_a_committee_is_refused(run, tmp_path, capsys):
    for member in "01":
        for name in (networks.WEIGHTS_FILE, networks.NETWORK_FILE):
            (tmp_path / "c" / member).mkdir(parents=True, exist_ok=True)
            (tmp_path / "c" / member / name).write_bytes((run[0] / "fused" / name).read_bytes())
    (tmp_path / "c" / PREPROCESSING_FILE).write_bytes((run[0] / "fused" / PREPROCESSING_FILE).read_bytes())
    assert main(["export", str(tmp_path / "c"), "--format", "huggingface"]) == 2


def test_the_network_of_an_earlier_end_is_exported_with_a_word(run, tmp_path, capsys):
    """A run that was given more label budgets goes on: what it had come to lies there until its new end."""
    shutil.copytree(run[0], where := tmp_path / "run")
    ledger = Ledger(Place.at(str(where)))
    ledger.create(to_tree(config_from_tree({})), {})
    assert main(["export", str(where), "--format", "torch"]) == 0
    assert "the last network that it wrote" in capsys.readouterr().out


def test_the_card_says_what_the_simplest_model_was_tried_on():
    result = {
        "rounds": [], "seed": 0, "baseline_accuracy": 0.5,
        "baseline": {"labels": 300, "of_labels": 1_000, "tested": 26, "of_tested": 100},
    }  # fmt: skip
    notes = hub._figures(result, TASKS["classification"].metric)[-1]
    assert "The simplest model on 300 of the same labels and 26 of 100 test samples: 50.0%." in notes


def test_a_card_says_in_what_units_a_network_of_numbers_answers(tmp_path):
    save(tmp_path / "n", FORM, task="regression")
    units = {"mean": [100.0] * 3, "std": [10.0] * 3, "edges": [1.0, 2.0, 3.0, 4.0]}
    told = Preprocessing(task="regression", form=FORM, classes=CLASSES, units=units)
    (tmp_path / "n" / PREPROCESSING_FILE).write_bytes(preprocessing_to_bytes(told))
    text, config = exported(tmp_path / "n", tmp_path)
    assert config["units"] == units
    assert "in standard deviations of the labels, from their mean" in text
