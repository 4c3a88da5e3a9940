"""An S3 store of the tests' own (moto), behind a server that can be told to misbehave."""

import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "known-to-nobody-but-the-tests"}

EXPIRED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
    b"<Message>The provided token has expired.</Message></Error>"
)


class Flaky(ThreadingHTTPServer):
    """Hands requests on to a store, one at a time, and misbehaves while `fault` is set.

    Faults: a status (500, 503, 429, 403 as of expired credentials), 'hang' (no answer for `hang` seconds), 'cut' (half
    of the body, then the end), 'half' (an upload is stored, and the connection closed without an answer).
    """

    daemon_threads = True

    def __init__(self, store: int) -> None:
        self.store = store
        self.fault: int | str | None = None
        self.every = 1
        """Only every so manieth request meets the fault."""
        self.hang = 15.0
        self.requests = self.refused = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @contextmanager
    def misbehaving(self, fault: int | str, every: int = 1) -> Iterator[None]:
        self.fault, self.every = fault, every
        try:
            yield
        finally:
            self.fault = None

    def lifted(self, seconds: float) -> None:
        """The next fault is lifted so long after a request has met it, and not before: making a client takes time."""
        met = self.refused

        def lift() -> None:
            while self.refused == met:
                time.sleep(0.01)
            time.sleep(seconds)
            self.fault = None

        threading.Thread(target=lift, daemon=True).start()

    @property
    def query(self) -> str:
        return f"?endpoint_override=127.0.0.1:{self.server_port}&scheme=http&region=us-east-1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self._body()
        self.server.requests += 1
        fault = self.server.fault if self.server.requests % self.server.every == 0 else None
        if fault is not None:
            self.server.refused += 1
        if isinstance(fault, int):
            self._send(fault, [("Retry-After", "1")] if fault == 429 else [], EXPIRED if fault == 403 else b"")
            return
        if fault == "hang":
            time.sleep(self.server.hang)
            self.close_connection = True
            return
        with self.server.lock:
            connection = http.client.HTTPConnection("127.0.0.1", self.server.store, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
        if fault == "half":
            self.close_connection = True
            return
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        if self.command != "HEAD":
            kept = [(k, v) for k, v in kept if k.lower() != "content-length"]
        self._send(answer.status, kept, data, cut=fault == "cut")

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, headers: list, data: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(data)))
        elif not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def log_message(self, *_) -> None:
        pass


SERVER = """
import time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(10**9)
"""
"""Takes a free port by itself: one that was looked for beforehand may be another's by the time it is up."""


@contextmanager
def s3_server(bucket: str = "samples") -> Iterator[Flaky]:
    """A store with a bucket; the credentials stand in the environment meanwhile."""
    import pyarrow.fs as pafs

    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ |= CREDENTIALS
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    fs = pafs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    fs.create_dir(bucket)
    flaky = Flaky(port)
    try:
        yield flaky
    finally:
        flaky.shutdown()
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def runs_in(kind: str, folder: Path) -> Iterator[str]:
    """Where runs go, as their directory is named on the command line: in a folder, or on a store of its own (`s3`)."""
    if kind == "folder":
        yield str(folder / "runs")
        return
    with s3_server() as server:
        yield f"s3://samples/runs{server.query}"
