"""A store with the part of Google Cloud Storage's XML API that conditional writes take: generations, by which a write
may say what it replaces."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Objects:
    """What lies in the store, and how it is reached."""

    def __init__(self, port: int) -> None:
        self.lock = threading.Lock()
        self.contents: dict[str, tuple[bytes, int]] = {}
        """path -> (content, generation)"""
        self.generation = 100
        self.options: dict[str, Any] = {
            "service_account_key": json.dumps(
                {
                    "gcs_base_url": f"http://127.0.0.1:{port}",
                    "disable_oauth": True,
                    "client_email": "",
                    "private_key": "",
                    "private_key_id": "",
                }
            ),
            "client_options": {"allow_http": True},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        wanted, objects = self.headers.get("x-goog-if-generation-match"), self.objects
        with objects.lock:
            there = objects.contents.get(self.path, (b"", 0))
            if wanted is not None and int(wanted) != there[1]:
                return self._answer(412)
            objects.generation += 1
            objects.contents[self.path] = there = content, objects.generation
        self._answer(200, there)

    def do_HEAD(self) -> None:
        there = self.objects.contents.get(self.path)
        self._answer(404 if there is None else 200, there)

    def _answer(self, status: int, there: tuple[bytes, int] | None = None) -> None:
        self.send_response(status)
        if there is not None:
            self.send_header("ETag", f'"{hashlib.sha256(there[0]).hexdigest()}"')
            self.send_header("x-goog-generation", str(there[1]))
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.send_header("Content-Length", str(len(there[0]) if there and self.command == "HEAD" else 0))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def gcs_server() -> Iterator[Objects]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    _Handler.objects = Objects(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield _Handler.objects
    finally:
        server.shutdown()
        server.server_close()
