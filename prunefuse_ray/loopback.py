"""Pages over HTTP on the loopback interface alone: the labeling page, the live report.

Who may ask: a browser that was given the token, by the address that the command prints; from then on it stands in a
cookie, and no longer in the address. A browser that the command opens itself is given a token for one visit: every user
of the machine can read the address in the list of processes. Requests whose `Host` is no name of this machine's
loopback are refused (DNS rebinding), and those that change something have to come from the page itself (`Origin`,
JSON). Nothing but the page's own files may run in it (Content-Security-Policy).
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import sys
import threading
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, ClassVar, TypeAlias
from urllib.parse import parse_qs, urlsplit

from prunefuse_ray.errors import ConfigError, LabelError, disk_trouble

logger = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HOSTS = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 1_000_000
"""Of the body of a request."""

Answer: TypeAlias = tuple[str, bytes]
"""(media type, body)"""


class Refused(Exception):
    """A request that is not answered: its HTTP status and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class LoopbackServer:
    """Serves pages until it is closed."""

    static: ClassVar[dict[str, tuple[str, str]]] = {}
    """Path -> (file, media type) of the page's own files, in the folder `static` of `package`."""
    package: ClassVar[str] = ""
    policies: ClassVar[dict[str, str]] = {}
    """Path -> its Content-Security-Policy, where that is not POLICY."""

    def __init__(self, port: int = 0) -> None:
        """ConfigError where the port cannot be used.

        Args:
            port: 0: any that is free.
        """
        self.token = secrets.token_urlsafe(24)
        self._visits: set[str] = set()
        if not 0 <= port < 2**16:
            raise ConfigError(f"--port {port}: give a number from 0 (any that is free) to 65535")
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(f"--port {port}: cannot be used ({error.strerror}); name another") from error
        self._server.page = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def address(self) -> str:
        """With the token: to be given to whoever may see the page."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def open(self) -> None:
        """Open the page in a browser of this machine."""
        visit = secrets.token_urlsafe(24)
        self._visits.add(visit)
        webbrowser.open(f"http://127.0.0.1:{self.port}/?token={visit}")

    def admits(self, token: str) -> bool:
        """Whether who shows this token may see the page; one for a visit is used up by that."""
        if _same(token, self.token):
            return True
        try:
            self._visits.remove(token)
        except KeyError:
            return False
        return True

    @property
    def cookie(self) -> str:
        return f"prunefuse-{self.port}"  # cookies know no ports

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str, query: dict[str, str]) -> Answer:
        """The page's own files; a server answers what else it knows, and asks this for the rest."""
        if path not in self.static:
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")
        name, media = self.static[path]
        return media, files(self.package).joinpath("static", name).read_bytes()

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        raise Refused(HTTPStatus.NOT_FOUND, "no such page")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    page: LoopbackServer

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # browsers hang up at will
            logger.exception("the page failed")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "prunefuse", ""
    timeout = 60.0

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def _get(self) -> Answer | None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        page = self.server.page
        if "token" in query:
            if not self._known() and not page.admits(query["token"]):
                raise Refused(HTTPStatus.FORBIDDEN, "this is not the token of this page")
            self.send_response(HTTPStatus.SEE_OTHER)
            self._headers({
                "Location": "/", "Content-Length": "0",
                "Set-Cookie": f"{page.cookie}={page.token}; Path=/; HttpOnly; SameSite=Strict",
            })  # fmt: skip
            return None
        self._check_cookie()
        return page.get(url.path, query)

    def _post(self) -> Answer:
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

    def _respond(self, work: Callable[[], Answer | None]) -> None:
        try:
            if _hostname(self.headers.get("Host", "")) not in HOSTS:
                raise Refused(HTTPStatus.FORBIDDEN, "open the address that the command printed")
            answer = work()
            if answer is not None:
                self._send(HTTPStatus.OK, *answer)
        except Refused as error:
            self._send(error.status, *as_json({"error": str(error)}))
        except (LabelError, LookupError) as error:
            self._send(HTTPStatus.BAD_REQUEST, *as_json({"error": str(error)}))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            logger.exception("the page failed")
            said = disk_trouble(error) or f"{type(error).__name__}: {error}"
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, *as_json({"error": said}))

    def _known(self) -> bool:
        """Whether the browser has the cookie."""
        page = self.server.page
        # Ports share cookies, and http.cookies gives up at much of what other programs of this machine set.
        pairs = (one.strip().partition("=") for one in self.headers.get("Cookie", "").split(";"))
        return any(name == page.cookie and _same(value, page.token) for name, _, value in pairs)

    def _check_cookie(self) -> None:
        if not self._known():
            raise Refused(HTTPStatus.UNAUTHORIZED, "open the address that the command printed, with its token")

    def _send(self, status: HTTPStatus, media: str, body: bytes) -> None:
        self.send_response(status)
        self._headers({"Content-Type": media, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _headers(self, more: dict[str, str]) -> None:
        policy = self.server.page.policies.get(urlsplit(self.path).path, POLICY)
        for name, value in ({"Content-Security-Policy": policy} | HEADERS | more).items():
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


def as_json(tree: Any) -> Answer:
    return "application/json", json.dumps(tree).encode()


def whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused(HTTPStatus.BAD_REQUEST, "give a whole number") from None
