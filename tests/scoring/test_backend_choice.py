"""How scoring computes: what is chosen, where it is kept, and how far it is from plain float32."""

import contextlib
import dataclasses
import json
import math
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.config.scoring import Scoring
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.scoring import backend_choice
from prunefuse_ray.scoring.backend_choice import (
    MACS_WORTH_MEASURING,
    Arithmetic,
    call_rows,
    candidates,
    choose,
    fastest,
    next_to_try,
    worth_trying,
)
from prunefuse_ray.scoring.scorer import Scorer, ScoringJob
from prunefuse_ray.storage import Place, sealed
from tests.support.nets import OWN
from tests.support.pools import random_images

FORM = ImageForm(height=8, width=8, channels=1)
SPEC = networks.NetworkSpec(architecture="resnet8", classes=10, input_shape=(1, 8, 8))
JOB = ScoringJob(strategy="entropy", form=FORM, batch_size=16, features=False, threads=1, gpu=False)
LARGE, SMALL = MACS_WORTH_MEASURING, MACS_WORTH_MEASURING / 2
MACS_WORTH_COMPILING = networks.BACKENDS["compile"].auto["cuda"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    proxy = networks.prune(networks.build(SPEC, seed=0), SPEC, networks.PruningSpec(ratio=0.5))
    proxy.network.train()
    for _ in range(3):
        proxy.network(torch.randn(16, 1, 8, 8))
    place = Place.at(str(tmp_path_factory.mktemp("proxy")))
    for name, data in networks.to_files(proxy).items():
        (place / name).write_bytes(data)
    return place


@pytest.mark.parametrize(
    ("scoring", "macs", "machine", "expected", "batches"),
    [
        ({}, SMALL, {}, {("torch", "fp32")}, 1),
        ({"precision": "bf16"}, SMALL, {}, {("torch", "bf16")}, 1),
        ({}, LARGE, {}, {("torch", "bf16"), ("openvino", "bf16")}, 4),
        ({}, LARGE, {"fast_bf16": False}, {("torch", "fp32"), ("openvino", "fp32")}, 4),
        ({}, LARGE, {"features": True}, {("torch", "bf16"), ("openvino", "bf16")}, 4),
        ({"precision": "fp32"}, LARGE, {}, {("torch", "fp32"), ("openvino", "fp32")}, 4),
        ({"backend": "eager"}, LARGE, {}, {("eager", "fp32")}, 4),
        ({"backend": "openvino", "batch_size": 8}, LARGE, {}, {("openvino", "bf16")}, 1),
        ({}, LARGE, {"gpu": True}, {("torch", "bf16")}, 3),
        ({}, MACS_WORTH_COMPILING, {"gpu": True}, {("torch", "bf16"), ("compile", "bf16")}, 3),
    ],
)
def test_what_comes_into_question(monkeypatch, scoring, macs, machine, expected, batches):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object())
    asked = Scoring(**scoring)
    features, gpu = machine.get("features", False), machine.get("gpu", False)
    backends, left_out = worth_trying(asked, macs=macs, features=features, gpu=gpu)
    found = candidates(asked, backends, macs=macs, gpu=gpu, fast_bf16=machine.get("fast_bf16", True))
    assert {(a.backend, a.precision) for a in found} == expected
    assert len(found) == batches * len(expected)
    assert not left_out


def test_what_would_be_worth_trying_but_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    backends, left_out = worth_trying(Scoring(), macs=LARGE, features=False, gpu=False)
    assert list(backends) == ["torch"]
    assert left_out == {"openvino": "openvino is not installed: pip install 'prunefuse-ray[openvino]'"}


def test_auto_goes_on_without_a_backend_that_cannot_run_the_network(saved, monkeypatch):
    pytest.importorskip("openvino")

    def refuse(*_, **__):
        raise networks.NetworkError("scoring.backend: OpenVINO cannot convert this network")

    monkeypatch.setattr(backend_choice, "MEASURED_SECONDS", 0.0)
    broken = dataclasses.replace(networks.BACKENDS["openvino"], build=refuse)
    monkeypatch.setitem(networks.BACKENDS._loaded, "openvino", broken)
    found = fastest(Scoring(batch_size=8), saved, JOB, LARGE)
    assert found["chosen"]["backend"] == "torch"
    assert found["left_out"] == {"openvino": "scoring.backend: OpenVINO cannot convert this network"}
    with pytest.raises(networks.NetworkError, match="cannot convert"):
        fastest(Scoring(backend="openvino"), saved, JOB, LARGE)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_network_that_does_not_run_in_bf16_is_scored_in_float32(tmp_path, monkeypatch, caplog, backend):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend_choice, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(networks, "fast_bf16", lambda _: True)
    spec = networks.NetworkSpec(architecture="tests.support.nets:shifted", classes=2, input_shape=(1, 8, 8))
    network = Place.at(str(tmp_path / "network"))
    for name, data in networks.to_files(networks.Dense(networks.build(spec, seed=0), spec)).items():
        (network / name).write_bytes(data)
    job = dataclasses.replace(JOB, trusted=OWN)
    plan = ScoringPlan(min_actors=1, max_actors=1, cpus=1, gpus=0.0, here=True, alone=True)
    asked, noted = Scoring(backend=backend, batch_size=8), {}
    found = choose(Place.at(str(tmp_path)), asked, network, job, plan, 1000, LARGE, noted.__setitem__)
    assert (found.backend, found.precision) in (("torch", "fp32"), ("openvino", "bf16"))
    assert backend == "auto" or found.backend == "torch"
    why = json.loads(noted["scoring.json"])["left_out"]["torch in bf16"]
    assert "this network does not run in bf16" in why
    assert "scoring goes without torch in bf16: scoring.precision: this network does not run in bf16" in caplog.text
    with pytest.raises(networks.NetworkError, match="set it to fp32"):
        fastest(Scoring(backend="torch", precision="bf16"), network, job, LARGE)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("features", [False, True])
def test_logits_are_not_rounded_to_bf16(saved, backend, features):
    """Rounded, the two largest of an unsure sample are often one number, and margin chooses by ids alone."""
    if lack := networks.BACKENDS[backend].lacks():
        pytest.skip(lack)
    job = dataclasses.replace(JOB, backend=backend, precision="bf16", features=features)
    logits = Scorer(saved, job).forward(random_images(200))[0]
    rounded = torch.from_numpy(logits).to(torch.bfloat16).float().numpy()
    assert (rounded != logits).mean() > 0.9


def test_an_actor_is_given_a_second_of_work_in_whole_batches():
    assert call_rows(1000.0, 64, 3072) == 1024
    assert call_rows(1.0, 64, 3072) == 64
    assert call_rows(1e9, 64, 2**20) == 64


@pytest.mark.parametrize(
    "tree",
    [
        {"scoring": {"backend": "openvino", "gpus": 1}},
        {"scoring": {"backend": "eager", "precision": "bf16"}},
    ],
)
def test_what_cannot_be_is_refused(tree):
    with pytest.raises(ConfigError, match=r"scoring\.backend"):
        config_from_tree(tree)


def test_no_strategy_rules_a_backend_out():
    for backend in set(networks.BACKENDS) - {"outside"}:
        config_from_tree({"scoring": {"backend": backend, "features": True}, "selection": {"strategy": "badge"}})


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """(a network with three outputs for every pixel, a job that scores by it)"""
    spec = networks.NetworkSpec(architecture="fcn_resnet8", classes=3, input_shape=(1, 8, 8))
    place = Place.at(str(tmp_path_factory.mktemp("segmenter")))
    for name, data in networks.to_files(networks.Dense(network=networks.build(spec, seed=0), spec=spec)).items():
        (place / name).write_bytes(data)
    return place, dataclasses.replace(JOB, task="segmentation")


def test_the_check_holds_the_outputs_of_a_batch(segmenter, monkeypatch):
    """Those of 256 photographs with 19 classes for every pixel are 25 GB."""
    network, job = segmenter
    seen, forward = [], Scorer.forward
    monkeypatch.setattr(Scorer, "forward", lambda s, decoded_N: seen.append(len(decoded_N)) or forward(s, decoded_N))
    table = pa.table({"id": range(60), "sample": [encode_png(p) for p in random_images(60)]})
    found = backend_choice.deviation(network, job, table)
    assert (max(seen), sum(seen)) == (16, 2 * 60)
    assert found["checked"] == 60
    assert 0 < found["largest_difference"] < 1e-5
    assert found["same_top"] == 1


def test_the_check_sees_a_difference_in_any_slice(saved, monkeypatch):
    forward = Scorer.forward

    def other(scorer, decoded_N):
        outputs, features = forward(scorer, decoded_N)
        last = scorer.job.backend != "eager" and len(decoded_N) < scorer.job.batch_size
        return outputs + last * np.arange(10), features

    monkeypatch.setattr(Scorer, "forward", other)
    table = pa.table({"id": range(60), "sample": [encode_png(p) for p in random_images(60)]})
    assert backend_choice.deviation(saved, JOB, table)["largest_difference"] > 0.1


@pytest.mark.parametrize("macs", [SMALL, LARGE])
def test_a_batch_has_no_more_outputs_than_fit(segmenter, measured, monkeypatch, tmp_path, macs):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend_choice, "BATCH_OUTPUTS", 50 * 3 * 8 * 8)
    network, job = segmenter
    found = fastest(Scoring(backend="torch"), network, job, macs)
    assert found["chosen"]["batch_size"] == 50
    assert measured == ([] if macs == SMALL else [("torch", 50), ("torch", 32)])
    monkeypatch.setattr(backend_choice, "BATCH_OUTPUTS", 1)
    assert fastest(Scoring(backend="torch"), network, job, macs)["chosen"]["batch_size"] == 1
    assert fastest(Scoring(batch_size=64), network, job, SMALL)["chosen"]["batch_size"] == 64, "as people say"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_batch_that_does_not_fit_a_gpu_is_gone_without(saved, measured, monkeypatch, tmp_path, wrapped):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend_choice, "BATCH_SIZES", {False: (64, 256, 32)})
    rate = backend_choice.rate_of

    def tight(network, job):
        rate(network, job)
        if job.batch_size > 32:
            full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee the documentation")
            if wrapped:
                raise networks.NetworkError("scoring.backend: cannot compile this network here") from full
            raise full
        return 100.0

    monkeypatch.setattr(backend_choice, "rate_of", tight)
    found = fastest(Scoring(backend="torch"), saved, JOB, LARGE)
    assert found["chosen"]["batch_size"] == 32
    assert measured == [("torch", 64), ("torch", 32)], "no larger one is tried"
    assert list(found["left_out"]) == ["torch in batches of 64"]
    assert "\n" not in found["left_out"]["torch in batches of 64"]
    with pytest.raises(networks.NetworkError, match="torch in batches of 64"):
        fastest(Scoring(backend="torch", batch_size=64), saved, JOB, LARGE)


def test_what_was_measured_once_is_kept(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(backend_choice, "MEASURED_SECONDS", 0.01)
    monkeypatch.setattr(backend_choice, "BATCH_SIZES", {False: (16, 32)})
    root = Place.at(str(tmp_path))
    plan = ScoringPlan(min_actors=1, max_actors=1, cpus=1, gpus=0.0, here=True, alone=True)
    first = choose(root, Scoring(), saved, JOB, plan, 1000, LARGE, Ledger(root).write_file)
    noted = json.loads((tmp_path / "scoring.json").read_text())
    best = max(noted["measured"], key=lambda m: m["samples_per_second"])
    assert (best["backend"], best["precision"], best["batch_size"]) == (
        first.backend,
        first.precision,
        first.batch_size,
    )
    assert first.call_rows % first.batch_size == 0
    monkeypatch.setattr(backend_choice, "fastest", None)  # it must not be asked again
    assert choose(root, Scoring(), saved, JOB, plan, 1000, LARGE, Ledger(root).write_file) == first
    assert dataclasses.replace(first, backend="x", precision="x", batch_size=1, call_rows=1) == dataclasses.replace(
        JOB, backend="x", precision="x", batch_size=1, call_rows=1
    )


def test_every_backend_is_tried_once_and_then_the_batches_of_the_fastest():
    one = {
        (name, size): Arithmetic(backend=name, precision="fp32", batch_size=size, call_rows=size)
        for size in (64, 128)
        for name in ("openvino", "torch")
    }
    untried, rates, order = list(one.values()), {}, []
    while (candidate := next_to_try(untried, rates)) is not None:
        untried.remove(candidate)
        rates[candidate] = {"torch": 2.0, "openvino": 1.0}[candidate.backend]
        order.append((candidate.backend, candidate.batch_size))
    assert order == [("openvino", 64), ("torch", 64), ("torch", 128)]


@pytest.fixture
def measured(monkeypatch):
    """The batch sizes that are measured, in order; each measurement takes a second by the clock that counts."""
    seen, clock = [], iter(range(1000))

    def rate(network, job):
        seen.append((job.backend, job.batch_size))
        return 100.0

    monkeypatch.setattr(backend_choice, "rate_of", rate)
    monkeypatch.setattr(backend_choice.time, "perf_counter", lambda: float(next(clock)))
    return seen


@pytest.mark.parametrize(
    ("rows", "tried"),
    [(100, 1), (10_000, 4), (math.inf, 4)],  # at 100 samples a second 5 % of 10,000 are 5 s, of which each takes one
)
def test_measuring_takes_a_small_share_of_the_pass(saved, measured, monkeypatch, tmp_path, rows, tried):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend_choice, "MEASURING_SECONDS", 1.0)
    fastest(Scoring(backend="torch"), saved, JOB, LARGE, rows)
    assert len(measured) == tried


def test_a_measurement_is_kept_for_the_machine_and_the_networks_structure(saved, measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = Scoring(backend="torch"), saved, JOB, LARGE
    first = fastest(*asked)
    assert not first["remembered"]
    again = fastest(*asked)
    assert again == {**first, "remembered": True}
    count = len(measured)
    assert not fastest(*asked[:2], dataclasses.replace(JOB, features=True), LARGE)["remembered"]
    assert len(measured) > count
    for file in (tmp_path / "prunefuse_ray" / "scoring").iterdir():
        file.write_text(file.read_text().replace("100.0", "900.0"))
    assert not fastest(*asked)["remembered"], "a damaged file is not believed"


FORMS = [
    ("eager", "fp32", 0.0),
    ("torch", "fp32", 1e-5),
    ("torch", "bf16", 0.05),
    ("openvino", "fp32", 1e-5),
    ("openvino", "bf16", 0.05),
    pytest.param("compile", "fp32", 1e-5, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("backend", "precision", "off"), FORMS)
def test_every_form_is_near_the_plain_network_and_says_how_near(saved, backend, precision, off):
    if backend == "openvino":
        pytest.importorskip("openvino")
    job = dataclasses.replace(JOB, backend=backend, precision=precision)
    images = [encode_png(p) for p in random_images(60)]
    table = pa.table({"id": list(range(61)), "sample": pa.array([*images, b"bad"], pa.binary())})
    found = backend_choice.deviation(saved, job, table)
    assert found["checked"] == 60
    assert found["largest_difference"] <= off
    assert (found["largest_difference"] > 0) == (backend != "eager")
    assert 0.5 <= found["same_top"] <= 1


@pytest.mark.parametrize(("backend", "precision", "off"), FORMS)
def test_a_score_depends_on_no_neighbor(saved, backend, precision, off):
    if backend == "openvino":
        pytest.importorskip("openvino")
    scorer = Scorer(saved, dataclasses.replace(JOB, backend=backend, precision=precision))
    pixels = random_images(40)
    order = np.random.default_rng(0).permutation(40)
    whole = scorer.forward(pixels)[0]
    np.testing.assert_array_equal(scorer.forward(pixels[order])[0], whole[order])
    np.testing.assert_array_equal(scorer.forward(pixels[:1])[0], whole[:1])


def test_the_check_sees_a_form_that_is_wrong(saved, monkeypatch):
    """A folded network whose classifier was lost."""
    form = networks.inference_form

    def broken(network):
        found = form(network)
        torch.nn.init.zeros_(found.classifier.weight)
        return found

    monkeypatch.setattr("prunefuse_ray.networks.inference.inference_form", broken)
    images = [encode_png(p) for p in random_images(200)]
    table = pa.table({"id": list(range(200)), "sample": pa.array(images, pa.binary())})
    found = backend_choice.deviation(saved, JOB, table)
    assert found["largest_difference"] > 1e-3  # rounding is 1e-7
    said = backend_choice.unlike(found)
    assert "scoring by torch in fp32 finds " in said
    assert "of the top tenth that the plain network finds in float32 (200 samples compared" in said
    assert backend_choice.unlike({**found, "same_top": 0.9}) is None
    assert backend_choice.unlike({"backend": "torch", "precision": "fp32", "checked": 0}) is None


@pytest.mark.parametrize(("gpu", "where"), [(False, "here"), (True, "there")])
def test_a_form_for_gpus_is_checked_where_they_are(monkeypatch, gpu, where):
    """The plain network in float32 needs no look at another machine's arithmetic, but a GPU that may not be here."""
    monkeypatch.setattr(backend_choice, "head", lambda *_: pa.table({}))
    monkeypatch.setattr(backend_choice, "deviation", lambda *_: {"checked": "here"})
    monkeypatch.setattr(backend_choice, "_there", lambda *_: {"checked": "there"})
    job = dataclasses.replace(JOB, backend="eager", precision="fp32", gpu=gpu)
    assert backend_choice.check(None, None, job, None) == {"checked": where}


def test_features_come_from_every_backend(saved):
    plain, *fast = (
        Scorer(saved, dataclasses.replace(JOB, features=True, backend=b)).forward(random_images(5))
        for b in ("eager", "torch", *(["openvino"] if networks.BACKENDS["openvino"].lacks() is None else []))
    )
    for found in fast:
        for ours, theirs in zip(found, plain, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux where threads may run")
def test_openvino_leaves_its_threads_free_to_move(saved):
    """Pinned threads of all actors of a machine would share its first cores."""
    pytest.importorskip("openvino")
    scorer = Scorer(saved, dataclasses.replace(JOB, backend="openvino"))
    allowed = set()
    worker = threading.Thread(target=lambda: [scorer.forward(random_images(64)) for _ in range(100)])
    worker.start()
    while worker.is_alive():
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                status = (task / "status").read_text()
                allowed |= {line for line in status.splitlines() if line.startswith("Cpus_allowed_list")}
    worker.join()
    assert len(allowed) == 1


def test_where_no_usual_batch_fits_a_gpu_smaller_ones_are_tried(saved, measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend_choice, "BATCH_SIZES", {False: (64, 32)})
    rate = backend_choice.rate_of

    def tight(network, job):
        rate(network, job)
        if job.batch_size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return 100.0

    monkeypatch.setattr(backend_choice, "rate_of", tight)
    assert fastest(Scoring(backend="torch"), saved, JOB, LARGE)["chosen"]["batch_size"] == 8
    assert measured == [("torch", 64), ("torch", 32), ("torch", 8)]
    with pytest.raises(networks.NetworkError, match=r"lower scoring\.batch_size"):
        fastest(Scoring(backend="torch", batch_size=64), saved, JOB, LARGE)


def test_what_an_earlier_version_chose_is_scored_with_the_whole_gpu(tmp_path):
    chosen = {"backend": "torch", "precision": "fp32", "batch_size": 512, "call_rows": 2048}
    root, job = Place.at(str(tmp_path)), dataclasses.replace(JOB, gpu=True, gpu_share=0.25)
    for more, share in (({}, 1.0), ({"gpu_share": 0.25}, 0.25)):
        (root / "scoring.json").write_bytes(sealed({"chosen": chosen, "measured": [], "left_out": {}, **more}))
        assert choose(root, Scoring(), root, job, None, 1, LARGE, None).gpu_share == share
