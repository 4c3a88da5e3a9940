"""The labeling page over HTTP, on the loopback interface alone (`loopback.py`). What comes from the pool reaches it as
text or as an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from prunefuse_ray.annotation.page.desk import Desk, checked_name, normal_name
from prunefuse_ray.loopback import Answer, LoopbackServer, Refused, as_json, whole
from prunefuse_ray.tasks import TASKS

MOST_SAMPLES = 200
"""Of one batch."""
MOST_CLASSES = 10_000
"""Of one answer."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the page says of the run."""

    state: str = "running"
    """asking, running (nothing to label now), stopped (something has to be put right), finished."""
    message: str = ""


class PageServer(LoopbackServer):
    """Serves the labeling page until it is closed. `show` changes what it is about."""

    static: ClassVar[dict[str, tuple[str, str]]] = {
        "/": ("page.html", "text/html; charset=utf-8"),
        "/page.js": ("page.js", "text/javascript; charset=utf-8"),
        "/icon.svg": ("icon.svg", "image/svg+xml"),
        "/page.css": ("page.css", "text/css; charset=utf-8"),
    }
    package = __package__

    def __init__(self, title: str, *, port: int = 0, again: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            title: of the run.
            port: 0: any that is free.
            again: called when a person wants a stopped run to be started again.
        """
        self.title, self.again = title, again
        self._desk: Desk | None = None
        self._status = Status()
        super().__init__(port)

    @property
    def desk(self) -> Desk | None:
        return self._desk

    def show(self, desk: Desk | None, status: Status) -> None:
        """Put a round (or none) and a status on the page."""
        self._desk = desk
        self._status = status

    # --- the answers to requests ---

    def get(self, path: str, query: dict[str, str]) -> Answer:
        """(media type, body)"""
        if path == "/state":
            return as_json(self._state(normal_name(query.get("name", ""))))
        if path not in ("/batch", "/image"):
            return super().get(path, query)
        desk = self._current(query)
        if path == "/batch":
            count = min(max(whole(query.get("count")), 1), MOST_SAMPLES)
            return as_json({"samples": desk.batch(checked_name(query.get("name")), count)})
        media, data = desk.image(whole(query.get("n")))
        if not media.startswith("image/"):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "an image that cannot be decoded")
        return media, data

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        """(media type, body)"""
        if path == "/again":
            self.again()
            return as_json({})
        desk, name = self._current(body), checked_name(body.get("name"))
        undone: list[dict[str, Any]] = []
        match path:
            case "/answer":
                given = body.get("answers")
                if not isinstance(given, list) or len(given) > MOST_SAMPLES:
                    raise Refused(HTTPStatus.BAD_REQUEST, f"answers: give at most {MOST_SAMPLES} of them")
                desk.answer(name, [_answer(one) for one in given])
            case "/skip":
                desk.skip(name, whole(body.get("n")))
            case "/undo":
                undone = desk.undo(name)
            case _:
                return super().post(path, body)
        return as_json({"undone": undone, **self._state(name)})

    def _current(self, said: dict[str, Any]) -> Desk:
        """The desk that a request is about; a page that shows samples of a round before must not label this one's."""
        desk = self._desk  # once: `show` puts another one there from another thread
        if desk is None or said.get("desk") != _named(desk):
            raise Refused(HTTPStatus.CONFLICT, "the samples are of a round that is over")
        return desk

    def _state(self, name: str) -> dict[str, Any]:
        desk = self._desk
        state: dict[str, Any] = {"title": self.title, **asdict(self._status), "desk": _named(desk)}
        if desk is not None:
            request = desk.request
            state |= {"round": request.round, "classes": list(request.classes), "texts": request.texts}
            state |= {"several": TASKS[request.task].several}
            state |= {"wanted": desk.wanted, **desk.progress(name)}
        return state


def _named(desk: Desk | None) -> str:
    """Tells the page that its samples are of another round, also where that is another command's on its port."""
    return "" if desk is None else f"{desk.request.marker}-{desk.request.round}"


def _answer(one: Any) -> tuple[int, int | list[int] | None]:
    if not isinstance(one, dict) or not {"n", "label"} <= one.keys():
        raise Refused(HTTPStatus.BAD_REQUEST, "an answer has n and label")
    label = one["label"]
    if isinstance(label, list) and len(label) <= MOST_CLASSES:
        return whole(one["n"]), [whole(number) for number in label]
    return whole(one["n"]), None if label is None else whole(label)
