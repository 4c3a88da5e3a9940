"""What stands beside the code agrees with it: bounds and pins, markers and targets, version, license, citation."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DIRECT = [
    requirement
    for texts in [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    for text in texts
    if (requirement := Requirement(text)).name != "prunefuse-ray"
]


def pins(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(n): Version(v) for n, v in (line.split("==") for line in lines)}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_every_lower_bound_is_the_version_that_is_tested(requirement):
    lowest = pins("constraints-lowest.txt")[canonicalize_name(requirement.name)]
    assert lowest in requirement.specifier
    for bound in (s for s in requirement.specifier if s.operator == ">="):
        asked = Version(bound.version).release
        assert lowest.release[: len(asked)] == asked, "give `make constraints-lowest.txt`, and test what comes out"


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_bounds(requirement):
    pinned = pins("constraints.txt")
    if (name := canonicalize_name(requirement.name)) != "wandb":  # no test installs it
        assert pinned[name] in requirement.specifier


BROUGHT = {"psutil": "ray", "pydantic_core": "pydantic", "urllib3": "requests"}
"""Packages that are parts of what others are made of."""


def test_what_is_imported_is_declared():
    """Of what stands at the head of modules: the rest is an extra, or asked for where it may be missing."""
    there = packages_distributions()
    required = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    for file in (ROOT / "prunefuse_ray").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"prunefuse_ray"}:
                brings = {BROUGHT.get(name, name), *there.get(name, ())}
                assert required & set(map(canonicalize_name, brings)), f"{file}: {name}"


def test_every_marker_has_a_target_that_contributors_are_told_of():
    makefile, told = (ROOT / "Makefile").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]:
        name = marker.partition(":")[0]
        assert re.search(rf"^test-{name}: ", makefile, re.M), name
        assert f"`make test-{name}` | `{name}` |" in told
    for target in re.findall(r"^(test\S*):", makefile, re.M):
        assert f"`make {target}`" in told, target


def test_version_license_and_citation_agree():
    project = PROJECT["project"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert "2603.26138" in citation["preferred-citation"]["url"]
    changes = (ROOT / "CHANGELOG.md").read_text()
    version = Version(project["version"])
    assert ("## [Unreleased]" if version.is_devrelease else f"## [{version}]") in changes


def test_what_is_not_code_is_packaged():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    for file in (ROOT / "prunefuse_ray").rglob("*"):
        if file.is_file() and file.suffix not in (".py", ".pyc"):
            package = next(folder for folder in file.parents if (folder / "__init__.py").exists())
            assert any(file.relative_to(package).match(pattern) for pattern in patterns), file


def test_nothing_is_skipped_for_want_of_a_package():
    """Tests of optional packages skip themselves where these are missing: here all of them are there."""
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [Requirement(one) for one in extras["dev"]]
    for own in [one for one in asked if one.name == "prunefuse-ray"]:
        asked += [Requirement(one) for extra in own.extras for one in extras[extra]]
    there = {canonicalize_name(found.metadata["Name"]) for found in distributions()}
    wanted = {canonicalize_name(r.name) for r in asked if not r.marker or r.marker.evaluate()} - {"prunefuse-ray"}
    assert wanted <= there, sorted(wanted - there)
