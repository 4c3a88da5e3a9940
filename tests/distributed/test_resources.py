"""Decisions about actors and workers: pure functions of the cluster's numbers."""

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from prunefuse_ray.config.scoring import Scoring
from prunefuse_ray.config.training import Workers
from prunefuse_ray.distributed.autoscaler import Autoscaler, NodeType
from prunefuse_ray.distributed.resources import (
    MACS_WORTH_AN_ACTOR,
    STREAM_CPUS,
    Machine,
    Resources,
    ScoringPlan,
    beside_decoding,
    cores,
    idle_gpus,
    importing,
    plan_scoring,
    plan_training,
    start_ray,
    training_threads,
)
from prunefuse_ray.errors import PlanError

MUCH = 1e18


GROWS = Autoscaler(
    node_types=(NodeType(cpus=8, gpus=1, most=2, role="training"), NodeType(cpus=4, gpus=0, most=5, role="scoring")),
    most=6,
)


def cluster(cpus, gpus=0, nodes=1, in_process=True, **more):
    return Resources(nodes=nodes, cpus=cpus, gpus=gpus, in_process=in_process, **more)


@pytest.mark.parametrize(
    ("scoring", "has", "macs", "actors"),
    [
        ({}, cluster(4), MUCH, (1, 2)),
        ({}, cluster(4), 1.0, (1, 1)),
        ({}, cluster(66), 3 * MACS_WORTH_AN_ACTOR, (1, 3)),
        ({"actors": (2, 9)}, cluster(4), 1.0, (2, 2)),
        ({"cpus": 2}, cluster(10), MUCH, (1, 4)),
        ({"gpus": 0.5}, cluster(34, gpus=2), MUCH, (1, 4)),
    ],
)
def test_scoring_actors_leave_room_for_their_stream(scoring, has, macs, actors):
    plan = plan_scoring(Scoring(**scoring), has, macs)
    assert (plan.min_actors, plan.max_actors) == actors


def test_the_driver_of_one_machine_scores_what_is_small_or_has_few_cores():
    many = cluster(18, cores=16)
    assert plan_scoring(Scoring(), many, 1e9, 1_000).here
    assert not plan_scoring(Scoring(), many, 1e9, 1_000_000).here, "many tiny samples: decoding counts too"
    assert not plan_scoring(Scoring(), many, 1e12, 1_000).here
    few = cluster(4, cores=2)
    assert plan_scoring(Scoring(), few, MUCH).here
    assert plan_scoring(Scoring(), few, MUCH).threads == 2
    assert plan_scoring(Scoring(cpus=2), few, MUCH).threads == 1
    assert not plan_scoring(Scoring(), cluster(8, nodes=2, in_process=False, cores=2), 1e9, 1_000).here
    assert not plan_scoring(Scoring(actors=(1, 1)), few, 1e9, 1_000).here, "actors were asked for"


def test_a_pass_that_decodes_leaves_cpus_for_it():
    plan = plan_scoring(Scoring(), cluster(66, nodes=9, in_process=False), MUCH)
    assert (plan.min_actors, plan.max_actors) == (1, 64)
    assert beside_decoding(plan, decode=3e-3, network=1e-3).max_actors == 16
    assert beside_decoding(plan, decode=1.0, network=1e-6).max_actors == 1
    assert beside_decoding(plan, decode=0.0, network=1e-3) == plan
    alone = plan_scoring(Scoring(), cluster(66, cores=64), MUCH)
    assert beside_decoding(alone, decode=1.0, network=1.0) == alone


@pytest.mark.parametrize(
    ("scoring", "has"),
    [({}, cluster(2)), ({"actors": (3, 3)}, cluster(4)), ({"gpus": 1}, cluster(16)), ({"cpus": 4}, cluster(5))],
)
def test_a_plan_that_would_stand_still_is_refused_with_its_numbers(scoring, has):
    with pytest.raises(PlanError, match=rf"scoring\.actors: .* do not fit {has.cpus:g} CPUs and 0 GPUs"):
        plan_scoring(Scoring(**scoring), has, MUCH)


def machines(*cpus, gpus=0, role=""):
    return tuple(Machine(cpus=n, gpus=gpus, role=role) for n in cpus)


def test_what_fits_no_single_machine_is_refused_however_many_there_are():
    """Ray would wait for ever for a machine that holds one actor, or one worker, whole."""
    small = cluster(16, nodes=8, in_process=False, machines=machines(*[2] * 8))
    with pytest.raises(PlanError, match=r"actors of 4 CPUs .* do not fit 16 CPUs .* 8 machines of at most 2 CPUs"):
        plan_scoring(Scoring(cpus=4), small, MUCH)
    with pytest.raises(PlanError, match=r"1 workers of 4 CPUs do not fit 16 CPUs .* 8 machines of at most 2 CPUs"):
        plan_training(Workers(cpus=4), small)
    assert plan_scoring(Scoring(cpus=2), small, MUCH).max_actors == 7
    assert plan_training(Workers(cpus=2), small).workers == (1, 1)
    mixed = cluster(9, nodes=2, in_process=False, machines=machines(4, 5))
    assert plan_scoring(Scoring(cpus=3), mixed, MUCH).max_actors == 2
    apart = cluster(12, gpus=2, nodes=2, in_process=False, machines=(*machines(8), *machines(4, gpus=2)))
    with pytest.raises(PlanError, match=r"2 workers of 4 CPUs and a GPU do not fit"):
        plan_training(Workers(count=(2, 2), cpus=4, gpu=True), apart)


def test_machines_that_are_not_worked_on_hold_nothing():
    by_role = {"head": (8, 0), "scoring": (2, 0), "training": (2, 0)}
    kinds = (*machines(8, role="head"), *machines(2, role="scoring"), *machines(2, role="training"))
    has = cluster(12, nodes=3, in_process=False, roles=by_role, machines=kinds)
    with pytest.raises(PlanError, match="actors of 4 CPUs"):
        plan_scoring(Scoring(cpus=4), has, MUCH)
    with pytest.raises(PlanError, match="1 workers of 4 CPUs do not fit 2 CPUs"):
        plan_training(Workers(cpus=4), has)
    grown = Autoscaler(node_types=(NodeType(cpus=8, gpus=0, most=2, role="scoring"),), most=2)
    waiting = plan_scoring(Scoring(cpus=4), dataclasses.replace(has, autoscaler=grown), MUCH)
    assert "waiting for the autoscaler" in waiting.waits


@pytest.mark.parametrize(
    ("share", "gpus", "actors"), [(0.1, 1, 10), (0.2, 1, 5), (0.05, 1, 20), (0.3, 2, 6), (0.6, 2, 2), (2, 3, 1)]
)
def test_shares_of_gpus_are_counted_as_ray_does(share, gpus, actors):
    """Each share is one of a single GPU, and ten tenths are one, which they are not in floating point."""
    has = cluster(66, gpus, machines=machines(66, gpus=gpus))
    assert plan_scoring(Scoring(gpus=share, actors=(actors, actors)), has, MUCH).max_actors == actors
    with pytest.raises(PlanError):
        plan_scoring(Scoring(gpus=share, actors=(actors + 1, actors + 1)), has, MUCH)
    grows = Autoscaler(node_types=(NodeType(cpus=66, gpus=gpus, most=1),), most=1)
    assert plan_scoring(Scoring(gpus=share), cluster(0, in_process=False, autoscaler=grows), MUCH).max_actors == actors


def test_small_steps_are_not_spread_over_threads():
    assert [training_threads(macs, 8) for macs in (6e7, 2e9)] == [1, 8]


def test_one_worker_on_this_machine_trains_inside_the_driver():
    assert plan_training(Workers(), cluster(4)).in_process
    assert not plan_training(Workers(), cluster(4, in_process=False)).in_process
    assert not plan_training(Workers(count=(1, 2)), cluster(4)).in_process


def test_runs_that_share_a_machine_are_given_their_gpus_by_ray():
    """Inside their drivers all of them would train on the first one."""
    four = cluster(34, gpus=4)
    assert plan_training(Workers(gpu=True), four).in_process
    assert plan_training(Workers(gpu=True), four.part(4)).workers == (1, 1)
    assert plan_training(Workers(), four.part(4)).in_process


@pytest.mark.parametrize("workers", [{"count": (5, 6)}, {"count": (1, 2), "cpus": 8}, {"gpu": True}])
def test_training_that_does_not_fit_is_refused(workers):
    with pytest.raises(PlanError, match=r"workers\.count: .* do not fit 4 CPUs and 0 GPUs"):
        plan_training(Workers(**workers), cluster(4))


# --- clusters that grow, machines with labels ---


def test_scoring_is_planned_for_what_the_autoscaler_could_add():
    """Two machines of 8 CPUs and four of 4: 32 actors, of which two make room for the stream."""
    head = cluster(0, in_process=False, autoscaler=GROWS)
    plan = plan_scoring(Scoring(), head, MUCH)
    assert (plan.min_actors, plan.max_actors) == (1, 30)
    assert "1 actors of 1 CPUs" in plan.waits
    assert "waiting for the autoscaler" in plan.waits
    assert plan_scoring(Scoring(actors=(2, 9)), head, MUCH).max_actors == 9
    assert plan_scoring(Scoring(actors=(2, 99)), head, MUCH).max_actors == 30
    assert plan_scoring(Scoring(gpus=0.5), head, MUCH).max_actors == 4
    assert plan_scoring(Scoring(), cluster(8, autoscaler=GROWS), MUCH).waits is None


def test_what_no_autoscaler_could_satisfy_is_refused_with_both_numbers():
    head = cluster(0, in_process=False, autoscaler=GROWS)
    with pytest.raises(PlanError, match=r"31 actors .* do not fit 0 CPUs .* could bring them to 30 actors at most"):
        plan_scoring(Scoring(actors=(31, 31)), head, MUCH)
    with pytest.raises(PlanError, match=r"3 workers .* and a GPU .*role=training, .* could bring them to 2 workers"):
        plan_training(Workers(count=(3, 3), gpu=True), head)


def test_training_waits_for_training_machines_only():
    """The 20 CPUs of scoring machines do not count: training stays off spot."""
    spot = cluster(20, in_process=False, roles={"scoring": (20, 0)}, autoscaler=GROWS)
    plan = plan_training(Workers(count=(2, 2), gpu=True), spot)
    assert plan.placement == {"prunefuse.io/role": "training"}
    assert "2 workers of 1 CPUs and a GPU do not fit 0 CPUs and 0 GPUs" in plan.waits
    there = cluster(20, in_process=False, roles={"scoring": (12, 0), "training": (8, 1)})
    assert plan_training(Workers(cpus=8, gpu=True), there).waits is None
    with pytest.raises(PlanError, match="9 CPUs"):
        plan_training(Workers(cpus=9), there)


def test_scoring_prefers_scoring_machines_and_never_the_head():
    labeled = cluster(20, in_process=False, roles={"scoring": (12, 0), "training": (8, 1)})
    assert plan_scoring(Scoring(), labeled, MUCH).placement == {
        "label_selector": {"prunefuse.io/role": "scoring"},
        "fallback_strategy": [{"label_selector": {"prunefuse.io/role": "!head"}}],
    }


def test_nothing_is_asked_of_a_cluster_without_labels():
    plain = cluster(20, nodes=3, in_process=False)
    assert plan_scoring(Scoring(), plain, MUCH).placement == {}
    assert plan_training(Workers(), plain).placement is None


def test_imports_run_beside_the_body_and_are_there_after_it(tmp_path, monkeypatch):
    go = tmp_path / "go"
    (tmp_path / "slow_module.py").write_text(
        f"import os, time\nfor _ in range(1000):\n    if os.path.exists({str(go)!r}): break\n    time.sleep(0.01)\n"
        "ready = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with importing("no_such_module", "slow_module"):
        assert not hasattr(sys.modules.get("slow_module"), "ready")  # the body does not wait for it
        go.touch()
    assert sys.modules["slow_module"].ready
    del sys.modules["slow_module"]


def test_a_single_machine_is_told_with_its_cores():
    """Its own Ray has more CPUs, for tasks that read and write beside the actors."""
    assert cluster(cores() + STREAM_CPUS).to_json()["cpus"] == cores()
    assert cluster(64, in_process=False).to_json()["cpus"] == 64


def test_gpus_that_nobody_uses_are_told():
    told = idle_gpus(Workers(), Scoring(), cluster(8, gpus=2))
    assert told is not None
    assert told.startswith("2 GPUs are there")
    assert "workers.gpu" in told
    for workers, scoring, gpus in (
        (Workers(gpu=True), Scoring(), 2),
        (Workers(), Scoring(gpus=0.5), 1),
        (Workers(), Scoring(), 0),
    ):
        assert idle_gpus(workers, scoring, cluster(8, gpus=gpus)) is None


def test_the_driver_scores_in_threads_where_it_needs_no_actors():
    plan = ScoringPlan(min_actors=1, max_actors=5, cpus=1, gpus=0.0, threads=3)
    assert plan.at_once == (1, 5)
    assert dataclasses.replace(plan, here=True).at_once == (3, 3)


def test_sessions_of_a_ray_started_here_are_this_users_alone_and_go_with_it():
    script = (
        "import json, ray\n"
        "from ray._private.node import Node\n"
        "for name in ('start_monitor', 'start_api_server', 'start_log_monitor'):\n"  # seconds each, and not looked at
        "    setattr(Node, name, lambda *_, **__: None)\n"
        "from prunefuse_ray.distributed.resources import start_ray\n"
        "for _ in range(2):\n"
        "    start_ray()\n"
        "    session = ray._private.worker._global_node.get_session_dir_path()\n"
        "    modes = [(str(p), p.stat().st_mode) for p in __import__('pathlib').Path(session).parents]\n"
        "    ray.shutdown()\n"
        "print(json.dumps(modes))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    above = dict(json.loads(done.stdout.splitlines()[-1]))
    private = [path for path, mode in above.items() if stat.S_IMODE(mode) == 0o700 and "/prunefuse-" in path]
    assert private, above
    assert not any(Path(path).exists() for path in private)


def test_a_cluster_that_is_gone_is_one_message(monkeypatch):
    def gone(**_):
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", gone)
    with pytest.raises(PlanError, match=r"RAY_ADDRESS: no Ray cluster answers at 'auto' \(Could not find .*unset"):
        start_ray()


def mismatch(**_):
    try:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0")
    except RuntimeError as error:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from error


def malformed(**_):
    raise ValueError("Malformed address port x. Must be an integer.")


@pytest.mark.parametrize(
    ("init", "said"),
    [(mismatch, r"other versions \(.*Ray: 2\.59\.0\): install"), (malformed, "no Ray cluster answers.*Malformed")],
)
def test_a_cluster_that_cannot_be_joined_is_one_message(monkeypatch, init, said):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(PlanError, match=said):
        start_ray()
