"""The live page of a run: what it shows while phases are recorded, who may see it, and that nothing is written."""

import json
import shutil
import signal
import subprocess
import sys

import pyarrow.fs as pafs
import pytest

from prunefuse_ray.commands.report import main
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.live import LiveReport, WatchedRun
from prunefuse_ray.schemas import CLASS, doubts_schema
from prunefuse_ray.storage import Place
from tests.annotation.test_page import Client
from tests.annotation.test_page_in_browser import chromium  # noqa: F401 (a fixture)
from tests.run.test_under_way import add
from tests.run.test_view import ledger  # noqa: F401 (a fixture)
from tests.support import ROOT


@pytest.fixture(params=["local", "elsewhere"])
def page(ledger, request, tmp_path, monkeypatch):  # noqa: F811
    """A run in its second round, labeled, and the page of its directory."""
    trained(ledger, 0, 0.5)
    ledger.commit(Step(-1, "init"), {}, {"macs_per_sample": {"dense": 200, "proxy": 50}, "seconds": 1.0})
    begins(tmp_path, 1, "train")
    monkeypatch.setattr("prunefuse_ray.run.live.LOOKED_AT_FOR", 0.0)
    monkeypatch.setattr("prunefuse_ray.run.live.SHARE_OF_LOOKING", 1e9)
    root = Place(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "run")
    server = LiveReport(WatchedRun(ledger.root if request.param == "local" else root))
    yield server
    server.close()


def trained(ledger, round_, accuracy):  # noqa: F811
    figures = {"test_accuracy": accuracy, "seconds": 4.0, "macs": 1_000}
    ledger.commit(Step(round_, "train"), {"doubts.parquet": doubts_schema("string", CLASS).empty_table()}, figures)
    ledger.write_json(f"rounds/{round_:03d}/metrics.json", {"round": round_, "phases": {"train": figures}})


def begins(where, round_, phase):
    add(where / "run", event="phase_started", round=round_, phase=phase)


def test_the_page_follows_the_run(page, ledger, tmp_path):  # noqa: F811
    browser = Client(page)
    before = sorted((p, p.stat().st_mtime) for p in (tmp_path / "run").rglob("*"))
    now = browser.get("/state")[1]
    assert (now["title"], now["state"], now["counts"], now["share"]) == ("run", "running", "7 of 12 phases", 0.0)
    assert now["words"].startswith("round 1, training the proxy: epoch 0 of 30, ")
    status, report = browser.get("/report")
    assert (status, b"in progress" in report) == (200, True)
    assert sorted((p, p.stat().st_mtime) for p in (tmp_path / "run").rglob("*")) == before
    assert browser.get("/state")[1]["version"] == now["version"]

    trained(ledger, 1, 0.7125)
    add(tmp_path / "run", event="phase_done", round=1, phase="train")
    begins(tmp_path, 1, "fuse")
    then = browser.get("/state")[1]
    assert then["version"] != now["version"]
    assert then["words"].startswith("round 1, fusing: ")
    assert b"71.2%" in browser.get("/report")[1]

    add(tmp_path / "run", event="run_failed", message="the disk is full")
    failed = browser.get("/state")[1]
    assert (failed["state"], failed["words"], failed["share"]) == ("failed", "the disk is full", None)


def test_only_who_has_the_token_sees_it(page):
    stranger = Client(page, cookie=False)
    assert {stranger.get(path)[0] for path in ("/", "/state", "/report", "/live.js")} == {401}
    assert Client(page).get("/report", Host="evil.example")[0] == 403
    assert Client(page).get("/state", Host="localhost:9999")[0] == 200, "a forwarded port"
    assert Client(page).get("/config.yaml")[0] == 404
    assert Client(page).post("/state", {})[0] == 404


def test_no_script_runs_in_the_report(page):
    policy = Client(page).ask("GET", "/report")[0].getheader("Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
    policy = Client(page).ask("GET", "/")[0].getheader("Content-Security-Policy")
    assert policy.endswith("frame-ancestors 'none'; frame-src 'self'")
    assert "unsafe" not in policy


def test_a_run_that_cannot_be_read_is_told_and_tried_again(page, tmp_path):
    commit = tmp_path / "run" / "rounds" / "001" / "selected.parquet"
    content = commit.read_bytes()
    commit.write_bytes(b"")
    status, said = Client(page).get("/report")
    assert (status, "its digest differs" in said["error"]) == (503, True)
    commit.write_bytes(content)
    assert Client(page).get("/report")[0] == 200


def test_the_command_serves_until_a_signal(ledger):  # noqa: F811
    command = [sys.executable, "-m", "prunefuse_ray", "report", ledger.root.path, "--serve"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("the run in the browser: http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "the page is closed; the run is as it was\n"


def test_what_cannot_be_served_is_refused(tmp_path):
    for arguments, said in [
        (["--serve"], "is no directory of a run or a sweep"),
        (["--port", "8321"], "--port: only with --serve"),
        (["--open"], "--open: only with --serve"),
    ]:
        with pytest.raises(ConfigError, match=said):
            main([str(tmp_path), *arguments])
    Ledger(Place.at(str(tmp_path))).write_text("config.yaml", "")
    with pytest.raises(ConfigError, match="--port 70000: give a number"):
        main([str(tmp_path), "--serve", "--port", "70000"])


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
def test_a_fresh_report_takes_the_place_of_the_old_one(page, ledger, tmp_path, chromium):  # noqa: F811
    """Where the reader had come to on the page, they stay."""
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(chromium, 60, 0.1)
    shown = (
        "const f = document.querySelectorAll('iframe'); if (f.length !== 1 || f[0].className) return null;"
        "return [f[0].contentDocument.querySelector('.summary').textContent, f[0].contentWindow.scrollY]"
    )
    chromium.get(page.address)
    assert "50.0%" in wait.until(lambda d: d.execute_script(shown))[0]
    chromium.execute_script("document.querySelector('iframe').contentWindow.scrollTo(0, 300)")
    trained(ledger, 1, 0.75)
    add(tmp_path / "run", event="phase_done", round=1, phase="train")
    begins(tmp_path, 1, "fuse")
    found = wait.until(lambda d: (s := d.execute_script(shown)) and "75.0%" in s[0] and s)
    assert found[1] == 300
    assert chromium.title == "run: running"
    assert json.dumps([e for e in chromium.get_log("browser") if "favicon" not in e["message"]]) == "[]"
