"""A report in the browser while what it is about goes on: `prunefuse report RUN --serve`.

All of it is read from the directory, wherever the run is carried out, and nothing is written there.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import ClassVar, Protocol

from prunefuse_ray.errors import LedgerError
from prunefuse_ray.loopback import POLICY, Answer, LoopbackServer, Refused, as_json
from prunefuse_ray.report.page import render
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.under_way import Looker, words
from prunefuse_ray.run.view import view_run
from prunefuse_ray.storage import Place

LOOKED_AT_FOR = 1.0
"""Seconds for which one look serves all pages that are open, at least."""
SHARE_OF_LOOKING = 0.1
"""Of the time: a directory that takes long to look at is looked at less often."""


@dataclass(frozen=True, kw_only=True)
class Now:
    """What stands above a report."""

    state: str
    words: str
    """What is under way, and what is left of it."""
    counts: str
    """How much of all is done."""
    share: float | None
    """Of what is under way, 0 to 1; None: nothing that can be measured."""
    version: str
    """Changes whenever the report would."""


class Watched(Protocol):
    """What a page can be about."""

    root: Place
    kind: str

    def look(self) -> Now:
        """LedgerError, OSError, ValueError: it cannot be read just now."""

    def render(self) -> str:
        """Its report."""


class WatchedRun:
    """A run in its directory."""

    kind = "run"

    def __init__(self, root: Place) -> None:
        self.root, self._looker = root, Looker(root)

    def look(self) -> Now:
        now = self._looker.look()
        done, all_ = now.phases
        return Now(
            state=now.state,
            words="" if now.state == "finished" else words(now).removeprefix(f"{now.state}: "),
            counts=f"{done} of {all_} phases",
            share=now.work.share if now.work and now.state == "running" else None,
            version=self._looker.version,
        )

    def render(self) -> str:
        return render(view_run(Ledger(self.root)))


class LiveReport(LoopbackServer):
    """Serves a page with the report as it stands, and above it what is under way."""

    static: ClassVar[dict[str, tuple[str, str]]] = {
        "/": ("live.html", "text/html; charset=utf-8"),
        "/live.js": ("live.js", "text/javascript; charset=utf-8"),
        "/live.css": ("live.css", "text/css; charset=utf-8"),
    }
    package = "prunefuse_ray.report"
    policies: ClassVar[dict[str, str]] = {
        "/": f"{POLICY}; frame-src 'self'",
        "/report": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'",
    }

    def __init__(self, watched: Watched, *, port: int = 0) -> None:
        """ConfigError where the port cannot be used."""
        self._watched = watched
        self._lock = threading.Lock()
        self._now: Now | None = None
        self._next_look = 0.0
        self._page: tuple[str, bytes] = ("", b"")
        super().__init__(port)

    def get(self, path: str, query: dict[str, str]) -> Answer:
        if path not in ("/state", "/report"):
            return super().get(path, query)
        with self._lock:
            try:
                now = self._look()
                if path == "/state":
                    return as_json({"title": self._watched.root.name, **asdict(now)})
                return "text/html; charset=utf-8", self._report(now)
            except (LedgerError, OSError, ValueError) as error:  # a driver is writing there, or the store is away
                said = f"the {self._watched.kind} cannot be read just now: {error}"
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, said) from error

    def _look(self) -> Now:
        began = time.monotonic()
        if self._now is None or began >= self._next_look:
            self._now = self._watched.look()
            self._rest(began)
        return self._now

    def _report(self, now: Now) -> bytes:
        if self._page[0] != now.version:
            began = time.monotonic()
            self._page = now.version, self._watched.render().encode()
            self._rest(began)
        return self._page[1]

    def _rest(self, began: float) -> None:
        ended = time.monotonic()
        self._next_look = ended + max(LOOKED_AT_FOR, (ended - began) / SHARE_OF_LOOKING)
