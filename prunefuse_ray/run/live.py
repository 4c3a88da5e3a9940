"""The report of a run in the browser while the run goes on: `prunefuse report RUN --serve`.

All of it is read from the run directory, wherever the run is carried out, and nothing is written there.
"""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from typing import Any, ClassVar

from prunefuse_ray.errors import LedgerError
from prunefuse_ray.loopback import POLICY, Answer, LoopbackServer, Refused, as_json
from prunefuse_ray.report.page import render
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.under_way import Looker, UnderWay, words
from prunefuse_ray.run.view import view_run
from prunefuse_ray.storage import Place

LOOKED_AT_FOR = 1.0
"""Seconds for which one look serves all pages that are open."""


class LiveReport(LoopbackServer):
    """Serves a page with the report as it stands after each phase, and above it the phase that is under way."""

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

    def __init__(self, root: Place, *, port: int = 0) -> None:
        """ConfigError where the port cannot be used."""
        self._root, self._looker = root, Looker(root)
        self._lock = threading.Lock()
        self._now, self._looked = UnderWay(state="not begun"), -LOOKED_AT_FOR
        self._page: tuple[str, bytes] = ("", b"")
        super().__init__(port)

    def get(self, path: str, query: dict[str, str]) -> Answer:
        if path not in ("/state", "/report"):
            return super().get(path, query)
        with self._lock:
            try:
                return as_json(self._state()) if path == "/state" else ("text/html; charset=utf-8", self._report())
            except (LedgerError, OSError, ValueError) as error:  # a driver is writing there, or the store is away
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"the run cannot be read just now: {error}") from error

    def _look(self) -> UnderWay:
        if time.monotonic() - self._looked >= LOOKED_AT_FOR:
            self._now, self._looked = self._looker.look(), time.monotonic()
        return self._now

    def _state(self) -> dict[str, Any]:
        now = self._look()
        return {
            "title": self._root.name,
            "state": now.state,
            "words": "" if now.state == "finished" else words(now).removeprefix(f"{now.state}: "),
            "share": now.work.share if now.work and now.state == "running" else None,
            "phases": now.phases,
            "version": self._looker.version,
        }

    def _report(self) -> bytes:
        self._look()
        if self._page[0] != (version := self._looker.version):
            self._page = version, render(view_run(Ledger(self._root))).encode()
        return self._page[1]
