"""Training on labels and on a pool without them: what is learned from, what it costs, exact resume."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data.labeled_set import Samples
from prunefuse_ray.data.unlabeled import PoolBatches, Unlabeled
from prunefuse_ray.distributed.resources import TrainingPlan
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.training import checkpoints
from prunefuse_ray.training.recipe import lengthened, samples_per_epoch
from prunefuse_ray.training.semi_supervised import Guesser, aligned
from prunefuse_ray.training.trainer import _steps, arithmetic, train
from tests.support.pools import random_images
from tests.training.test_trainer import FORM, IN_PROCESS, SPEC, Shared, data, dropping, job, weights

assert data  # the fixture

RECIPE = {"label_smoothing": 0.0, "unlabeled": {"method": "fixmatch", "steps": 24, "threshold": 0.6, "ratio": 2}}


def semi(data, network=None, labels=None, **more):
    samples, known, test = data
    recipe = {**RECIPE, **more.pop("recipe", {})}
    exclude = pa.array(["s0000"])
    return job(
        (samples, known if labels is None else labels, test), network, recipe=recipe,
        unlabeled=Unlabeled(source=samples, exclude=exclude), prior=(0.5, 0.5), **more,
    )  # fmt: skip


def test_alignment_brings_guesses_to_the_prior():
    p = np.array([[0.8, 0.2], [0.6, 0.4]])
    found = aligned(p, np.array([0.7, 0.3]), np.array([0.5, 0.5]))
    assert found.sum(1) == pytest.approx([1, 1])
    assert found[0] == pytest.approx(np.array([0.8 / 0.7, 0.2 / 0.3]) / (0.8 / 0.7 + 0.2 / 0.3))
    assert np.array_equal(aligned(p, np.array([0.5, 0.5]), np.array([0.5, 0.5])), p)


def test_only_what_the_network_is_sure_of_is_learned_from(data):
    everything = Unlabeled(source=data[0], exclude=pa.array([], pa.string()))
    pool = PoolBatches(everything, FORM, batch=50, seed=0, memory=9999)
    network, prior = networks.build(SPEC, seed=0), np.array([0.5, 0.5])
    plain = arithmetic("fp32", torch.device("cpu"))
    with torch.no_grad():
        p = network.eval()(FORM.inputs(pool.values(pool.places(3)))).softmax(1)
    mean = 0.99 * prior + 0.01 * p.double().numpy().mean(0)
    q = aligned(p.double().numpy(), mean, prior)
    threshold = float(np.median(q.max(1)))
    sure = q.max(1) >= threshold
    assert 0 < sure.sum() < 50

    network.train()
    settings = {**RECIPE["unlabeled"], "threshold": threshold}
    recipe = Recipe(**{**RECIPE, "unlabeled": settings}, augment=[])
    found = Guesser(recipe, FORM, pool, prior, 0, 0, 1).guess(network, TASKS["classification"], 3, [], plain)
    assert network.training
    assert found.labels_N.tolist() == q.argmax(1)[sure].tolist()
    assert len(found.values_N) == sure.sum()
    assert found.mean_C == pytest.approx(mean.tolist(), abs=1e-5)
    shares = [
        Guesser(recipe, FORM, pool, np.array([0.5, 0.5]), 0, rank, 2)._probabilities(
            network, TASKS["classification"], pool.values(pool.places(3)[rank::2]), plain
        )
        for rank in (0, 1)
    ]
    assert shares[1] == pytest.approx(p.numpy()[1::2], abs=1e-5), "a guess depends on the batch"


def test_training_learns_from_the_pool_and_counts_it(data, tmp_path):
    """Four labels, and a pool whose samples are told apart by the same sign."""
    labels = data[1].slice(0, 4)
    result = train(semi(data, labels=labels, recipe={"epochs": 8}), IN_PROCESS, Place.at(str(tmp_path / "t")))
    metrics = result.metrics
    assert metrics["test_accuracy"] > 0.9
    assert metrics["unlabeled"] == 24 * 32
    assert len(metrics["sure"]) == 8
    assert metrics["sure"][-1] > 0.5
    per_sample = networks.macs(networks.build(SPEC, seed=0), (1, 8, 8))
    labeled, guessed = 24 * 4, 24 * 32
    sure = round(sum(metrics["sure"]) * guessed / 8)
    assert metrics["macs"] == per_sample * (3 * (labeled + sure) + guessed)


@pytest.mark.parametrize(
    "name", ["epoch-0001-step-000004", pytest.param("epoch-0002-step-000000", marks=pytest.mark.slow)]
)
def test_one_that_was_stopped_ends_with_the_same_weights(data, tmp_path, monkeypatch, name):
    monkeypatch.setattr("prunefuse_ray.training.trainer.PREEMPTION_STEPS", 4)
    monkeypatch.setattr("prunefuse_ray.training.trainer.Notice.arrived", lambda self, step: step == 4)
    whole = train(semi(data, dropping()), IN_PROCESS, Place.at(str(tmp_path / "whole")))
    persist = checkpoints._persist

    def stop(local, where, written):
        persist(local, where, written)
        if written == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_persist", stop)
        with pytest.raises(KeyboardInterrupt):
            train(semi(data, dropping()), IN_PROCESS, Place.at(str(tmp_path / "t")))
    resumed = train(semi(data, dropping()), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert resumed.network == whole.network
    assert resumed.metrics["sure"] == whole.metrics["sure"]
    assert resumed.metrics["macs"] == whole.metrics["macs"]


def test_the_labels_of_unlabeled_samples_are_of_no_account(data, tmp_path):
    """The labels of all samples but four are others; nothing else changes."""
    labels = data[1].slice(0, 4)
    first = train(semi(data, labels=labels), IN_PROCESS, Place.at(str(tmp_path / "a")))
    source = dataclasses.replace(data[0], label_column=None)
    again = train(semi((source, *data[1:]), labels=labels), IN_PROCESS, Place.at(str(tmp_path / "b")))
    assert first.network == again.network


def test_members_of_a_committee_learn_what_they_are_sure_of_together(data, tmp_path):
    members = networks.split(networks.build(SPEC, seed=0), SPEC, networks.PruningSpec(ratio=0.5), 2)
    result = train(semi(data, networks.Committee(members)), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert result.metrics["test_accuracy"] > 0.9


def test_the_budget_is_steps_or_macs():
    recipe = Recipe(**RECIPE, batch_size=10)
    assert lengthened(Recipe(), 1000) == Recipe()
    assert lengthened(recipe, 1000).min_steps == 24
    by_macs = lengthened(
        recipe.model_copy(update={"unlabeled": recipe.unlabeled.model_copy(update={"macs": 1e7})}), 1000
    )
    assert by_macs.min_steps == 90  # of 10 x (3 + 2 x 4) x 1,000 MACs
    assert samples_per_epoch(by_macs, 20) * by_macs.epochs >= 90 * 10


def test_a_threshold_that_smoothed_labels_never_reach_is_refused():
    with pytest.raises(ConfigError, match="set label_smoothing to 0"):
        config_from_tree({"training": {"unlabeled": {"method": "fixmatch"}}})


@pytest.mark.slow
def test_a_worker_group_trains_the_same_job(data, tmp_path, local_ray):
    plan = TrainingPlan(workers=(2, 2), cpus=1, gpu=False, max_failures=0)
    group = train(semi(data), plan, Place.at(str(tmp_path / "group")))
    alone = train(semi(data), IN_PROCESS, Place.at(str(tmp_path / "alone")))
    assert group.metrics["unlabeled"] == alone.metrics["unlabeled"]
    difference = (weights(group)["8.weight"] - weights(alone)["8.weight"]).norm() / weights(alone)["8.weight"].norm()
    assert difference < 0.4


@pytest.mark.slow
def test_workers_count_what_all_of_them_are_sure_of(data, tmp_path, local_ray):
    """Of five samples the first worker has three."""
    sure_of_all = {**RECIPE["unlabeled"], "ratio": 1, "threshold": 0.0}
    plan = TrainingPlan(workers=(2, 2), cpus=1, gpu=False, max_failures=0)
    made = semi(data, recipe={"batch_size": 5, "epochs": 2, "unlabeled": sure_of_all})
    assert set(train(made, plan, Place.at(str(tmp_path / "t"))).metrics["sure"]) == {1.0}


def test_guesses_go_through_what_workers_share(data):
    """It gives all of them the same batch-norm statistics first."""
    seen = []

    class Noting(Shared):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    network, made, cpu = networks.build(SPEC, seed=0), semi(data, recipe={"batch_size": 16}), torch.device("cpu")
    pool = PoolBatches(made.unlabeled, FORM, batch=32, seed=0, memory=9999)
    guesser = Guesser(made.recipe, FORM, pool, np.array([0.5, 0.5]), 0, 0, 1)
    samples = Samples(values_N=torch.from_numpy(random_images(16)), labels_N=torch.arange(16) % 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    list(_steps(Noting(network), optimizer, None, samples, made, checkpoints.State(), cpu, 1, 0, network, guesser))
    assert len(seen) > 1
    assert seen == [False, True] * (len(seen) // 2)
