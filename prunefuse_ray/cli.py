"""The command line: finds the command, turns errors for the user into a message and an exit code."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Sequence

import prunefuse_ray
from prunefuse_ray.errors import PruneFuseError, disk_trouble

COMMANDS = ("run", "sweep", "score", "inspect", "plan", "report", "export", "networks", "list", "presets")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 something to put right, 3 samples wait for labels (said in one
    message)."""
    # At its end Python collects garbage among half a million objects of imported libraries, for two seconds.
    atexit.register(gc.freeze)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # code of one's own, `module:name`, is found as with `python -m`
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"prunefuse_ray {prunefuse_ray.__version__}")
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: prunefuse {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        # Imported only when asked for: reading a report must not import Ray.
        command = importlib.import_module(f"prunefuse_ray.commands.{arguments[0]}")
        return command.main(arguments[1:])
    except PruneFuseError as error:
        print(f"{error.heading}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if (said := disk_trouble(error)) is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return PruneFuseError.exit_code
