"""The labeling page over HTTP, on the loopback interface alone.

Who may ask: a browser that was given the token, by the address that the command prints; from then on it stands in a
cookie, and no longer in the address. Requests whose `Host` is no name of this machine's loopback are refused (DNS
rebinding), and those that change something have to come from the page itself (`Origin`, JSON). Nothing but the page's
own files may run in it (Content-Security-Policy), and what comes from the pool reaches it as text or as an image.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prunefuse_ray.annotation.page.desk import Desk, checked_name
from prunefuse_ray.errors import LabelError, disk_trouble
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HOSTS = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 1_000_000
"""Of the body of a request."""
MOST_SAMPLES = 200
MOST_CLASSES = 10_000
"""Of one answer."""
"""Of one batch."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the page says of the run."""

    state: str = "running"
    """asking, running (nothing to label now), stopped (something has to be put right), finished."""
    message: str = ""


class Refused(Exception):
    """A request that is not answered: its HTTP status and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class PageServer:
    """Serves the page until it is closed. `show` changes what it is about."""

    def __init__(self, title: str, *, port: int = 0, again: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            title: of the run.
            port: 0: any that is free.
            again: called when a person wants a stopped run to be started again.
        """
        self.title, self.again = title, again
        self.token = secrets.token_urlsafe(24)
        self._desk: Desk | None = None
        self._round = 0  # tells the page that its samples are of another desk
        self._status = Status()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.page = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def address(self) -> str:
        """With the token: to be given to whoever may label."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        return f"prunefuse-{self.port}"  # cookies know no ports

    @property
    def desk(self) -> Desk | None:
        return self._desk

    def show(self, desk: Desk | None, status: Status) -> None:
        """Put a round (or none) and a status on the page."""
        if desk is not self._desk:
            self._desk = desk
            self._round += 1
        self._status = status

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # --- the answers to requests ---

    def get(self, path: str, query: dict[str, str]) -> tuple[str, bytes]:
        """(media type, body)"""
        if path in STATIC:
            name, media = STATIC[path]
            return media, files(__package__).joinpath("static", name).read_bytes()
        if path == "/state":
            return _json(self._state(query.get("name", "")))
        if path not in ("/batch", "/image"):
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")
        desk = self._current(query)
        if path == "/batch":
            count = min(max(_whole(query.get("count")), 1), MOST_SAMPLES)
            return _json({"samples": desk.batch(checked_name(query.get("name")), count)})
        media, data = desk.image(_whole(query.get("n")))
        if not media.startswith("image/"):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "an image that cannot be decoded")
        return media, data

    def post(self, path: str, body: dict[str, Any]) -> tuple[str, bytes]:
        """(media type, body)"""
        if path == "/again":
            self.again()
            return _json({})
        desk, name = self._current(body), checked_name(body.get("name"))
        undone: list[dict[str, Any]] = []
        match path:
            case "/answer":
                given = body.get("answers")
                if not isinstance(given, list) or len(given) > MOST_SAMPLES:
                    raise Refused(HTTPStatus.BAD_REQUEST, f"answers: give at most {MOST_SAMPLES} of them")
                desk.answer(name, [_answer(one) for one in given])
            case "/skip":
                desk.skip(name, _whole(body.get("n")))
            case "/undo":
                undone = desk.undo(name)
            case _:
                raise Refused(HTTPStatus.NOT_FOUND, "no such page")
        return _json({"undone": undone, **self._state(name)})

    def _current(self, said: dict[str, Any]) -> Desk:
        """The desk that a request is about; a page that shows samples of a round before must not label this one's."""
        if self._desk is None or str(said.get("desk")) != str(self._round):
            raise Refused(HTTPStatus.CONFLICT, "the samples are of a round that is over")
        return self._desk

    def _state(self, name: str) -> dict[str, Any]:
        desk = self._desk
        state: dict[str, Any] = {"title": self.title, **asdict(self._status), "desk": self._round}
        if desk is not None:
            request = desk.request
            state |= {"round": request.round, "classes": list(request.classes), "texts": request.texts}
            state |= {"several": TASKS[request.task].several}
            state |= {"wanted": desk.wanted, **desk.progress(name)}
        return state


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    page: PageServer

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # browsers hang up at will
            logger.exception("the labeling page failed")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "prunefuse", ""
    timeout = 60.0

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def _get(self) -> tuple[str, bytes] | None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        page = self.server.page
        if "token" in query:
            if not _same(query["token"], page.token):
                raise Refused(HTTPStatus.FORBIDDEN, "this is not the token of this page")
            self.send_response(HTTPStatus.SEE_OTHER)
            self._headers({
                "Location": "/", "Content-Length": "0",
                "Set-Cookie": f"{page.cookie}={page.token}; Path=/; HttpOnly; SameSite=Strict",
            })  # fmt: skip
            return None
        self._check_cookie()
        return page.get(url.path, query)

    def _post(self) -> tuple[str, bytes]:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= MOST_BYTES:
            self.close_connection = True
            if length > 0:  # who is still writing gets no answer from a connection that is closed
                self.rfile.read(min(length, 16 * MOST_BYTES))
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"give at most {MOST_BYTES} bytes")
        content = self.rfile.read(length)
        self._check_cookie()
        if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            raise Refused(HTTPStatus.FORBIDDEN, "this came from another page")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "give JSON")
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "give a JSON object")
        return self.server.page.post(urlsplit(self.path).path, body)

    def _respond(self, work: Callable[[], tuple[str, bytes] | None]) -> None:
        try:
            if _hostname(self.headers.get("Host", "")) not in HOSTS:
                raise Refused(HTTPStatus.FORBIDDEN, "open the address that the command printed")
            answer = work()
            if answer is not None:
                self._send(HTTPStatus.OK, *answer)
        except Refused as error:
            self._send(error.status, *_json({"error": str(error)}))
        except (LabelError, LookupError) as error:
            self._send(HTTPStatus.BAD_REQUEST, *_json({"error": str(error)}))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            logger.exception("the labeling page failed")
            said = disk_trouble(error) or f"{type(error).__name__}: {error}"
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, *_json({"error": said}))

    def _check_cookie(self) -> None:
        page = self.server.page
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(page.cookie)
        except CookieError:
            found = None
        if found is None or not _same(found.value, page.token):
            raise Refused(HTTPStatus.UNAUTHORIZED, "open the address that the command printed, with its token")

    def _send(self, status: HTTPStatus, media: str, body: bytes) -> None:
        self.send_response(status)
        self._headers({"Content-Type": media, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _headers(self, more: dict[str, str]) -> None:
        for name, value in (HEADERS | more).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """No line a request: the first one's has the token in it."""


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _json(tree: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(tree).encode()


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise Refused(HTTPStatus.BAD_REQUEST, "give a whole number") from None


def _answer(one: Any) -> tuple[int, int | list[int] | None]:
    if not isinstance(one, dict) or not {"n", "label"} <= one.keys():
        raise Refused(HTTPStatus.BAD_REQUEST, "an answer has n and label")
    label = one["label"]
    if isinstance(label, list) and len(label) <= MOST_CLASSES:
        return _whole(one["n"]), [_whole(number) for number in label]
    return _whole(one["n"]), None if label is None else _whole(label)
