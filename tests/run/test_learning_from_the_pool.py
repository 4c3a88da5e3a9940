"""A whole run that learns from its pool: pre-training, semi-supervised training, their place in the ledger."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.config.files import config_from_tree, merge
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.errors import ConfigError, LedgerError, TrainingError
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.method.steps import Step, start, steps
from prunefuse_ray.run import loop, unlabeled
from prunefuse_ray.run.estimate import pretraining, trained
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.opening import _selector_macs, other_memory
from prunefuse_ray.run.phases import pretrain, train
from prunefuse_ray.run.phases.pretrain import decide
from prunefuse_ray.run.rounds import pretraining_line
from prunefuse_ray.schemas import REJECTED
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.results import round_row
from prunefuse_ray.training import checkpoints
from tests.run.test_estimate import INFO
from tests.run.test_phases import spoiled, spoiled_config
from tests.support.nets import OWN
from tests.support.runs import carried_out, tiny

assert spoiled  # the fixture

FILES = {"source": "parquet", "path": "p", "test_path": "t"}
UNLABELED = {"label_smoothing": 0.0, "unlabeled": {"method": "fixmatch", "steps": 9, "threshold": 0.6, "ratio": 2}}
LEARNING = {
    "pretraining": {"method": "rotation", "epochs": 2, "batch_size": 16},
    "training": UNLABELED,
    "finetuning": UNLABELED,
    "selection": {"budgets": [10, 18], "strategy": "margin"},
    "pool": {"validation_share": 0.2},
}


@pytest.fixture(scope="module")
def undisturbed(local_ray, tiny_pool, tmp_path_factory):
    directory = tmp_path_factory.mktemp("learning")
    loop.run(tiny(tiny_pool, directory, **LEARNING))
    return directory / "tiny"


def load(directory):
    return networks.from_files(network_files(Place.at(str(directory))), OWN)


def committed(root, step):
    return Ledger(Place.at(str(root))).require(step)


def test_a_run_pretrains_once_and_every_round_begins_with_that(undisturbed):
    metrics = committed(undisturbed, Step(-1, "pretrain")).metrics
    assert metrics["method"] == "rotation"
    assert metrics["steps"] == 15  # 2 x 120 samples, 16 a step
    first, learned = load(undisturbed / "proxies/0"), load(undisturbed / "pretrained/0")
    assert not torch.equal(first.network.state_dict()["0.weight"], learned.network.state_dict()["0.weight"])
    assert torch.equal(first.network.state_dict()["8.weight"], learned.network.state_dict()["8.weight"])
    assert first.kept.keys() == learned.kept.keys()
    for r in (0, 1):
        trained_ = committed(undisturbed, Step(r, "train")).metrics
        assert trained_["unlabeled"] == 9 * 16
        assert trained_["macs"] > 0
    assert committed(undisturbed, Step(1, "finetune")).metrics["unlabeled"] == 9 * 16
    assert not (undisturbed / "pretraining").exists(), "its checkpoints were left behind"


def test_the_target_of_classic_active_learning_begins_with_what_was_pre_trained(local_ray, tiny_pool, tmp_path):
    """As PruneFuse's does through fusion: else a comparison of the two would be one of pre-training."""
    change = {"pretraining": {"method": "rotation", "epochs": 1, "batch_size": 16}, "fusion": {"target": "scratch"}}
    classic = tiny(tiny_pool, tmp_path, **change, selection={"budgets": [10, 18], "selector": "dense"})
    carried_out(classic, Step(1, "finetune"))
    root = tmp_path / "tiny"
    learned, target, first = (load(root / name) for name in ("pretrained/0", "rounds/001/fused-initial", "dense"))
    for name, tensor in learned.network.state_dict().items():
        assert torch.equal(tensor, target.network.state_dict()[name])
    assert not torch.equal(learned.network.state_dict()["0.weight"], first.network.state_dict()["0.weight"])
    ledger = Ledger(Place.at(str(root)))
    paid = [Step(-1, "pretrain"), Step(0, "train"), Step(0, "score"), Step(1, "finetune")]
    told = round_row(ledger, ledger.read_config(), 1)
    assert told["total_macs"] == sum(committed(root, step).metrics["macs"] for step in paid)


@pytest.mark.parametrize(
    ("done", "looks"),
    [
        ({}, True),
        ({Step(-1, "pretrain"): {"method": "none"}}, True),
        ({Step(-1, "pretrain"): {"method": "rotation"}}, False),
        ({Step(-1, "pretrain"): {"method": "rotation"}, Step(0, "grow"): {"samples": 5}}, True),
        ({Step(-1, "pretrain"): {"method": "none"}, Step(0, "grow"): {"samples": 5}, Step(0, "score"): {}}, False),
    ],
    ids=str,
)
def test_a_pool_that_no_phase_has_decoded_is_looked_through_before_it_is_learned_from(monkeypatch, done, looks):
    """Else nobody would be told which samples cannot be read."""
    config = config_from_tree({"pretraining": {"method": "auto"}, "pool": {**FILES, "allow_growth": True}})
    looked = []
    monkeypatch.setattr(unlabeled, "_look_through", looked.append)
    ledger = SimpleNamespace(
        committed=lambda step: SimpleNamespace(metrics=done[step], files={}) if step in done else None,
        rejected=REJECTED.empty_table,
        tables=lambda steps, name, schema: schema.empty_table(),
    )
    context = SimpleNamespace(
        config=config, ledger=ledger, info=SimpleNamespace(id_type="string"), pool=None, held_out_contents=None
    )
    unlabeled.unlabeled(context, 0, pa.array([], pa.string()))
    assert bool(looked) == looks


def test_other_memory_for_the_pool_is_told_of_a_run_that_goes_on():
    """It may change, but the order in which a pool is learned from depends on it where that does not fit."""
    form = ImageForm(height=64, width=64, channels=3)

    def told(rows, now, **more):
        began, goes_on = (
            config_from_tree({"workers": {"sample_memory_gb": gb}, "training": UNLABELED, **more}) for gb in (8.0, now)
        )
        return other_memory(goes_on, began, form, rows)

    assert "workers.sample_memory_gb: 2, and the run began with 8: a pool of 11 GiB" in told(10**6, 2.0)
    assert told(10**6, 8.0) is None
    assert told(10**5, 2.0) is None, "it fits into both"
    assert told(10**6, 2.0, training={}) is None, "nothing is learned from it"


def test_what_it_costs_is_told(undisturbed):
    learned = committed(undisturbed, Step(-1, "pretrain")).metrics
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["pretraining"]["macs"] == learned["macs"]
    assert result["seconds"] > learned["seconds"]
    assert "pretrain (rotation)" in (undisturbed / "report.html").read_text()
    assert pretraining_line(learned).startswith("pre-training: rotation, ")


class Killed(Exception):
    pass


@pytest.mark.parametrize("phase", ["train", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_a_run_that_was_killed_selects_and_learns_the_same(undisturbed, tiny_pool, tmp_path, monkeypatch, phase):
    """In the middle of a pre-training, and of the training after it."""
    count = [0]
    original = checkpoints.save

    def stop(*given, **named):
        original(*given, **named)
        count[0] += 1
        if count[0] == 2:
            raise Killed

    config = tiny(tiny_pool, tmp_path, **LEARNING)
    with monkeypatch.context() as patch:
        patch.setattr(f"prunefuse_ray.training.{phase}er.save", stop)
        with pytest.raises(Killed):
            loop.run(config)
    loop.run(config)
    for name in ("selected.parquet",):
        assert pq.read_table(tmp_path / "tiny" / name).equals(pq.read_table(undisturbed / name))
    for name in ("pretrained/0", "fused"):
        weights = "weights.safetensors"
        assert (tmp_path / "tiny" / name / weights).read_bytes() == (undisturbed / name / weights).read_bytes()


@pytest.mark.parametrize("known", [False, True])
def test_what_is_held_out_rejected_or_held_back_is_not_learned_from(local_ray, tiny_pool, tmp_path, monkeypatch, known):
    seen = []
    original = unlabeled.unlabeled

    def noted(context, round_, validation):
        found = original(context, round_, validation)
        seen.append((round_, set(found.exclude.to_pylist()), set(validation.to_pylist())))
        return found

    monkeypatch.setattr("prunefuse_ray.run.phases.train.unlabeled", noted)
    change = merge(LEARNING, {"selection": {"hold_back": 0.5}, "pretraining": {"method": "none"}})
    if known:  # from the features of which also the initial set is selected
        (tmp_path / "known.csv").write_text("id,label\n" + "".join(f"s{i:04d},{i % 2}\n" for i in range(6)))
        file = str(tmp_path / "known.csv")
        change = merge(change, {"selection": {"initial": "typiclust"}, "pool": {"known_labels": file}})
    carried_out(tiny(tiny_pool, tmp_path, **change), Step(1, "finetune"))
    files = [tmp_path / f"tiny/rounds/{r:03d}/held_back.parquet" for r in (0, 1)]
    held_back = [set(pq.read_table(f)["id"].to_pylist()) if f.exists() else set() for f in files]
    assert held_back[1]
    assert bool(held_back[0]) == known
    assert [r for r, _, _ in seen] == [0, 1, 1]
    for round_, excluded, validation in seen:
        assert validation
        assert excluded == validation | held_back[round_]


@pytest.mark.parametrize("actors", [None, pytest.param([1, 1], marks=pytest.mark.slow)])
def test_what_cannot_be_decoded_is_found_before_anything_is_learned(local_ray, spoiled, tmp_path, actors):
    """By the driver, and by tasks."""
    change = {"selection": {"budgets": [40]}, "scoring": {"actors": actors}}
    carried_out(spoiled_config(spoiled, tmp_path, **merge(LEARNING, change)), Step(-1, "pretrain"))
    rejected = pq.read_table(tmp_path / "tiny/rejected.parquet")["id"].to_pylist()
    assert rejected == ["s0000", "s0001", "s0002"]


def test_the_first_budget_stays_what_a_pretraining_was_decided_by(local_ray, tiny_pool, tmp_path):
    def stop(event, step, _):
        if (event, step) == ("start", Step(0, "select")):
            raise KeyboardInterrupt

    change = merge(LEARNING, {"pretraining": {"method": "auto"}})
    with pytest.raises(KeyboardInterrupt):
        loop.run(tiny(tiny_pool, tmp_path, **change), stop)
    with pytest.raises(LedgerError, match=r"selection\.budgets"):
        loop.run(tiny(tiny_pool, tmp_path, **merge(change, {"selection": {"budgets": [12, 18]}})))


def test_a_pretraining_that_diverges_is_no_result(local_ray, tiny_pool, tmp_path):
    config = tiny(tiny_pool, tmp_path, **merge(LEARNING, {"pretraining": {"lr": 1e30}}))
    with pytest.raises(TrainingError, match=r"lower pretraining\.lr"):
        loop.run(config)
    assert Ledger(Place.at(str(tmp_path / "tiny"))).committed(Step(-1, "pretrain")) is None


# --- decisions ---


def config(**more):
    return config_from_tree({"selection": {"budgets": [1000, 2000]}, **more})


def test_auto_goes_by_labels_per_class():
    few, many = config(pretraining={"method": "auto"}), config(pretraining={"method": "auto"})
    assert decide(few, 10).method == "rotation"
    assert decide(many, 3).method == "none"
    assert "333.3 labels a class" in decide(many, 3).reason
    assert "333.3 labels a target" in decide(config(pretraining={"method": "auto"}, task="regression"), 3).reason


def test_a_run_whose_pretraining_learned_nothing_says_so(undisturbed, monkeypatch, caplog, tiny_pool, tmp_path):
    def listen(event, step, _):
        if (event, step) == ("done", Step(-1, "pretrain")):
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "HARDLY", 1.1)
    with pytest.raises(KeyboardInterrupt):
        loop.run(tiny(tiny_pool, tmp_path, **LEARNING), listen)
    assert "pre-training: the network tells" in caplog.text


def test_a_network_that_is_sure_of_nothing_is_told_of():
    recipe = config(training=UNLABELED).training
    assert train.unsure({}, recipe, "training") is None
    assert train.unsure({"sure": [0.0, 0.2]}, recipe, "training") is None
    said = train.unsure({"sure": [0.3, 0.002]}, recipe, "finetuning")
    assert said is not None
    assert "sure of 0.2%" in said
    assert "lower finetuning.unlabeled.threshold (0.6)" in said


def test_images_that_are_not_square_are_refused_only_where_they_would_be_turned():
    wide = dataclasses.replace(INFO, sample_size=(32, 64), classes=("a", "b", "c"))
    network = {"architecture": "resnet8"}
    assert _selector_macs(config(pretraining={"method": "auto"}, network=network), wide) > 0
    for method in ("auto", "rotation"):
        few = config_from_tree({"pretraining": {"method": method}, "network": network, "selection": {"budgets": [600]}})
        with pytest.raises(ConfigError, match=r"turns square images, and these are 32 x 64"):
            _selector_macs(few, wide)


def test_where_a_rounds_proxy_starts_from():
    assert start(config(), 1) == (Step(-1, "init"), "proxies")
    learned = config(pretraining={"method": "vicreg"}, fusion={"sync_every": 1})
    assert start(learned, 0) == (Step(-1, "pretrain"), "pretrained")
    assert start(learned, 1) == (Step(0, "sync"), "next")
    assert [s.phase for s in steps(learned)][:2] == ["init", "pretrain"]


def test_the_estimate_counts_both():
    plain, learned = config(), config(pretraining={"method": "rotation", "epochs": 2}, training=UNLABELED)
    assert pretraining(plain, INFO, 1000) == (0, 0)
    samples, macs = pretraining(learned, INFO, 1000)
    assert 2 * INFO.rows <= samples < 2 * INFO.rows + 128
    assert macs == 3 * samples * 1000
    labeled, cost = trained(learned.training, 1000, 10)
    assert cost == labeled * (3 + 4 * 2) * 10


def test_a_step_has_as_many_unlabeled_samples_however_few_labels_there_are():
    unlabeled = {"method": "fixmatch", "ratio": 4, "steps": 100}
    recipe = Recipe(epochs=10, batch_size=32, label_smoothing=0, unlabeled=unlabeled)
    # 100 steps of 10 labeled samples, three passes each, and of 4 x 32 others, four passes each.
    assert trained(recipe, 10, 7) == (100 * 10, 100 * (3 * 10 + 4 * 128) * 7)
    assert trained(recipe, 64, 7) == (100 * 32, 100 * (3 * 32 + 4 * 128) * 7)


def test_texts_are_refused_by_name():
    text = {"pool": {"source": "parquet", "path": "a", "test_path": "b", "text_column": "text"}}
    plain = {"augment": []}
    for field, more in (
        ("pretraining.method", {"pretraining": {"method": "rotation"}, "training": plain}),
        ("training.unlabeled.method", {"training": {**plain, **UNLABELED}}),
    ):
        with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
            config_from_tree({**text, "finetuning": plain, **more})


def test_the_prior_is_of_labels_drawn_at_random(undisturbed):
    labels = pq.read_table(undisturbed / "rounds/000/labels.parquet")["label"].to_pylist()
    context = _Context(undisturbed)
    assert unlabeled.prior(context, 1) == unlabeled.shares([labels.count(c) for c in (0, 1)])


def test_unevenness_that_chance_explains_is_no_prior():
    """A balanced pool by a hundred labels; a long tail by a thousand; no label at all, and one."""
    assert unlabeled.shares([10, 7, 14, 9, 12, 8, 11, 6, 13, 10]) == pytest.approx([0.1] * 10)
    assert unlabeled.shares([500, 250, 125, 60, 30, 15, 10, 5, 3, 2])[0] == pytest.approx(0.5, abs=0.01)
    assert unlabeled.shares([0, 0]) == unlabeled.shares([1, 0]) == pytest.approx([0.5, 0.5])
    assert unlabeled.shares([30, 0]) == pytest.approx([31 / 32, 1 / 32])


def test_the_prior_is_nearer_to_the_truth_than_what_was_drawn():
    """On average over draws: much nearer for equal classes, and as near for a long tail."""
    rng, tail = np.random.default_rng(0), 0.7 ** np.arange(10)
    for truth_C, share in ((np.full(10, 0.1), 0.3), (tail / tail.sum(), 1.03)):
        drawn = rng.multinomial(200, truth_C, 300)
        prior = np.array([unlabeled.shares(row.tolist()) for row in drawn])
        assert prior.sum(1) == pytest.approx(1.0)
        assert ((prior - truth_C) ** 2).sum(1).mean() < (((drawn + 1) / 210 - truth_C) ** 2).sum(1).mean() * share


class _Context:
    """As much of a run's context as the prior reads."""

    def __init__(self, root):
        self.ledger = Ledger(Place.at(str(root)))
        self.config = self.ledger.read_config()
        self.info = type("Info", (), {"classes": ["0", "1"], "id_type": str(pa.string())})
