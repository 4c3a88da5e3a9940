"""Checkpoints: which one a training goes on from, whoever stored it and however its writer ended."""

import math

import pytest
import ray.train
import torch
from pyarrow._fs import _MockFileSystem
from torch import nn

from prunefuse_ray import progress
from prunefuse_ray.storage import Place
from prunefuse_ray.training import checkpoints
from prunefuse_ray.training.checkpoints import State, newest, registered, restore, save_state, stored, tidy

TRAINING = "this one"


@pytest.fixture
def where(tmp_path):
    return Place.at(str(tmp_path / "training"))


def network_of(epoch):
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, epoch)
    return network


def put(where, tmp_path, epoch, *, training=TRAINING, share=1.0):
    """A checkpoint of an epoch, of which a share was written."""
    network, state = network_of(epoch), State(epoch=epoch)
    save_state(tmp_path, network, torch.optim.SGD(network.parameters()), state, training=training)
    whole = (tmp_path / "state.safetensors").read_bytes()
    place = where / state.name / "state.safetensors"
    place.write_bytes(whole[: int(share * len(whole))])
    return place


def test_the_newest_one_that_is_whole_is_taken_and_what_is_not_is_said(where, tmp_path, caplog):
    """Ray Train copies a checkpoint into its place: a kill leaves a part of it."""
    assert newest(where, TRAINING) is None
    old, good = (put(where, tmp_path, epoch) for epoch in (3, 6))
    other, cut = put(where, tmp_path, 7, training="another"), put(where, tmp_path, 8, share=0.5)
    assert stored(where) == [cut, other, good, old]
    place, state, tensors = newest(where, TRAINING)
    assert (place, state.epoch) == (good, 6)
    assert (tensors["network.weight"] == 6).all()
    assert f"{cut.path}: the checkpoint is damaged" in caplog.text
    assert f"{other.path}: the checkpoint is damaged (it is of another training); the one before it" in caplog.text
    for place in (old, good):
        place.delete()
    assert newest(where, TRAINING) is None
    assert "this training begins anew" in caplog.text


@pytest.mark.parametrize(
    "note",
    [b"", b'{"ray_version": "2', b'{"latest_checkpoint_result": {"checkpoint_dir_name": "epoch-0002-step-000000"}}'],
    ids=["empty", "cut", "of a checkpoint that is gone"],
)
def test_before_a_training_goes_on_nothing_is_left_that_could_stop_it(where, tmp_path, note):
    """A note that Ray Train cannot read, or of a checkpoint that is gone, would end every worker group."""
    put(where, tmp_path, 3)
    good = put(where, tmp_path, 6)
    put(where, tmp_path, 7, share=0.5)
    (where / "checkpoint_manager_snapshot.json").write_bytes(note)
    tidy(where, TRAINING)
    assert [file.path for file in where.files(recursive=True)] == [good.path]


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_decides_for_all_workers_what_they_go_on_from(where, tmp_path, monkeypatch, rank):
    """Their views of a network file system may differ for a while."""
    decided = put(where, tmp_path, 6)
    if rank:
        put(where, tmp_path, 7)
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda told: decided.path if rank else told)
    network = network_of(0)
    state, _ = restore(network, torch.optim.SGD(network.parameters()), where, TRAINING, rank)
    assert state.epoch == 6
    assert (network.weight == 6).all()


def test_a_checkpoint_that_ray_train_has_is_not_given_to_it_again(monkeypatch):
    """It would delete the first of two, which are one."""
    state = State(epoch=3)
    for name, expected in ((state.name, True), (State(epoch=2).name, False)):
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda name=name: ray.train.Checkpoint(f"/runs/t/{name}"))
        assert registered(state) == expected
    monkeypatch.setattr(checkpoints.ray.train, "get_checkpoint", lambda: None)
    assert not registered(state)


def test_an_epoch_without_a_figure_is_the_worst():
    state = checkpoints.State(epoch=1)
    assert state.improves(math.nan, math.nan)
    state.epoch = 2
    assert state.improves(-5.0, 1.0)
    assert state.best["epoch"] == 2


def test_a_figure_that_is_none_of_an_earlier_version_is_passed():
    best = {"epoch": 1, "merit": math.nan, "loss": math.nan, "since": 1}
    assert checkpoints.State(epoch=3, best=best).improves(-5.0, 1.0)


def test_the_upload_of_a_checkpoint_is_no_standstill(tmp_path, monkeypatch):
    (tmp_path / checkpoints.FILE).write_bytes(b"x")
    seen, upload = [], Place._upload
    monkeypatch.setattr(Place, "_upload", lambda p, data: (seen.append(progress.now.waiting), upload(p, data)))
    checkpoints._persist(tmp_path, Place(_MockFileSystem(), "bucket/training"), "epoch-0001-step-000000")
    assert seen == [True]
    assert not progress.now.waiting
