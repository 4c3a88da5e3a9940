"""Whole runs from Python: the same run as the command's, and what a notebook shows of it."""

import csv
import re
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pyarrow.fs as pafs
import pytest
import yaml
from ray.data import DataContext

import prunefuse_ray
from prunefuse_ray import progress, storage
from prunefuse_ray.api.notebook import display
from prunefuse_ray.commands import label
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.distributed.resources import configure_data
from prunefuse_ray.errors import ConfigError, LedgerError
from prunefuse_ray.inference import predictor
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import loop, under_way
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.inference.test_predictor import CLASSES, FORM, save
from tests.support.nets import OWN
from tests.support.runs import tiny


@pytest.fixture(scope="module")
def ran(local_ray, tiny_pool, tmp_path_factory):
    told = []
    tree = to_tree(tiny(tiny_pool, tmp_path_factory.mktemp("runs")))
    return prunefuse_ray.execute(tree, tell=told.append, selection={"budgets": [10, 18]}), told


def test_a_run_is_carried_out_and_told(ran):
    run, told = ran
    assert run.finished
    assert any(line.startswith("pool: 120 samples") for line in told)
    assert [line.partition(":")[0] for line in told if line.startswith("round")] == ["round 0", "round 1"]
    assert [r["labels"] for r in run.result["rounds"]] == [10, 18]
    assert (run.selected.num_rows, len(set(run.selected["id"].to_pylist()))) == (18, 18)
    assert run.selected["round"].to_pylist() == [0] * 10 + [1] * 8


def test_what_was_selected_opens_in_a_spreadsheet(ran):
    run, _ = ran
    with open(f"{run.directory}/selected.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["round"], r["rank"], r["id"]) for r in rows[:10]] == [("0", str(n), rows[n]["id"]) for n in range(10)]
    assert [r["id"] for r in rows] == run.selected["id"].to_pylist()
    assert all(r["label"] == str(int(r["id"][1:]) % 2) for r in rows)


def test_a_notebook_shows_the_run_and_its_report(ran):
    run, _ = ran
    shown = run._repr_html_()
    assert "<b>tiny</b> finished" in shown
    assert shown.count("<tr>") == 3
    report = run.report()
    assert "&lt;!DOCTYPE html&gt;" in report._repr_html_()
    assert 'sandbox=""' in report._repr_html_()
    with open(report.path, encoding="utf-8") as file:
        assert file.read() == report.page
    assert "finished; 10 labels, proxy" in repr(run)


def test_a_run_directory_is_opened_and_its_network_loaded(ran):
    run = prunefuse_ray.Run(ran[0].directory, trusted=OWN)
    assert run.result == ran[0].result
    assert run.network(trusted=OWN[0]).classes == ["0", "1"]
    assert run.network().classes == ran[0].network().classes == ["0", "1"], "what was trusted stays trusted"
    again = prunefuse_ray.execute(run.config, tell=None)
    assert again.directory == run.directory
    with pytest.raises(LedgerError, match="is no run directory"):
        prunefuse_ray.Run(ran[0].directory + "/rounds")
    with pytest.raises(ConfigError, match="unknown key"):
        prunefuse_ray.execute({"pol": {}})


def test_a_run_on_a_store_is_opened_by_its_uri(tmp_path, monkeypatch):
    """`execute` returns it, and its network and its labels are looked for there and not on this disk."""
    store, opened = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), []
    monkeypatch.setattr(storage, "_s3", lambda uri: (store, urlsplit(uri).path.strip("/")))
    query = "?endpoint_override=127.0.0.1:9&scheme=http"
    config = config_from_tree({"run": {"directory": f"s3://samples/runs{query}", "name": "one"}})
    ledger = Ledger(loop.run_place(config))
    (ledger.root / "config.yaml").write_bytes(yaml.safe_dump(to_tree(config)).encode())
    monkeypatch.setattr(loop, "run", lambda *_, **__: ledger)
    monkeypatch.setattr(predictor, "load", lambda path, trusted: opened.append(path))
    run = prunefuse_ray.execute(config, tell=None)
    run.network()
    assert opened == [run.directory] == [f"s3://samples/runs/one{query}"]
    _, mine = label._run(run.directory, [])
    assert (mine.run.directory, mine.run.name) == (f"s3://samples/runs{query}", "one")


def test_a_notebook_shows_what_the_run_is_doing(tmp_path, monkeypatch):
    """In one line of the cell, over itself; elsewhere nothing."""
    ipython = pytest.importorskip("IPython")
    monkeypatch.setattr(under_way, "LOOKS_EVERY", 0.01)
    lines = []
    for name in ("display", "update"):
        handle = ipython.display.DisplayHandle
        monkeypatch.setattr(handle, name, lambda _, data, raw: lines.append(data["text/plain"]))
    place = Place.at(str(tmp_path))
    with display(place):
        pass
    assert lines == []
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(progress.now, "doing", "while looking through the pool")
    with display(place):
        while "looking through the pool" not in lines:
            time.sleep(0.01)
    *before, last = dict.fromkeys(lines)
    assert before == ["starting", "looking through the pool"]
    assert re.fullmatch(r"finished after \d+ s", last)


def test_a_run_that_was_moved_goes_on_where_it_lies(tmp_path):
    config = config_from_tree({"run": {"directory": "runs", "name": "one"}})
    Ledger(Place.at(str(tmp_path / "two"))).create(to_tree(config), {})
    run = prunefuse_ray.Run(tmp_path / "two")
    assert loop.run_place(run.config).path == run.directory == str(tmp_path / "two")


def test_the_settings_of_other_streams_stay_as_they_were(tmp_path, monkeypatch):
    config = config_from_tree({"run": {"directory": str(tmp_path), "name": "one"}})
    ledger = Ledger(loop.run_place(config))
    ledger.create(to_tree(config), {})
    monkeypatch.setattr(loop, "run", lambda *_, **__: (configure_data(), ledger)[1])
    mine = DataContext.get_current().copy()
    mine.target_max_block_size = 123 * 2**20
    with DataContext.current(mine):
        prunefuse_ray.execute(config, tell=None)
        assert DataContext.get_current().target_max_block_size == 123 * 2**20


def test_rounds_to_come_are_not_told_as_done(tmp_path):
    ledger = Ledger(Place.at(str(tmp_path)))
    ledger.create(to_tree(config_from_tree({"selection": {"budgets": [10, 20]}})), {})
    for round_, phase in ((0, "select"), (0, "label"), (1, "select")):
        ledger.commit(Step(round_, phase), {}, {"seconds": 1.0, "labels": 10})
    run = prunefuse_ray.Run(tmp_path)
    assert repr(run).endswith("not finished; 10 labels")
    assert run._repr_html_().count("<tr>") == 2


def test_the_network_of_an_earlier_end_comes_with_a_word(tmp_path, caplog):
    save(tmp_path / "run" / "fused", FORM)
    Ledger(Place.at(str(tmp_path / "run"))).create(to_tree(config_from_tree({})), {})
    assert prunefuse_ray.Run(tmp_path / "run").network().classes == CLASSES
    assert "this is the last network that it wrote" in caplog.text
