"""What a machine can do, and what is advised."""

import dataclasses
import json

import pytest

from prunefuse_ray.cli import main
from prunefuse_ray.commands import doctor
from prunefuse_ray.commands.doctor import Facts, advice
from prunefuse_ray.storage import Place
from tests.support.packages import install

GOOD = Facts(
    python="3.11", ray="2.60", torch="2.11", cpu="a CPU", cores=8, instructions=("avx2",), fast_bf16=True,
    memory_gib=32.0, shared_memory_gib=16.0, gpus=(), backends={"torch": "", "openvino": ""}, decode_ms=1.5,
    directory="runs", write_mib=900.0, read_mib=2000.0, cluster=None,
)  # fmt: skip


def test_a_good_machine_needs_no_advice():
    assert advice(GOOD) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"backends": {"openvino": "openvino is not installed: pip install X"}}, "pip install X"),
        ({"fast_bf16": False}, "no bfloat16 in hardware"),
        ({"shared_memory_gib": 0.06}, "--shm-size=10g"),
        ({"read_mib": 50.0}, "prepared.directory"),
        ({"decode_ms": 4.0}, "prepared.max_gb"),
        ({"cluster": {"nodes": 1.0, "cpus": 2.0, "gpus": 0.0}}, "fewer than 3 CPUs"),
    ],
)
def test_what_is_slow_or_missing_has_its_remedy(changed, said):
    told = advice(dataclasses.replace(GOOD, **changed))
    assert len(told) == 1
    assert said in told[0]


def test_a_gpu_makes_up_for_a_cpu_without_bfloat16():
    (told,) = advice(dataclasses.replace(GOOD, fast_bf16=False, gpus=("a GPU",)))
    assert "scoring.gpus: 1" in told


def test_what_others_begin_in_the_directory_meanwhile_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "TRIAL_BYTES", 2**16)
    place = Place.at(str(tmp_path / "runs"))

    def begun(work):
        work()
        (place / "mine" / "config.yaml").write_bytes(b"")
        return 1.0

    monkeypatch.setattr(doctor, "_seconds", begun)
    doctor._speed(place)
    assert [file.path for file in place.files(recursive=True)] == [f"{place.path}/mine/config.yaml"]


def test_what_a_gpu_computes_is_not_said_of_the_cpu():
    lacking = dataclasses.replace(GOOD, gpus=("a GPU",), backends={"openvino": "openvino is not installed"})
    assert not [line for line in advice(lacking) if "this CPU" in line]


def test_the_command_tells_of_this_machine_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(doctor, "TRIAL_BYTES", 2**16)
    assert main(["doctor", "--directory", str(tmp_path / "new"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cores"] >= 1
    assert told["decode_ms"] > 0
    assert told["backends"]["torch"] == ""
    assert not (tmp_path / "new").exists()
    assert main(["doctor", "--directory", str(tmp_path / "new" / "er" / "still"), "--json"]) == 0
    assert not (tmp_path / "new").exists()
    capsys.readouterr()
    (tmp_path / "kept").mkdir()
    assert main(["doctor", "--directory", str(tmp_path / "kept")]) == 0
    assert "backend openvino" in capsys.readouterr().out
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("command", [["doctor", "--json", "--directory"], ["list", "backends", "--json"]])
def test_another_packages_backend_that_cannot_be_loaded_is_told(tmp_path, capsys, monkeypatch, command):
    install(tmp_path, "older", "import a_name_that_is_gone", {"prunefuse_ray.backends": {"theirs": "older:BACKEND"}})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(doctor, "TRIAL_BYTES", 2**16)
    assert main([*command, *([str(tmp_path / "runs")] if "--directory" in command else [])]) == 0
    told = json.loads(capsys.readouterr().out)
    found = told["backends"] if "backends" in told else {row["name"]: row["runs"] for row in told}
    assert "cannot import 'older:BACKEND'" in found["theirs"]
    assert "torch" in found


def test_the_remedy_is_shown_whole(monkeypatch, capsys):
    """Square brackets would be markup."""
    facts = dataclasses.replace(GOOD, backends={"openvino": "pip install 'prunefuse-ray[openvino]'"})
    monkeypatch.setattr(doctor, "look", lambda _: facts)
    assert main(["doctor"]) == 0
    table, _, _ = capsys.readouterr().out.partition("- ")
    assert "prunefuse-ray[openvino]" in table
