"""`prunefuse presets`: the configurations that come with the package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from prunefuse_ray.config.files import PRESETS, presets, read_tree


def main(argv: Sequence[str]) -> int:
    """The configurations that come with the package, a line each: run one with --preset NAME."""
    parser = argparse.ArgumentParser(prog="prunefuse presets", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON: a list of objects")
    arguments = parser.parse_args(list(argv))
    found = presets()
    commands = {name: "sweep" if "base" in read_tree(PRESETS / f"{name}.yaml") else "run" for name in found}
    if arguments.json:
        print(json.dumps([{"name": n, "command": commands[n], "about": line} for n, line in found.items()]))
        return 0
    width = max(map(len, found))
    for name, line in found.items():
        print(f"prunefuse {commands[name]:5} --preset {name:{width}}  {line}")
    return 0
