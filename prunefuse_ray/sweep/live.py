"""The page of a sweep while its trials go on: `prunefuse report SWEEP --serve` (`run/live.py`)."""

from __future__ import annotations

from collections import Counter

from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.live import Now
from prunefuse_ray.run.recorded import read_recorded
from prunefuse_ray.run.under_way import Looker, UnderWay, words
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import Sweep
from prunefuse_ray.sweep.page import render_sweep
from prunefuse_ray.sweep.results import (
    COMPLETE,
    FAILED,
    STOPPED,
    UNFINISHED,
    Outcome,
    expected,
    outcome,
    read_sweep,
    recorded_trials,
)

SHOWN = 4
"""Trials that are under way of which the page tells, at most."""


class WatchedSweep:
    """A sweep in its directory."""

    kind = "sweep"

    def __init__(self, root: Place) -> None:
        self.root = root
        self._ended: dict[str, Outcome] = {}
        self._lookers: dict[str, Looker] = {}

    def look(self) -> Now:
        """The sweep as it is now: how its trials ended, and what those that have begun are doing."""
        sweep = read_recorded(self.root / "sweep.yaml", Sweep)
        names = [t.name for t in recorded_trials(sweep, self.root)]
        whole = expected(sweep, self.root, len(names))
        found = {name: self._ended.get(name) or outcome(self.root, name) for name in names}
        # Failed ones are tried again by the next command, and a person may go on with one that was stopped.
        self._ended = {n: o for n, o in found.items() if o.status == COMPLETE}
        open_ = [n for n in names if found[n].status == UNFINISHED and Ledger(self.root / "trials" / n).exists]
        self._lookers = {n: self._lookers.get(n) or Looker(self.root / "trials" / n) for n in open_}
        now = {name: looker.look() for name, looker in self._lookers.items()}
        running = [f"{name}: {words(one)}" for name, one in now.items() if one.state == "running"]
        count = Counter(o.status for o in found.values())
        count[UNFINISHED] += whole - len(names)
        ended = whole - count[UNFINISHED]
        counts = f"{count[COMPLETE]} of {whole} trials complete"
        counts += "".join(f", {count[status]} {status}" for status in (STOPPED, FAILED) if count[status])
        return Now(
            state=_state(now, count[UNFINISHED]),
            words="; ".join(running[:SHOWN]) + (f"; and {more} more" if (more := len(running) - SHOWN) > 0 else ""),
            counts=counts,
            share=ended / whole if count[UNFINISHED] else None,
            version=" ".join([counts, *(f"{name} {looker.version}" for name, looker in self._lookers.items())]),
        )

    def render(self) -> str:
        return render_sweep(read_sweep(self.root), linked=False)  # only the report is served


def _state(now: dict[str, UnderWay], unfinished: int) -> str:
    states = {one.state for one in now.values()}
    if not unfinished:
        return "finished"
    return next((s for s in ("running", "waiting", "failed", "interrupted") if s in states), "between trials")
