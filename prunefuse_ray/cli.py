"""The command line: finds the command, turns errors for the user into a message and an exit code."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import prunefuse_ray
from prunefuse_ray import interrupts, progress
from prunefuse_ray.commands import COMMANDS, EXIT_CODES, GROUPS
from prunefuse_ray.errors import PruneFuseError, disk_trouble, lost_by_ray, near, store_trouble
from prunefuse_ray.run import supervisor
from prunefuse_ray.run.processes import end_with_parent


def entry(argv: Sequence[str] | None = None) -> int:
    """`main` as the command line: signals end it in an orderly way, and where it starts Ray itself, a supervisor goes
    on with it when Ray dies."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 ends no run
    arguments = list(sys.argv[1:] if argv is None else argv)
    supervised = os.environ.pop(supervisor.CHILD, None)  # no process below this one may take it for its own
    if supervised is None and supervisor.wanted(arguments, os.environ):
        return supervisor.supervise()
    interrupts.install()
    if supervised is not None:
        _attach(*map(int, supervised.split(",")))
        atexit.register(_leave)  # first registered, so last called
    try:
        code = main(arguments)
    except KeyboardInterrupt:
        print(f"interrupted {progress.now.doing}; the same command resumes", file=sys.stderr, flush=True)
        code = interrupts.exit_code()
    except SystemExit as ended:
        if ended.code not in (None, 0, 2):  # not argparse's: code of one's own ends the command, and would do so again
            progress.tell(failure="bug", message=str(ended.code))
        raise
    except Exception as error:
        if supervised is None:
            raise
        return _failed(error)
    progress.tell(returned=code)
    if supervised is not None and (ray := sys.modules.get("ray")) is not None:
        atexit.unregister(ray.shutdown)  # seconds; the supervisor ends Ray's processes
        node = ray._private.worker._global_node
        if node is not None and node.is_head():
            node.destroy_external_storage()  # what was spilled may lie outside the supervisor's folder
    return code


def _leave() -> None:
    """The last thing that a driver does whose command has returned: without the end of its libraries' threads."""
    if progress.now.returned is None:
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(progress.now.returned)


def _attach(pipe: int, messages: int, parent: int) -> None:
    """Report to the supervisor; what Python prints goes where the supervisor's messages go, and what C++ libraries
    write to fd 2 does not."""
    end_with_parent(parent)
    os.set_inheritable(messages, False)
    sys.stderr = open(messages, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115 (as long as the process)
    progress.report_to(pipe)


def _failed(error: Exception) -> int:
    """Tell the supervisor; a traceback is for bugs alone, and otherwise goes to the log."""
    if (lost := lost_by_ray(error)) is None and not progress.now.starting_ray:
        progress.tell(failure="bug", message=str(error))
        traceback.print_exception(error)
    else:
        with os.fdopen(os.dup(2), "w") as log:
            traceback.print_exception(error, file=log)
        first = str(lost or error).strip().partition("\n")[0]
        progress.tell(failure="ray", message=f"{type(lost or error).__name__}: {first}")
    return 1


def _reader_gone() -> bool:
    """Whether nobody reads the output any more (`| head`); then nothing more is written there."""
    look = select.poll()
    look.register(sys.stdout.fileno(), select.POLLOUT)
    gone = any(event & select.POLLERR for _, event in look.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def overview() -> str:
    """The help of `prunefuse` itself."""
    lines = [
        "usage: prunefuse COMMAND ...",
        "",
        "Label-efficient training: a pruned proxy selects the samples worth labeling.",
    ]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:12}{about}" for name, about in commands.items())]
    lines += ["", "Exit codes:", *(f"  {code:<12}{meaning}" for code, meaning in EXIT_CODES.items())]
    return "\n".join(
        [*lines, "", "prunefuse COMMAND --help shows a command's options; prunefuse --version the version."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 something to put right, 3 samples wait for labels (said in one
    message)."""
    # At its end Python collects garbage among half a million objects of imported libraries, for two seconds.
    atexit.register(gc.freeze)
    try:
        here = os.getcwd()
    except FileNotFoundError:
        print("error: the working directory is gone: change to another one", file=sys.stderr)
        return 2
    if here not in sys.path:
        sys.path.append(here)  # code of one's own, `module:name`, is found as with `python -m`
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"prunefuse_ray {prunefuse_ray.__version__}")
        return 0
    if arguments in (["-h"], ["--help"], ["help"]):
        print(overview())
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        unknown = f"'{arguments[0]}' is no command{near(arguments[0], COMMANDS)}\n" if arguments else ""
        print(f"{unknown}usage: prunefuse COMMAND ...; prunefuse --help lists the commands", file=sys.stderr)
        return 2
    try:
        # Imported only when asked for: reading a report must not import Ray.
        command = importlib.import_module(f"prunefuse_ray.commands.{arguments[0]}")
        code: int = command.main(arguments[1:])
        sys.stdout.flush()
        return code
    except PruneFuseError as error:
        print(f"{error.heading}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not _reader_gone():
            raise
        return 141
    except Exception as error:
        if (said := disk_trouble(error) or store_trouble(error)) is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return PruneFuseError.exit_code
