"""The order of the modules: who may import whom, without circles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import prunefuse_ray

ROOT = Path(prunefuse_ray.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imported(name: str) -> set[str]:
    """Every module that `name` imports anywhere, inside functions too (but not for types alone)."""
    found = set()
    pending: list[ast.AST] = [ast.parse(FILES[name].read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found |= {whole} if whole in FILES else {str(node.module), whole}
        pending += ast.iter_child_nodes(node)
    return found


IMPORTS = {name: imported(name) for name in FILES}


def reached(name: str) -> set[str]:
    """What importing `name` brings in, directly or through other modules of the package."""
    seen: set[str] = set()
    pending = [name]
    while pending:
        for other in IMPORTS.get(pending.pop(), set()) - seen:
            seen.add(other)
            pending.append(other)
    return seen


def under(package: str) -> list[str]:
    return [name for name in FILES if name == package or name.startswith(f"{package}.")]


def test_no_circles():
    TopologicalSorter({name: IMPORTS[name] & FILES.keys() for name in FILES}).prepare()  # raises CycleError


@pytest.mark.parametrize("package", ["networks", "acquisition"])
def test_networks_and_acquisition_know_nothing_of_ray(package):
    for name in under(f"prunefuse_ray.{package}"):
        assert not {other for other in reached(name) if other.split(".")[0] == "ray"}, name


@pytest.mark.parametrize("module", ["pool", "scoring", "selection", "training"])
def test_what_works_on_ray_knows_no_rounds(module):
    above = {"rounds", "phases", "plan", "cli", "sweep", "report"}
    assert not {f"prunefuse_ray.{name}" for name in above} & reached(f"prunefuse_ray.{module}")


def test_rounds_know_no_tune():
    assert not {
        name for name in reached("prunefuse_ray.rounds") if name.startswith(("ray.tune", "prunefuse_ray.sweep"))
    }


def test_nothing_imports_the_command_line():
    importers = {name for name in FILES if "prunefuse_ray.cli" in IMPORTS[name]}
    assert importers <= {"prunefuse_ray.__main__"}
