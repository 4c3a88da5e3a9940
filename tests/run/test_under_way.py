"""What is told of a run while it goes on: how far a phase has come, by its files, and what is left."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

import prunefuse_ray
from prunefuse_ray import progress
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.method.steps import Step, steps
from prunefuse_ray.run import loop, phases, under_way
from prunefuse_ray.run.estimate import PhaseEstimate
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.under_way import Looker, UnderWay, Work, left, rest_of, words
from prunefuse_ray.storage import Place
from tests.support.runs import tiny


def test_the_words_of_a_phase():
    work = Work(share=0.25, samples=4_000, macs=8_000_000_000, epochs=20)
    now = UnderWay(state="running", step=Step(1, "train"), seconds=50.0, work=work, rest=600.0)
    assert words(now) == (
        "round 1, training the proxy: epoch 5 of 20, 50 s, left 2 min 30 s, about 12 min 30 s of the run, "
        "20 samples/s, 2.00 G MACs"
    )
    begun = UnderWay(state="running", step=Step(0, "score"), seconds=3.0, work=Work(share=0.0, samples=10, macs=9))
    assert words(begun) == "round 0, scoring: 0% of 10 samples, 3 s"
    fuse = UnderWay(state="running", step=Step(0, "fuse"), seconds=130.0, silent=125.0)
    assert words(fuse) == "round 0, fusing: 2 min 10 s; nothing new for 2 min 05 s"
    assert words(UnderWay(state="waiting", step=Step(1, "label"), message="8 labels")) == "waiting: 8 labels"
    assert words(UnderWay(state="interrupted", step=Step(1, "train"))) == "interrupted, round 1, training the proxy"


def test_the_pace_is_that_of_this_start():
    """What an earlier one has done took it another time."""
    work = Work(share=0.75, samples=100, macs=100, since=(0.5, 10.0))
    assert left(work, 20.0) == pytest.approx(10.0)
    assert left(Work(share=0.5, samples=100, macs=100, since=(0.5, 10.0)), 20.0) is None


def test_what_is_left_follows_from_what_was_done():
    plan = {
        Step(r, p): PhaseEstimate(round=r, phase=p, samples=1, macs=macs, seconds=0.0)
        for r, p, macs in [(0, "train", 10), (1, "train", 20), (1, "finetune", 60), (1, "label", 0)]
    }
    done = {Step(0, "label"): {"seconds": 2.0}, Step(0, "train"): {"seconds": 5.0, "macs": 10}}
    ahead = [Step(1, "label"), Step(1, "train"), Step(1, "finetune"), Step(-1, "report")]
    assert rest_of(plan, done, ahead) == pytest.approx(2.0 + 10.0 + 30.0)
    assert rest_of(plan, {}, ahead) is None


@pytest.fixture(scope="module")
def watched(local_ray, tiny_pool, tmp_path_factory):
    """A finished run of two rounds, and what could be seen of it at the end of each phase, before its commit."""
    directory = tmp_path_factory.mktemp("runs")
    config = tiny(tiny_pool, directory, selection={"budgets": [10, 18]})
    looker, seen, before = Looker(loop.run_place(config)), {}, dict(phases.PHASES)

    def looked_at(work):
        def carried_out(context, step):
            done = work(context, step)
            seen[step] = looker.look()
            return done

        return carried_out

    phases.PHASES.update({name: looked_at(work) for name, work in before.items()})
    try:
        loop.run(config)
    finally:
        phases.PHASES.update(before)
    return config, seen


def test_a_run_is_followed_by_its_files(watched):
    config, seen = watched
    assert list(seen) == steps(config)
    assert all(now.state == "running" and now.step == step for step, now in seen.items())
    score = seen[Step(0, "score")].work
    assert (score.share, score.samples, score.epochs) == (1.0, 110, 0)
    for step in (Step(0, "train"), Step(1, "train"), Step(1, "finetune")):
        assert (seen[step].work.share, seen[step].work.epochs) == (1.0, 3)
    assert seen[Step(0, "train")].rest is None
    assert seen[Step(1, "train")].rest > 0
    assert seen[Step(0, "select")].work is None
    assert progress.epochs() == 0.0
    assert Looker(loop.run_place(config)).look() == UnderWay(state="finished", phases=(11, 11))


@pytest.mark.parametrize(
    ("event", "state"), [("run_waits", "waiting"), ("run_interrupted", "interrupted"), ("run_failed", "failed")]
)
def test_how_a_run_stopped_is_seen(watched, tmp_path, event, state):
    root = copied(watched, tmp_path)
    add(root, event=event, message="why")
    stopped = UnderWay(state=state, step=Step(1, "finetune"), phases=(9, 11), message="why")
    assert Looker(Place.at(str(root))).look() == stopped


def test_a_run_that_was_killed_is_silent(watched, tmp_path):
    root = copied(watched, tmp_path)
    add(root, event="phase_started", round=1, phase="finetune", ago=3600)
    now = Looker(Place.at(str(root))).look()
    assert (now.state, round(now.silent, -1)) == ("running", 3600)
    assert words(now).endswith("nothing new for 1 h 00 min")


def test_nothing_is_written_and_nothing_begins(tmp_path):
    assert Looker(Place.at(str(tmp_path / "none"))).look() == UnderWay(state="not begun")
    assert list(tmp_path.iterdir()) == []


def test_a_display_never_ends_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(under_way, "LOOKS_EVERY", 0.01)
    (tmp_path / "config.yaml").write_text("no: run")
    lines = []
    with under_way.shown(Place.at(str(tmp_path)), lines.append):
        time.sleep(0.2)
    assert lines == []


def copied(watched, to):
    """The run as it was before its last training: what a reader needs of it."""
    config, _ = watched
    root, gone = to / "run", ("finetune", "report")
    source = Place(Place.at("/").fs, loop.run_place(config).path)
    for file in source.files(recursive=True):
        name = file.path.removeprefix(source.path + "/")
        if name.endswith((".json", ".yaml", ".parquet")) and not any(f"commits/{p}.json" in name for p in gone):
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((source / name).read_bytes())
    (root / "events.jsonl").unlink(missing_ok=True)
    add(root, event="run_started")
    return root


def add(root, ago=0.0, **event):
    moment = (datetime.now(UTC) - timedelta(seconds=ago)).isoformat("T", "milliseconds")
    with open(root / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": moment, **event}) + "\n")


def test_a_run_that_ended_without_a_baseline_is_finished(tmp_path):
    config = config_from_tree({"selection": {"budgets": [10, 20]}})
    ledger = Ledger(Place.at(str(tmp_path)))
    ledger.create(to_tree(config), {})
    for step in steps(config):
        if step.phase != "baseline":
            ledger.commit(step, {}, {"seconds": 1.0})
    assert Looker(ledger.root).look().state == "finished"
    assert prunefuse_ray.Run(tmp_path).finished


def test_a_pool_that_has_grown_is_planned_anew(tmp_path, monkeypatch):
    pool = {"source": "parquet", "path": "a", "test_path": "b", "classes": 2, "allow_growth": True}
    config = config_from_tree({"pool": pool, "selection": {"budgets": [10, 20]}})
    (ledger := Ledger(Place.at(str(tmp_path)))).create(to_tree(config), {})
    made = []
    monkeypatch.setattr(under_way, "planned", lambda *_: made.append(1) or {Step(9, "none"): None})
    looker, plan = Looker(ledger.root), steps(config)
    grow = plan.index(Step(0, "grow"))
    told = {"time": datetime.now(UTC).isoformat(), "event": "run_started"}
    (tmp_path / "events.jsonl").write_text(json.dumps(told) + "\n")
    for step in plan[:grow]:
        ledger.commit(step, {}, {"seconds": 1.0})
    looker.look()
    ledger.commit(plan[grow], {}, {"seconds": 1.0})
    looker.look()
    looker.look()
    assert len(made) == 2
