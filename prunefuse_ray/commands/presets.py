"""`prunefuse presets`: the configurations that come with the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from prunefuse_ray.config.files import PRESETS, presets, read_tree


def main(argv: Sequence[str]) -> int:
    """The configurations that come with the package, a line each: run one with --preset NAME."""
    parser = argparse.ArgumentParser(prog="prunefuse presets", description=main.__doc__)
    parser.parse_args(list(argv))
    found = presets()
    width = max(map(len, found))
    for name, line in found.items():
        command = "sweep" if "base" in read_tree(PRESETS / f"{name}.yaml") else "run"
        print(f"prunefuse {command:5} --preset {name:{width}}  {line}")
    return 0
