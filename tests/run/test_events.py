"""Events and gauges: what those who watch a run get to see."""

import json

import pytest

from prunefuse_ray.errors import ScoreError
from prunefuse_ray.method.steps import Step, steps
from prunefuse_ray.run import events, loop, phases
from prunefuse_ray.run.events import Telemetry
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.scoring.meter import ScoringMeter
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks.classification import CLASSIFICATION
from tests.support.runs import tiny


def recorded(root):
    return [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]


def test_every_phase_of_a_run_is_an_event_with_its_figures(local_ray, tiny_pool, tmp_path, monkeypatch):
    """Also across a failure and a resume: one file, in order, each phase done once."""
    config = tiny(tiny_pool, tmp_path, selection={"budgets": [10, 18]})

    def fails(work, step):
        raise ScoreError("no luck")

    score = phases.PHASES["score"]
    monkeypatch.setitem(phases.PHASES, "score", fails)
    with pytest.raises(ScoreError):
        loop.run(config)
    monkeypatch.setitem(phases.PHASES, "score", score)
    loop.run(config)
    found = recorded(tmp_path / "tiny")
    done = [(e["round"], e["phase"]) for e in found if e["event"] == "phase_done"]
    assert done == [(s.round, s.phase) for s in steps(config)]
    failed = next(e for e in found if e["event"] == "run_failed")
    assert (failed["error"], failed["message"]) == ("ScoreError", "no luck")
    assert [e["event"] for e in found].count("run_started") == 2
    assert found[-1]["event"] == "run_done"
    by_phase = {(e["round"], e["phase"]): e for e in found if e["event"] == "phase_done"}
    assert by_phase[0, "score"]["samples"] == 110
    assert by_phase[1, "label"]["labels"] == 18
    assert 0 <= by_phase[0, "train"]["test_accuracy"] <= 1
    times = [e["time"] for e in found]
    assert times == sorted(times)


def test_gauges_follow_the_commits(local_ray, tmp_path, monkeypatch):
    values = {}
    monkeypatch.setattr(events.Gauge, "set", lambda self, value, tags: values.update({self._name: (value, tags)}))
    ledger = Ledger(Place.at(str(tmp_path)))
    watched = Telemetry(ledger, "mine", CLASSIFICATION.metric)
    watched.started(Step(3, "label"))
    watched.done(ledger.commit(Step(3, "label"), {}, {"labels": 70, "seconds": 1.0}))
    watched.done(ledger.commit(Step(3, "train"), {}, {"test_accuracy": 0.5, "train_loss": [1.0]}))
    watched.done(ledger.commit(Step(3, "score"), {}, {"samples": 5, "histogram": {"edges": []}}))
    watched.done(ledger.commit(Step(-1, "baseline"), {}, {"labels": 30}))  # it is fitted to a part of them
    mine = {"run": "mine"}
    assert values == {
        "prunefuse_round": (3.0, mine), "prunefuse_labels_bought": (70.0, mine),
        "prunefuse_proxy_accuracy": (0.5, mine), "prunefuse_samples_rejected": (0.0, mine),
    }  # fmt: skip
    assert "train_loss" not in recorded(tmp_path)[-3]
    assert "histogram" not in recorded(tmp_path)[-2]


def test_the_meter_of_an_actor_counts_what_was_scored(monkeypatch):
    counted = []
    monkeypatch.setattr("ray.util.metrics.Counter.inc", lambda self, n: counted.append((self._name, n)))
    meter = ScoringMeter()
    meter.count(10, 3)
    meter.count(4, 0)
    meter.count(2, 2)
    assert counted == [("prunefuse_samples_scored", 7), ("prunefuse_samples_unusable", 3),
                       ("prunefuse_samples_scored", 4), ("prunefuse_samples_unusable", 2)]  # fmt: skip
