"""Path patterns as the shell has them."""

import subprocess

import pytest

from prunefuse_ray.data.patterns import is_pattern, matches_any_depth, split
from prunefuse_ray.storage import Place

NAMES = [
    "a.png", "b1.png", "b2.png", "b^.png", "b!.png", "x/a.png", "x/y/a.png", "x/y/z/b1.png", "xy/c.png", "[v2].png",
]  # fmt: skip


@pytest.fixture
def filled(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.png", "b?.png", "b[0-9].png", "b[!0-9].png", "b[^0-9].png", "*/*.png", "x*/*.png", "x/*/a.png"),
        *("**/*.png", "x/**/*.png", "**/b1.png", "x/**/z/*.png", "**/y/*.png", "[[]v2].png", "x/y/z/../*.png"),
    ],
)
def test_a_pattern_names_what_the_shell_says(filled, pattern):
    script = f"shopt -s globstar nullglob; cd '{filled}'; printf '%s\\n' {pattern}"
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    pattern = "x/y/*.png" if ".." in pattern else pattern  # paths are made absolute before
    said = ["x/y/a.png"] if said == ["x/y/z/../a.png"] else said
    ours = [n for n in NAMES if matches_any_depth(n.split("/"), pattern.split("/"))]
    assert sorted(ours) == sorted(said) != []


def test_what_is_called_like_a_pattern_is_meant_itself(filled):
    assert not is_pattern(Place.at(str(filled / "[v2].png")))
    assert is_pattern(Place.at(str(filled / "[v3].png")))
    root, segments = split(Place.at(str(filled / "x*" / "**" / "a.png")))
    assert (root.path, segments) == (str(filled), ("x*", "**", "a.png"))
