"""Decisions about actors and workers: pure functions of the cluster's numbers."""

import pytest

from prunefuse_ray.config import Scoring, Workers
from prunefuse_ray.errors import PlanError
from prunefuse_ray.resources import MACS_WORTH_AN_ACTOR, Resources, plan_scoring, plan_training, training_threads

MUCH = 1e18


def cluster(cpus, gpus=0, nodes=1, in_process=True):
    return Resources(nodes=nodes, cpus=cpus, gpus=gpus, in_process=in_process)


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


def test_a_small_pool_is_scored_by_the_driver_of_one_machine():
    assert plan_scoring(Scoring(), cluster(4), 1e9, 1_000).here
    assert not plan_scoring(Scoring(), cluster(4), 1e9, 1_000_000).here, "many tiny samples: decoding counts too"
    assert not plan_scoring(Scoring(), cluster(4), 1e12, 1_000).here
    assert not plan_scoring(Scoring(), cluster(8, nodes=2, in_process=False), 1e9, 1_000).here
    assert not plan_scoring(Scoring(actors=(1, 1)), cluster(4), 1e9, 1_000).here, "actors were asked for"


@pytest.mark.parametrize(
    ("scoring", "has"),
    [({}, cluster(2)), ({"actors": (3, 3)}, cluster(4)), ({"gpus": 1}, cluster(16)), ({"cpus": 4}, cluster(5))],
)
def test_a_plan_that_would_stand_still_is_refused_with_its_numbers(scoring, has):
    with pytest.raises(PlanError, match=rf"scoring\.actors: .* do not fit {has.cpus:g} CPUs and 0 GPUs"):
        plan_scoring(Scoring(**scoring), has, MUCH)


def test_small_steps_are_not_spread_over_threads():
    assert [training_threads(macs, 8) for macs in (6e7, 2e9)] == [1, 8]


def test_one_worker_on_this_machine_trains_inside_the_driver():
    assert plan_training(Workers(), cluster(4)).in_process
    assert not plan_training(Workers(), cluster(4, in_process=False)).in_process
    assert not plan_training(Workers(count=(1, 2)), cluster(4)).in_process


@pytest.mark.parametrize("workers", [{"count": (5, 6)}, {"count": (1, 2), "cpus": 8}, {"gpu": True}])
def test_training_that_does_not_fit_is_refused(workers):
    with pytest.raises(PlanError, match=r"workers\.count: .* do not fit 4 CPUs and 0 GPUs"):
        plan_training(Workers(**workers), cluster(4))
