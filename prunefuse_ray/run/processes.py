"""The processes below this one, as Linux shows them in /proc; without Ray and its psutil."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Process:
    pid: int
    parent: int
    name: str
    """Of its program, at most 15 characters; Ray's workers bear what they do: ray::IDLE."""
    state: str
    """R running, S sleeping, T stopped by a signal, Z dead and not yet reaped; see proc(5)."""
    cpu: float
    """Seconds of CPU so far."""


def descendants(root: int) -> list[Process]:
    """All processes below `root`, parents before their children."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := _read(int(entry))) is not None:
            children.setdefault(found.parent, []).append(found)
    below, todo = [], [root]
    while todo:
        mine = children.get(todo.pop(0), [])
        below += mine
        todo += [p.pid for p in mine]
    return below


def _read(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:  # it has just ended
        return None
    start, end = text.index("("), text.rindex(")")
    rest = text[end + 2 :].split()
    return Process(
        pid=pid,
        parent=int(rest[1]),
        name=text[start + 1 : end],
        state=rest[0],
        cpu=(int(rest[11]) + int(rest[12])) / _TICKS,
    )


def adopt_orphans() -> None:
    """Let processes whose parents die below this one become its children, so that none is lost sight of."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int) -> None:
    """Let this process get a SIGTERM when its parent `parent` dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before this was asked for
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def kill_all(root: int, within: float = 10.0) -> dict[int, int]:
    """SIGKILL every process below `root`, and those that they start meanwhile, until none is left or (where the kernel
    holds one) the seconds are over; returns what `reap` does."""
    ended, deadline = reap(), time.monotonic() + within
    while (alive := [p for p in descendants(root) if p.state != "Z"]) and time.monotonic() < deadline:
        for process in alive:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)
        ended |= reap()
    return ended | reap()


def reap() -> dict[int, int]:
    """Process -> exit code (negative: the signal) of the children that have ended."""
    ended = {}
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def machine() -> str:
    """What tells this machine since it was started, and this space of process numbers in it, from all others."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            rest = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if rest[0] in "ZX" else int(rest[19])
