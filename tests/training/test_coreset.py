"""Core-sets of labeled samples: hardness against a plain count, exact resume, and what is kept."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch

from prunefuse_ray import config as cfg
from prunefuse_ray import networks
from prunefuse_ray.data.labeled_set import Samples
from prunefuse_ray.storage import Place
from prunefuse_ray.training import checkpoints, trainer
from prunefuse_ray.training.coreset import Hardness, coreset, hardness_table
from prunefuse_ray.training.trainer import train
from tests.support.pools import random_images
from tests.training.test_trainer import IN_PROCESS, SPEC, data, job

assert data  # the fixture


def plain(history, classes):
    """Forgetting and EL2N by their definitions; history: of each sample (outputs, target, early) in turn."""
    forgetting, el2n = [], []
    most = max(len(seen) for seen in history) + 1
    for seen in history:
        right = [int(np.argmax(o)) == t for o, t, _ in seen]
        unlearned = sum(before and not after for before, after in itertools.pairwise(right))
        forgetting.append(unlearned if any(right) else most)
        errors = []
        for o, t, early in seen:
            p = np.exp(o - o.max()) / np.exp(o - o.max()).sum()
            errors += [np.linalg.norm(p - np.eye(classes)[t])] if early else []
        el2n.append(np.mean(errors))
    return forgetting, el2n


def test_hardness_is_what_its_papers_say():
    rng, n, classes = np.random.default_rng(0), 12, 3
    found, history = Hardness(n, torch.device("cpu")), [[] for _ in range(n)]
    targets = rng.integers(0, classes, n)
    for epoch in range(8):
        for rows in np.split(rng.permutation(n), 3):
            outputs = rng.normal(size=(len(rows), classes)).astype(np.float32) * 3
            outputs[rows == 5, targets[5]] += 50 if epoch % 2 else -50  # right every other time
            outputs[rows == 7, targets[7]] -= 50  # never right
            y = torch.from_numpy(targets[rows])
            found.see(torch.from_numpy(rows), torch.from_numpy(outputs), y, 0, 1, early=epoch < 2)
            for row, o in zip(rows, outputs, strict=True):
                history[row].append((o, targets[row], epoch < 2))
    ids = pa.array([f"s{i}" for i in range(n)])
    table = hardness_table(ids, found.tensors())
    forgetting, el2n = plain(history, classes)
    assert table["forgetting"].to_pylist() == forgetting
    assert table["el2n"].to_pylist() == pytest.approx(el2n, rel=1e-5)
    assert forgetting[7] == max(forgetting)
    assert forgetting[5] == 3


def test_what_no_step_saw_is_as_hard_as_the_usual_sample():
    found = Hardness(4, torch.device("cpu"))
    outputs = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    found.see(torch.tensor([0, 1, 2]), outputs, torch.tensor([0, 0, 0]), 0, 1, early=True)
    el2n = hardness_table(pa.array([1, 2, 3, 4]), found.tensors())["el2n"].to_pylist()
    assert el2n[3] == sorted(el2n[:3])[1]


def test_the_hardest_are_kept_and_chance_decides_among_equals():
    ids = [f"s{i}" for i in range(10)]
    labels = pa.table({"id": ids, "label": list(range(10))})
    hard = pa.table({"id": ids[::-1], "forgetting": [9.0, 8.0, *[0.0] * 8], "el2n": list(map(float, range(10)))})
    hard = hard.cast(pa.schema([("id", pa.string()), ("forgetting", pa.float32()), ("el2n", pa.float32())]))
    by_error = coreset(labels, hard, cfg.Coreset(by="el2n", share=0.25), 0)
    assert by_error["id"].to_pylist() == ["s0", "s1", "s2"], "a quarter of ten, rounded up, in the order of the labels"
    found = [coreset(labels, hard, cfg.Coreset(by="forgetting"), seed)["id"].to_pylist() for seed in range(20)]
    assert all({"s8", "s9"} < set(kept) and len(kept) == 5 for kept in found)
    assert len(set(map(tuple, found))) > 5
    assert cfg.Coreset(by="random", share=0.55).kept(100) == 55
    alone = [coreset(labels, None, cfg.Coreset(by="random"), seed)["id"].to_pylist() for seed in range(20)]
    assert {len(kept) for kept in alone} == {5}
    assert {i for kept in alone for i in kept} == set(ids)


def test_a_training_that_goes_on_finds_the_same_hardness(data, tmp_path, monkeypatch):
    made = dataclasses.replace(job(data), hardness=True)
    whole = train(made, IN_PROCESS, Place.at(str(tmp_path / "whole")))
    assert whole.hardness.num_rows == 50
    assert np.isfinite(whole.hardness["el2n"].to_numpy()).all()
    save, saved = trainer.save, []

    def ended(*args, **more):
        save(*args, **more)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save", ended)
    with pytest.raises(KeyboardInterrupt):
        train(made, IN_PROCESS, Place.at(str(tmp_path / "cut")))
    monkeypatch.setattr(trainer, "save", save)
    assert train(made, IN_PROCESS, Place.at(str(tmp_path / "cut"))).hardness == whole.hardness


def test_noting_hardness_changes_no_training_and_a_committee_is_one(data, tmp_path):
    plain_, noted = (
        train(dataclasses.replace(job(data), hardness=on), IN_PROCESS, Place.at(str(tmp_path / str(on))))
        for on in (False, True)
    )
    assert plain_.network == noted.network
    network = networks.build(SPEC, seed=0)
    samples = Samples(values_N=torch.from_numpy(random_images(16)), labels_N=torch.arange(16) % 2)
    found = Hardness(16, torch.device("cpu"))
    both = networks.Members([network, networks.build(SPEC, seed=1)])
    optimizer, state = torch.optim.SGD(both.parameters(), lr=1e-9), checkpoints.State()
    made, cpu = job(data, recipe={"batch_size": 16, "epochs": 1, "warmup_epochs": 0}), torch.device("cpu")
    list(trainer._steps(both, optimizer, None, samples, made, state, cpu, 1, 0, both, None, found))
    assert found.seen_N.tolist() == [1] * 16


def test_workers_note_what_one_process_would(monkeypatch):
    """Each sees its part of a batch; the sum of what they found is that of all."""
    torch.manual_seed(0)
    rows, outputs, targets = torch.tensor([4, 0, 3, 1, 2]), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    alone = Hardness(5, torch.device("cpu"))
    alone.see(rows, outputs, targets, 0, 1, early=True)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda part: parts.append(part.clone()))
        mine = slice(rank, None, 2)
        Hardness(5, torch.device("cpu")).see(rows, outputs[mine], targets[mine], rank, 2, early=True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda part: part.copy_(sum(parts)))
    together = Hardness(5, torch.device("cpu"))
    together.see(rows, outputs[::2], targets[::2], 0, 2, early=True)
    for name, value in alone.tensors().items():
        assert torch.equal(value, together.tensors()[name]), name
