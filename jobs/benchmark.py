"""Benchmarks: `python jobs/benchmark.py NAME [--help]`. Each prints a table and, as its last line, one JSON object."""

import importlib
import sys

from prunefuse_ray.benchmarks import NAMES
from prunefuse_ray.distributed.security import secure
from prunefuse_ray.errors import PruneFuseError


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in NAMES:
        print(f"usage: benchmark.py {{{','.join(NAMES)}}} ...", file=sys.stderr)
        return 0 if argv in (["-h"], ["--help"]) else 2
    secure()  # before anything imports Ray
    try:
        return importlib.import_module(f"prunefuse_ray.benchmarks.{argv[0]}").main(argv[1:])
    except PruneFuseError as error:
        print(f"{error.heading}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
