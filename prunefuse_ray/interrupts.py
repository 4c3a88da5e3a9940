"""Ctrl-C, SIGTERM and a terminal that was closed: one clear end, at a moment when nothing is lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def handled() -> tuple[signal.Signals, ...]:
    """The signals that end a command. A closed terminal (SIGHUP) ends it as a SIGTERM does, unless it is to outlast
    that (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (*EXIT_CODES, *(() if ignored else (signal.SIGHUP,)))


def meant(number: int) -> int:
    """The one of EXIT_CODES that a signal stands for."""
    return signal.SIGTERM if number == signal.SIGHUP else number


class Interrupted(KeyboardInterrupt):
    """A person or a scheduler wants this process to end. Not an error: nothing that is recorded is touched.

    A KeyboardInterrupt, since Ray's C++ library knows no other exception of a signal: while it waits it would print a
    traceback. What it raises then is a plain one; `exit_code` knows which signal it was.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


ONE_SIGNAL = 1.0
"""Seconds within which signals are one: service managers, `timeout` and the supervisor each send it for themselves."""


class _State:
    installed = False
    requested: int | None = None
    since = 0.0
    deferred = 0


def install() -> None:
    """Let the signals raise Interrupted in the main thread; in another thread it does nothing."""
    if threading.current_thread() is threading.main_thread():
        _State.installed = True
        for number in handled():
            signal.signal(number, _handle)


def reinstall() -> None:
    """Take the signals back from Ray, whose start takes SIGTERM; where they were not taken before, nothing happens."""
    if _State.installed:
        install()


def _handle(number: int, _: FrameType | None) -> None:
    again, number, now = _State.requested is not None, meant(number), time.monotonic()
    if again and now - _State.since < ONE_SIGNAL:
        return
    _State.requested, _State.since = number, now
    if again or not _State.deferred:
        raise Interrupted(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a first signal waits for the next `check`, where the work can be put down whole."""
    _State.deferred += 1
    try:
        yield
    finally:
        _State.deferred -= 1


def exit_code() -> int:
    """Of a process that was interrupted."""
    return EXIT_CODES[signal.Signals(_State.requested or signal.SIGINT)]


def requested() -> bool:
    """Whether a signal waits."""
    return _State.requested is not None


def check() -> None:
    """Raises Interrupted where a signal waits."""
    if _State.requested is not None:
        raise Interrupted(_State.requested)
