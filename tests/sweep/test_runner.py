"""Sweeps on a real Ray: what trials share, what a kill or a failure does to them, what comes out."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import ray.train
import yaml
from ray import tune
from ray.tune.callback import CallbackList
from ray.tune.execution.tune_controller import TuneController

import prunefuse_ray
from prunefuse_ray.cli import main
from prunefuse_ray.config.files import config_from_tree, load_config, merge, to_tree
from prunefuse_ray.data import draw
from prunefuse_ray.distributed.autoscaler import Autoscaler, NodeType
from prunefuse_ray.distributed.resources import Resources
from prunefuse_ray.errors import ConfigError, LedgerError, PlanError, PoolError, TrainingError
from prunefuse_ray.method.steps import Step, steps
from prunefuse_ray.networks import NetworkError
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep import runner as sweeping
from prunefuse_ray.sweep.analysis import write_results
from prunefuse_ray.sweep.config import sweep_from_tree, trials
from prunefuse_ray.sweep.desk import Desk
from prunefuse_ray.sweep.loggers import Careful, loggers_of
from prunefuse_ray.sweep.page import render_sweep
from prunefuse_ray.sweep.results import (
    COMPLETE,
    FAILED,
    STOPPED,
    UNFINISHED,
    Outcome,
    SweepResult,
    TrialResult,
    outcome,
    outcome_place,
    pool_key,
    read_sweep,
    round_row,
)
from prunefuse_ray.sweep.runner import concurrency, in_order, placement, run_sweep, wanted
from prunefuse_ray.sweep.sharing import inputs_keys
from prunefuse_ray.sweep.trial import TrialJob, _run, drive
from tests.support import ROOT
from tests.support.runs import TINY

ARMS = {
    "fuse": {"finetuning": {"evaluate_every": 1}},
    "scratch": {"fusion": {"target": "scratch"}},
    "broken": {"training": {"lr": 1e30, "warmup_epochs": 0}},
}


def tree(pool: Path, directory: Path, **more):
    base = merge(TINY, {"pool": {"path": str(pool / "pool"), "test_path": str(pool / "test")}})
    own = {
        "selection": {"budgets": [10, 18]},
        "scoring": {"actors": None},
        "run": {"directory": str(directory), "name": "swept"},
    }
    return merge({"base": merge(base, own), "arms": ARMS, "seeds": [0], "loggers": ["tensorboard"]}, more)


class Heard:
    def __init__(self):
        self.events = []

    def __call__(self, event, name, figures):
        self.events.append((event, name, figures))

    def of(self, event):
        return sorted(name for e, name, _ in self.events if e == event)


# --- decisions, without Ray ---


def test_a_desk_hands_out_each_step_once():
    desk = Desk({"old": "a"})
    assert desk.claim("old", "b") == ("take", "a")
    assert desk.claim("k", "b") == ("work", "b")
    assert desk.claim("k", "b") == ("work", "b"), "a trial that was lost and came back goes on"
    assert desk.claim("k", "c") == ("wait", "b")
    desk.finish("k", "b")
    assert desk.claim("k", "c") == ("take", "b")
    assert desk.claim("l", "b")[0] == "work"
    desk.release("b")
    assert desk.claim("l", "c") == ("work", "c"), "nobody waits for a trial that has ended"


def test_a_trial_that_the_autoscaler_brings_its_machines_is_not_refused():
    """Its cluster may have none of them when the sweep begins."""
    grows = Autoscaler(node_types=(NodeType(cpus=16, gpus=2, most=4),), most=4)
    head = dataclasses.replace(has(0, nodes=2), autoscaler=grows)
    sweep = sweep_from_tree({"resources": {"cpus": 8, "gpus": 1}})
    assert at_once(sweep, head) == 1
    for field, asked, could in (("cpus", 65, 64), ("gpus", 9, 8)):
        sweep = sweep_from_tree({"resources": {"cpus": 1, field: asked}})
        said = rf"resources\.{field}: .* needs {asked}, but the cluster has 0, .* could bring it to {could}"
        with pytest.raises(PlanError, match=said):
            at_once(sweep, head)


def test_the_desk_stands_where_no_machine_is_taken_away(monkeypatch, tmp_path):
    """Where it is lost, every trial fails that asks it meanwhile."""

    class AskedError(Exception):
        pass

    def asked(**options):
        raise AskedError(options)

    monkeypatch.setattr(sweeping.ray, "nodes", list)
    monkeypatch.setattr(sweeping.ray, "remote", asked)
    with pytest.raises(AskedError) as found:
        sweeping._fit(sweep_from_tree({}), Ledger(Place.at(str(tmp_path))), [], None, 1, lambda *_: None, [])
    (options,) = found.value.args
    assert options["resources"] == placement([])[0]
    assert (options["max_restarts"], options["max_task_retries"]) == (-1, -1)


def at_once(sweep, resources):
    found = trials(sweep)
    return concurrency(sweep, found, resources, len(found))


def has(cpus, gpus=0.0, nodes=1, cores=2):
    return Resources(nodes=nodes, cpus=cpus, gpus=gpus, in_process=nodes == 1, cores=cores if nodes == 1 else 0)


@pytest.mark.parametrize(
    ("resources", "base", "wanted", "expected"),
    [
        (has(4), {}, None, 2),  # two cores: a scoring actor each, two logical CPUs for both their streams
        (has(4), {}, 1, 1),
        (has(4), {}, 9, 2),
        (has(3, cores=1), {}, None, 1),
        (has(4), {"scoring": {"actors": [2, 2]}}, None, 1),
        (has(66, nodes=5), {"workers": {"count": [4, 4], "cpus": 4}}, None, 4),  # 64 CPUs in four parts of 16
        (has(66, gpus=4, nodes=5), {"workers": {"count": [2, 2], "gpu": True}}, None, 2),
        (has(4, gpus=1), {"workers": {"gpu": True}}, None, 1),
    ],
)
def test_concurrency_is_what_the_cluster_holds(resources, base, wanted, expected):
    sweep = sweep_from_tree({"base": base, "seeds": list(range(20)), "concurrency": wanted})
    assert at_once(sweep, resources) == expected


@pytest.mark.parametrize(
    ("each", "resources", "expected"),
    [({"cpus": 16}, has(66, nodes=5), 4), ({"cpus": 16, "gpus": 2}, has(66, gpus=4, nodes=5), 2), (None, has(8), 2)],
)
def test_trials_have_the_resources_that_were_asked_for(each, resources, expected):
    sweep = sweep_from_tree({"seeds": list(range(20)), "resources": each})
    assert at_once(sweep, resources) == expected


def test_resources_that_the_cluster_does_not_have_are_refused():
    sweep = sweep_from_tree({"resources": {"gpus": 1}})
    with pytest.raises(PlanError, match=r"resources\.gpus: each trial needs 1, but the cluster has 0"):
        at_once(sweep, has(4))


def searching(tmp_path, axes, **base):
    pytest.importorskip("optuna")
    base = {**base, "run": {"directory": str(tmp_path), "name": "s"}}
    own = {"space": axes, "search": "optuna", "samples": 12, "seeds": [0], "loggers": []}
    return sweep_from_tree({"base": base, **own})


def test_a_search_uses_the_cluster_for_all_that_it_will_draw(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(sweeping, "start_ray", lambda: None)
    monkeypatch.setattr(sweeping, "observe", lambda: has(66, nodes=5))
    monkeypatch.setattr(sweeping, "_survey_pools", lambda *_: {})
    monkeypatch.setattr(sweeping, "_record", lambda *_: None)
    monkeypatch.setattr(sweeping, "_fit", lambda sweep, root, ordered, scheduler, runs, *_: found.append(runs))
    run_sweep(searching(tmp_path, {"training.lr": {"uniform": [0.01, 0.1]}}))
    assert found == [12]


def test_a_search_that_grows_does_not_go_on_with_other_known_labels(tmp_path, monkeypatch):
    known, root = tmp_path / "known.csv", Place.at(str(tmp_path / "s"))
    known.write_text("id,label\na,1\n")
    pool = {"source": "parquet", "path": "p", "test_path": "t", "known_labels": str(known)}
    sweep = searching(tmp_path, {"pruning.ratio": {"uniform": [0.5, 0.8]}}, pool=pool)
    (root / "draws" / "000.json").write_json({"pruning.ratio": 0.6})
    (drawn,) = trials(sweep, [{"pruning.ratio": 0.6}])
    ledger = Ledger(root / "trials" / drawn.name)
    ledger.create(to_tree(drawn.config), {})
    digest = hashlib.sha256(known.read_bytes()).hexdigest()
    ledger.commit(Step(-1, "init"), {}, {"inputs": {"pool.known_labels": {"sha256": digest}}})
    ledger.commit(Step(-1, "report"), {}, {})
    known.write_text("id,label\na,0\n")
    monkeypatch.setattr(sweeping, "start_ray", lambda: None)
    monkeypatch.setattr(sweeping, "observe", lambda: has(4))
    monkeypatch.setattr(sweeping, "_survey_pools", lambda *_: pytest.fail("it went on"))
    with pytest.raises(LedgerError, match=r"pool\.known_labels: .* is not the file that the run began with"):
        run_sweep(sweep)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_trial_that_fails_in_its_first_round_ends_no_other(tmp_path, monkeypatch, scheduler):
    """All that Tune knows of it is its configuration."""
    for name, value in sweeping.TUNE.items():
        monkeypatch.setenv(name, value)
    base = {"selection": {"budgets": [50, 100, 150]}}
    rule = sweeping._scheduler(
        sweep_from_tree({"base": base, "metric": "proxy", "scheduler": scheduler}), Place.at(str(tmp_path)), [], 3
    )
    ended = {"trial_id": "lost", "done": True, "config/trial/name": "lost", "config/trial/seed": 0}
    controller = SimpleNamespace(_metric=None, _scheduler_alg=rule, _search_alg=SimpleNamespace(metric=None))
    TuneController._validate_result_metrics(controller, ended)
    lost, other = sweeping._Past("lost"), sweeping._Past("other")
    for trial in (lost, other):
        rule.on_trial_add(None, trial)
    rule.on_trial_complete(None, lost, ended)
    nobody = SimpleNamespace(get_live_trials=list)
    assert rule.on_trial_result(nobody, other, {"budgets_passed": 2, "proxy": 0.5}) == "CONTINUE"


def test_loggers_are_told_which_round_it_was(monkeypatch):
    told = []
    task = SimpleNamespace(remote=lambda *_: "task")
    fake = SimpleNamespace(
        remote=lambda **_: lambda _: task,
        wait=lambda refs, timeout: (refs, []),
        cancel=lambda *_, **__: None,
        get=lambda ref: [{"budgets_passed": 3, "proxy": 0.5}] if ref == "rows" else None,
    )
    monkeypatch.setattr(sweeping, "ray", fake)
    monkeypatch.setattr(sweeping.tune, "report", told.append)
    desk = SimpleNamespace(rows=SimpleNamespace(remote=lambda _: "rows"))
    sweeping._trial({"trial": {"name": "a"}}, job=SimpleNamespace(root=None), desk=desk, placement={})
    assert [row["training_iteration"] for row in told] == [3]


def past(monkeypatch, curves):
    """As if these trials had ended, with these metrics after their rounds."""
    rows = {name: [{"budgets_passed": i + 1, "proxy": v} for i, v in enumerate(c)] for name, c in curves.items()}
    monkeypatch.setattr(sweeping, "outcome", lambda root, name: SimpleNamespace(status=STOPPED))
    monkeypatch.setattr(sweeping, "round_row", lambda ledger, config, r: rows[ledger.root.path.rpartition("/")[2]][r])
    monkeypatch.setattr(Ledger, "exists", True)


@pytest.mark.parametrize(
    ("value", "decision"), [(0.49, "STOP"), (0.51, "CONTINUE")], ids=["below the median", "above it"]
)
def test_the_median_rule_goes_on_with_what_earlier_starts_measured(tmp_path, monkeypatch, value, decision):
    """Means from the second round on: 0.2, 0.5 and 0.8. No trial is paused, which would begin its round anew."""
    tree_ = {"base": {"selection": {"budgets": [50, 100, 150]}}, "metric": "proxy", "scheduler": "median"}
    sweep = sweep_from_tree(tree_)
    found = trials(sweep)
    curves = {t.name: [0.1, v, v] for t, v in zip(found, (0.2, 0.5, 0.8), strict=True)}
    past(monkeypatch, curves)
    rule = sweeping._scheduler(sweep, Place.at(str(tmp_path)), found, 3)
    waiting = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
    trial = sweeping._Past("new")
    rule.on_trial_add(None, trial)
    assert rule.on_trial_result(waiting, trial, {"budgets_passed": 1, "proxy": 0.0}) == "CONTINUE", "in its grace"
    assert rule.on_trial_result(waiting, trial, {"budgets_passed": 2, "proxy": value}) == decision
    few = sweeping._scheduler(sweep, Place.at(str(tmp_path)), found[:1], 3)
    assert few.on_trial_result(waiting, trial, {"budgets_passed": 2, "proxy": 0.0}) == "CONTINUE"


def test_a_complete_trial_that_was_behind_once_ends_no_later_start(tmp_path, monkeypatch):
    """Rounds of earlier starts are recorded, and not judged."""
    base = {"selection": {"budgets": [50, 100, 150]}}
    sweep = sweep_from_tree({"base": base, "metric": "proxy", "scheduler": "median", "seeds": [0, 1, 2, 3]})
    found = trials(sweep)
    curves = [[0.8, 0.8, 0.8]] * 3 + [[0.1, 0.5, 0.9]]
    past(monkeypatch, {t.name: c for t, c in zip(found, curves, strict=True)})
    rule = sweeping._scheduler(sweep, Place.at(str(tmp_path)), found, 3)
    assert sorted(len(rounds) for rounds in rule._results.values()) == [3, 3, 3, 3]


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_round_that_was_passed_is_not_judged_again(tmp_path, monkeypatch, kind):
    """A trial tells its earlier rounds again in each start, and when it was lost."""
    base = {"selection": {"budgets": [50, 100, 150]}}
    sweep = sweep_from_tree({"base": base, "metric": "proxy", "scheduler": kind, "seeds": [0, 1, 2]})
    found = trials(sweep)
    past(monkeypatch, {t.name: [0.8] * 3 for t in found})
    rule = sweeping._scheduler(sweep, Place.at(str(tmp_path)), found, 3)
    trial = sweeping._Past("behind")
    rule.on_trial_add(None, trial)
    for _ in range(2):
        row = {"budgets_passed": 2, "proxy": 0.1, "before": True}
        assert rule.on_trial_result(None, trial, row) == "CONTINUE"
    if kind == "median":
        assert len(rule._results[trial]) == 1


def test_nothing_of_a_look_that_came_to_nothing_is_left(tmp_path, monkeypatch):
    """Of a start that was killed, or found the pool changing, before the pool was recorded."""
    sweep = sweep_from_tree({"base": {"run": {"directory": str(tmp_path), "name": "s"}}})
    trial, *_ = trials(sweep)
    key = pool_key(trial.config)
    stale = Place.at(str(tmp_path / "s")) / "pools" / key / draw.TWINS_FILE
    stale.write_bytes(b"old")
    for module, name in ((sweeping, "materialize"), (sweeping.inventory, "write"), (sweeping.growth, "record")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(sweeping, "lines", lambda *_: [])
    new = sweeping._New(None, SimpleNamespace(inventory=SimpleNamespace(to_json=dict)))
    infos = {key: (SimpleNamespace(to_json=dict), new)}
    sweeping._record(Place.at(str(tmp_path / "s")), sweep, [trial], infos, lambda _: None)
    assert not stale.exists()


def test_a_trial_that_comes_back_tells_what_it_has_done(tmp_path, monkeypatch):
    """It may have been lost between a commit and the word of it: others would wait for its whole run."""
    config = config_from_tree({"selection": {"budgets": [50, 100]}, "run": {"directory": str(tmp_path), "name": "t"}})
    ledger = Ledger(Place.at(str(tmp_path / "t")))
    ledger.create(to_tree(config), {"rows": 1})
    ledger.commit(Step(-1, "init"), {}, {"seconds": 1.0})
    told = []
    desk = SimpleNamespace(
        post=SimpleNamespace(remote=lambda *_: None), finish=SimpleNamespace(remote=lambda key, _: told.append(key))
    )
    monkeypatch.setattr("prunefuse_ray.sweep.trial.loop.run", lambda *_, **__: None)
    monkeypatch.setattr("prunefuse_ray.sweep.trial.round_row", lambda *_: {})
    _run("a", TrialJob(root=Place.at(str(tmp_path)), configs={"a": to_tree(config)}, runs=1, directory="."), desk)
    assert told == [inputs_keys(config, {"rows": 1})[Step(-1, "init")]]


def test_a_trial_knows_that_its_cluster_is_not_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "x")
    monkeypatch.delenv("RAY_ADDRESS")  # both are undone after the test
    seen = []
    monkeypatch.setattr("prunefuse_ray.sweep.trial._run", lambda *_: seen.append(os.environ.get("RAY_ADDRESS")))
    monkeypatch.setattr("prunefuse_ray.sweep.trial.ray.get", lambda _: None)
    desk = SimpleNamespace(release=SimpleNamespace(remote=lambda _: None))
    job = TrialJob(root=Place.at(str(tmp_path)), configs={}, runs=1, directory="", address="10.0.0.1:6379")
    drive("a", job, desk)
    assert seen == ["10.0.0.1:6379"]


def test_a_trial_that_was_lost_is_not_logged_twice():
    got = []
    careful = Careful("t", SimpleNamespace(on_trial_result=lambda **i: got.append(i["result"]["budgets_passed"])))
    trial = SimpleNamespace(trial_id="a")
    for number, before in ((1, False), (2, False), (1, True), (2, True), (3, False)):
        row = {"budgets_passed": number, "before": before}
        careful.on_trial_result(iteration=0, trials=[], trial=trial, result=row)
    assert got == [1, 2, 3]


def test_what_a_tracker_says_holds_no_password(caplog):
    def fail(**_):
        raise RuntimeError("API request to https://me:secret@host/api failed")

    Careful("mlflow", SimpleNamespace(on_trial_start=fail)).on_trial_start(iteration=0, trials=[], trial=None)
    assert "secret" not in caplog.text
    assert "@host/api failed" in caplog.text


def test_parts_of_a_cluster_leave_the_streams_their_cpus():
    for runs in (2, 3, 5):
        part = has(32, nodes=4).part(runs)
        assert runs * (part.cpus - 2) + 2 <= 32
    assert has(4).part(2).cores == 1


def test_trials_with_much_in_common_start_apart():
    sweep = sweep_from_tree({"space": {"selection.strategy": {"grid": ["margin", "entropy"]}}, "seeds": [0, 1, 2]})
    found = trials(sweep)
    keys = {t.name: inputs_keys(t.config, {"rows": 1}) for t in found}
    by_seed = sorted(found, key=lambda t: t.config.run.seed)  # the worst order: neighbors share their first rounds
    assert [(t.config.selection.strategy, t.config.run.seed) for t in in_order(by_seed, keys)] == [
        (s, seed) for s in ("margin", "entropy") for seed in (0, 1, 2)
    ]


def test_drivers_stand_on_machines_that_last():
    def node(kind=None):
        return {"Alive": True, "Labels": {"ray.io/market-type": kind} if kind else {}}

    assert placement([node()])[1] == {}
    assert placement([node("on-demand"), node("spot")])[1] == {"label_selector": {"ray.io/market-type": "on-demand"}}
    assert placement([node("spot")])[1] == {}, "rather on a spot node than nowhere"


def test_the_last_round_is_told_of_when_nothing_of_the_run_is_missing(tmp_path, monkeypatch):
    """A scheduler that stops a trial at its last label budget would keep it from its report for ever."""
    config = config_from_tree({"selection": {"budgets": [50, 100, 150]}, "run": {"directory": str(tmp_path / "t")}})
    Place.at(str(tmp_path / "pools" / pool_key(config) / "pool.json")).write_json({"rows": 1})
    told = []
    desk = SimpleNamespace(
        post=SimpleNamespace(remote=lambda _, row: told.append(row["budgets_passed"])),
        finish=SimpleNamespace(remote=lambda *_: None),
    )

    def run(config, listen, **_):
        for step in steps(config):
            listen("done", step, None)
        assert told == [1, 2]

    monkeypatch.setattr("prunefuse_ray.sweep.trial.loop.run", run)
    job = TrialJob(root=Place.at(str(tmp_path)), configs={"a": to_tree(config)}, runs=1, directory=".")
    _run("a", job, desk)
    assert told == [1, 2, 3]


# --- a sweep ---


@pytest.fixture(scope="module")
def swept(local_ray, tiny_pool, tmp_path_factory):
    """An arm, its twin from scratch, and an arm that cannot score."""
    directory = tmp_path_factory.mktemp("sweeps")
    heard = Heard()
    sweep = sweep_from_tree(tree(tiny_pool, directory))
    run_sweep(sweep, heard)
    write_results(Place.at(str(directory / "swept")), render_sweep)
    return sweep, directory / "swept", heard


def test_a_failing_trial_is_reported_and_the_others_go_on(swept):
    _, root, heard = swept
    assert heard.of(COMPLETE) == ["fuse_seed-0", "scratch_seed-0"]
    assert heard.of(FAILED) == ["broken_seed-0"]
    (message,) = [figures["message"] for event, _, figures in heard.events if event == FAILED]
    assert "the network diverged; lower training.lr" in message
    assert outcome(Place.at(str(root)), "broken_seed-0").message == message


def test_every_round_is_reported(swept):
    _, _, heard = swept
    rounds = [(n, f["labels"]) for e, n, f in heard.events if e == "round" and n == "fuse_seed-0"]
    assert rounds == [("fuse_seed-0", 10), ("fuse_seed-0", 18)]


def test_what_trials_have_in_common_is_done_once(swept):
    sweep, root, _ = swept
    first, second, third = (Ledger(Place.at(str(root / "trials" / t.name))) for t in trials(sweep))
    keys = [inputs_keys(t.config, first.read_pool()) for t in trials(sweep)]
    assert len({k[Step(0, "select")] for k in keys}) == 1
    done = [
        step
        for ledger, mine in ((first, keys[0]), (second, keys[1]), (third, keys[2]))
        for step in mine
        if ledger.committed(step) and "shared_from" not in ledger.committed(step).metrics
    ]
    for step in (Step(-1, "init"), Step(0, "select"), Step(0, "label")):
        assert done.count(step) == 1, step
    for step in (Step(0, "score"), Step(1, "select"), Step(1, "label"), Step(1, "train")):
        assert done.count(step) == 1, step
    assert done.count(Step(1, "finetune")) == 2
    ids = [ledger.read_bytes(Step(1, "label"), "labels.parquet") for ledger in (first, second)]
    assert ids[0] == ids[1]


def test_a_trial_that_was_stopped_after_its_last_round_is_finished(swept, tmp_path):
    _, root, _ = swept
    shutil.copytree(root / "trials/fuse_seed-0", tmp_path / "trials/late")
    outcome_place(Place.at(str(tmp_path)), "late").write_json({"status": STOPPED, "message": "behind others"})
    assert outcome(Place.at(str(tmp_path)), "late").status == COMPLETE
    (tmp_path / "trials/late/commits/report.json").unlink()
    assert outcome(Place.at(str(tmp_path)), "late").status == UNFINISHED
    (tmp_path / "trials/late/rounds/001/commits/finetune.json").unlink()
    assert outcome(Place.at(str(tmp_path)), "late").status == STOPPED


def test_results_and_report_stand_in_the_directory(swept):
    _, root, _ = swept
    rows = pq.read_table(root / "sweep.parquet")
    assert rows.num_rows == 4  # the broken trial passed no round: it has no scores for the first one
    assert pyarrow.csv.read_csv(root / "sweep.csv").column_names == rows.column_names
    assert json.loads((root / "trials/fuse_seed-0/result.json").read_text())["rounds"][1]["labels"] == 18
    config = load_config(root / "best.yaml")
    assert config.run.name == "swept-best"
    page = (root / "report.html").read_text()
    assert "the network diverged" in page
    assert "Epochs to the accuracy of training from scratch" in page
    assert list((root / "tune").rglob("events.out.tfevents*"))
    found = read_sweep(Place.at(str(root))).trials
    assert sum(sum(r.shared.values()) for r in found) >= 6, "whichever came first did for the others"
    assert {name for r in found for name in r.shared} <= {r.trial.name for r in found}


def test_the_page_tells_of_a_combination_where_the_pointer_rests(swept):
    _, root, _ = swept
    tips = re.findall(r'<g id="\w+-mark-\d" pointer-events="all"><title>([^<]*)', (root / "report.html").read_text())
    assert {tip.splitlines()[0].partition(" ")[0] for tip in tips} == {"fuse", "scratch"}
    assert any("(on the Pareto front)" in tip for tip in tips)
    lines = tips[0].splitlines()
    assert "18 labels" in lines
    assert any(re.fullmatch(r"accuracy \d+\.\d%, 1 seed", line) for line in lines)
    assert any(line.startswith("selection macs ") for line in lines)


def test_results_are_data_frames(swept):
    _, root, _ = swept
    found = prunefuse_ray.load_sweep(root)
    assert found.rounds.equals(pq.read_table(root / "sweep.parquet").to_pandas())
    assert list(found.rounds["status"].unique()) == [COMPLETE]
    last = found.rounds[(found.rounds["arm"] == "fuse") & (found.rounds["labels"] == 18)]
    row = found.combinations.set_index("point").loc["fuse"]
    assert row["fused_accuracy_mean"] == last["fused_accuracy"].item()
    assert (row["seeds"], row["labels"]) == (1, 18)
    planes = found.combinations[["selection_macs_mean", "fused_accuracy_mean"]].dropna().values.tolist()
    beaten = [any((x <= cost and y >= value) and [x, y] != [cost, value] for x, y in planes) for cost, value in planes]
    front = found.front("selection_macs")[["selection_macs_mean", "fused_accuracy_mean"]].values.tolist()
    assert front == sorted({tuple(p): p for p, b in zip(planes, beaten, strict=True) if not b}.values())
    with pytest.raises(ValueError, match="cost: 'euros' is none of selection_macs, "):
        found.front("euros")
    assert found.best.run.name == "swept-best"
    assert found.compared == "at the last label budget"
    assert found.run("fuse_seed-0").finished
    assert repr(found).endswith("3 trials: 2 complete, 1 failed")
    assert "Selection cost" in found.report().page
    with pytest.raises(LedgerError, match=r"sweep\.yaml: cannot be read"):
        prunefuse_ray.load_sweep(root / "trials")


@pytest.mark.slow
def test_the_same_sweep_again_tries_only_what_failed(swept):
    sweep, root, _ = swept
    before = {p: p.stat().st_mtime_ns for p in (root / "trials" / "fuse_seed-0").rglob("*") if p.is_file()}
    heard = Heard()
    run_sweep(sweep, heard)
    assert heard.of("start") == ["broken_seed-0"]
    assert heard.of(FAILED) == ["broken_seed-0"]
    assert {p: p.stat().st_mtime_ns for p in (root / "trials" / "fuse_seed-0").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"base": {"training": {"epochs": 5}}}, "base.training.epochs: 3 -> 5"),
        (
            {"arms": {"scratch": {"fusion": {"rule": "scaled"}}}},
            "trial 'scratch_seed-0': fusion.rule: 'keep' -> 'scaled'",
        ),
        ({"seeds": [1]}, "trial 'fuse_seed-0' would be gone"),
        ({"space": {"pruning.ratio": {"grid": [0.5]}}}, "trial 'fuse_seed-0' would be gone"),
    ],
)
def test_another_sweep_is_refused_with_the_difference(swept, tiny_pool, more, said):
    _, root, _ = swept
    with pytest.raises(LedgerError) as caught:
        run_sweep(sweep_from_tree(tree(tiny_pool, root.parent, **more)))
    assert said in str(caught.value)


def test_another_number_of_workers_is_told_of_a_sweep_that_goes_on(tmp_path):
    """Its trials would be compared as if they had been trained alike."""
    root = Place.at(str(tmp_path / "s"))

    def sweep(more):
        return sweep_from_tree(
            {"base": {"run": {"directory": str(tmp_path), "name": "s"}, "workers": more}, "seeds": [0]}
        )

    sweeping._record(root, sweep({}), [], {}, lambda _: None)
    assert sweeping._check_unchanged_sweep(root, sweep({"cpus": 2})) == []
    (said,) = sweeping._check_unchanged_sweep(root, sweep({"count": [2, 2]}))
    assert said.startswith("base.workers.count: ")


def test_a_sweep_does_not_go_on_with_other_known_labels(tmp_path):
    """New trials would begin with these, and be compared with trials that began with the old ones."""
    known, root = tmp_path / "known.csv", Place.at(str(tmp_path / "s"))
    known.write_text("id,label\na,1\n")
    base = {"pool": {"source": "parquet", "path": "p", "test_path": "t", "known_labels": str(known)}}
    arms = {"one": {}, "new": {"pruning": {"ratio": 0.8}}}
    found = trials(sweep_from_tree({"base": base, "arms": arms, "seeds": [0]}))
    ledger = Ledger(root / "trials" / found[0].name)
    ledger.create(to_tree(found[0].config), {})
    digest = hashlib.sha256(known.read_bytes()).hexdigest()
    ledger.commit(Step(-1, "init"), {}, {"inputs": {"pool.known_labels": {"sha256": digest}}})
    sweeping._check_unchanged_inputs(root, found)
    known.write_text("id,label\na,0\n")
    with pytest.raises(LedgerError, match=r"pool\.known_labels: .* is not the file that the run began with"):
        sweeping._check_unchanged_inputs(root, found)


def test_the_order_of_the_space_is_part_of_a_sweep(tmp_path):
    """It makes the names of the trials; written down, the two cannot be told apart by their fields."""
    space = {"pruning.ratio": {"grid": [0.5]}, "selection.strategy": {"grid": ["margin"]}}
    own = {"base": {"run": {"directory": str(tmp_path), "name": "s"}}, "seeds": [0]}
    sweep = sweep_from_tree({**own, "space": space})
    sweeping._record(Place.at(str(tmp_path / "s")), sweep, [], {}, lambda _: None)
    sweeping._check_unchanged_sweep(Place.at(str(tmp_path / "s")), sweep)
    turned = sweep_from_tree({**own, "space": dict(reversed(space.items()))})
    with pytest.raises(LedgerError, match=r"trial 'ratio-0\.5_strategy-margin_seed-0' would be gone"):
        sweeping._check_unchanged_sweep(Place.at(str(tmp_path / "s")), turned)


@pytest.mark.parametrize(
    "more",
    [{"concurrency": 1}, {"scheduler": "none"}, {"seeds": [0, 1]}, {"arms": {"other": {}}, "reference": "other"}],
)
def test_a_sweep_may_grow(swept, tiny_pool, more):
    _, root, _ = swept
    sweeping._check_unchanged_sweep(Place.at(str(root)), sweep_from_tree(tree(tiny_pool, root.parent, **more)))


def test_all_macs_are_those_of_selection_fused_proxy_and_target(swept):
    _, root, _ = swept
    ledger = Ledger(Place.at(str(root)) / "trials" / "fuse_seed-0")
    one = ledger.committed(Step(-1, "init")).metrics["macs_per_sample"]
    scoring = one["proxy"] * (120 - 10)
    epochs, seen = 3, (8, 16)  # of 10 and 18 labels in batches of 8
    proxies, target = [3 * one["proxy"] * epochs * n for n in seen], 3 * one["dense"] * epochs * seen[1]
    totals = {r.trial.name: r.rows[-1]["total_macs"] for r in read_sweep(Place.at(str(root))).trials if r.rows}
    assert totals["fuse_seed-0"] == scoring + sum(proxies) + target
    assert totals["scratch_seed-0"] == scoring + proxies[0] + target, "nothing is made of its last proxy"


def test_the_report_is_made_from_the_files_without_ray_or_torch(swept):
    _, root, _ = swept
    write_results(Place.at(str(root)), render_sweep)
    page = (root / "report.html").read_bytes()
    (root / "report.html").unlink()
    code = (
        "import sys; from prunefuse_ray.cli import main; code = main(['report', sys.argv[1]]);"
        "assert not {'torch', 'ray'} & set(sys.modules);"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (root / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"arms": {"big": {"selection": {"budgets": [10, 500]}}}}, ConfigError, "trial 'big': selection.budgets"),
        (
            {"arms": {"odd": {"network": {"architecture": "resnet21"}}}},
            NetworkError,
            "trial 'odd': network.architecture",
        ),
        ({"arms": {"many": {"scoring": {"actors": [50, 50]}}}}, PlanError, "trial 'many': scoring.actors"),
        ({"base": {"pool": {"image_column": "img"}}}, PoolError, "pool.image_column"),
    ],
)
def test_what_cannot_run_is_refused_before_any_trial(local_ray, tiny_pool, tmp_path, change, error, said):
    with pytest.raises(error) as caught:
        run_sweep(sweep_from_tree(tree(tiny_pool, tmp_path, **change)))
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ids", "error", "said"),
    [
        ([f"s{i:04d}" for i in range(11)], ConfigError, "selection.budgets: the first budget is 10 labels"),
        (["s0000", "nobody"], PoolError, "1 of 2 ids are not in the pool: 'nobody'"),
    ],
)
def test_known_labels_are_checked_before_any_trial(local_ray, tiny_pool, tmp_path, ids, error, said):
    known = tmp_path / "known.csv"
    known.write_text("id,label\n" + "".join(f"{i},0\n" for i in ids))
    with pytest.raises(error) as caught:
        run_sweep(sweep_from_tree(tree(tiny_pool, tmp_path / "s", base={"pool": {"known_labels": str(known)}})))
    assert said in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_the_command_says_one_error(capsys, tmp_path):
    assert main(["sweep", "--config", str(tmp_path / "none.yaml")]) == 2
    assert main(["sweep", "--preset", "digits_sweep", "--pruning.ratio", "2"]) == 2
    assert "base.pruning.ratio" in capsys.readouterr().err


def test_the_command_says_why_no_trial_is_stopped_early(capsys, tmp_path, monkeypatch):
    file = tmp_path / "drawn.yaml"
    space = {"training.lr": {"uniform": [0.01, 0.1]}}
    tree_ = {"base": {"run": {"directory": str(tmp_path)}}, "space": space, "samples": 2, "seeds": [0]}
    file.write_text(yaml.safe_dump(tree_))

    def interrupted(*_):
        raise PlanError("enough")

    monkeypatch.setattr(sweeping, "run_sweep", interrupted)
    assert main(["sweep", "--config", str(file)]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "no trial is stopped early: asha compares fused networks" in said
    file.write_text(yaml.safe_dump({**tree_, "scheduler": "asha"}))
    assert main(["sweep", "--config", str(file)]) == 2
    assert "scheduler: asha compares fused networks" in capsys.readouterr().err


def test_loggers_that_are_not_installed_are_refused(local_ray, tiny_pool, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"pip install 'prunefuse-ray\[wandb\]'"):
        loggers_of(sweep_from_tree({"loggers": ["wandb"]}), "swept")


@pytest.mark.parametrize("hook", ["setup", "on_trial_start", "on_trial_result", "on_trial_complete"])
def test_a_tracker_that_is_away_ends_no_sweep(caplog, hook):
    """Told once, and not tried again: Tune would wait for it at every row. Others are still told."""
    told = []

    class Away(tune.Callback):
        """A server that cannot be reached from some moment on."""

    class Here(tune.Callback):
        def on_trial_result(self, iteration, trials, trial, result, **info):
            told.append(result)

    def unreachable(self, *args, **info):
        told.append(hook)
        raise ConnectionError("http://tracker:5000 refuses")

    setattr(Away, hook, unreachable)
    callbacks = CallbackList([Careful("mlflow", Away()), Careful("other", Here())])
    callbacks.setup()
    for number in range(3):
        callbacks.on_trial_start(iteration=0, trials=[], trial=number)
        callbacks.on_trial_result(iteration=0, trials=[], trial=number, result={"row": number})
        callbacks.on_trial_complete(iteration=0, trials=[], trial=number)
    assert told.count(hook) == 1
    assert [row for row in told if row != hook] == [{"row": n} for n in range(3)]
    assert caplog.text.count("mlflow gets nothing more of this sweep") == 1
    assert "http://tracker:5000 refuses" in caplog.text


# --- kills ---


def start(file: Path, home: Path, *more: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}  # the networks of the tests
    return subprocess.Popen(
        [sys.executable, "jobs/sweep.py", "--config", str(file), *more],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def undisturbed_bytes(root: Path, trial: str) -> bytes:
    return (root / "trials" / trial / "fused" / "weights.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_killed_sweep_goes_on_where_it_was(swept, tiny_pool, tmp_path):
    """SIGKILL of the sweep's driver while a trial is in its first training; nothing is done twice after that. The trial
    itself may live on for a moment, which is not enough for its scoring passes."""
    _, whole, _ = swept
    made = tree(tiny_pool, tmp_path, concurrency=1)
    made["arms"] = {k: v for k, v in ARMS.items() if k != "broken"}
    file = tmp_path / "swept.yaml"
    file.write_text(yaml.safe_dump(made))
    root = tmp_path / "swept"
    first = start(file, tmp_path)
    wait_for(root / "trials/fuse_seed-0/rounds/000/commits/label.json", first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    while Ledger(Place.at(str(root / "trials/fuse_seed-0"))).driven:
        time.sleep(0.1)
    kept = {p: p.stat().st_mtime_ns for p in (root / "trials/fuse_seed-0").rglob("commits/*.json")}
    assert not (root / "trials/fuse_seed-0/result.json").exists()
    again = start(file, tmp_path)
    output, _ = again.communicate(timeout=900)
    assert again.returncode == 0, output
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "a committed phase was done again"
    for trial in ("fuse_seed-0", "scratch_seed-0"):
        assert undisturbed_bytes(root, trial) == undisturbed_bytes(whole, trial)
    third = start(file, tmp_path)
    output, _ = third.communicate(timeout=900)
    assert third.returncode == 0
    assert "2 of them were complete already" in output
    changed = start(file, tmp_path, "--training.lr", "0.05")
    output, _ = changed.communicate(timeout=300)
    assert changed.returncode == 2
    assert "base.training.lr: 0.1 -> 0.05" in output


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_trial_survives_the_loss_of_its_driver(local_ray, swept, tiny_pool, tmp_path):
    """SIGKILL of the process that drives a trial: Tune takes the trial up again, and it resumes from its ledger."""
    import threading

    _, whole, _ = swept
    made = tree(tiny_pool, tmp_path, concurrency=1)
    made["arms"] = {"fuse": ARMS["fuse"]}
    killed = []

    def kill():
        marker = tmp_path / "swept/trials/fuse_seed-0/rounds/000/commits/train.json"
        while not marker.exists():
            time.sleep(0.02)
        lock = str(tmp_path / "swept/trials/fuse_seed-0/.lock")

        def holds(pid):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    if os.readlink(f"/proc/{pid}/fd/{fd}") == lock:
                        return True
            return False

        while not killed:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    if int(pid) != os.getpid() and holds(pid):
                        os.kill(int(pid), signal.SIGKILL)
                        killed.append(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    heard = Heard()
    run_sweep(sweep_from_tree(made), heard)
    assert killed
    assert heard.of(COMPLETE) == ["fuse_seed-0"]
    assert undisturbed_bytes(tmp_path / "swept", "fuse_seed-0") == undisturbed_bytes(whole, "fuse_seed-0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_asha_stops_what_lags_and_a_second_start_leaves_it_stopped(local_ray, tiny_pool, tmp_path):
    """Learning rates from hopeless to good, one trial at a time, the good one first."""
    made = tree(tiny_pool, tmp_path, concurrency=1, scheduler="asha", metric="proxy")
    made["arms"] = {}
    made["base"]["selection"] = {"budgets": [10, 18, 26, 34]}
    made["space"] = {"training.lr": {"grid": [0.05, 1e-6, 2e-6, 3e-6, 4e-6]}}
    sweep = sweep_from_tree(made)
    heard = Heard()
    run_sweep(sweep, heard)
    assert len(heard.of("stopped")) >= 2
    assert "lr-0.05_seed-0" in heard.of(COMPLETE)
    again = Heard()
    run_sweep(sweep, again)
    assert not set(again.of("start")) & set(heard.of("stopped"))
    for r in read_sweep(Place.at(str(tmp_path / "swept"))).trials:
        # On a busy machine a stop may come too late; then the second start has written the report.
        assert (r.outcome.status == COMPLETE) == (len(r.rows) == 4), "what has passed every budget is whole"
    # What was stopped is a run like any other: it goes on to its end with the labels that it has.
    name = heard.of("stopped")[0]
    stopped = prunefuse_ray.load_sweep(tmp_path / "swept").run(name)
    bought = [p.read_bytes() for p in sorted((tmp_path / "swept/trials" / name).glob("rounds/*/labels.parquet"))]
    assert bought
    whole = prunefuse_ray.execute(stopped.config, tell=None)
    assert whole.finished
    after = [p.read_bytes() for p in sorted((tmp_path / "swept/trials" / name).glob("rounds/*/labels.parquet"))]
    assert after[: len(bought)] == bought


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mlflow_gets_every_trial(local_ray, tiny_pool, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    made = tree(tiny_pool, tmp_path / "sweeps", loggers=["mlflow"])
    made["arms"] = {"fuse": ARMS["fuse"]}
    run_sweep(sweep_from_tree(made))
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("swept").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["labels"] == 18
    assert run.data.params["trial/arm"] == "fuse"
    # Interrupted before its end, the trial goes on as the same run.
    client.update_run(run.info.run_id, status="RUNNING")
    (tmp_path / "sweeps/swept/trials/fuse_seed-0/commits/report.json").unlink()
    run_sweep(sweep_from_tree(made))
    (again,) = client.search_runs([run.info.experiment_id])
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")


def test_configs_of_trials_are_whole(swept):
    _, root, _ = swept
    for name in ("fuse_seed-0", "scratch_seed-0"):
        assert config_from_tree(yaml.safe_load((root / "trials" / name / "config.yaml").read_text())).run.name == name


def test_a_trial_that_lacks_only_its_baseline_is_told_of_when_it_has_it(tmp_path, monkeypatch):
    own = {"directory": str(tmp_path), "name": "t"}
    config = config_from_tree({"selection": {"budgets": [50, 100, 150]}, "run": own})
    ledger = Ledger(Place.at(str(tmp_path / "t")))
    ledger.create(to_tree(config), {"rows": 1})
    *rounds, baseline, report = steps(config)
    for step in rounds:
        ledger.commit(step, {}, {"seconds": 1.0, "test_accuracy": 0.5})
    told = []
    desk = SimpleNamespace(
        post=SimpleNamespace(remote=lambda _, row: told.append(row["budgets_passed"])),
        finish=SimpleNamespace(remote=lambda *_: None),
    )

    def run(config, listen, **_):
        assert told == [], "a scheduler would stop it at its last label budget"
        for step in (baseline, report):
            listen("done", step, None)

    monkeypatch.setattr("prunefuse_ray.sweep.trial.loop.run", run)
    _run("a", TrialJob(root=Place.at(str(tmp_path)), configs={"a": to_tree(config)}, runs=1, directory="."), desk)
    assert told == [3]


def test_a_search_with_fewer_draws_ends_what_was_drawn():
    sweep = sweep_from_tree({"space": {"training.lr": {"uniform": [0.1, 0.2]}}, "samples": 8})
    assert len(sweep.seeds) == 3
    assert [wanted(sweep, 5, drawn) for drawn in (0, 6, 8, 16)] == [29, 11, 5, 5]


@pytest.mark.parametrize(("ended", "code"), [(COMPLETE, 0), (STOPPED, 0), (FAILED, 1), (UNFINISHED, 1)])
def test_a_sweep_that_lacks_a_trial_ends_with_exit_code_1(tmp_path, monkeypatch, capsys, ended, code):
    file, own = tmp_path / "s.yaml", {"directory": str(tmp_path), "name": "s"}
    given = {"base": {"run": own}, "arms": {"one": {}, "two": {"training": {"lr": 0.05}}}, "seeds": [0]}
    file.write_text(yaml.safe_dump(given))
    sweep, root = sweep_from_tree(given), Place.at(str(tmp_path / "s"))
    (root / "sweep.yaml").write_bytes(b"")
    if ended == STOPPED:
        outcome_place(root, "two_seed-0").write_json({"status": STOPPED})
    results = [
        TrialResult(trial=trial, outcome=Outcome(status=status, message="no luck"), rows=[], tuning=None, shared={})
        for trial, status in zip(trials(sweep), (COMPLETE, ended), strict=True)
    ]
    monkeypatch.setattr(sweeping, "run_sweep", lambda *_: None)
    monkeypatch.setattr(
        "prunefuse_ray.sweep.analysis.write_results", lambda *_: SweepResult(sweep=sweep, root=root, trials=results)
    )
    assert main(["sweep", "--config", str(file)]) == code
    said = capsys.readouterr().out
    assert ("failed: two_seed-0: no luck" in said) == (ended == FAILED)
    assert ("1 of them were stopped early before" in said) == (ended == STOPPED)


def test_a_core_set_costs_the_training_that_noted_it(tmp_path):
    selection = {"strategy": "random", "budgets": [10]}
    config = config_from_tree({"fusion": {"target": "scratch"}, "coreset": {"by": "el2n"}, "selection": selection})
    ledger = Ledger(Place.at(str(tmp_path)))
    ledger.create(to_tree(config), {})
    ledger.commit(Step(0, "train"), {}, {"macs": 3})
    ledger.commit(Step(0, "finetune"), {}, {"macs": 5})
    assert round_row(ledger, config, 0)["total_macs"] == 8


def test_networks_are_looked_at_once_for_each_value(tmp_path, monkeypatch):
    seen, four = [], [n / 100 for n in range(1, 5)]
    monkeypatch.setattr(sweeping, "start_ray", lambda: None)
    monkeypatch.setattr(sweeping, "observe", lambda: has(4))
    monkeypatch.setattr(sweeping, "_survey_pools", lambda *a: seen.append(len(a[2])) or {})
    monkeypatch.setattr(sweeping, "_record", lambda *_: None)
    monkeypatch.setattr(sweeping, "_fit", lambda *_: None)
    axes = {field: {"choice": four} for field in ("training.lr", "training.weight_decay", "finetuning.lr")}
    run_sweep(searching(tmp_path, axes))
    assert seen[0] <= 24, "two at a time they would be 56"


def test_draws_that_an_earlier_version_rounded_otherwise_are_not_drawn_anew(tmp_path):
    sweep = sweep_from_tree(
        {
            "base": {"run": {"directory": str(tmp_path), "name": "s"}},
            "space": {"pruning.ratio": {"quniform": [0.5, 0.75, 0.03125]}},
            "samples": 1,
            "seeds": [0],
        }
    )
    root, (trial,) = Place.at(str(tmp_path / "s")), trials(sweep)
    sweeping._record(root, sweep, [], {}, lambda _: None)
    Ledger(root / "trials" / trial.name).create(to_tree(trial.config), {})
    sweeping._check_unchanged_sweep(root, sweep)
    Ledger(root / "trials/000_ratio-0.5312_seed-0").create(to_tree(trial.config), {})
    with pytest.raises(LedgerError, match=r"'000_ratio-0\.5312_seed-0' was drawn by another version"):
        sweeping._check_unchanged_sweep(root, sweep)


def test_a_trial_whose_workers_were_lost_too_often_is_lost(monkeypatch, tmp_path):
    gone = ray.train.WorkerGroupError("rank 0", {0: ray.exceptions.ActorDiedError()})

    def lost(*_):
        raise TrainingError("workers.max_failures: lost") from gone

    monkeypatch.setattr("prunefuse_ray.sweep.trial._run", lost)
    monkeypatch.setattr("prunefuse_ray.sweep.trial.ray.get", lambda _: None)
    desk = SimpleNamespace(release=SimpleNamespace(remote=lambda _: None))
    with pytest.raises(TrainingError):
        drive("a", TrialJob(root=Place.at(str(tmp_path)), configs={}, runs=1, directory=""), desk)


def test_nobody_waits_for_what_a_stopped_trial_claims_while_it_dies():
    """Tune tells of its end before it ends its process."""
    desk = Desk({})
    assert desk.claim("k", "a") == ("work", "a")
    desk.end("a")
    assert desk.claim("k", "b") == ("work", "b")
    assert desk.claim("l", "a") == ("work", "a")
    assert desk.claim("l", "b") == ("work", "b")


def test_a_sweep_that_was_taken_over_starts_no_more_trials(tmp_path):
    def refuse():
        raise LedgerError("another process is driving this run")

    directory = Ledger(Place.at(str(tmp_path)))
    events = sweeping._Events(directory, None, lambda *_: None)
    events.on_step_begin(0, [])
    directory._lease = SimpleNamespace(lost=True, check=refuse)
    with pytest.raises(LedgerError, match="another process"):
        events.on_step_begin(1, [])
