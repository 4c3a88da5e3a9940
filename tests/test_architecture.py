"""The rooms of the package and who may import whom: the contracts in pyproject.toml, and what they cannot say."""

import re
import subprocess
import sys

from tests.support import ROOT

PACKAGE = ROOT / "prunefuse_ray"


def test_the_contracts_in_pyproject_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_only_sweeps_know_tune_and_the_callbacks_that_trackers_have_for_them():
    """A contract cannot name a part of another package."""
    knows = [
        p
        for p in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(from|import) ray(\.tune| import .*tune)", p.read_text(), re.M)
    ]
    assert {p.relative_to(PACKAGE).parts[0] for p in knows} == {"sweep", "tracking"}
