"""When the page asks, and when the run is started to go on by itself."""

import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunefuse_ray import interrupts, storage
from prunefuse_ray.annotation.page import Desk, PageServer
from prunefuse_ray.cli import main
from prunefuse_ray.commands import label
from prunefuse_ray.config.files import config_from_tree, load_config, to_tree
from prunefuse_ray.errors import LabelsWaiting, LedgerError
from prunefuse_ray.method.steps import steps
from prunefuse_ray.run import browser, loop
from prunefuse_ray.run.browser import Follower, Seen, decide
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.annotation.test_files import request_at
from tests.run.test_labeling import config_for, labels_of, unlabeled  # noqa: F401 (a fixture)
from tests.support import ROOT
from tests.support.annotators import CLASSES, truth
from tests.support.nets import OWN

SEEN = {
    "finished": False, "asking": False, "complete": False, "settled": True, "driven": False, "ended": None,
    "moved": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "act"),
    [
        ({}, "start"),
        ({"finished": True, "driven": True}, "finish"),
        ({"asking": True}, "ask"),
        ({"asking": True, "driven": True}, "ask"),
        ({"asking": True, "complete": True, "settled": False}, "ask"),
        ({"asking": True, "complete": True}, "start"),
        ({"asking": True, "complete": True, "driven": True}, "wait"),
        ({"driven": True}, "wait"),
        ({"asking": True, "complete": True, "ended": 3}, "start"),
        ({"asking": True, "complete": True, "ended": 3, "moved": False}, "stop"),
        ({"ended": 2}, "stop"),
        ({"asking": True, "complete": True, "ended": 1}, "stop"),
        ({"asking": True, "ended": 1}, "ask"),
    ],
)
def test_what_to_do_next(change, act):
    assert decide(Seen(**SEEN | change)) == act


def test_the_run_goes_on_whenever_a_round_has_its_labels(local_ray, unlabeled, tmp_path, monkeypatch):  # noqa: F811
    """The process that carries out the run is this one."""
    monkeypatch.setattr(browser, "SECOND_THOUGHTS", 0.0)
    config = config_for(unlabeled, tmp_path)
    codes = []

    def start():
        try:
            loop.run(config)
            codes.append(0)
        except LabelsWaiting:
            codes.append(3)
        child = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({codes[-1]})"])
        child.wait()
        return child

    ledger = Ledger(loop.run_place(config))
    page = PageServer("tiny")
    follower = Follower(ledger, config, page, start)
    acts = []
    for _ in range(12):
        acts.append(follower.look())
        if acts[-1] == "finish":
            break
        if page.desk is not None:
            desk = page.desk
            while batch := desk.batch("anna", 4):
                desk.answer("anna", [(one["n"], CLASSES.index(truth(one["id"]))) for one in batch])
    assert codes == [3, 3, 0]
    assert acts == ["start", "ask", "start", "ask", "start", "finish"]
    assert [r["labels"] for r in (ledger.root / "result.json").read_json()["rounds"]] == [10, 16]
    follower.end()
    page.close()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["label"], "name the directory of a run"),
        (["label", "nowhere"], "nowhere: is no run directory"),
        (["label", "--preset", "digits"], "annotation.kind is 'oracle'"),
        (["label", "nowhere", "--bogus"], "--bogus: is no option"),
    ],
)
def test_the_command_says_what_it_lacks(argv, said, capsys):
    assert main(argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.faults
def test_a_kill_right_after_the_answer_loses_no_label(local_ray, unlabeled, tmp_path):  # noqa: F811
    """`prunefuse label` itself, killed when it has answered, again and again; the run then takes every label."""
    config, root = config_for(unlabeled, tmp_path, budgets=(10,)), tmp_path / "tiny"
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    labeled = {}
    for _ in range(2):
        command = [sys.executable, "-m", "prunefuse_ray", "label", str(root), "--no-run", "--trusted", OWN[0]]
        page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        address = re.search(r"http://(\S+?)/\?token=(\S+)", page.stdout.readline())
        host, token = address[1], address[2]
        headers = {"Cookie": f"prunefuse-{host.rpartition(':')[2]}={token}", "Origin": f"http://{host}"}
        desk = _json(host, "GET", "/state?name=anna", headers)
        while desk.get("state") != "asking":
            desk = _json(host, "GET", "/state?name=anna", headers)
        assert desk["mine"] == len(labeled), "what was answered before the kill is there"
        asked = f"/batch?desk={desk['desk']}&count=5&name=anna"
        answers = []
        for one in _json(host, "GET", asked, headers)["samples"]:
            labeled[one["id"]] = truth(one["id"])
            answers.append({"n": one["n"], "label": CLASSES.index(truth(one["id"]))})
        _json(host, "POST", "/answer", headers, {"desk": desk["desk"], "name": "anna", "answers": answers})
        page.send_signal(signal.SIGKILL)
        page.wait()
    loop.run(config)
    assert len(labeled) == 10
    assert {r["id"]: CLASSES[r["label"]] for r in labels_of(root, 0)} == labeled


def _json(host, method, path, headers, body=None):
    connection = http.client.HTTPConnection(host, timeout=60)
    sent = headers | ({"Content-Type": "application/json"} if body else {})
    connection.request(method, path, json.dumps(body) if body else None, sent)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    assert answer.status == 200, content
    return content


def test_the_file_that_a_run_is_started_by_goes_with_the_command(tmp_path, monkeypatch, capsys):
    """Its folder is the command's own, and every round starts the run by the same one."""
    started = []

    class Looking:
        def __init__(self, ledger, config, page, start):
            self.start, self.again = start, None

        def look(self):
            started.extend(self.start() for _ in range(2))
            return "finish"

        def end(self):
            assert "annotation" in Path(started[0][-1]).read_text()

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(browser, "Follower", Looking)
    monkeypatch.setattr(browser.subprocess, "Popen", lambda command, env: command)
    monkeypatch.setattr(label.time, "sleep", lambda _: None)
    given = ["--preset", "digits", "--annotation.kind", "files", "--run.directory", str(tmp_path / "runs")]
    assert main(["label", *given]) == 0
    assert started[0] == started[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0), (None, 0)])
def test_a_signal_to_the_command_alone_reaches_the_run_that_it_started(tmp_path, monkeypatch, number, code):
    """Else it would wait for hours, for the end of the run. Ctrl-C comes to both of them from the terminal."""
    monkeypatch.setattr(browser, "TIDIES_UP", 0.2)
    monkeypatch.setattr(interrupts._State, "requested", number)
    follower = Follower(Ledger(Place.at(str(tmp_path))), None, None, None)
    seconds = 60 if number == signal.SIGTERM else 1.5
    follower.child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    follower.end()
    assert follower.child.returncode == code


def test_a_file_that_has_just_changed_starts_no_run(tmp_path):
    """It may be half of what somebody copies there."""
    place = Place.at(str(tmp_path))
    asked = request_at(place, {"a": b"", "b": b""}, classes=["cat", "dog"])
    follower = Follower(Ledger(place), config_from_tree({"annotation": {"kind": "files"}}), None, None)
    (asked.place / "labels.csv").write_bytes(b"id,label\na,cat\nb,dog\n")
    before = time.monotonic()
    assert follower._is_complete(SimpleNamespace(request=asked, read_others=lambda: None))
    changed = follower._changed
    assert changed >= before
    assert follower._is_complete(SimpleNamespace(request=asked, read_others=lambda: None))
    assert follower._changed == changed, "it is at rest"


def test_a_finished_run_that_is_given_more_budgets_goes_on(tmp_path):
    def config(*budgets):
        return config_from_tree({"annotation": {"kind": "files"}, "selection": {"budgets": [*budgets]}})

    root = Place.at(str(tmp_path))
    ledger = Ledger(root)
    ledger.create(to_tree(config(10)), {})
    for step in steps(config(10)):
        ledger.commit(step, {}, {})
    page, child = SimpleNamespace(show=lambda *_: None), SimpleNamespace(poll=lambda: None)
    follower = Follower(Ledger(root), config(10, 20), page, lambda: child)
    assert follower.look() == "start"
    Ledger(root).take_budgets(config(10, 20))  # what the run does first
    assert follower.look() == "wait"


def test_a_finished_run_opens_no_page(tmp_path, capsys, monkeypatch):
    """Nobody would see it: it closes as soon as it says that the run is finished."""
    config = config_from_tree(
        {
            "annotation": {"kind": "files"},
            "selection": {"budgets": [10]},
            "run": {"directory": str(tmp_path), "name": "r"},
        }
    )
    ledger = Ledger(Place.at(str(tmp_path / "r")))
    ledger.create(to_tree(config), {})
    for step in steps(config):
        ledger.commit(step, {}, {})
    monkeypatch.setattr("prunefuse_ray.annotation.page.PageServer", lambda *_, **__: pytest.fail("a page"))
    assert main(["label", str(tmp_path / "r")]) == 0
    assert "this run is complete already" in " ".join(capsys.readouterr().out.split())


def test_another_configuration_is_refused_before_anybody_labels(tmp_path):
    given = ["--preset", "digits", "--annotation.kind", "files", "--run.directory", str(tmp_path)]
    ledger, config = label._run(None, given)
    ledger.create(to_tree(config), {})
    label._run(None, given)
    with pytest.raises(LedgerError, match=r"annotation\.labels_per_sample: 1 -> 2"):
        label._run(None, [*given, "--annotation.labels_per_sample", "2"])


def test_what_comes_in_a_file_is_not_asked_for_on_the_page(tmp_path):
    place = Place.at(str(tmp_path))
    asked = request_at(place, {"a": b"", "b": b""}, classes=["cat", "dog"])
    desk = Desk(asked)
    follower = Follower(Ledger(place), config_from_tree({"annotation": {"kind": "files"}}), None, None)
    (asked.place / "labels-ben.csv").write_bytes(b"id,label\na,cat\n")
    assert not follower._is_complete(desk)
    assert [one["id"] for one in desk.batch("anna", 9)] == ["b"]
    desk.close()


def test_the_run_of_the_working_directory_has_its_name(tmp_path, monkeypatch):
    root = tmp_path / "photos"
    Ledger(Place.at(str(root))).create(to_tree(config_from_tree({"annotation": {"kind": "files"}})), {})
    monkeypatch.chdir(root)
    _, config = label._run(".", [])
    assert (config.run.directory, config.run.name) == (str(tmp_path), "photos")


def test_a_run_that_goes_on_is_not_asked_for_its_budgets(tmp_path, monkeypatch):
    config, root = config_from_tree({"annotation": {"kind": "files"}}), Place.at(str(tmp_path))
    Ledger(root).create(to_tree(config), {})
    monkeypatch.setattr(Ledger, "read_config", lambda _: pytest.fail("it was read"))
    assert Follower(Ledger(root), config, None, None)._next().phase == "init"


def test_a_run_that_is_not_at_work_is_not_said_to_be(tmp_path):
    """`label --no-run`: somebody else has to start it."""
    shown = []
    page = SimpleNamespace(show=lambda desk, status: shown.append(status.message))
    config = config_from_tree({"annotation": {"kind": "files"}})
    Follower(Ledger(Place.at(str(tmp_path / "none"))), config, page, None).look()
    assert shown[0].startswith("The run is not at work: give its command (again).")


def test_the_page_waits_for_a_store_as_long_as_the_run_does(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(storage, "be_patient", told.append)
    directory = ["--run.directory", str(tmp_path), "--annotation.kind", "files"]
    _, config = label._run(None, [*directory, "--run.store_patience", "600"])
    ledger = Ledger(Place.at(str(tmp_path / "there")))
    ledger.create(to_tree(config), {})
    label._run(ledger.root.path, [])
    assert told == [600.0, 600.0]


def test_the_run_takes_no_round_before_the_page_does(tmp_path):
    tree = {"annotation": {"kind": "files", "accept_partial": True, "wait": 3600}}
    browser.starter(config_from_tree(tree), tmp_path)
    started = load_config(tmp_path / "config.yaml", {}).annotation
    assert (started.kind, started.accept_partial, started.wait) == ("files", False, 0.0)
