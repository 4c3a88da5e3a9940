"""A scoring backend and a fusion rule of somebody else's: from an installed package, and by reference without one."""

import importlib
import json
import os
import subprocess
import sys
import tempfile

import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.commands.options import parse_run
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.config.scoring import Scoring
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.run import loop
from prunefuse_ray.scoring.backend_choice import MACS_WORTH_MEASURING, worth_trying
from prunefuse_ray.storage import Place
from tests.support import ROOT
from tests.support.nets import OWN
from tests.support.packages import install
from tests.support.runs import TINY, tiny

SOURCE = """
import torch
from prunefuse_ray.networks import Backend, FusionRule, scatter

def build(network, *, precision, device, example, threads, features):
    network = network.eval().to(device)
    return lambda x: network(x.double().float())

def zeros(parts):
    (proxy,) = parts.members
    nothing = {name: torch.zeros_like(tensor) for name, tensor in parts.dense.state_dict().items()}
    return scatter(nothing, proxy.network.state_dict(), proxy.kept)

def slanted(parts):
    return {name: tensor[:1] if tensor.ndim else tensor for name, tensor in zeros(parts).items()}

PLAIN = Backend(name="plain", about="100% as it is", build=build, precisions=("fp32",), features=False,
                auto={"cpu": 0})
ZEROS = FusionRule(name="zeros", about="become zero", apply=zeros)
SLANTED = FusionRule(name="slanted", about="get lost", apply=slanted)
CLAIMED = FusionRule(name="claimed", about="are claimed to be harmless", apply=lambda parts: parts.dense.state_dict(),
                     exact=True)
"""
GROUPS = {
    "prunefuse_ray.backends": {"plain": "outside:PLAIN", "lost": "outside:NOTHING"},
    "prunefuse_ray.fusion_rules": {"zeros": "outside:ZEROS"},
}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The module, importable by this process and those that it starts."""
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "outside.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(directory)
    yield directory
    sys.modules.pop("outside", None)
    for registry in (networks.BACKENDS, networks.FUSION_RULES):
        for name in [n for n in registry._loaded if n in ("plain", "zeros") or ":" in n]:
            del registry._loaded[name]


@pytest.fixture
def installed(outside):
    (outside / "outside.py").unlink()
    install(outside, "outside", SOURCE, GROUPS)
    importlib.invalidate_caches()


def pair():
    spec = networks.NetworkSpec(architecture="resnet8", classes=3, input_shape=(1, 8, 8))
    dense = networks.build(spec, seed=0)
    return dense, networks.prune(dense, spec, networks.PruningSpec(ratio=0.5))


def check_run(directory, backend):
    assert json.loads((directory / "scoring.json").read_text())["chosen"]["backend"] == backend
    proxy, start = (
        networks.from_files(network_files(Place.at(str(directory / "rounds" / "001" / name))), OWN)
        for name in ("proxies/0", "fused-initial")
    )
    for name, tensor in start.network.state_dict().items():
        kept = networks.indices.grid(tensor.shape, proxy.kept[name])
        assert torch.equal(tensor[kept].flatten(), proxy.network.state_dict()[name].flatten()), name
        if tensor.ndim:
            tensor[kept] = 0
            assert not tensor.any(), name


def test_an_installed_package_adds_a_backend_and_a_rule(installed, local_ray, tiny_pool, tmp_path):
    named = {"scoring": {"backend": "plain"}, "fusion": {"rule": "zeros"}, "selection": {"budgets": [10, 18]}}
    loop.run(tiny(tiny_pool, tmp_path / "runs", **named))
    check_run(tmp_path / "runs" / "tiny", "plain")


def test_an_installed_package_is_known_wherever_names_are(installed, capsys):
    with pytest.raises(ConfigError, match=r"did you mean 'plain'\?\); known: auto, eager, .*, openvino, lost, plain,"):
        config_from_tree({"scoring": {"backend": "plein"}})
    with pytest.raises(ConfigError, match=r"plain computes in fp32 alone, not in bf16"):
        config_from_tree({"scoring": {"backend": "plain", "precision": "bf16"}})
    with pytest.raises(ConfigError, match=r"fusion\.rule 'zeros' takes no committee"):
        config_from_tree({"fusion": {"rule": "zeros"}, "pruning": {"committee": 2}})
    with pytest.raises(SystemExit):
        parse_run(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "plain: 100% as it is (fp32 only, no features)" in text
    assert "zeros: the other weights become zero (no committees)" in text
    assert "lost: cannot be used: scoring backend 'lost': cannot import 'outside:NOTHING'" in text


def test_auto_tries_what_says_that_it_is_worth_it_and_says_what_it_cannot_use(installed):
    found, left_out = worth_trying(Scoring(), macs=MACS_WORTH_MEASURING, features=False, gpu=False)
    assert "plain" in found
    assert "cannot import 'outside:NOTHING'" in left_out["lost"]
    assert "plain" not in worth_trying(Scoring(), macs=MACS_WORTH_MEASURING, features=True, gpu=False)[0]


def test_a_reference_does_without_a_package(outside):
    named = {"scoring": {"backend": "outside:PLAIN"}, "fusion": {"rule": "outside:ZEROS"}}
    assert to_tree(config_from_tree(named))["scoring"]["backend"] == "outside:PLAIN"
    with pytest.raises(ConfigError, match=r"scoring\.backend: .* outside:ZEROS is a FusionRule, not a Backend"):
        config_from_tree({"scoring": {"backend": "outside:ZEROS"}})
    dense, proxy = pair()
    fused = networks.fuse(dense, proxy, "outside:ZEROS").state_dict()
    assert torch.equal(networks.gather(fused, proxy.kept)["stem.weight"], proxy.network.state_dict()["stem.weight"])
    x = torch.randn(2, 1, 8, 8)
    how = {"precision": "fp32", "device": torch.device("cpu"), "example": x, "threads": 1}
    run = networks.BACKENDS["outside:PLAIN"].runner(proxy.network, **how)
    with torch.inference_mode():
        assert torch.equal(run(x), proxy.network.eval()(x))


def test_a_rule_that_breaks_its_promise_is_refused(outside):
    dense, proxy = pair()
    with pytest.raises(networks.NetworkError, match="'outside:SLANTED' makes other tensors than the dense network has"):
        networks.fuse(dense, proxy, "outside:SLANTED")
    with pytest.raises(networks.NetworkError, match=r"fusion\.rule: .* would be off by"):
        networks.fuse(dense, proxy, "outside:CLAIMED")


@pytest.mark.slow
def test_code_in_the_working_directory_reaches_the_actors(outside, tiny_pool, tmp_path):
    """By reference, with Ray's workers in processes of their own."""
    options = {
        "pool.source": "parquet", "pool.path": tiny_pool / "pool", "pool.test_path": tiny_pool / "test",
        "pool.classes": 2, "pool.channels": 1, "network.architecture": TINY["network"]["architecture"],
        "selection.budgets": "10,18", "training.epochs": 2, "training.warmup_epochs": 1, "training.batch_size": 8,
        "finetuning.epochs": 2, "finetuning.warmup_epochs": 1, "finetuning.batch_size": 8,
        "scoring.batch_size": 8, "scoring.actors": "1,1", "scoring.backend": "outside:PLAIN",
        "fusion.rule": "outside:ZEROS", "run.directory": tmp_path / "runs", "run.name": "tiny",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "jobs" / "run.py"), *(f"--{k}={v}" for k, v in options.items())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory() as short:  # a socket's path has to be
        environment["RAY_TMPDIR"] = short
        done = subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check_run(tmp_path / "runs" / "tiny", "outside:PLAIN")
