"""A run on an S3-compatible store (moto's server on loopback): pool and run directory, kills, and a store that fails.

Every driver starts a Ray of its own, so that a kill takes everything but the store.
"""

import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import yaml

from prunefuse_ray.config.files import to_tree
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.support.runs import tiny

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto[s3], flask and flask-cors are missing"),
]
ROOT = Path(__file__).parent.parent
SHORT = {"selection": {"budgets": [10, 18]}, "scoring": {"actors": (1, 1)}}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "known-to-nobody-but-the-tests"}


class Flaky(ThreadingHTTPServer):
    """Hands requests on to a store, or answers 503 while `away` is set."""

    def __init__(self, store: int) -> None:
        self.store, self.away, self.refused = store, threading.Event(), 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self._body()
        if self.server.away.is_set():
            self.server.refused += 1
            self._send(503, [], b"")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.store, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        data = answer.read()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        if self.command != "HEAD":
            kept = [(k, v) for k, v in kept if k.lower() != "content-length"]
        self._send(answer.status, kept, data)
        connection.close()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, headers: list, data: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(data)))
        elif not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", "0")
        self.end_headers()
        self.wfile.write(data if self.command != "HEAD" else b"")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def store():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    flaky = Flaky(port)
    yield flaky
    flaky.shutdown()
    server.kill()


@pytest.fixture(scope="module")
def bucket(store, tiny_pool):
    """An URI prefix and the query that names the store; the pool lies in the bucket."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ |= CREDENTIALS
    fs = pafs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{store.store}", scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    fs.create_dir("samples")
    for name in ("pool", "test"):
        pafs.copy_files(str(tiny_pool / name), f"samples/{name}", destination_filesystem=fs)
    yield f"?endpoint_override=127.0.0.1:{store.server_port}&scheme=http&region=us-east-1"
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


def configured(tiny_pool, query, name):
    return tiny(
        tiny_pool, "s3://samples/runs" + query, run={"directory": f"s3://samples/runs{query}", "name": name},
        pool={"path": f"s3://samples/pool{query}", "test_path": f"s3://samples/test{query}"}, **SHORT,
    )  # fmt: skip


def start(config, directory, *kill):
    directory.mkdir(exist_ok=True, parents=True)
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(to_tree(config)))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.driver", str(file), *map(str, kill)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip


def drive(config, directory, *kill, expected=0):
    driver = start(config, directory, *kill)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == expected, output[-4000:]
    return output


def outcome(root: Place):
    def tables(pattern):
        return [pq.read_table(f.path, filesystem=root.fs) for f in root.files(recursive=True) if pattern in f.path]

    def rows(pattern):
        return pa.concat_tables([t.select(["id", "score"]) for t in tables(pattern)]).sort_by("id").to_pylist()

    return rows("selected.parquet"), rows("/scores/"), [t["label"].to_pylist() for t in tables("labels.parquet")]


@pytest.mark.slow
def test_a_run_on_s3_survives_kills_and_a_store_that_is_away(store, bucket, tiny_pool, tmp_path):
    undisturbed = start(tiny(tiny_pool, tmp_path / "local", **SHORT), tmp_path / "local")
    config = configured(tiny_pool, bucket, "killed")
    root = Place.at(config.run.directory) / "killed"
    for moment in (("commit", 0, "label"), ("inside", 0, "train")):
        drive(config, tmp_path, *moment, expected=-signal.SIGKILL)
    driver = start(config, tmp_path)
    committed = root / "rounds/000/commits/train.json"
    while driver.poll() is None and not committed.exists():
        time.sleep(0.2)
    store.away.set()
    time.sleep(12)
    store.away.clear()
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, output[-4000:]
    assert store.refused, "the store was away while nobody asked"
    output, _ = undisturbed.communicate(timeout=900)
    assert undisturbed.returncode == 0, output[-4000:]
    assert outcome(root) == outcome(Place.at(str(tmp_path / "local" / "tiny")))
    assert not (root / ".lease").exists()


def test_a_second_driver_on_s3_is_refused(bucket, tiny_pool, tmp_path):
    config = configured(tiny_pool, bucket, "twice")
    held = Ledger(Place.at(config.run.directory) / "twice")
    held.lock()
    output = drive(config, tmp_path, expected=1)
    assert "another process is driving this run" in output
    with pytest.raises(LedgerError):
        Ledger(held.root).lock()
    held.unlock()


@pytest.mark.slow
def test_no_credential_is_in_any_object(bucket):
    """After the runs above: neither key stands in any file of any run."""
    runs = Place.at(f"s3://samples/runs{bucket}")
    files = runs.files(recursive=True)
    assert files
    for file in files:
        data = Place(runs.fs, file.path).read_bytes()
        for secret in CREDENTIALS.values():
            assert secret.encode() not in data, file.path
