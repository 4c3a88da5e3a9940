"""People label a run in the browser: what the page shows, and when the run is started to go on by itself.

What there is to do follows from the ledger and the label files alone (`decide`), so the command can be ended at any
moment, and people may write label files beside it.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from prunefuse_ray import annotation, interrupts
from prunefuse_ray.annotation.page import Desk, PageServer, Status
from prunefuse_ray.config import Config
from prunefuse_ray.config.files import merge, to_tree
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.errors import PruneFuseError
from prunefuse_ray.method.steps import BASELINE, LABEL, REPORT, REQUEST, Step, steps
from prunefuse_ray.report.html import duration
from prunefuse_ray.run.labeling import request_of
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.under_way import Looker, alone, left

LOOKS_EVERY = 0.5
WORK_EVERY = 3.0
"""Seconds between looks at how far the run has come, while people wait."""
SECOND_THOUGHTS = 4.0
"""Seconds after the last label in which it can still be taken back, and after the last change of a file in which that
may still be being written, before the run is started."""
TIDIES_UP = 12.0
"""Seconds in which a run that got a SIGTERM has ended (`run/supervisor.py`)."""

Act = Literal["ask", "wait", "start", "stop", "finish"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What decides."""

    finished: bool
    """The run is complete."""
    asking: bool
    """A round waits for labels."""
    complete: bool
    """... and has what it needs."""
    settled: bool
    """... and nobody has answered, or changed a file, just now."""
    driven: bool
    """A process carries out the run."""
    ended: int | None
    """How the process that was started from here has ended; None where there was none."""
    moved: bool
    """Whether the run has come further since that one was started."""


def decide(seen: Seen) -> Act:
    """What to do next. A run that ended otherwise than by waiting for new labels is not started again and again."""
    if seen.finished:
        return "finish"
    if seen.asking and not (seen.complete and seen.settled):
        return "ask"
    if seen.driven:
        return "wait"
    if seen.ended is not None and not (seen.ended in (0, 3) and seen.moved):
        return "stop"
    return "start"


class Follower:
    """Keeps the page and the run going."""

    def __init__(self, ledger: Ledger, config: Config, page: PageServer, start: Callable[[], subprocess.Popen] | None):
        """
        Args:
            start: starts a process that carries out the run; None: nothing is started from here.
        """
        self.ledger, self.config, self.page, self._start = ledger, config, page, start
        self.child: subprocess.Popen | None = None
        self._looker, self._looked, self._told = Looker(ledger.root), -math.inf, ""
        self._desk: Desk | None = None
        self._ended: int | None = None
        self._started_at: Step | None = None
        self._files: list[tuple[Any, ...]] = []
        self._changed, self._complete, self._faults = 0.0, False, ""
        self._idle = False

    def look(self) -> Act:
        """Look once, and do what follows."""
        if self.child is not None and self.child.poll() is not None:
            self._ended, self.child = self.child.returncode, None
        next_ = self._next()
        asking = next_ is not None and next_.phase == LABEL and self.ledger.committed(Step(next_.round, REQUEST))
        desk = self._desk_of(next_.round) if asking and next_ else None
        act = decide(
            Seen(
                finished=next_ is None,
                asking=desk is not None,
                complete=desk is not None and self._is_complete(desk),
                settled=desk is None or time.monotonic() - max(desk.last_answer, self._changed) > SECOND_THOUGHTS,
                driven=self.child is not None or self.ledger.driven,
                ended=self._ended,
                moved=next_ != self._started_at,
            )
        )
        if act == "start" and self._start is None:
            act = "wait"
        if act == "start":
            assert self._start is not None
            self._ended, self._started_at, self.child = None, next_, self._start()
        self._show(act, desk, next_)
        return act

    def again(self) -> None:
        """Start a run that has stopped again."""
        self._ended = None

    def end(self) -> None:
        """Wait for the process that was started from here. A signal of the terminal, or to all processes of a service,
        has come to it, too; one to this process alone is passed on, or the wait would last as long as the run."""
        if self.child is not None:
            if interrupts.requested() and interrupts.exit_code() == interrupts.EXIT_CODES[signal.SIGTERM]:
                try:
                    self.child.wait(TIDIES_UP)
                except subprocess.TimeoutExpired:
                    self.child.terminate()
            self.child.wait()
        if self._desk is not None:
            self._desk.close()

    def _doing(self) -> str:
        """What it is doing and what is left of that; '' where nobody can tell. Looked up every few seconds:
        an object store is asked for it."""
        if time.monotonic() - self._looked < WORK_EVERY:
            return self._told
        self._looked, self._told = time.monotonic(), ""
        with suppress(OSError, PruneFuseError):
            now = self._looker.look()
            self._idle = self._start is None and now.state in ("not begun", "interrupted", "failed")
            if now.state != "running" or now.step is None:
                self._told = ": taking the labels" if now.state == "waiting" else ": starting"
            else:
                rest = left(now.work, now.seconds) if now.work is not None else None
                self._told = f": {alone(now.step.doing)}"
                self._told += "" if rest is None else f", about {duration(int(rest))} left"
        return self._told

    def _next(self) -> Step | None:
        """The first step that is not recorded."""
        if not self.ledger.exists:
            return Step(-1, "init")
        if self.ledger.complete(self.config):
            return None
        plan = steps(self.config)
        if self.ledger.committed(Step(-1, REPORT)):
            # The run takes them when it is started, and takes back its end.
            self.ledger, plan = Ledger(self.ledger.root), [s for s in plan if s.phase not in (BASELINE, REPORT)]
        return next((step for step in plan if self.ledger.committed(step) is None), Step(-1, REPORT))

    def _desk_of(self, round_: int) -> Desk:
        if self._desk is None or self._desk.request.round != round_:
            if self._desk is not None:
                self._desk.close()
            info = PoolInfo.from_json(self.ledger.read_pool())
            request = request_of(self.config, self.ledger, info, round_)
            self._desk = Desk(request, labels_per_sample=self.config.annotation.labels_per_sample)
            self._files, self._complete = [], False
        return self._desk

    def _is_complete(self, desk: Desk) -> bool:
        """Whether the run would take the labels. The files are read again where one of them has changed."""
        files = [(f.path, f.mtime, f.size) for f in desk.request.place.files()]
        if files == self._files:
            return self._complete
        self._changed, settings = time.monotonic(), self.config.annotation
        desk.read_others()
        decision = annotation.decide(
            desk.request.ids,
            annotation.Files().collect(desk.request),
            labels_per_sample=settings.labels_per_sample,
            accept_partial=False,
        )
        self._files, self._complete = files, isinstance(decision, annotation.Take)
        match decision:
            case annotation.Refuse(faults=faults):
                self._faults = "\n".join(faults)
            case annotation.Wait() if desk.progress("")["done"] == len(desk.asked):
                self._faults = "At least one sample needs a class."
            case _:
                self._faults = ""
        return self._complete

    def _show(self, act: Act, desk: Desk | None, next_: Step | None) -> None:
        match act:
            case "ask":
                assert desk is not None
                self.page.show(desk, Status(state="asking", message=self._faults))
            case "finish":
                where = self.ledger.root.uri
                self.page.show(None, Status(state="finished", message=f"The run is finished: {where}/report.html"))
            case "stop":
                said = f"The run has ended with code {self._ended}; the terminal of the command says why."
                self.page.show(None, Status(state="stopped", message=said))
            case _:
                if desk is not None and self._start is None and not self.ledger.driven:
                    said = "Every sample has its label. Give the run's command again, and it goes on."
                else:
                    said = f"The run is at work{self._doing()}."
                    if self._idle:
                        said = "The run is not at work: give its command (again)."
                    last = len(self.config.selection.budgets) - 1
                    if next_ is None or (next_.phase not in (BASELINE, REPORT) and next_.round < last):
                        said += "\nNew samples appear here by themselves."
                self.page.show(None, Status(state="running", message=said))


def starter(config: Config, folder: Path) -> Callable[[], subprocess.Popen]:
    """Starts `prunefuse run` for this configuration, as a process of its own that outlives this one.

    Args:
        folder: where the configuration is written down, for as long as there may be such a process.
    """
    file = folder / "config.yaml"
    # The page says when a round has its labels, and when second thoughts are over.
    tree = merge(to_tree(config), {"annotation": {"accept_partial": False, "wait": 0.0}})
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    environment = {**os.environ, annotation.ON_PAGE: "1"}
    return lambda: subprocess.Popen(
        [sys.executable, "-m", "prunefuse_ray", "run", "--config", str(file)], env=environment
    )
