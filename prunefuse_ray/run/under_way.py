"""What a run is doing now, how far that has come and what is left: from its directory alone, so of any machine's run.

What takes long leaves files as it goes on: a scoring pass its scores, a training a checkpoint after every epoch. They
are counted here, and nothing is written.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray import progress
from prunefuse_ray.config import Config
from prunefuse_ray.errors import PruneFuseError
from prunefuse_ray.method.steps import BASELINE, FINETUNE, GROW, INIT, PRETRAIN, REPORT, SCORE, TRAIN, Step, steps
from prunefuse_ray.report.html import duration, quantity, rate
from prunefuse_ray.run.estimate import Costs, PhaseEstimate, estimate
from prunefuse_ray.run.events import EVENTS
from prunefuse_ray.run.growth import seen_info
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from prunefuse_ray.training.pretrainer import stretch

logger = logging.getLogger(__name__)

State = Literal["not begun", "running", "waiting", "interrupted", "failed", "finished"]
STATES: dict[str, State] = {
    "run_waits": "waiting",
    "run_interrupted": "interrupted",
    "run_failed": "failed",
    "run_done": "finished",
}
"""By the last event of a run; it is running after any other."""
CHECKPOINTS = {TRAIN: "training", FINETUNE: "finetuning", PRETRAIN: "pretraining"}
CHECKPOINT = re.compile(r"/epoch-(\d+)-step-\d+(?:/|$)")
LOOKS_EVERY = 1.0
"""Seconds between two looks at a run on a local disk; an object store is asked a fifth as often."""
SILENCE = 120.0
"""Seconds without a sign of life that are worth a word."""


# --- what is said ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Work:
    """How far a phase has come with what it has to compute."""

    share: float
    """Of the whole phase, 0 to 1."""
    samples: int
    """Of the whole phase; of a training every time that one is learned from."""
    macs: int
    """Multiply-accumulates of the whole phase."""
    epochs: int = 0
    """Of the whole phase; 0: it has none."""
    since: tuple[float, float] = (0.0, 0.0)
    """(share, seconds into the phase) from which on its pace is measured."""


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """A run at one moment."""

    state: State
    step: Step | None = None
    """The phase that is under way, or that comes next."""
    phases: tuple[int, int] = (0, 0)
    """(how many are recorded, how many the run has)."""
    message: str = ""
    """Of its last event: what it waits for, why it failed."""
    seconds: float = 0.0
    """Since the phase began, or was taken up again."""
    silent: float = 0.0
    """Seconds since the run has last written something."""
    work: Work | None = None
    rest: float | None = None
    """Seconds of the phases after this one, by what those before them took; None: nothing like them is done yet."""


def pace(work: Work, seconds: float) -> float | None:
    """The share of a phase that is done in a second; None as long as nothing has been measured."""
    share, began = work.since
    return (work.share - share) / (seconds - began) if work.share > share and seconds > began else None


def left(work: Work, seconds: float) -> float | None:
    """Seconds until the phase is done, at its pace so far."""
    found = pace(work, seconds)
    return None if found is None else (1.0 - work.share) / found


def words(now: UnderWay) -> str:
    """In one line: phase, how far, samples per second, MACs, time so far and left."""
    if now.state == "finished":
        return "finished"
    phase = "starting" if now.step is None else alone(now.step.doing)
    if now.state == "not begun":
        return f"not begun; first: {phase}"
    if now.state != "running":
        return f"{now.state}: {now.message}" if now.message else f"{now.state}, {phase}"
    parts, figures, remaining = [_clock(now.seconds)], list[str](), None
    if now.work is not None:
        done = f"{now.work.share:.0%} of {now.work.samples:,} samples"
        if now.work.epochs:
            done = f"epoch {now.work.share * now.work.epochs:.3g} of {now.work.epochs}"
        parts.insert(0, done)
        if (speed := pace(now.work, now.seconds)) is not None:
            figures.append(f"{rate(speed * now.work.samples)} samples/s")
        if now.work.share:
            figures.append(f"{quantity(now.work.share * now.work.macs)} MACs")
        remaining = left(now.work, now.seconds)
    ahead = [] if remaining is None else [_clock(remaining)]
    if now.rest is not None and now.rest >= 1.0 and (remaining is not None or now.work is None):
        ahead.append(f"about {_clock((remaining or 0.0) + now.rest)} of the run")
    parts += [f"left {', '.join(ahead)}"] if ahead else []  # before the figures: a terminal cuts the line's end off
    line = f"{phase}: {', '.join(parts + figures)}"
    return line + (f"; nothing new for {_clock(now.silent)}" if now.silent > SILENCE else "")


def alone(doing: str) -> str:
    """What a run is doing, not in the middle of a sentence."""
    return doing.removeprefix("in ").removeprefix("while ")


def _clock(seconds: float) -> str:
    """As the report has it, but without what flickers: whole seconds."""
    return f"{int(seconds)} s" if seconds < 59 else duration(int(seconds))


def rest_of(
    plan: Mapping[Step, PhaseEstimate], done: Mapping[Step, Mapping[str, Any]], ahead: list[Step]
) -> float | None:
    """Seconds that the phases `ahead` will take, by what those of their kind took: of those that compute, by the MACs
    of a second. None where nothing of a kind that computes is done yet; what people take to label is not counted.

    Args:
        done: the figures of the phases that are recorded.
    """
    total = 0.0
    for step in ahead:
        macs = plan[step].macs if step in plan else 0
        if not macs:
            alike = [m["seconds"] for s, m in done.items() if s.phase == step.phase and "seconds" in m]
            total += sum(alike) / len(alike) if alike else 0.0
            continue
        # A network whose training was never seen trains at the pace, in MACs, of the one that was.
        seen = [m for s, m in done.items() if s.phase == step.phase and m.get("macs")]
        if not seen and step.phase == FINETUNE:
            seen = [m for s, m in done.items() if s.phase == TRAIN and m.get("macs")]
        if not seen:
            return None
        total += macs * sum(m["seconds"] for m in seen) / sum(m["macs"] for m in seen)
    return total


# --- looking --------------------------------------------------------------------------------------------------------


class Looker:
    """Looks at one run again and again. What stays as it is, is read once."""

    def __init__(self, root: Place, *, epochs: Callable[[], float] = lambda: 0.0) -> None:
        """
        Args:
            epochs: how far this process's own training has come, where it carries out the run: between two checkpoints
                nobody else can tell.
        """
        self.root = root
        self._epochs = epochs
        self._opened, self._told = "", 0
        self._ledger, self._config = Ledger(root), Config()
        self._plan: dict[Step, PhaseEstimate] = {}
        self._grown = 0
        """How often the pool had grown when that was planned."""
        self._rows: dict[str, int] = {}
        self._first: tuple[str, tuple[float, float]] = ("", (0.0, 0.0))

    def look(self) -> UnderWay:
        """The run as it is now. LedgerError, OSError: it cannot be read."""
        events = self._events()
        self._told = sum(e["event"] != "phase_started" for e in events)
        opened = next((e["time"] for e in reversed(events) if e["event"] == "run_started"), "")
        if not self._ledger.exists:
            return UnderWay(state="not begun")
        if not self._opened or opened != self._opened:  # the one who goes on may have taken back what was recorded
            self._opened, self._ledger = opened or "-", Ledger(self.root)
            self._config, self._plan = self._ledger.read_config(), {}
        done = {}
        plan = steps(self._config)
        if self._ledger.committed(Step(-1, REPORT)):  # it may have ended without a baseline
            plan = [one for one in plan if one.phase != BASELINE or self._ledger.committed(one)]
        for one in plan:
            if (commit := self._ledger.committed(one)) is None:
                break
            done[one] = commit.metrics
        last = events[-1] if events else {"event": ""}
        step = next((s for s in plan if s not in done), None)
        counts = len(done), len(plan)
        if step is None:
            return UnderWay(state="finished", phases=counts)
        state = STATES.get(last["event"], "running") if events else "not begun"
        if state != "running":
            state = "interrupted" if state == "finished" else state  # rounds were added to it
            return UnderWay(state=state, step=step, phases=counts, message=last.get("message", ""))
        starts = [e for e in events if (e.get("round"), e.get("phase")) == (step.round, step.phase)] or [last]
        began = starts[-1]
        seconds = _since(began["time"])
        silent = min(seconds, _since(last["time"]))
        grown = sum(one.phase == GROW for one in done)
        if Step(-1, INIT) in done and (not self._plan or grown != self._grown):
            self._plan, self._grown = planned(self._config, self._ledger), grown
        work, sign = self._work(step, seconds, began["time"], len(starts) > 1)
        ahead = plan[plan.index(step) + 1 :]
        rest = rest_of(self._plan, done, ahead) if self._plan else None
        silent = max(0.0, min(silent, time.time() - sign))
        return UnderWay(state="running", step=step, phases=counts, seconds=seconds, silent=silent, work=work, rest=rest)

    @property
    def version(self) -> str:
        """Changes whenever the run's report would."""
        return f"{self._opened} {self._told}"

    def _events(self) -> list[dict[str, Any]]:
        place = self.root / EVENTS
        return [json.loads(line) for line in place.read_bytes().splitlines()] if place.exists() else []

    def _work(self, step: Step, seconds: float, began: str, again: bool) -> tuple[Work | None, float]:
        """How far the phase has come; when its newest file was written (seconds since 1970).

        Args:
            again: an earlier start had begun it.
        """
        whole = self._plan.get(step)
        if whole is None or not whole.macs:
            return None, 0.0
        epochs = 0
        if step.phase == SCORE:
            files = self._ledger.place(step, "scores").written()
            share = sum(map(self._rows_of, files)) / max(1, whole.samples)
        else:
            if step.phase == PRETRAIN:
                steps_ = whole.samples // self._config.pretraining.batch_size
                parts = math.ceil(steps_ / stretch(steps_))
            else:
                recipe = self._config.finetuning if step.phase == FINETUNE else self._config.training
                parts = epochs = recipe.epochs
            files = self._ledger.place(step, CHECKPOINTS[step.phase]).files(recursive=True)
            stored = max((int(m[1]) for f in files if (m := CHECKPOINT.search(f.path))), default=0)
            share = max(stored, self._epochs()) / parts
        share, key = min(1.0, share), f"{step} {began}"
        if self._first[0] != key:  # what earlier starts have done says nothing of the pace
            self._first = key, (share, seconds) if share and again else (0.0, 0.0)
        work = Work(share=share, samples=whole.samples, macs=whole.macs, epochs=epochs, since=self._first[1])
        return work, max((f.mtime.timestamp() for f in files if f.mtime), default=0.0)

    def _rows_of(self, file: Any) -> int:
        if file.path not in self._rows:
            try:
                self._rows[file.path] = pq.read_metadata(file.path, filesystem=self.root.fs).num_rows
            except (OSError, pa.ArrowInvalid):  # it is being written, or was removed
                return 0
        return self._rows[file.path]


def planned(config: Config, ledger: Ledger) -> dict[Step, PhaseEstimate]:
    """What each phase has to compute, by the configuration and the networks' sizes."""
    told = ledger.require(Step(-1, INIT)).metrics
    costs = Costs(
        proxy_macs=told["macs_per_sample"]["proxy"],
        dense_macs=told["macs_per_sample"]["dense"],
        parameters=(0, 0),
        scored_per_second=1.0,
        proxy_trained_per_second=1.0,
        dense_trained_per_second=1.0,
        actor_bytes=0,
    )
    return {Step(p.round, p.phase): p for p in estimate(config, seen_info(config, ledger), costs, 1).phases}


def _since(moment: str) -> float:
    """Seconds; clocks of other machines may be ahead."""
    return max(0.0, time.time() - datetime.fromisoformat(moment).timestamp())


@contextmanager
def shown(root: Place, show: Callable[[str], None]) -> Iterator[None]:
    """Inside, `show` is given now and then what this process's run in `root` is doing (`words`)."""
    ended, looker = threading.Event(), Looker(root, epochs=lambda: progress.epochs())

    def work() -> None:
        while not ended.wait(LOOKS_EVERY if root.local else 5 * LOOKS_EVERY):
            try:
                now = looker.look()
            except (OSError, pa.ArrowException, PruneFuseError, ValueError) as error:  # no display may end a run
                logger.debug("the run cannot be shown: %s", error)
                continue
            if not ended.is_set():
                show(words(now) if now.state == "running" else alone(progress.now.doing))

    thread = threading.Thread(target=work, name="display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LOOKS_EVERY)
