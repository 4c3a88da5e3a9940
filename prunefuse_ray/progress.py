"""What this process is doing, for the messages about its end and for the supervisor that may watch over it.

Kept in memory; where a supervisor started this process, it is also sent there as lines of JSON: whenever something
changes, and every BEAT seconds.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

BEAT = 2.0
"""Seconds between two lines to the supervisor where nothing changes."""


@dataclass
class Told:
    """What a process tells of itself."""

    attached: bool = False
    """It has come so far as to tell anything."""
    doing: str = "while starting"
    """For people, in the middle of a sentence: 'in round 1, scoring'."""
    starting_ray: bool = False
    waiting: bool = False
    """For people's labels or for another process: nothing has to move meanwhile."""
    saved: int = 0
    """Commits and checkpoints so far: what another start need not do again."""
    retries: int | None = None
    """`run.retries`, once the configuration has been read."""
    patience: float = 0.0
    """Seconds for which a request to a store may be tried again, in which nothing moves."""
    returned: int | None = None
    """The exit code of the command, which has ended; this process has only to tidy up."""
    failure: str | None = None
    """How the command failed otherwise: 'ray', or 'bug' with its traceback printed."""
    message: str = ""
    """What failed, in a line."""


now = Told()


class _Pipe:
    fd: int | None = None
    lock = threading.Lock()


def report_to(fd: int) -> None:
    """Send what changes to this pipe from now on."""
    os.set_inheritable(fd, False)  # no process of Ray's may keep it open
    _Pipe.fd = fd
    tell(attached=True)
    threading.Thread(target=_beat, name="progress", daemon=True).start()


def tell(**fields: object) -> None:
    """Change fields of `now`."""
    for name, value in fields.items():
        setattr(now, name, value)
    _send()


def supervised() -> bool:
    """Whether a supervisor started this process: it ends Ray together with it."""
    return _Pipe.fd is not None


class _Training:
    epochs = 0.0


def trained(epochs: float) -> None:
    """A training inside this process has come so far; 0 once it has ended. For displays: no supervisor needs it."""
    _Training.epochs = epochs


def epochs() -> float:
    return _Training.epochs


def saved() -> None:
    """Something was stored from which another start would go on."""
    tell(saved=now.saved + 1)


def temporary() -> str | None:
    """The directory for temporary files of processes that may be killed: the folder of a command that started Ray
    itself, which is removed whatever becomes of them; else None, the machine's own."""
    folder = os.environ.get("RAY_TMPDIR")
    return folder if folder and os.path.isdir(folder) else None


class _Waited:
    seconds = 0.0


def waited() -> float:
    """Seconds that this process has spent in `waiting` so far."""
    return _Waited.seconds


@contextmanager
def waiting() -> Iterator[None]:
    """Inside, this process waits for somebody, and nothing has to move."""
    started = time.monotonic()
    tell(waiting=True)
    try:
        yield
    finally:
        _Waited.seconds += time.monotonic() - started
        tell(waiting=False)


def _send() -> None:
    if _Pipe.fd is not None:
        line = (json.dumps(asdict(now)) + "\n").encode()
        with _Pipe.lock, suppress(OSError):  # the supervisor is gone, and this process is about to be told so
            os.write(_Pipe.fd, line)


def _beat() -> None:
    while not threading.Event().wait(BEAT):
        _send()
