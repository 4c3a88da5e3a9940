"""The parent of a driver that starts Ray itself: it outlives Ray, says what died, and starts the driver again.

It imports neither Ray nor torch. The decisions (`decide`, `Watch.look`) are functions of what was seen; `supervise`
carries them out. What the driver was at it learns from `prunefuse_ray.progress`, all else from /proc.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

from prunefuse_ray import owned
from prunefuse_ray.interrupts import EXIT_CODES, ONE_SIGNAL, handled, meant
from prunefuse_ray.progress import Told
from prunefuse_ray.run.processes import Process, adopt_orphans, descendants, kill_all, reap

COMMANDS = ("run", "sweep", "score")
CHILD = "PRUNEFUSE_SUPERVISED"
"""Variable of a driver's environment by which it knows its supervisor: PIPE,MESSAGES,PROCESS."""
RETRIES = 3
"""Restarts until the driver has said what `run.retries` is."""

LOOKS_EVERY = 1.0
QUIET_START = 30.0
"""Seconds in which no process moves after which a start of Ray is given up. Ray itself waits for ever for a worker
that died while it was starting."""
LONGEST_START = 600.0
QUIET = 300.0
"""The same for a driver at work. A phase that computes, decodes or reads is never quiet."""
STOPPED = 30.0
"""Seconds that a process of Ray's may be stopped by a signal before it is ended, so that Ray replaces it."""
WINDOW, BUSY = 10.0, 0.05
"""A process moves if it uses this share of a core over so many seconds (idle ones of Ray's use 0.01 at most), or is
seen at every second look to want one."""
TIDIES_UP = {signal.SIGINT: 30.0, signal.SIGTERM: 9.0}
"""Seconds that a driver has for an orderly end after a signal; schedulers send SIGKILL 10 s after SIGTERM."""
ENDS_IN = 30.0
"""Seconds from a command's end to that of its process."""


# --- decisions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class End:
    code: int
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Restart:
    reason: str


def decide(code: int, killed_for: str, told: Told, restarts: int, starts_failed: int) -> End | Restart:
    """What follows from the end of a driver.

    Args:
        code: its exit code; negative: the signal that killed it.
        killed_for: why the supervisor ended it; '' where it did not.
        told: the last that it said.
        restarts: how often it was started again so far.
        starts_failed: how many starts of Ray failed before this one, in a row.
    """
    if told.returned is not None:
        return End(code=told.returned)
    if code in (0, 2, 3) and not killed_for:  # argparse answered by itself
        return End(code=code)
    if told.failure == "bug":
        return End(code=1)
    if not told.attached:
        return End(code=1, message=f"the driver did not start ({_signal(code)})")
    by_ray = True
    if told.failure == "ray":
        what = f"Ray failed ({told.message})"
    elif killed_for:
        what = killed_for
    elif code in (1, -signal.SIGABRT):
        what = "Ray ended the driver"  # its C++ library does so, without an exception, where it loses its raylet
    else:
        by_ray, what = False, f"the driver was killed ({_signal(code)}{_KILLERS.get(-code, '')})"
    what += f" {told.doing}"
    if told.starting_ray:
        if starts_failed:
            return End(code=1, message=f"{what}, twice; Ray does not start on this machine")
        return Restart(reason=what)
    if not by_ray and not told.saved:
        return End(code=1, message=f"{what}, before anything was stored; the same command would begin again")
    allowed = RETRIES if told.retries is None else told.retries
    if restarts >= allowed:
        again = f"; given up after {restarts} restarts (run.retries)" if restarts else " (run.retries: 0)"
        return End(code=1, message=f"{what}{again}; the same command resumes")
    return Restart(reason=what)


_KILLERS = {int(signal.SIGKILL): ", which the kernel sends when memory runs out: see dmesg"}


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be done about the driver's processes."""

    end_for: str = ""
    """Why the driver has to be ended, with all its processes; ''."""
    kill: tuple[Process, ...] = ()
    """Processes that are to be ended by themselves."""
    say: str = ""


VITAL = {"gcs_server": "GCS", "raylet": "raylet"}
"""Processes of Ray's without which the driver comes to nothing, by the names of their programs."""


@dataclass(kw_only=True)
class Watch:
    """Looks at the processes of one driver, again and again."""

    driver: int
    _seen: dict[int, str] = field(default_factory=dict)
    _stopped: dict[int, float] = field(default_factory=dict)
    _cpu: dict[int, float] = field(default_factory=dict)
    _wanting: dict[int, int] = field(default_factory=dict)
    _told: Told = field(default_factory=Told)
    _looks: int = 0
    _window: float = 0.0
    _quiet: float = 0.0
    _starting: float = 0.0
    _said_stopped: bool = False

    def look(self, found: Sequence[Process], told: Told, seconds: float) -> Verdict:
        """
        Args:
            found: the driver and all processes below it.
            told: the last that the driver said.
            seconds: since the last look.
        """
        driver = next((p for p in found if p.pid == self.driver and p.state not in "ZX"), None)
        if driver is None or told.returned is not None:
            return Verdict()
        if driver.state == "T":  # a person has stopped it, and will let it go on
            said, self._said_stopped = self._said_stopped, True
            return Verdict(say="" if said else f"the driver (process {self.driver}) was stopped; SIGCONT lets it go on")
        # A driver that has failed shuts Ray down itself: what it said is the cause.
        if (dead := self._died(found)) and not told.starting_ray and told.failure is None:
            return Verdict(end_for=f"Ray's {VITAL[dead]} died")
        self._count(found, told, seconds)
        self._starting = self._starting + seconds if told.starting_ray else 0.0
        limit = QUIET_START if told.starting_ray else max(QUIET, 2 * told.patience)
        if self._starting > LONGEST_START or (self._quiet >= limit and not told.waiting):
            if told.starting_ray:
                return Verdict(end_for=f"Ray did not start within {self._starting:.0f} s")
            return Verdict(end_for=f"nothing moved for {self._quiet:.0f} s")
        return Verdict(kill=self._stopped_for_long(found, seconds))

    def _died(self, found: Sequence[Process]) -> str | None:
        """The name of a vital child of the driver that was seen before and lives no more."""
        alive = {p.pid: p.name for p in found if p.parent == self.driver and p.name in VITAL and p.state not in "ZX"}
        dead = [name for pid, name in self._seen.items() if pid not in alive]
        self._seen |= alive
        return dead[0] if dead else None

    def _stopped_for_long(self, found: Sequence[Process], seconds: float) -> tuple[Process, ...]:
        self._stopped = {p.pid: self._stopped.get(p.pid, 0.0) + seconds for p in found if p.state == "T"}
        return tuple(p for p in found if self._stopped.get(p.pid, 0.0) >= STOPPED)

    def _count(self, found: Sequence[Process], told: Told, seconds: float) -> None:
        """Measure for how long nothing has moved, a WINDOW at a time."""
        for p in found:
            self._wanting[p.pid] = self._wanting.get(p.pid, 0) + (p.state in "RD")
        self._looks, self._window = self._looks + 1, self._window + seconds
        if self._window < WINDOW:
            return
        cpu = {p.pid: p.cpu for p in found}
        moved = (
            any(used - self._cpu.get(pid, 0.0) >= BUSY * self._window for pid, used in cpu.items())
            or any(count * 2 >= self._looks for count in self._wanting.values())
            or told.waiting  # else its end would come after a long standstill
            or (told.doing, told.saved, told.waiting) != (self._told.doing, self._told.saved, self._told.waiting)
        )
        self._quiet = 0.0 if moved else self._quiet + self._window
        self._cpu, self._wanting, self._looks, self._window = cpu, {}, 0, 0.0
        self._told = Told(**vars(told))


# --- carrying them out ----------------------------------------------------------------------------------------------


def wanted(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command gets a supervisor: where it starts a Ray of its own."""
    return (
        sys.platform.startswith("linux")
        and bool(arguments)
        and arguments[0] in COMMANDS
        and not {"-h", "--help"} & set(arguments)
        and not environment.get("RAY_ADDRESS")
    )


def supervise() -> int:
    """Run this process's command line in a process of its own, and again where Ray died under it; its exit code."""
    adopt_orphans()
    signals = _Signals()
    try:
        folder = Folder()
    except OSError as error:
        say(f"error: no folder for temporary files ({error}): Ray needs one; set TMPDIR to a path that can be written")
        return 2
    restarts = starts_failed = 0
    while True:
        driver = Driver(folder)
        code, killed_for = _watch_over(driver, signals)
        kill_all(os.getpid())
        folder.clear()
        if signals.first is not None:
            return _interrupted(signals.first, driver.told, folder)
        decision = decide(code, killed_for, driver.told, restarts, starts_failed)
        starts_failed = starts_failed + 1 if driver.told.starting_ray else 0
        if isinstance(decision, End):
            if decision.message:
                say(f"error: {decision.message}; Ray's log: {folder.log}")
            folder.close(keep=bool(decision.message) or driver.told.failure is not None)
            return decision.code
        restarts += 1
        say(f"{decision.reason}; started again, it goes on where it was (log: {folder.log})")


def say(line: str) -> None:
    """A line on the terminal, where the driver may have left its cursor hidden; nothing where it was closed."""
    with suppress(OSError):
        if sys.stdout.isatty():
            sys.stdout.write("\r\x1b[2K\x1b[?25h")
            sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)


def _interrupted(number: int, told: Told, folder: Folder) -> int:
    folder.close(keep=False)
    if told.returned is not None:  # it has said so itself, or was done when the signal came
        return told.returned
    say(f"interrupted {told.doing}; the same command resumes")
    return EXIT_CODES[signal.Signals(number)]


class _Signals:
    """SIGINT and SIGTERM, and what stands for one, as they come in."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.count, self._since = 0, -math.inf
        for number in handled():
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.first = self.first or meant(number)
        if (now := time.monotonic()) - self._since >= ONE_SIGNAL:
            self._since, self.count = now, self.count + 1


class Folder:
    """A folder of this user's alone: Ray's files of this command, and what its C++ libraries write to fd 2. It lives as
    long as the command, or its driver."""

    def __init__(self) -> None:
        self.path, self.lock = owned.make(owned.short_base())
        self.log = self.path / "ray.log"
        self.log.touch(mode=0o600)

    def clear(self) -> None:
        """Remove what dead Rays left, but for their logs: sockets, spilled objects."""
        for session in (self.path / "ray").glob("session_*"):
            for below in () if session.is_symlink() else session.iterdir():
                if below.name != "logs":
                    shutil.rmtree(below, ignore_errors=True)
                    with suppress(OSError):
                        below.unlink()

    def close(self, *, keep: bool) -> None:
        """Remove it, unless a message names it."""
        if keep:
            (self.path / owned.OWNED).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)


class Driver:
    """The process that carries out the command, in a session of its own: Ctrl-C comes to it from here alone."""

    def __init__(self, folder: Folder) -> None:
        self.told = Told()
        self._rest = b""
        self.pipe, theirs = os.pipe()
        messages = os.dup(2)
        environment = {"RAY_TMPDIR": str(folder.path), **os.environ, CHILD: f"{theirs},{messages},{os.getpid()}"}
        with folder.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env=environment,
                stderr=log,
                pass_fds=(theirs, messages, folder.lock.fileno()),
                start_new_session=True,
            )
        os.close(theirs)
        os.close(messages)

    @property
    def pid(self) -> int:
        return self.process.pid

    def listen(self, timeout: float) -> None:
        """Take in what the driver says, for at most so many seconds or until it has said something."""
        if self.pipe < 0:
            time.sleep(timeout)
            return
        ready, _, _ = select.select([self.pipe], [], [], timeout)
        if not ready:
            return
        if not (data := os.read(self.pipe, 65536)):  # it has ended, or is about to
            os.close(self.pipe)
            self.pipe = -1
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self.told = Told(**json.loads(lines[-1]))

    def hear_out(self) -> None:
        """Take in its last words, once it has ended."""
        while self.pipe >= 0 and select.select([self.pipe], [], [], 0.0)[0]:
            self.listen(0.0)


def _watch_over(driver: Driver, signals: _Signals) -> tuple[int, str]:
    """Until the driver has ended: (exit code, why it was ended from here)."""
    watch = Watch(driver=driver.pid)
    killed_for, deadline, looked = "", math.inf, time.monotonic()
    forwarded = returned = False
    while True:
        driver.listen(0.1)
        ended = reap()
        now = time.monotonic()
        if signals.first is not None and not forwarded:
            forwarded = True
            with suppress(ProcessLookupError):
                os.kill(driver.pid, signals.first)
            deadline = now + (0.0 if driver.told.starting_ray else TIDIES_UP[signal.Signals(signals.first)])
        if driver.told.returned is not None and not returned:
            returned = True
            deadline = min(deadline, now + (2.0 if forwarded else ENDS_IN))
        if now > deadline or signals.count > 1:
            ended |= kill_all(os.getpid())
        if driver.pid in ended:
            driver.hear_out()
            return ended[driver.pid], killed_for
        if now - looked < LOOKS_EVERY or killed_for:
            continue
        # Where this process itself was stopped, or the machine asleep, nothing was looked at meanwhile.
        seconds, looked = min(now - looked, 2 * LOOKS_EVERY), now
        verdict = watch.look(descendants(os.getpid()), driver.told, seconds)
        if verdict.say:
            say(verdict.say)
        for process in verdict.kill:
            say(f"{process.name} (process {process.pid}) was stopped by a signal; ended, so that Ray replaces it")
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if verdict.end_for:
            killed_for = verdict.end_for
            os.kill(driver.pid, signal.SIGKILL)
