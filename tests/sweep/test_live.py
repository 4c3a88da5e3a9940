"""The live page of a sweep: what it tells of trials that ended, that go on, and that have not begun."""

import json

import pytest
import yaml

from prunefuse_ray.config.files import to_tree
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import live
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.live import LiveReport
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import sweep_from_tree, trials
from prunefuse_ray.sweep.live import WatchedSweep
from prunefuse_ray.sweep.results import outcome_place
from tests.annotation.test_page import Client
from tests.run.test_under_way import add
from tests.run.test_view import INFO


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Six trials: one that failed, one stopped early, one interrupted, two that train, one that has not begun."""
    monkeypatch.setattr(live, "LOOKED_AT_FOR", 0.0)
    monkeypatch.setattr(live, "SHARE_OF_LOOKING", 1e9)
    root = Place.at(str(tmp_path / "sweep"))
    described = sweep_from_tree(
        {"base": {"selection": {"budgets": [10, 20]}, "run": {"name": "sweep"}},
         "space": {"pruning.ratio": {"grid": [0.5, 0.8]}}, "seeds": [0, 1, 2]}
    )  # fmt: skip
    (root / "sweep.yaml").write_bytes(yaml.safe_dump(to_tree(described)).encode())
    found = trials(described)
    for trial in found[:5]:
        Ledger(root / "trials" / trial.name).create(to_tree(trial.config), INFO.to_json())
        add(tmp_path / "sweep/trials" / trial.name, event="run_started")
        add(tmp_path / "sweep/trials" / trial.name, event="phase_started", round=-1, phase="init")
    for trial, status in zip(found, ("failed", "stopped"), strict=False):
        outcome_place(root, trial.name).write_bytes(json.dumps({"status": status, "message": "it is full"}).encode())
    add(tmp_path / "sweep/trials" / found[2].name, event="run_interrupted")
    return root, [t.name for t in found]


def test_the_page_follows_the_trials(sweep, tmp_path):
    root, names = sweep
    page = LiveReport(WatchedSweep(root))
    try:
        browser = Client(page)
        now = browser.get("/state")[1]
        assert (now["title"], now["state"]) == ("sweep", "running")
        assert now["counts"] == "0 of 6 trials complete, 1 stopped, 1 failed"
        assert now["share"] == pytest.approx(2 / 6)
        assert [one.partition(": ")[0] for one in now["words"].split("; ")] == names[3:5]
        assert now["words"].startswith(f"{names[3]}: initializing the networks: ")
        status, report = browser.get("/report")
        assert (status, b"it is full" in report) == (200, True)

        assert browser.get("/state")[1]["version"] == now["version"]
        Ledger(root / "trials" / names[3]).commit(Step(-1, "report"), {}, {})
        then = browser.get("/state")[1]
        assert (then["counts"], then["state"]) == ("1 of 6 trials complete, 1 stopped, 1 failed", "running")
        assert then["version"] != now["version"]
    finally:
        page.close()


def test_a_sweep_at_rest_is_not_running(sweep, tmp_path):
    root, names = sweep
    watched = WatchedSweep(root)
    for name in names[3:5]:
        add(tmp_path / "sweep/trials" / name, event="run_interrupted")
    assert (watched.look().state, watched.look().words) == ("interrupted", "")
    for name in names[2:]:
        outcome_place(root, name).write_bytes(b'{"status": "failed"}')
    now = watched.look()
    assert (now.state, now.counts, now.share) == ("finished", "0 of 6 trials complete, 1 stopped, 5 failed", None)


def test_what_takes_long_to_look_at_is_looked_at_less_often(sweep, monkeypatch):
    root, _ = sweep
    looks, watched = [], WatchedSweep(root)
    monkeypatch.setattr(live, "SHARE_OF_LOOKING", 1e-9)
    look = watched.look
    monkeypatch.setattr(watched, "look", lambda: looks.append(1) or look())
    page = LiveReport(watched)
    try:
        assert len({Client(page).get("/state")[1]["version"] for _ in range(5)}) == 1
        assert len(looks) == 1
    finally:
        page.close()


def test_a_stopped_trial_that_somebody_goes_on_with_is_complete(sweep):
    root, names = sweep
    watched = WatchedSweep(root)
    assert watched.look().counts == "0 of 6 trials complete, 1 stopped, 1 failed"
    Ledger(root / "trials" / names[1]).commit(Step(-1, "report"), {}, {})
    assert watched.look().counts == "1 of 6 trials complete, 1 failed"
