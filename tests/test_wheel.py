"""The wheel, as people get it: built, installed into an empty environment, used in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from prunefuse_ray.config.files import PRESETS
from tests.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: in the checkout, what is left of an earlier build would get into it."""
    where = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "prunefuse_ray", where / "source/prunefuse_ray", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, where / "source")
    # No isolation: torch has brought setuptools, and a test should not download.
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", where, where / "source"], check=True)
    (built,) = where.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that runs a command of a new environment in an empty folder; the environment holds the wheel, and
    borrows the dependencies.

    The folder of the dependencies is a line in a .pth file: it goes to the end of the path, and its own .pth files,
    one of which leads to the checkout, are not read.
    """
    where = tmp_path_factory.mktemp("installed")
    venv.create(where / "env", with_pip=False)
    python = where / "env/bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )
    (mine,) = (where / "env/lib").glob("python*/site-packages")
    (mine / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (where / "empty").mkdir()
    (where / "home").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))}
    environment = kept | {"HOME": str(where / "home"), "PATH": f"{where / 'env/bin'}{os.pathsep}{kept['PATH']}"}

    def run(*words):
        done = subprocess.run(
            words, cwd=where / "empty", env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = where / "empty"
    run.packages = mine
    return run


def test_the_wheel_holds_what_is_not_code(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for preset in PRESETS.glob("*.yaml"):
        assert f"prunefuse_ray/config/presets/{preset.name}" in names
    for stub in (ROOT / "prunefuse_ray").rglob("*.pyi"):
        assert stub.relative_to(ROOT).as_posix() in names
    assert "prunefuse_ray/py.typed" in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "jobs"))]


def test_the_package_that_runs_is_the_wheels(installed):
    code = "import json, sys, prunefuse_ray as p; print(json.dumps([p.__file__, p.__version__, sys.path]))"
    file, version, path = json.loads(installed("python", "-c", code))
    assert Path(file).is_relative_to(installed.packages)
    assert f"prunefuse_ray {version}\n" == installed("prunefuse", "--version")
    assert str(ROOT) not in path


def test_a_whole_run_and_what_is_made_of_it(installed):
    run = installed(
        "prunefuse", "run", "--preset", "digits", "--run.name", "few", "--selection.budgets", "20,30",
        "--training.epochs", "2", "--training.warmup_epochs", "1", "--training.min_steps", "0",
        "--finetuning.epochs", "2", "--finetuning.warmup_epochs", "1", "--finetuning.min_steps", "0",
    )  # fmt: skip
    assert "round 1: 30 labels" in run
    page = installed.folder / "runs/few/report.html"
    page.unlink()
    installed("prunefuse", "report", "runs/few")
    assert page.exists()
    scored = installed("prunefuse", "score", "runs/few", "--out", "scores", "--top", "7", "--pool.source", "digits")
    assert "1,437 scored, 0 could not be used, 7 ranked" in scored
    code = "import prunefuse_ray as p; print(len(p.load('runs/few').classes))"
    assert installed("python", "-c", code) == "10\n"


def test_presets_and_networks_are_listed(installed):
    listed = installed("python", "-m", "prunefuse_ray", "presets")
    assert {p.stem for p in PRESETS.glob("*.yaml")} == {line.split()[3] for line in listed.splitlines()}
    assert "parameters" in installed("prunefuse", "networks", "resnet20")
