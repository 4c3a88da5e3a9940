"""Pre-training: its tasks, its budget, exact resume, and what comes of the classifier and of committees."""

import dataclasses
import math
import signal

import numpy as np
import pyarrow as pa
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.config.training import Pretraining, Recipe
from prunefuse_ray.data.unlabeled import Unlabeled
from prunefuse_ray.distributed.resources import TrainingPlan
from prunefuse_ray.run.phases.pretrain import hardly_learned
from prunefuse_ray.storage import Place
from prunefuse_ray.training import checkpoints, pretext, pretrainer
from prunefuse_ray.training.pretext import PRETEXTS, VICReg
from prunefuse_ray.training.pretrainer import PretrainingJob, macs_of, pretrain, steps_of
from tests.support.nets import OWN
from tests.support.pools import source, write_pool
from tests.training.test_trainer import FORM, IN_PROCESS, SPEC, weights

ROWS = 60


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Samples that are bright at the top: which way one is turned can be seen."""
    where = tmp_path_factory.mktemp("slopes")
    noise = np.random.default_rng(0).normal(0, 20, (ROWS, 8, 8, 1))
    slope = np.linspace(230, 20, 8)[None, :, None, None]
    write_pool(where / "pool", np.clip(slope + noise, 0, 255).astype(np.uint8), files=2)
    return Unlabeled(source=source(where / "pool"), exclude=pa.array([], pa.string()))


def job(pool, network=None, **settings):
    network = network or networks.Dense(network=networks.build(SPEC, seed=0), spec=SPEC)
    settings = {"method": "rotation", "epochs": 20, "batch_size": 20, **settings}
    return PretrainingJob(
        network=networks.to_files(network), settings=Pretraining(**settings), views=Recipe(augment=["crop"]), pool=pool,
        rows=ROWS, form=FORM, seed=0, trusted=OWN,
    )  # fmt: skip


def test_turns_are_learned_and_the_classifier_stays(pool, tmp_path):
    result = pretrain(job(pool), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert np.mean(result.metrics["right"][-3:]) > 0.9 > 0.5 > result.metrics["right"][0]
    assert hardly_learned(result.metrics) is None
    assert result.metrics["steps"] == 60
    assert result.metrics["macs"] == 3 * 20 * 60 * networks.macs(networks.build(SPEC, seed=0), (1, 8, 8))
    before, after = networks.build(SPEC, seed=0).state_dict(), weights(result)
    assert torch.equal(before["8.weight"], after["8.weight"])
    assert not torch.equal(before["0.weight"], after["0.weight"])
    assert after["1.num_batches_tracked"] == 60


def test_turns_that_nobody_can_tell_are_said_not_to_be_learned(tmp_path):
    plain = np.random.default_rng(0).integers(0, 256, (ROWS, 1, 1, 1)).repeat(8, 1).repeat(8, 2)
    write_pool(tmp_path / "pool", plain.astype(np.uint8), files=2)
    pool = Unlabeled(source=source(tmp_path / "pool"), exclude=pa.array([], pa.string()))
    result = pretrain(job(pool), IN_PROCESS, Place.at(str(tmp_path / "t")))
    said = hardly_learned(result.metrics)
    assert said is not None
    assert f"tells {np.mean(result.metrics['right'][-5:]):.0%} of the turns" in said
    assert "set pretraining.method to vicreg or none" in said


def test_one_that_is_interrupted_at_the_end_of_a_stretch_goes_on(pool, tmp_path, monkeypatch):
    mine = job(pool, epochs=12)  # 36 steps
    monkeypatch.setattr(pretrainer, "STRETCHES", 2)
    whole = pretrain(mine, IN_PROCESS, Place.at(str(tmp_path / "whole")))
    with monkeypatch.context() as patch:

        def trained(done):
            if done == 1.0:
                patch.setattr(pretrainer.interrupts._State, "requested", signal.SIGINT)

        patch.setattr(pretrainer.progress, "trained", trained)
        with pytest.raises(KeyboardInterrupt):
            pretrain(mine, IN_PROCESS, Place.at(str(tmp_path / "t")))
    resumed = pretrain(mine, IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert resumed.network == whole.network
    assert resumed.metrics["right"] == whole.metrics["right"]


@pytest.mark.parametrize("method", ["rotation", "vicreg"])
@pytest.mark.parametrize(
    "where", ["epoch-0000-step-000016", pytest.param("epoch-0001-step-000000", marks=pytest.mark.slow)]
)
def test_one_that_was_stopped_ends_with_the_same_weights(pool, tmp_path, monkeypatch, method, where):
    mine = job(pool, method=method, epochs=12)  # 36 steps
    monkeypatch.setattr(pretrainer, "STRETCHES", 2)
    monkeypatch.setattr("prunefuse_ray.training.pretrainer.Notice.arrived", lambda self, step: step == 16)
    whole = pretrain(mine, IN_PROCESS, Place.at(str(tmp_path / "whole")))
    persist = checkpoints._persist

    def stop(local, place, name):
        persist(local, place, name)
        if name == where:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_persist", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(mine, IN_PROCESS, Place.at(str(tmp_path / "t")))
    resumed = pretrain(mine, IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert resumed.network == whole.network
    assert resumed.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-6)


def test_float32_has_all_its_bits(pool, tmp_path, monkeypatch):
    """On a GPU convolutions would take TF32, unless told."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    pretrain(job(pool, precision="fp32", epochs=1), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert not torch.backends.cudnn.allow_tf32


def test_the_budget_is_passes_or_macs():
    macs = 1000
    assert steps_of(Pretraining(method="rotation", epochs=2.5, batch_size=20), 60, macs) == 8
    settings = Pretraining(method="vicreg", macs=1e7, batch_size=20)
    steps = steps_of(settings, 60, macs)
    assert macs_of(settings, steps, macs) <= 1e7 < macs_of(settings, steps + 1, macs)


def test_members_of_a_committee_learn_each_for_itself(pool, tmp_path):
    """The first one of a committee becomes what it becomes alone."""
    spec = networks.PruningSpec(ratio=0.5)
    members = networks.split(networks.build(SPEC, seed=0), SPEC, spec, 2)
    together = pretrain(job(pool, networks.Committee(members)), IN_PROCESS, Place.at(str(tmp_path / "c")))
    found = networks.from_files(together.network, OWN)
    assert isinstance(found, networks.Committee)
    alone = pretrain(job(pool, members[0]), IN_PROCESS, Place.at(str(tmp_path / "a")))
    first = weights(alone)
    own = found.members[0].network.state_dict()
    assert own.keys() == first.keys()
    # The heads of both are drawn one after the other: the first member's is the same.
    assert all(torch.allclose(own[name], first[name], atol=1e-5) for name in own)


def test_both_views_of_vicreg_are_cropped_for_themselves(pool, tmp_path, monkeypatch):
    """Else it does not learn that crops and flips say nothing."""
    shown, views = [], VICReg.views
    monkeypatch.setattr(pretext, "strong_view", lambda values_N, _: values_N)
    monkeypatch.setattr(VICReg, "views", lambda *given: shown.append(views(*given)[0]) or views(*given))
    pretrain(job(pool, method="vicreg", epochs=1), IN_PROCESS, Place.at(str(tmp_path / "t")))
    unlike = [(first != second).flatten(1).any(1) for first, second in (each.chunk(2) for each in shown)]
    assert torch.cat(unlike).float().mean() > 0.5


def test_vicreg_prefers_spread_unrelated_features_that_views_share():
    vicreg = PRETEXTS["vicreg"]
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(512, 8, generator=generator) * 1.5
    none = torch.empty(0)

    def parts(first, second):
        return {k: v.item() for k, v in vicreg.loss(torch.cat([first, second]), none, 1)[1].items()}

    good, collapsed = parts(spread, spread), parts(torch.ones(512, 8), torch.ones(512, 8))
    assert good["invariance"] == 0
    assert good["variance"] == 0
    assert collapsed["variance"] == pytest.approx(1 - math.sqrt(1e-4), abs=1e-3)
    same = spread[:, :1].expand(-1, 8)
    # Equal features: every entry off the diagonal is their variance.
    variance = spread[:, 0].var().item()
    assert parts(same, same)["covariance"] == pytest.approx(2 * 7 * variance**2, rel=1e-4)
    assert parts(same, same)["covariance"] > 20 * good["covariance"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rotation", "vicreg"])
def test_a_worker_group_learns_the_same(pool, tmp_path, local_ray, method):
    plan = TrainingPlan(workers=(2, 2), cpus=1, gpu=False, max_failures=0)
    mine = job(pool, method=method, epochs=4)
    group = pretrain(mine, plan, Place.at(str(tmp_path / "group")))
    alone = pretrain(mine, IN_PROCESS, Place.at(str(tmp_path / "alone")))
    assert group.metrics["macs"] == alone.metrics["macs"]
    # With batch-norm statistics per worker the weights agree roughly.
    difference = (weights(group)["3.weight"] - weights(alone)["3.weight"]).norm() / weights(alone)["3.weight"].norm()
    assert difference < 0.3


def test_what_workers_leave_out_of_a_batch_is_not_counted(pool):
    """Three workers learn from 126 of 128 samples."""
    state = checkpoints.State(epoch=1, seen=126, history=[{"steps": 1, "loss": 1.0}])
    found = pretrainer._metrics(state, job(pool, batch_size=128), length=1, macs=10)
    assert (found["macs"], found["epochs"]) == (3 * 10 * PRETEXTS["rotation"].passes * 126, 126 / ROWS)


@pytest.mark.slow
def test_a_sample_each_is_enough(pool, tmp_path, local_ray):
    """A batch norm behind the pooling sees one value a channel then."""
    spec = dataclasses.replace(SPEC, architecture="tests.support.nets:normed")
    mine = job(pool, networks.Dense(network=networks.build(spec, seed=0), spec=spec), batch_size=2, epochs=0.2)
    plan = TrainingPlan(workers=(2, 2), cpus=1, gpu=False, max_failures=0)
    found = pretrain(mine, plan, Place.at(str(tmp_path / "t"))).metrics
    assert found["epochs"] == pytest.approx(0.2, abs=2 / ROWS)
