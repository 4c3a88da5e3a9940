"""Training: the schedule, the loss, exact resume, and what a worker group does with the same job."""

import copy
import dataclasses
import signal
import tempfile
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray.train
import torch
from torch.nn.parallel import DistributedDataParallel

from prunefuse_ray import networks, progress
from prunefuse_ray.config.networks import Distillation
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data import labeled_set
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.labeled_set import Samples
from prunefuse_ray.distributed.resources import TrainingPlan
from prunefuse_ray.errors import LedgerError, PlanError, PoolError, TrainingError
from prunefuse_ray.storage import Place
from prunefuse_ray.training import checkpoints, trainer, worker_group
from prunefuse_ray.training.trainer import TrainingJob, train
from tests.support.nets import OWN, STRUCK
from tests.support.pools import random_images, source, write_pool

FORM = ImageForm(height=8, width=8, channels=1)
SPEC = networks.NetworkSpec(architecture="tests.support.nets:tiny", classes=2, input_shape=(1, 8, 8))
IN_PROCESS = TrainingPlan(workers=(0, 0), cpus=1, gpu=False, max_failures=0)


# --- schedules and losses, by hand ---


# --- training ---


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    where = tmp_path_factory.mktemp("data")
    ids = write_pool(where / "samples", random_images(50), files=2)
    write_pool(where / "test", random_images(40, seed=1), first_id=900)
    labels = pa.table({"id": ids, "label": [i % 2 for i in range(50)]})
    return source(where / "samples"), labels, source(where / "test")


def job(data, network=None, **more):
    network = network or networks.Dense(network=networks.build(SPEC, seed=0), spec=SPEC)
    samples, labels, test = data
    recipe = {"epochs": 4, "min_steps": 0, "batch_size": 16, "warmup_epochs": 1, "augment": ["crop"]}
    recipe |= more.pop("recipe", {})
    return TrainingJob(
        network=networks.to_files(network), recipe=Recipe(**recipe), samples=samples, labels=labels, test=test,
        form=FORM, seed=0, trusted=OWN, **more,
    )  # fmt: skip


def dropping():
    """A network that draws random numbers of its own in every step."""
    spec = dataclasses.replace(SPEC, architecture="tests.support.nets:dropping")
    return networks.Dense(network=networks.build(spec, seed=0), spec=spec)


def weights(result):
    return networks.from_files(result.network, OWN).network.state_dict()


def test_training_learns_and_reports(data, tmp_path):
    result = train(job(data, recipe={"epochs": 10, "evaluate_every": 5}), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert result.metrics["test_accuracy"] > 0.9
    assert result.metrics["epochs"] == len(result.metrics["train_loss"]) == 10
    assert [e["epoch"] for e in result.metrics["evaluations"]] == [5, 10]
    assert result.metrics["evaluations"][-1]["accuracy"] == result.metrics["test_accuracy"]
    # 10 epochs of 3 full batches of 16, forward and twice backward
    per_sample = networks.macs(networks.build(SPEC, seed=0), (1, 8, 8))
    assert result.metrics["macs"] == 10 * 48 * 3 * per_sample


def test_the_reported_accuracy_is_that_of_the_saved_network(data, tmp_path):
    result = train(job(data), IN_PROCESS, Place.at(str(tmp_path / "t")))
    network = networks.from_files(result.network, OWN).network.eval()
    x = (torch.from_numpy(random_images(40, seed=1)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.inference_mode():
        right = (network(x).argmax(1) == torch.arange(40) % 2).float().mean().item()
    assert result.metrics["test_accuracy"] == pytest.approx(right)


def constant(data):
    """R² of one sample is 0 of any network: the first epoch would always be the best."""
    samples, labels, test = data
    samples, test = (dataclasses.replace(one, task="regression") for one in (samples, test))
    labels = pa.table({"id": labels["id"], "label": pa.array([[float(i % 2)] for i in range(50)])})
    spec = dataclasses.replace(SPEC, classes=1)
    return job(
        (samples, labels.slice(1), test),
        networks.Dense(network=networks.build(spec, seed=0), spec=spec),
        task="regression",
        recipe={"epochs": 10},
        validation=samples,
        validation_labels=labels.slice(0, 1),
    )


def test_where_the_metric_says_nothing_the_loss_chooses_the_epoch(data, tmp_path):
    result = train(constant(data), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert result.metrics["validation_r2"] == [0.0] * 10
    assert result.metrics["best_epoch"] > 1


def test_a_test_set_too_large_for_memory_lies_in_a_file(data, tmp_path, monkeypatch):
    made, map_ = [], labeled_set._map
    monkeypatch.setattr(labeled_set, "_map", lambda file, shape, fill: made.append(shape) or map_(file, shape, fill))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    labeled_set._test_sets.clear()
    outside = train(job(data), dataclasses.replace(IN_PROCESS, sample_bytes=0), Place.at(str(tmp_path / "t")))
    labeled_set._test_sets.clear()
    inside = train(job(data), IN_PROCESS, Place.at(str(tmp_path / "u")))
    assert (40, 8, 8, 1) in made
    assert outside.metrics["test_loss"] == inside.metrics["test_loss"]
    assert not list(tmp_path.glob("prunefuse-*")), "it has no name"


def test_what_a_user_can_put_right_comes_out_of_a_worker_group_as_it_went_in(data, tmp_path, monkeypatch):
    def failing(_):
        raise ray.train.WorkerGroupError("rank 1", {1: PoolError("pool.test_path: is gone")})

    monkeypatch.setattr(worker_group.TorchTrainer, "fit", failing)
    with pytest.raises(PoolError, match="is gone"):
        train(job(data), IN_PROCESS, Place.at(str(tmp_path / "t")))


def test_a_layer_that_a_step_leaves_out_stops_no_worker(data, tmp_path, monkeypatch):
    context = SimpleNamespace(get_world_size=lambda: 2, get_world_rank=lambda: 0, get_local_rank=lambda: 0)
    monkeypatch.setattr(trainer.ray.train, "get_context", lambda: context)

    def prepared(network, *, parallel_strategy_kwargs):
        return DistributedDataParallel(network, **parallel_strategy_kwargs)

    monkeypatch.setattr(trainer.ray.train.torch, "prepare_model", prepared)
    spec = dataclasses.replace(SPEC, architecture="tests.support.nets:skipping")
    network = networks.Dense(network=networks.build(spec, seed=0), spec=spec)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        train(job(data, network, recipe={"epochs": 8}), IN_PROCESS, Place.at(str(tmp_path / "t")))
    finally:
        if torch.distributed.is_initialized():  # Ray Train ends it with the training
            torch.distributed.destroy_process_group()


class Shared(torch.nn.Module):
    """What DistributedDataParallel makes of a network: another module that holds it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize("wrap", [lambda network: network, Shared], ids=["alone", "shared"])
def test_the_loss_of_a_committee_is_the_mean_of_its_members(data, wrap):
    """Also on several workers, whose network stands inside another module."""
    one = networks.build(SPEC, seed=0)
    samples = Samples(values_N=torch.from_numpy(random_images(16)), labels_N=torch.arange(16) % 2)

    def loss(network):
        state, wrapped = checkpoints.State(), wrap(network)
        made, cpu = job(data, recipe={"lr": 1e-6}), torch.device("cpu")
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
        list(trainer._steps(wrapped, optimizer, None, samples, made, state, cpu, 1, 0, network, None))
        return state.loss / state.seen

    alone = loss(copy.deepcopy(one))
    assert loss(networks.Members([copy.deepcopy(one), copy.deepcopy(one)])) == pytest.approx(alone, rel=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(data, tmp_path):
    first = train(job(data, dropping()), IN_PROCESS, Place.at(str(tmp_path / "a")))
    again = train(job(data, dropping()), IN_PROCESS, Place.at(str(tmp_path / "b")))
    assert first.network == again.network
    other = TrainingJob(**{**vars(job(data, dropping())), "seed": 1})
    assert train(other, IN_PROCESS, Place.at(str(tmp_path / "c"))).network != first.network


@pytest.mark.parametrize(("epoch", "optimizer"), [(1, "sgd"), (3, "sgd"), (4, "sgd"), (2, "adamw")])
def test_a_training_stopped_after_any_epoch_ends_with_the_same_weights(data, tmp_path, monkeypatch, epoch, optimizer):
    recipe = {"optimizer": optimizer, "lr": 0.1 if optimizer == "sgd" else 1e-3}
    whole = train(job(data, dropping(), recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "whole")))
    stopped(job(data, dropping(), recipe=recipe), Place.at(str(tmp_path / "t")), monkeypatch, epoch)
    epochs = []
    steps = trainer._steps
    monkeypatch.setattr(trainer, "_steps", lambda *a: (epochs.append(a[5].epoch), steps(*a))[1])
    resumed = train(job(data, dropping(), recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert resumed.network == whole.network
    assert resumed.metrics["train_loss"] == whole.metrics["train_loss"]
    assert epochs == list(range(epoch, 4)), "an epoch was trained twice"


def test_a_training_stopped_by_a_preemption_goes_on_from_the_step_it_was_in(data, tmp_path, monkeypatch):
    recipe = {"batch_size": 2}  # 25 steps an epoch
    whole = train(job(data, dropping(), recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "whole")))
    persist, names = checkpoints._persist, []

    def stop(local, where, name):
        persist(local, where, name)
        names.append(name)
        if name == "epoch-0001-step-000016":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_persist", stop)
        patch.setattr(trainer.Notice, "arrived", lambda self, step: step == 16)
        with pytest.raises(KeyboardInterrupt):
            train(job(data, dropping(), recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert names == ["epoch-0000-step-000016", "epoch-0001-step-000000", "epoch-0001-step-000016"]
    resumed = train(job(data, dropping(), recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert resumed.network == whole.network
    assert resumed.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-6)


def stopped(made, where, monkeypatch, epoch):
    """A training in the driver that was killed after so many epochs."""
    persist = checkpoints._persist

    def stop(local, place, name):
        persist(local, place, name)
        if name.startswith(f"epoch-{epoch:04d}"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_persist", stop)
        with pytest.raises(KeyboardInterrupt):
            train(made, IN_PROCESS, where)


def test_a_training_goes_on_from_the_last_whole_checkpoint(data, tmp_path, monkeypatch):
    """Beside one of which a worker group has copied a part."""
    whole = train(job(data), IN_PROCESS, Place.at(str(tmp_path / "whole")))
    where = Place.at(str(tmp_path / "t"))
    stopped(job(data), where, monkeypatch, epoch=3)
    [file] = checkpoints.stored(where)
    (where / "epoch-0004-step-000000" / "state.safetensors").write_bytes(file.read_bytes()[:-100])
    epochs = []
    steps = trainer._steps
    monkeypatch.setattr(trainer, "_steps", lambda *a: (epochs.append(a[5].epoch), steps(*a))[1])
    assert train(job(data), IN_PROCESS, where).network == whole.network
    assert epochs == [3]


@pytest.mark.slow
def test_a_training_goes_on_with_another_plan(data, tmp_path, local_ray, monkeypatch):
    """In the driver, then on workers, also where Ray Train's own note was cut off by a kill, and back."""
    where = Place.at(str(tmp_path / "t"))
    stopped(job(data), where, monkeypatch, epoch=2)
    (where / "checkpoint_manager_snapshot.json").write_bytes(b'{"ray_version": "2')
    plan = TrainingPlan(workers=(2, 2), cpus=1, gpu=False, max_failures=0)
    group = train(job(data), plan, where)
    assert (group.metrics["epochs"], group.metrics["workers"]) == (4, [1, 2]), "it began anew"
    for again in (IN_PROCESS, plan):  # killed between the last epoch and the end
        found = train(job(data), again, where)
        assert found.network == group.network
        assert {**found.metrics, "seconds": 0} == {**group.metrics, "seconds": 0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_precisions_learn_and_weights_stay_float32(data, tmp_path, precision):
    recipe = {"epochs": 10, "precision": precision}
    result = train(job(data, recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert result.metrics["test_accuracy"] > 0.9
    assert {t.dtype for t in weights(result).values() if t.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("workers", [(0, 0), pytest.param((2, 2), marks=pytest.mark.slow)])
def test_a_set_too_large_for_memory_trains_to_the_same_weights(data, tmp_path, local_ray, monkeypatch, workers):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    plan = dataclasses.replace(IN_PROCESS, workers=workers)
    held = train(job(data), plan, Place.at(str(tmp_path / "held")))
    on_disk = train(job(data), dataclasses.replace(plan, sample_bytes=0), Place.at(str(tmp_path / "on-disk")))
    torch.testing.assert_close(weights(on_disk), weights(held), atol=0 if workers == (0, 0) else 1e-4, rtol=0)
    assert not list(tmp_path.glob("prunefuse-*")), "the decoded samples were left behind"


def test_a_worker_that_dies_while_samples_are_decoded_leaves_no_file_of_them(data, tmp_path, monkeypatch):
    """They may be gigabytes, and in a folder that others can look into."""
    seen = []

    def killed(*_):
        raise KeyboardInterrupt

    def barrier():
        found = [file.stat() for file in tmp_path.glob("prunefuse-*")]
        seen.append([(told.st_mode & 0o777, told.st_size > 0) for told in found])

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(trainer.ray.train.collective, "barrier", barrier)
    monkeypatch.setattr(labeled_set, "_fill", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer._load(job(data), "prunefuse-samples", 0)
    assert seen == [[(0o600, True)]] * 2, "the other workers map it meanwhile"
    assert not list(tmp_path.glob("prunefuse-*"))


def test_distillation_pulls_towards_the_teacher(data, tmp_path):
    """With labels that are all wrong, only the teacher can teach what is right."""
    teacher = networks.from_files(
        train(job(data, recipe={"epochs": 10}), IN_PROCESS, Place.at(str(tmp_path / "a"))).network, OWN
    )
    samples, labels, test = data
    wrong = pa.table({"id": labels["id"], "label": [(i + 1) % 2 for i in range(50)]})

    def trained(name, **more):
        mine = job((samples, wrong, test), recipe={"epochs": 10}, **more)
        return train(mine, IN_PROCESS, Place.at(str(tmp_path / name))).metrics

    distil = Distillation(weight=0.95, temperature=2.0, decay="none")
    taught, alone = trained("b", teacher=networks.to_files(teacher), distillation=distil), trained("c")
    assert taught["test_accuracy"] > 0.8 > 0.2 > alone["test_accuracy"]
    per_sample = networks.macs(teacher.network, (1, 8, 8))
    assert [m["macs"] for m in (taught, alone)] == [10 * 48 * forward * per_sample for forward in (3 + 1, 3)]


def test_batch_norm_is_recalibrated_before_fine_tuning(data, tmp_path):
    network = networks.build(SPEC, seed=0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e6)
    dense = networks.Dense(network=network, spec=SPEC)
    recipe = {"epochs": 2, "lr": 1e-9, "evaluate_every": 1}
    result = train(job(data, dense, recalibrate=True, recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert result.metrics["evaluations"][0]["epoch"] == 0
    assert weights(result)["1.running_var"].max() < 1e3


def test_recalibration_sees_all_classes_in_batches_of_about_equal_size(data):
    """Samples in the order of a folder per class, one more than two batches hold; a batch of one sample fails in some
    networks."""
    labels_N = torch.arange(1001) * 2 // 1001
    pixels_N = (labels_N * 200).to(torch.uint8)
    samples = Samples(values_N=pixels_N[:, None, None, None].expand(-1, 8, 8, 1), labels_N=labels_N)
    batches = list(trainer._inputs(samples, job(data), torch.device("cpu")))
    assert sorted(map(len, batches)) == [333, 334, 334]
    shares = [(batch.amax((1, 2, 3)) > 0).float().mean().item() for batch in batches]
    assert shares == pytest.approx([0.5, 0.5, 0.5], abs=0.1)


@pytest.mark.slow
def test_a_worker_group_trains_the_same_job(data, tmp_path, local_ray):
    """Workers share the batches: with batch-norm statistics per worker the weights agree roughly, not to the bit."""
    plan = TrainingPlan(workers=(2, 2), cpus=1, gpu=False, max_failures=0)
    group = train(job(data), plan, Place.at(str(tmp_path / "group")))
    alone = train(job(data), IN_PROCESS, Place.at(str(tmp_path / "alone")))
    assert group.metrics["epochs"] == 4
    assert group.metrics["train_loss"][0] == pytest.approx(alone.metrics["train_loss"][0], rel=0.05)
    assert group.metrics["macs"] == alone.metrics["macs"]
    difference = (weights(group)["8.weight"] - weights(alone)["8.weight"]).norm() / weights(alone)["8.weight"].norm()
    assert difference < 0.3


@pytest.mark.parametrize(("count", "workers"), [(1, 0), (2, 0), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_the_smallest_labeled_sets_are_trained_on(data, tmp_path, local_ray, count, workers):
    """A batch norm cannot have statistics of one value; two workers cannot share one sample."""
    samples, labels, test = data
    spec = dataclasses.replace(SPEC, architecture="tests.support.nets:normed")
    network = networks.Dense(network=networks.build(spec, seed=0), spec=spec)
    plan = TrainingPlan(workers=(workers, workers), cpus=1, gpu=False, max_failures=0)
    tiny = job((samples, labels.slice(0, count), test), network, recalibrate=True)
    result = train(tiny, plan, Place.at(str(tmp_path / "t")))
    trained = weights(result)
    assert all(t.isfinite().all() for t in trained.values())
    assert not trained["9.weight"].equal(network.network.state_dict()["9.weight"])


@pytest.mark.faults
def test_a_killed_worker_costs_its_epoch_and_changes_nothing(data, tmp_path, local_ray, caplog):
    spec = networks.NetworkSpec(architecture="tests.support.nets:fragile", classes=2, input_shape=(1, 8, 8))
    dense = networks.Dense(network=networks.build(spec, seed=0), spec=spec)
    STRUCK.touch()  # the first training is left in peace
    whole = train(job(data, dense), IN_PROCESS, Place.at(str(tmp_path / "whole")))
    STRUCK.unlink()
    plan = TrainingPlan(workers=(1, 1), cpus=1, gpu=False, max_failures=1)
    try:
        struck = train(job(data, dense), plan, Place.at(str(tmp_path / "struck")))
        assert STRUCK.exists(), "the worker was not killed"
    finally:
        STRUCK.unlink(missing_ok=True)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(struck)[name], tensor, atol=1e-4, rtol=1e-4)
    assert len(struck.metrics["train_loss"]) == 4
    assert struck.metrics["lost_workers"] == ["worker 0 (its process was killed or crashed)"]
    assert "a training lost worker 0 (its process was killed or crashed); its workers start again" in caplog.text
    assert "lost_workers" not in whole.metrics


def died(message, actor="a", **more):
    return ray.exceptions.RayActorError(actor_id=actor, error_msg=message, **more)


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        ({1: died("...\nThe actor died because its node has died. Node Id: ab")}, "worker 1 (its machine is gone)"),
        ({1: died("has died", preempted=True)}, "worker 1 (its machine was taken back)"),
        (
            {0: died("its worker process has died. Detail: killed due to the node running low on memory")},
            "worker 0 (its machine was short of memory)",
        ),
        ({0: RuntimeError("connection closed"), 1: died("its node has died")}, "worker 1 (its machine is gone)"),
        ({2: ValueError("no such label\nmore")}, "worker 2 (ValueError: no such label)"),
        ({2: ValueError()}, "worker 2 (ValueError: no message)"),
    ],
)
def test_it_is_told_how_workers_ended(failures, told):
    assert worker_group.ends(failures) == told


def test_a_loss_that_cannot_be_noted_ends_nothing(tmp_path):
    worker_group._Losses(str(tmp_path / "gone" / "lost")).after_exception(None, {0: died("its node has died")})


def test_a_gpu_that_torch_cannot_use_is_not_replaced_by_the_cpu(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PlanError, match=r"workers\.gpu: Ray sees a GPU .* torch cannot use it"):
        train(job(data), dataclasses.replace(IN_PROCESS, gpu=True), Place.at(str(tmp_path / "t")))


def test_the_gpu_is_given_back_after_a_training_in_the_driver(data, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: called.append(True))
    train(job(data), dataclasses.replace(IN_PROCESS, gpu=True), Place.at(str(tmp_path / "t")))
    assert called


def test_float32_has_all_its_bits(data, tmp_path, monkeypatch):
    """On a GPU convolutions would take TF32, unless told."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    train(job(data, recipe={"precision": "fp32", "epochs": 1, "warmup_epochs": 0}), IN_PROCESS, Place.at(str(tmp_path)))
    assert not torch.backends.cudnn.allow_tf32


def test_batch_norms_are_recalibrated_with_all_bits_of_float32(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen, real = [], networks.recalibrate_batch_norm

    def recalibrate(*given):
        seen.append(torch.backends.cudnn.allow_tf32)
        real(*given)

    monkeypatch.setattr(networks, "recalibrate_batch_norm", recalibrate)
    recipe = {"precision": "fp32", "epochs": 1, "warmup_epochs": 0}
    train(job(data, recalibrate=True, recipe=recipe), IN_PROCESS, Place.at(str(tmp_path)))
    assert seen == [False]


def test_a_dead_worker_is_told_of_once(tmp_path):
    """Ray Train finds it dead at each look while it waits for the deadline of a preemption."""
    losses = worker_group._Losses(str(tmp_path / "lost"))
    for actor in ("a", "a", "b"):
        losses.after_exception(None, {0: died("its node has died", actor)})
    assert len((tmp_path / "lost").read_text().splitlines()) == 2


# --- validation ---


def validated(data, **more):
    """A job that trains on 30 of the samples and validates on the other 20."""
    samples, labels, test = data
    keep = labels.slice(30)
    return job((samples, labels.slice(0, 30), test), validation=samples, validation_labels=keep, **more)


def say(monkeypatch, accuracies, losses):
    """What the validation set says of the epochs; the weights after each are gathered."""
    figures, after = iter(zip(accuracies, losses, strict=True)), []
    evaluate = trainer._evaluate

    def evaluated(network, job_, samples, device):
        if len(samples) != 20:  # the test set
            return evaluate(network, job_, samples, device)
        after.append(trainer.weights_of(network))
        return dict(zip(("accuracy", "loss"), next(figures), strict=True))

    monkeypatch.setattr(trainer, "_evaluate", evaluated)
    return after


@pytest.mark.parametrize(
    ("losses", "best"),
    [((0.9, 0.5, 0.3, 0.2), 3), ((0.9, 0.3, 0.5, 0.2), 2), ((0.9, 0.3, 0.3, 0.2), 2)],
)
def test_the_weights_of_the_best_epoch_on_the_validation_set_are_kept(data, tmp_path, monkeypatch, losses, best):
    """Of several that are equally right that of the lowest loss: the first is one at a high learning rate."""
    after = say(monkeypatch, [0.5, 0.9, 0.9, 0.7], losses)
    result = train(validated(data), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert result.metrics["validation_accuracy"] == [0.5, 0.9, 0.9, 0.7]
    assert result.metrics["best_epoch"] == best
    for name, tensor in weights(result).items():
        assert torch.equal(tensor, after[best - 1][name]), name
    assert not torch.equal(after[best - 1]["0.weight"], after[3]["0.weight"])
    network = networks.from_files(result.network, OWN).network.eval()
    x = (torch.from_numpy(random_images(40, seed=1)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.inference_mode():
        right = (network(x).argmax(1) == torch.arange(40) % 2).float().mean().item()
    assert result.metrics["test_accuracy"] == pytest.approx(right), "reported of other weights than those kept"


def test_a_stopped_training_keeps_the_same_best_epoch(data, tmp_path, monkeypatch):
    whole = train(validated(data), IN_PROCESS, Place.at(str(tmp_path / "whole")))
    persist = checkpoints._persist

    def stop(local, where, name):
        persist(local, where, name)
        if name.startswith("epoch-0003"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_persist", stop)
        with pytest.raises(KeyboardInterrupt):
            train(validated(data), IN_PROCESS, Place.at(str(tmp_path / "t")))
    resumed = train(validated(data), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert resumed.network == whole.network
    assert resumed.metrics["best_epoch"] == whole.metrics["best_epoch"]


def test_training_stops_when_validation_has_not_improved_for_long(data, tmp_path):
    """A learning rate of next to nothing hardly changes the accuracy."""
    recipe = {"epochs": 20, "lr": 1e-12, "patience": 3, "warmup_epochs": 0}
    result = train(validated(data, recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert result.metrics["epochs"] == first_best(result) + 3 < 20
    again = train(validated(data, recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert again.metrics["epochs"] == result.metrics["epochs"], "a stopped training went on"


def first_best(result):
    accuracies = result.metrics["validation_accuracy"]
    return accuracies.index(max(accuracies)) + 1


def test_a_lower_loss_alone_is_not_waited_for(data, tmp_path, monkeypatch):
    """The better of equals is kept, and patience goes by the metric."""
    recipe = {"epochs": 20, "patience": 3, "warmup_epochs": 0}
    say(monkeypatch, [0.5, 0.9, 0.9, 0.9, 0.9], [0.5, 0.4, 0.3, 0.2, 0.1])
    result = train(validated(data, recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert (result.metrics["best_epoch"], result.metrics["epochs"]) == (5, 5)


def test_a_checkpoint_without_the_loss_of_its_best_epoch_goes_on():
    """As earlier versions wrote them."""
    state = checkpoints.State(epoch=4, best={"epoch": 2, "merit": 0.9})
    assert not state.finished(Recipe(epochs=20, patience=3))
    assert state.improves(0.9, 0.4)
    assert state.best == {"epoch": 4, "merit": 0.9, "loss": 0.4, "since": 2}
    state.epoch = 5
    assert state.finished(Recipe(epochs=20, patience=3))


@pytest.mark.slow
def test_workers_stop_after_the_same_epoch(data, tmp_path, local_ray):
    plan = TrainingPlan(workers=(2, 2), cpus=1, gpu=False, max_failures=0)
    recipe = {"epochs": 12, "lr": 1e-12, "patience": 2, "warmup_epochs": 0}
    result = train(validated(data, recipe=recipe), plan, Place.at(str(tmp_path / "group")))
    assert result.metrics["epochs"] == first_best(result) + 2 < 12


def test_random_crops_are_cut_from_the_uncropped_image(data, tmp_path):
    form = ImageForm(height=6, width=6, channels=1, crop_ratio=0.75)
    crops = TrainingJob(**{**vars(job(data, recipe={"augment": ["resized_crop"], "epochs": 8})), "form": form})
    assert crops.training_form.shape == (8, 8, 1)
    assert TrainingJob(**{**vars(crops), "recipe": Recipe(augment=["flip"])}).training_form == form
    spec = networks.NetworkSpec(architecture="tests.support.nets:tiny", classes=2, input_shape=(1, 6, 6))
    dense = networks.Dense(network=networks.build(spec, seed=0), spec=spec)
    crops = TrainingJob(**{**vars(crops), "network": networks.to_files(dense), "recalibrate": True})
    assert train(crops, IN_PROCESS, Place.at(str(tmp_path / "t"))).metrics["test_accuracy"] > 0.9


@pytest.mark.parametrize(("side", "expected"), [(8, 500), (64, 500), (224, 222), (512, 42), (20_000, 2)])
def test_of_large_images_fewer_are_looked_at_together(side, expected):
    assert trainer.at_once(500, ImageForm(height=side, width=side, channels=3)) == expected


def test_networks_of_ours_pay_for_no_layer_that_is_left_out(monkeypatch):
    asked = []
    monkeypatch.setattr(
        trainer.ray.train.torch,
        "prepare_model",
        lambda network, *, parallel_strategy_kwargs: asked.append(parallel_strategy_kwargs),
    )
    for name in ("resnet20", "timm:x", "mine:net"):
        trainer.on_workers(torch.nn.Linear(1, 1), name)
    assert [more["find_unused_parameters"] for more in asked] == [False, True, True]


def test_a_checkpoint_whose_metric_said_nothing_does_not_bind(data, tmp_path, monkeypatch):
    def restored(network, *_):
        history = [{"epoch": 1, "train_loss": 1.0, "validation_r2": 0.0}]
        state = checkpoints.State(epoch=1, history=history, best={"epoch": 1, "r2": 0.0})
        return state, {f"best.{k}": v for k, v in checkpoints.weights_of(network).items()}

    monkeypatch.setattr(trainer, "restore", restored)
    result = train(constant(data), IN_PROCESS, Place.at(str(tmp_path / "t")))
    assert result.metrics["best_epoch"] > 1


@pytest.mark.parametrize("when", [0, 1], ids=["before it begins", "meanwhile"])
def test_a_training_that_was_taken_over_stores_and_removes_nothing(data, tmp_path, when):
    """By another driver, while this one slept: its checkpoints lie in the same place."""
    where = Place.at(str(tmp_path / "t"))
    theirs = where / "epoch-0002-step-000000" / "state.safetensors"
    calls = iter(range(9))

    def lost():
        if next(calls) < when:
            return
        theirs.write_bytes(b"theirs")
        raise LedgerError("another process is driving this run")

    with pytest.raises(LedgerError, match="another process"):
        train(job(data), dataclasses.replace(IN_PROCESS, check=lost), where)
    assert [f.path for f in where.files(recursive=True) if f.path.endswith(".safetensors")] == [theirs.path]


def test_ctrl_c_in_a_worker_group_is_this_commands_own():
    before = signal.getsignal(signal.SIGINT)
    group = worker_group._Trainer(lambda: None, scaling_config=ray.train.ScalingConfig(num_workers=1))
    group._register_sigint_handler("the controller")
    assert group.controller == "the controller"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_worker_group_out_of_gpu_memory_says_so(data, tmp_path, monkeypatch):
    def failing(_):
        raise ray.train.WorkerGroupError("rank 1", {1: torch.OutOfMemoryError("CUDA out of memory")})

    monkeypatch.setattr(worker_group.TorchTrainer, "fit", failing)
    with pytest.raises(torch.OutOfMemoryError):
        train(job(data), IN_PROCESS, Place.at(str(tmp_path / "t")))


def test_workers_have_a_thread_for_each_of_their_cpus_however_ray_was_started(tmp_path, monkeypatch):
    """`ray up` starts Ray in a shell with OMP_NUM_THREADS=1, which every worker takes over."""

    class Asked(Exception):
        pass

    def asked(function, **_):
        raise Asked(function)

    monkeypatch.setattr(worker_group, "_Trainer", asked)
    met, before = [], torch.get_num_threads()
    plan = TrainingPlan(workers=(1, 1), cpus=before + 2, gpu=False, max_failures=0)
    where = Place.at(str(tmp_path / "training"))
    with pytest.raises(Asked) as caught:
        worker_group.fit(
            lambda config: met.append(torch.get_num_threads()), {"job": SimpleNamespace(name="t")}, plan, where
        )
    try:
        caught.value.args[0]()
    finally:
        torch.set_num_threads(before)
    assert met == [before + 2]


@pytest.mark.parametrize("supervised", [True, False])
def test_only_a_driver_whose_ray_ends_with_it_does_without_the_cleaner(monkeypatch, supervised):
    kind = type("PlacementGroupCleanerCallback", (), {})
    monkeypatch.setattr(worker_group.TorchTrainer, "_create_default_callbacks", lambda _: [kind()])
    monkeypatch.setattr(progress._Pipe, "fd", 9 if supervised else None)
    made = object.__new__(worker_group._Trainer)._create_default_callbacks()
    assert bool(made) is not supervised


def test_of_many_classes_for_every_pixel_fewer_images_are_evaluated_together():
    form = ImageForm(height=512, width=512, channels=3)
    assert trainer.at_once(500, form, 19 * 512 * 512) == 6
    assert trainer.at_once(500, form, 150 * 512 * 512) == 2


@pytest.mark.slow
def test_workers_begin_with_an_evaluation(data, tmp_path, local_ray):
    plan = TrainingPlan(workers=(2, 2), cpus=1, gpu=False, max_failures=0)
    recipe = {"epochs": 2, "evaluate_every": 1}
    found = train(job(data, recalibrate=True, recipe=recipe), plan, Place.at(str(tmp_path / "t"))).metrics
    assert [e["epoch"] for e in found["evaluations"]] == [0, 1, 2]


def test_workers_lost_too_often_are_one_message_where_nobody_starts_the_driver_again(data, tmp_path, monkeypatch):
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    def failing(_):
        gone = WorkerHealthCheckFailedError("no answer", failure=died("its node has died"))
        raise ray.train.WorkerGroupError("rank 0", {0: gone})

    monkeypatch.setattr(worker_group.TorchTrainer, "fit", failing)
    monkeypatch.setattr(progress._Pipe, "fd", None)
    with pytest.raises(TrainingError, match=r"workers\.max_failures: .*worker 0 \(its machine is gone\)"):
        train(job(data), IN_PROCESS, Place.at(str(tmp_path / "t")))
    monkeypatch.setattr(progress, "supervised", lambda: True)
    with pytest.raises(ray.train.WorkerGroupError):
        train(job(data), IN_PROCESS, Place.at(str(tmp_path / "t")))


def test_a_checkpoint_in_mid_epoch_holds_the_sums_of_all_workers(monkeypatch):
    monkeypatch.setattr(trainer, "over_workers", lambda values, world: values * world)
    state = checkpoints.State(epoch=1, step=16, loss=3.0, seen=8)
    kept = trainer._of_all(state, 2)
    assert (kept.epoch, kept.step, kept.loss, kept.seen) == (1, 16, 6.0, 16)
    assert (state.loss, state.seen) == (3.0, 8)


def test_the_checkpoint_of_a_preemption_is_given_the_sums_of_all_workers(data, tmp_path, monkeypatch):
    """50 samples in batches of 2."""
    monkeypatch.setattr(trainer, "over_workers", lambda values, world: values * 2)
    monkeypatch.setattr(trainer.Notice, "arrived", lambda self, step: step == trainer.PREEMPTION_STEPS)
    kept, really = [], trainer.save

    def save(rank, metrics, network, optimizer, state, *more, **named):
        kept.append(dataclasses.replace(state))
        really(rank, metrics, network, optimizer, state, *more, **named)

    monkeypatch.setattr(trainer, "save", save)
    train(
        job(data, recipe={"batch_size": 2, "epochs": 1, "warmup_epochs": 0}), IN_PROCESS, Place.at(str(tmp_path / "t"))
    )
    assert [s.seen for s in kept if s.step] == [2 * trainer.PREEMPTION_STEPS * 2]
