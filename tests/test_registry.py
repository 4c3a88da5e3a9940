"""Registries: entries of the package, of other installed packages, and by reference."""

import sys

import pytest

from prunefuse_ray.errors import ConfigError
from prunefuse_ray.registry import Registry, load_object
from tests.support.packages import install

OURS = Registry(
    "color", "builtins:str", "prunefuse_ray.test_colors", {"red": "tests.test_registry:RED", "wrong": "math:pi"}
)
RED, GREEN = "#f00", "#0f0"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Another package that registers a color."""
    points = {"blue": "paints:BLUE", "red": "paints:OTHER"}
    install(tmp_path, "paints", "BLUE = '#00f'\nOTHER = '#e00'\n", {"prunefuse_ray.test_colors": points})
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("paints", None)


def test_entries_come_from_the_package_other_packages_and_references(installed):
    assert list(OURS) == ["red", "wrong", "blue"]
    assert (OURS["red"], OURS["blue"], OURS["tests.test_registry:GREEN"]) == ("#f00", "#00f", "#0f0")
    assert "blue" in OURS
    assert "tests.test_registry:GREEN" not in OURS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rad", r"unknown color 'rad' \(did you mean 'red'\?\); known: red, wrong, or module:name"),
        ("wrong", "color 'wrong': math:pi is a float, not a str"),
        ("nowhere:X", "cannot import 'nowhere:X'"),
        ("tests.test_registry:NONE", "cannot import 'tests.test_registry:NONE'"),
    ],
)
def test_what_is_no_entry_is_said(name, said):
    with pytest.raises(ConfigError, match=said):
        OURS[name]
    with pytest.raises(ValueError, match=said):
        OURS.check(name)


def test_an_entry_that_cannot_be_loaded_is_named_and_the_others_are_there():
    broken = Registry("color", "builtins:str", "prunefuse_ray.none", {"red": "tests.test_registry:RED", "off": "no:X"})
    assert broken.loadable() == {"red": "#f00"}
    assert list(broken.broken()) == ["off"]
    assert "cannot import 'no:X'" in broken.broken()["off"]


def test_words_that_a_field_takes_besides_are_names_too():
    assert OURS.check("any", ["any", "none"]) == "any"
    with pytest.raises(ValueError, match=r"color 'ani' \(did you mean 'any'\?\); known: any, none, red, wrong"):
        OURS.check("ani", ["any", "none"])


def test_a_registry_imports_nothing_before_it_is_asked():
    Registry("thing", "nowhere:Type", "prunefuse_ray.none", {"a": "nowhere:A"})
    with pytest.raises(ConfigError, match="cannot import"):
        load_object("nowhere:A", "thing 'a'")


def test_a_package_that_fails_in_its_own_way_is_named(tmp_path, monkeypatch):
    points = {"prunefuse_ray.test_colors": {"green": "spilled:GREEN"}}
    install(tmp_path, "spilled", "raise OSError('libpaint.so: no such file')\n", points)
    monkeypatch.syspath_prepend(tmp_path)
    assert "libpaint.so" in OURS.broken()["green"]
    assert "green" not in OURS.loadable()
