"""A Label Studio for the tests: a stock server in a process of its own, or one that replays recorded exchanges.

`RECORD_LABEL_STUDIO=tests/label_studio.json make test-labelstudio` records the exchanges anew.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import requests

RECORDING = Path(__file__).parent / "label_studio.json"
BINARY = os.environ.get("LABEL_STUDIO_BIN", ".venv-labelstudio/bin/label-studio")
TOKEN = "a.replayed.token"  # has the form of a personal access token


class Recorder:
    """Keeps every exchange of a client, without tokens."""

    def __init__(self, client):
        self.exchanges: list[dict] = []
        self.base = client.url
        client._session.hooks["response"].append(self.keep)

    def keep(self, answer, *_, **__):
        sent = answer.request.body
        path = answer.request.path_url
        refresh = path.endswith("/token/refresh")
        self.exchanges.append(
            {
                "method": answer.request.method,
                "path": path,
                "sent": None if sent is None or refresh else json.loads(sent),
                "status": answer.status_code,
                "answer": {"access": "access"} if refresh else answer.json(),
            }
        )

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(self.exchanges, indent=1).replace(self.base, "http://recorded") + "\n")


@contextlib.contextmanager
def replay(exchanges):
    """A server that answers exactly the recorded requests, in their order; yields (its address, its complaints)."""
    left, complaints = list(exchanges), []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            expected = left.pop(0) if left else None
            got = {"method": self.command, "path": self.path, "sent": json.loads(body) if body else None}
            if expected and expected["path"].endswith("/token/refresh"):
                got["sent"] = None
            if expected is None or any(got[k] != expected[k] for k in got):
                complaints.append((got, expected))
                self.send_error(500, "not the recorded request")
                return
            data = json.dumps(expected["answer"]).encode()
            self.send_response(expected["status"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", complaints
        if not complaints and left:
            complaints.append(("nothing more", left[0]))
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def real(directory: Path):
    """A stock Label Studio on loopback with SQLite; yields (its address, a personal access token). Or the empty one
    that LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY name: the first start of a new one can take minutes."""
    if "LABEL_STUDIO_URL" in os.environ:
        yield os.environ["LABEL_STUDIO_URL"], os.environ["LABEL_STUDIO_API_KEY"]
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = secrets.token_hex(16)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON", "LABEL_STUDIO"))}
    environment = keep | {"LABEL_STUDIO_BASE_DATA_DIR": str(directory), "DJANGO_DB": "sqlite"}
    log = (directory / "server.log").open("w")
    process = subprocess.Popen(
        [BINARY, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port),
         "--username", "annotator@example.com", "--password", password],
        env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{url}/health", process, directory / "server.log")
        yield url, _personal_token(url, password)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _wait(url, process, log):
    for _ in range(600):
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def _personal_token(url, password) -> str:
    """As a person gets it from the account's page."""
    person = requests.Session()
    person.get(f"{url}/user/login/", timeout=60)
    form = {"email": "annotator@example.com", "password": password, "csrfmiddlewaretoken": person.cookies["csrftoken"]}
    person.post(f"{url}/user/login/", data=form, headers={"Referer": url}, timeout=60)
    headers = {"X-CSRFToken": person.cookies["csrftoken"], "Referer": url}
    made = person.post(f"{url}/api/token/", headers=headers, timeout=60)
    assert urlsplit(made.url).path == "/api/token/"
    return made.json()["token"]


class Person:
    """Someone who works in Label Studio's own interface, by the requests that it makes."""

    def __init__(self, client):
        self.client = client

    def tasks(self, project=None) -> dict[str, dict]:
        project = project or self.client.call("GET", "/projects")["results"][0]["id"]
        found = list(self.client.pages("/tasks", "tasks", project=project, fields="all"))
        by_id = {t["data"]["id"]: t for t in found}
        assert len(by_id) == len(found), "a task was imported twice"
        return by_id

    def label(self, task: dict, choice: str | None, *, skip=False) -> None:
        value = {"from_name": "class", "to_name": "sample", "type": "choices", "value": {"choices": [choice]}}
        sent = {"result": [] if choice is None else [value], "was_cancelled": skip}
        self.client.call("POST", f"/tasks/{task['id']}/annotations/", json=sent)
