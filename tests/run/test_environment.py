"""What a run says where it goes on in another environment."""

import logging
import sys

import pytest

from prunefuse_ray.errors import ScoreError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import environment as module
from prunefuse_ray.run import loop, phases
from prunefuse_ray.run.environment import changes, environment
from tests.support.runs import carried_out, tiny

NETWORK = """
from torch import nn


def network(num_classes, input_shape):
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 16, 3, padding=1), nn.BatchNorm2d(16), nn.{activation}(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, num_classes),
    )
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's."""
    (tmp_path / "code").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "code")
    path = tmp_path / "code" / "own_network_of_a_test.py"
    path.write_text(NETWORK.format(activation="ReLU"))
    yield path
    sys.modules.pop(path.stem, None)


def test_the_versions_and_the_users_code_are_recorded(tiny_pool, tmp_path, own):
    found = environment(tiny(tiny_pool, tmp_path, network={"architecture": f"{own.stem}:network"}))
    assert {"torch", "torchvision", "torch-pruning", "numpy", "prunefuse-ray", "processor", "cores"} <= set(
        found["versions"]
    )
    assert list(found["code"]) == [own.stem]
    assert environment(tiny(tiny_pool, tmp_path, network={"architecture": "resnet8"}))["code"] == {}
    assert not changes(found, found)
    assert not changes({}, found)  # of a run that an earlier version began


def test_other_versions_and_another_processor_are_one_line():
    before = {"versions": {"torch": "2.9.0", "processor": "one", "cores": "2"}, "code": {}}
    now = {"versions": {"torch": "2.10.0", "processor": "one", "cores": "8"}, "code": {}}
    (line,) = changes(before, now)
    assert line.startswith("torch 2.10.0, cores 8: the run began with torch 2.9.0, cores 2; ")
    (line,) = changes({"versions": {"openvino": "1"}}, now)
    assert line.startswith("openvino not installed: ")


def test_code_that_nobody_finds_says_nothing(tiny_pool, tmp_path, own):
    known = environment(tiny(tiny_pool, tmp_path, network={"architecture": f"{own.stem}:network"}))
    own.unlink()
    sys.modules.pop(own.stem, None)
    module.importlib.invalidate_caches()
    assert not changes(known, {**known, "code": {own.stem: module._digest(own.stem)}})


def test_a_run_that_goes_on_with_other_code_says_so(local_ray, tiny_pool, tmp_path, own, monkeypatch, caplog):
    config = tiny(tiny_pool, tmp_path, network={"architecture": f"{own.stem}:network"})

    def fails(work, step):
        raise ScoreError("no luck")

    with monkeypatch.context() as patched:
        patched.setitem(phases.PHASES, "score", fails)
        with pytest.raises(ScoreError):
            loop.run(config)
    own.write_text(NETWORK.format(activation="SiLU"))
    with caplog.at_level(logging.WARNING):
        carried_out(config, Step(0, "score"))
    told = [r.message for r in caplog.records if own.stem in r.message]
    assert len(told) == 1
    assert "your code has changed since the run began" in told[0]


def test_training_on_another_device_is_told(tiny_pool, tmp_path):
    before, now = (environment(tiny(tiny_pool, tmp_path, workers={"gpu": gpu})) for gpu in (False, True))
    (line,) = changes(before, now)
    assert line.startswith("training on GPUs: the run began with training on CPUs; ")
