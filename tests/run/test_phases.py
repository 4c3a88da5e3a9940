"""The phases: what they do with samples that cannot be used, and with texts."""

import dataclasses
import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray import networks, progress
from prunefuse_ray.acquisition.auto import Decision
from prunefuse_ray.config import Config
from prunefuse_ray.config.files import config_from_tree, merge
from prunefuse_ray.data import inventory
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.errors import ConfigError, LedgerError, PoolError, ScoreError, TrainingError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import loop
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.phases import finetune, init, train
from prunefuse_ray.run.phases import score as score_phase
from prunefuse_ray.run.phases.report import _cells
from prunefuse_ray.storage import Place
from tests.report.test_page import Page
from tests.support.nets import OWN
from tests.support.nets import tiny as tiny_network
from tests.support.pools import random_images, write_pool
from tests.support.runs import carried_out, tiny

# --- bad samples ---


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A pool of RGB images in which six samples are odd and three of those cannot be used."""
    where = tmp_path_factory.mktemp("spoiled")
    pixels = random_images(60, channels=3)
    images = [encode_png(p) for p in pixels]
    images[0] = b"not an image"
    images[1] = images[1][: len(images[1]) // 2]
    images[2] = None
    images[3] = encode_png(pixels[3][:, :, 0])
    images[4] = encode_png(np.dstack([pixels[4], pixels[4][:, :, :1]]))
    images[5] = encode_png(random_images(1, size=20, channels=3)[0])
    write_pool(where / "pool", pixels, files=2, image=pa.array(images, pa.binary()))
    write_pool(where / "test", random_images(20, channels=3, seed=1), first_id=900)
    return where


def spoiled_config(spoiled, tmp_path, **more):
    change = {
        "pool": {"channels": 3, "image_size": [8, 8], "max_rejected": 0.1},
        "selection": {"budgets": [40, 57]},
    }
    return tiny(spoiled, tmp_path, **merge(change, more))


def test_bad_samples_are_recorded_and_never_selected(local_ray, spoiled, tmp_path):
    """The budget takes every usable sample of the pool, so each bad one would have been chosen at some time."""
    loop.run(spoiled_config(spoiled, tmp_path))
    root = tmp_path / "tiny"
    rejected = {r["id"]: r["reason"] for r in pq.read_table(root / "rejected.parquet").to_pylist()}
    assert sorted(rejected) == ["s0000", "s0001", "s0002"]
    assert "known format" in rejected["s0000"]
    assert "null" in rejected["s0002"]
    chosen = [i for r in (0, 1) for i in pq.read_table(root / f"rounds/{r:03d}/labels.parquet")["id"].to_pylist()]
    assert sorted(chosen) == [f"s{i:04d}" for i in range(3, 60)]
    words = Page((root / "report.html").read_text()).words("rejected")
    assert "3 samples (5.00% of the pool) were rejected and cannot be chosen." in words
    assert json.loads((root / "result.json").read_text())["rejected"] == 3


def test_images_of_another_size_are_rejected_on_request(local_ray, spoiled, tmp_path):
    change = {"pool": {"other_sizes": "reject"}, "selection": {"budgets": [40, 56]}}
    carried_out(spoiled_config(spoiled, tmp_path, **change), Step(0, "score"))
    rejected = {r["id"]: r["reason"] for r in pq.read_table(tmp_path / "tiny/rejected.parquet").to_pylist()}
    assert rejected["s0005"] == "20 x 20 pixels, expected 8 x 8"


def test_too_many_bad_samples_stop_the_run(local_ray, spoiled, tmp_path):
    with pytest.raises(ScoreError, match=r"pool\.max_rejected: [123] of 60 samples"):
        loop.run(spoiled_config(spoiled, tmp_path, pool={"max_rejected": 0.01}))
    carried_out(spoiled_config(spoiled, tmp_path), Step(1, "select"))  # the remedy that the message names


def test_a_budget_that_only_bad_samples_could_fill_is_refused(local_ray, spoiled, tmp_path):
    with pytest.raises(ScoreError, match="only 17 of the pool have a score; lower the budgets from this round on"):
        loop.run(spoiled_config(spoiled, tmp_path, selection={"budgets": [40, 58]}))


@pytest.mark.parametrize(("section", "step"), [("training", Step(0, "train")), ("finetuning", Step(0, "finetune"))])
def test_a_training_that_diverges_is_no_result(local_ray, tiny_pool, tmp_path, section, step):
    change = {"selection": {"budgets": [10]}, section: {"lr": 1e30, "warmup_epochs": 0}}
    config = tiny(tiny_pool, tmp_path, **change)
    with pytest.raises(TrainingError, match=rf"round {step.round}, {step.phase}.* lower {section}\.lr \(1e\+30\)"):
        loop.run(config)
    assert Ledger(Place.at(str(tmp_path / "tiny"))).committed(step) is None


def test_scores_that_are_not_finite_stop_the_round_and_name_ids(local_ray, tiny_pool, tmp_path, monkeypatch):
    """As of a network that gives numbers for the test set, but not for the pool."""
    monkeypatch.setattr(train.math, "isfinite", lambda _: True)
    config = tiny(tiny_pool, tmp_path, training={"lr": 1e30, "warmup_epochs": 0})
    with pytest.raises(ScoreError, match=r"are not finite for 110 samples, e\.g\. ids 's"):
        loop.run(config)
    ledger = Ledger(Place.at(str(tmp_path / "tiny")))
    assert ledger.committed(Step(0, "train")) is not None
    assert ledger.committed(Step(0, "score")) is None


def test_gains_that_are_all_alike_prune_with_a_warning(local_ray, tiny_pool, tmp_path, caplog):
    class EndedError(Exception):
        pass

    def listen(event, step, _):
        if (event, step) == ("done", Step(-1, "init")):
            raise EndedError

    for importance in ("magnitude", "bn_scale"):
        change = {"run": {"name": importance}, "pruning": {"importance": importance}}
        with pytest.raises(EndedError):
            loop.run(tiny(tiny_pool, tmp_path, **change), listen)
        assert ("the first channels of every layer are pruned" in caplog.text) == (importance == "bn_scale")


def test_gains_of_a_trained_network_say_something():
    spec = networks.NetworkSpec(architecture="tests.support.nets:tiny", classes=2, input_shape=(1, 8, 8))
    dense = networks.Dense(network=networks.build(spec, seed=0), spec=spec)
    proxy = networks.prune(dense.network, spec, networks.PruningSpec(ratio=0.5))
    assert "begin with network.weights" in init.chance_alone("bn_scale", dense, proxy)
    assert init.chance_alone("bn_scale", dense, dense) is None, "nothing is pruned"
    dense.network[1].weight.data[3] = 0.5
    assert init.chance_alone("bn_scale", dense, proxy) is None


# --- what scoring sees of a large pool ---


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A pool that counts as large, so that it is looked at in part: two odd samples, and two of the test set."""
    monkeypatch.setattr(inventory, "ALL_ROWS", 30)
    monkeypatch.setattr(inventory, "SOME", 4)
    pixels, held_out = random_images(60, channels=3), random_images(20, channels=3, seed=1)
    images = [encode_png(p) for p in pixels]
    images[10], images[20] = encode_png(held_out[3]), encode_png(held_out[4])
    images[30] = encode_png(pixels[30][:, :, 0])
    images[40] = encode_png(np.dstack([pixels[40], pixels[40][:, :, :1]]))
    write_pool(tmp_path / "pool", pixels, files=2, image=pa.array(images, pa.binary()))
    write_pool(tmp_path / "test", held_out, first_id=900)
    return tmp_path


def large_config(where, tmp_path, **more):
    change = {"pool": {"channels": 3, "max_overlap": 0.5}, "selection": {"budgets": [2, 10, 20]}, "run": {"seed": 3}}
    return tiny(where, tmp_path, **merge(change, more))


def test_scoring_counts_conversions_and_compares_with_the_test_set_once(local_ray, large, tmp_path):
    told = []
    loop.run(large_config(large, tmp_path), tell=told.extend)
    assert any("the others are compared when they are first scored" in line for line in told)
    ledger = Ledger(Place.at(str(tmp_path / "tiny")))
    first, later = (ledger.require(Step(r, "score")).metrics for r in (0, 1))
    assert first["conversions"] == {"gray to RGB": 1, "alpha dropped": 1}
    assert first["overlaps"]["test_path"] == {
        "samples": 2, "held_out": 2, "examples": [["s0010", "s0903"], ["s0020", "s0904"]],
    }  # fmt: skip
    assert later["overlaps"] == {}
    page = (tmp_path / "tiny" / "report.html").read_text()
    assert "2 of 60 samples compared have the content of one of the test set" in page


def test_too_much_of_the_test_set_in_a_large_pool_stops_the_run_and_a_larger_share_resumes_it(
    local_ray, large, tmp_path
):
    with pytest.raises(PoolError, match=r"the very bytes of 2 of the 20 samples of pool\.test_path \(s0010 = s0903"):
        loop.run(large_config(large, tmp_path, pool={"max_overlap": 0.05}))
    carried_out(large_config(large, tmp_path, pool={"max_overlap": 0.1}), Step(0, "score"))


# --- texts ---


@pytest.mark.slow
def test_a_pool_of_texts_goes_through_the_whole_loop(local_ray, tmp_path):
    """Two classes told apart by their words; one text is empty."""
    words = [["fine", "good", "nice"], ["poor", "bad", "dull"]]
    rng = np.random.default_rng(0)
    for part, n in (("pool", 60), ("test", 20)):
        (tmp_path / part).mkdir()
        texts = [" ".join(rng.choice(words[i % 2], 6)) for i in range(n)]
        if part == "pool":
            texts[7] = " "
        first = 0 if part == "pool" else 900
        table = {"id": list(range(first, first + n)), "text": texts, "label": [i % 2 for i in range(n)]}
        pq.write_table(pa.table(table), tmp_path / part / "a.parquet")
    recipe = {"epochs": 6, "augment": [], "lr": 0.05}
    change = {
        "pool": {"channels": 3, "text_column": "text", "text_length": 32, "max_rejected": 0.1, "max_overlap": 0.5},
        "network": {"architecture": "textcnn"}, "training": recipe, "finetuning": recipe,
        "selection": {"budgets": [20, 59], "strategy": "entropy"},
    }  # fmt: skip
    loop.run(tiny(tmp_path, tmp_path / "runs", **change))
    root = tmp_path / "runs" / "tiny"
    assert pq.read_table(root / "rejected.parquet").to_pylist() == [{"id": "7", "reason": "an empty text"}]
    chosen = [i for r in (0, 1) for i in pq.read_table(root / f"rounds/{r:03d}/labels.parquet")["id"].to_pylist()]
    assert sorted(chosen) == sorted(set(range(60)) - {7})
    assert (root / "report.html").read_text().count("dull") > 0


# --- a network that is already trained ---


@pytest.fixture(scope="module")
def trained_file(tiny_pool, tmp_path_factory):
    """A tiny network that tells dark images from light ones, saved as a data-parallel training script would."""
    torch.manual_seed(0)
    network = tiny_network(num_classes=2, input_shape=(1, 8, 8))
    x = (torch.from_numpy(random_images(120)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    y = torch.arange(120) % 2
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}, "epoch": 30}, path)
    return path, network.state_dict()


def accuracy(network):
    x = (torch.from_numpy(random_images(40, seed=1)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.inference_mode():
        return (network.eval()(x).argmax(1) == torch.arange(40) % 2).float().mean().item()


def load(directory):
    return networks.from_files({f.name: f.read_bytes() for f in directory.iterdir()}, OWN)


def test_a_run_starts_from_a_trained_network(local_ray, tiny_pool, trained_file, tmp_path):
    """Half of a trained network's channels still tell the classes apart; a changed file is refused on resume."""
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(trained_file[0].read_bytes())
    recipe = {"epochs": 1, "lr": 1e-9, "warmup_epochs": 0, "evaluate_every": 1}
    config = tiny(
        tiny_pool,
        tmp_path / "runs",
        network={"weights": str(path)},
        selection={"budgets": [20, 30]},
        training=recipe,
    )
    loop.run(config)
    root = tmp_path / "runs" / "tiny"
    dense, proxy = load(root / "dense"), load(root / "proxies/0")
    for name, tensor in dense.network.state_dict().items():
        assert torch.equal(tensor, trained_file[1][name]), name
    kept = networks.gather(trained_file[1], proxy.kept)
    for name, tensor in proxy.network.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    commit = Ledger(Place.at(str(root))).committed(Step(-1, "init"))
    assert commit.metrics["inputs"]["network.weights"]["replaced"] == []
    before_training = Ledger(Place.at(str(root))).committed(Step(0, "train")).metrics["evaluations"][0]
    assert before_training["epoch"] == 0
    assert before_training["accuracy"] >= 0.9, "the kept channels of the trained network tell the classes apart"
    assert accuracy(load(root / "fused").network) >= 0.9
    (root / "commits/report.json").unlink()  # as if it had been killed before its end
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(LedgerError, match=r"network\.weights.* is not the file that the run began with"):
        loop.run(config)
    path.unlink()
    loop.run(config)  # the run holds what it took from the file


def test_an_exactly_fused_network_begins_as_its_proxy(local_ray, tiny_pool, tmp_path):
    """Its batch norms are not re-estimated: the proxy's statistics, of augmented samples in training, are right."""
    change = {"fusion": {"rule": "function_preserving"}, "finetuning": {"evaluate_every": 1, "precision": "fp32"}}
    change |= {"training": {"precision": "fp32"}, "selection": {"budgets": [30]}}
    ledger = carried_out(tiny(tiny_pool, tmp_path, **change), Step(0, "finetune"))
    proxy, fused = (ledger.committed(Step(0, phase)).metrics for phase in ("train", "finetune"))
    assert fused["evaluations"][0]["epoch"] == 0
    assert fused["evaluations"][0]["loss"] == pytest.approx(proxy["test_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "network.weights"), (b"x", "neither safetensors nor"), ("other", "missing: 1.bias, ")],
)
def test_weights_that_cannot_be_used_are_refused_and_nothing_is_written(
    local_ray, tiny_pool, trained_file, tmp_path, content, said
):
    path = tmp_path / "weights"
    if content == "other":
        torch.save({k: v for k, v in trained_file[1].items() if not k.startswith("1.")}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError if content is None else networks.NetworkError) as caught:
        loop.run(tiny(tiny_pool, tmp_path / "runs", network={"weights": str(path)}))
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


# --- a validation set ---


@pytest.mark.parametrize("kind", [pytest.param("path", marks=pytest.mark.slow), "share"])
def test_a_validation_set_chooses_the_weights(local_ray, tiny_pool, tmp_path, kind):
    write_pool(tmp_path / "validation", random_images(30, seed=2), first_id=500)
    given = {"validation_path": str(tmp_path / "validation")} if kind == "path" else {"validation_share": 0.3}
    config = tiny(tiny_pool, tmp_path / "runs", pool=given, selection={"budgets": [20, 40]}, training={"patience": 2})
    carried_out(config, Step(1, "finetune"))
    for phase in (Step(0, "train"), Step(1, "train"), Step(1, "finetune")):
        metrics = Ledger(Place.at(str(tmp_path / "runs" / "tiny"))).committed(phase).metrics
        accuracies = metrics["validation_accuracy"]
        assert accuracies[metrics["best_epoch"] - 1] == max(accuracies)
        assert len(accuracies) == metrics["epochs"]
    seen = metrics["macs"] / metrics["epochs"]
    full = 32 if kind == "share" else 40  # whole batches of 8 out of the 40 labels, or out of those not held out
    assert seen <= full * 3 * networks.macs(tiny_network(num_classes=2, input_shape=(1, 8, 8)), (1, 8, 8))


def test_a_training_on_another_number_of_workers_than_the_one_before_is_told(
    local_ray, tiny_pool, tmp_path, monkeypatch, caplog
):
    """The run would not have chosen so in one go."""
    work, numbers = train.train, iter([1, 2, 2])

    def on_others(*arguments):
        result = work(*arguments)
        return dataclasses.replace(result, metrics={**result.metrics, "workers": [next(numbers)]})

    monkeypatch.setattr(train, "train", on_others)
    carried_out(tiny(tiny_pool, tmp_path, selection={"budgets": [10, 18]}), Step(1, "finetune"))
    (said,) = [m for m in caplog.messages if "the training before it" in m]
    assert said.startswith("round 1, train: on 2 workers, and the training before it on 1: another number of workers")


def test_a_phases_time_is_its_work(monkeypatch):
    """With what earlier starts of a training took, without the wait for people."""
    taken = {}
    ledger = SimpleNamespace(commit=lambda _, outputs, metrics, written: taken.update(metrics), clear=lambda *_: None)
    context = SimpleNamespace(ledger=ledger)

    def work(context, step):
        with progress.waiting():
            time.sleep(1.0)
        return Done(outputs={})

    monkeypatch.setitem(loop.PHASES, "label", work)
    loop._carry_out(context, Step(0, "label"))
    assert taken["seconds"] < 0.9
    monkeypatch.setitem(loop.PHASES, "train", lambda *_: Done(outputs={}, metrics={"seconds": 60.0}))
    loop._carry_out(context, Step(0, "train"))
    assert taken["seconds"] == 60.0


def test_ids_and_classes_are_no_formulas_in_the_tables_of_a_run():
    context = SimpleNamespace(config=Config(), info=SimpleNamespace(classes=["@x", "y"]))
    assert list(_cells(pa.table({"id": ["=1+1"], "label": [0]}), context)) == [["'=1+1", "'@x"]]


def test_a_core_set_without_a_class_says_so(caplog):
    """Of three classes one has no label anyway, and one only easy samples: that one is named."""
    hard = pa.table({"id": ["a", "b", "c", "d"], "forgetting": [0.0] * 4, "el2n": [0.9, 0.8, 0.1, 0.2]})
    context = SimpleNamespace(
        config=config_from_tree({"coreset": {"by": "el2n", "share": 0.5}}),
        info=SimpleNamespace(classes=["cat", "dog", "emu"], id_type="string"),
        ledger=SimpleNamespace(read_table=lambda *_: hard),
    )

    @dataclasses.dataclass(frozen=True)
    class Job:
        labels: pa.Table

    job = Job(pa.table({"id": ["a", "b", "c", "d"], "label": [0, 0, 1, 1]}))
    assert finetune._on_coreset(context, Step(2, "finetune"), job).labels["id"].to_pylist() == ["a", "b"]
    assert "round 2, finetune: the core-set holds none of 1 of 3 classes (dog)" in caplog.text


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of an earlier version"])
def test_scores_that_were_begun_by_another_strategy_are_not_gone_on_with(
    local_ray, tiny_pool, tmp_path, monkeypatch, noted
):
    """`auto` may decide otherwise in another version: half of the scores would lack what the strategy reads."""
    config = tiny(tiny_pool, tmp_path, selection={"strategy": "auto", "budgets": [10, 18]})
    really, decisions = score_phase.score, iter(["margin", "uncertainty_herding"])
    monkeypatch.setattr(
        score_phase.auto, "decide", lambda facts: Decision(strategy=next(decisions), reason="for this test")
    )

    def score_and_end(*args):
        really(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(score_phase, "score", score_and_end)
        with pytest.raises(KeyboardInterrupt):
            loop.run(config)
    files = list((tmp_path / "tiny/rounds/000/scores").glob("*.parquet"))
    assert files
    assert "feature" not in pq.read_schema(files[0]).names
    assert (tmp_path / "tiny/rounds/000/scores-by/margin").exists()
    if not noted:
        shutil.rmtree(tmp_path / "tiny/rounds/000/scores-by")
    ledger = carried_out(config, Step(0, "score"))
    assert ledger.require(Step(0, "score")).metrics["strategy"] == "uncertainty_herding"
    for file in (tmp_path / "tiny/rounds/000/scores").glob("*.parquet"):
        assert "feature" in pq.read_schema(file).names
    assert not (tmp_path / "tiny/rounds/000/scores-by").exists()


def test_a_batch_that_does_not_fit_a_gpu_is_said_with_its_field(local_ray, tiny_pool, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation")

    monkeypatch.setattr(train, "train", full)
    with pytest.raises(TrainingError, match=r"round 0, train: .* lower training\.batch_size \(8\)") as caught:
        loop.run(tiny(tiny_pool, tmp_path))
    assert "\n" not in str(caught.value)


def test_what_a_pass_of_no_round_was_begun_by_stands_in_the_run_directory(tmp_path):
    ledger, step = Ledger(Place.at(str(tmp_path))), Step(-1, "score")
    context = SimpleNamespace(ledger=ledger, config=config_from_tree({"selection": {"initial": "typiclust"}}))
    score_phase._begun_alike(context, step, SimpleNamespace(out=ledger.place(step, "scores")), "typiclust")
    assert (tmp_path / "scores-by/typiclust").exists()


def test_samples_that_were_away_are_there_again(local_ray, tmp_path):
    """A disk that was not mounted: nothing is recorded of its samples, and the same command goes on."""
    for part, first in (("photos", 0), ("test", 500)):
        for number, image in enumerate(random_images(40, seed=first)):
            file = tmp_path / part / f"{number % 2}" / f"{first + number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_png(image))
    given = {"source": "images", "path": str(tmp_path / "photos"), "test_path": str(tmp_path / "test"), "classes": None}
    config = tiny(tmp_path, tmp_path / "runs", pool=given, selection={"budgets": [10, 14]})
    away = tmp_path / "away"

    def unmounted(event, step, _):
        if (event, step) == ("start", Step(0, "score")):
            (tmp_path / "photos/1").rename(away)

    with pytest.raises(ScoreError, match=r"pool\.max_rejected"):
        loop.run(config, unmounted)
    assert not (tmp_path / "runs/tiny/rejected.parquet").exists()
    away.rename(tmp_path / "photos/1")
    carried_out(config, Step(0, "score"))
    assert not (tmp_path / "runs/tiny/rejected.parquet").exists()


def test_a_run_does_not_begin_in_the_directory_of_a_sweep(local_ray, tiny_pool, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/sweep.yaml").write_text("")
    with pytest.raises(LedgerError, match="directory of a sweep"):
        loop.run(tiny(tiny_pool, tmp_path))
    assert not (tmp_path / "tiny/config.yaml").exists()


def test_a_scoring_batch_that_does_not_fit_a_gpu_is_said_with_its_field(local_ray, tiny_pool, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation")

    monkeypatch.setattr(score_phase, "score", full)
    with pytest.raises(ScoreError, match=r"round 0, score: .* another run\.name with a smaller scoring\.batch"):
        loop.run(tiny(tiny_pool, tmp_path))


@pytest.mark.parametrize(("gpus", "share"), [(0.0, 1.0), (0.5, 0.5), (2.0, 1.0)])
def test_an_actor_takes_its_share_of_a_gpus_memory(gpus, share):
    plan = ScoringPlan(min_actors=1, max_actors=2, cpus=1, gpus=gpus)
    assert score_phase.decide(config_from_tree({}), None, plan, "margin").gpu_share == share


def test_the_baseline_holds_no_more_samples_than_fit(local_ray, tiny_pool, tmp_path, monkeypatch):
    drawn, really = [], RunContext.drawn
    monkeypatch.setattr(RunContext, "drawn", lambda self, n, *more: drawn.append(n) or really(self, n, *more))
    monkeypatch.setattr("prunefuse_ray.run.phases.baseline.HELD", 11 * 8 * 8)
    loop.run(tiny(tiny_pool, tmp_path, selection={"budgets": [10, 18]}, report={"baseline": True}))
    found = json.loads((tmp_path / "tiny/result.json").read_text())["baseline"]
    assert [found[n] for n in ("labels", "of_labels", "tested", "of_tested")] == [11, 18, 11, 40]
    assert drawn == [11]
