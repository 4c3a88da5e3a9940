"""Strategies and their options in the real loop: what is written, and that the choice is the one the files ask for."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray import networks
from prunefuse_ray.acquisition import Chance, auto
from prunefuse_ray.acquisition.class_weights import class_weights
from prunefuse_ray.acquisition.greedy import clocks
from prunefuse_ray.acquisition.quotas import round_robin
from prunefuse_ray.acquisition.typiclust import TYPICLUST
from prunefuse_ray.config.files import config_from_tree, merge
from prunefuse_ray.errors import ConfigError, ScoreError
from prunefuse_ray.method.steps import Step, budget_notes
from prunefuse_ray.networks import NetworkError
from prunefuse_ray.report.page import render
from prunefuse_ray.run import loop
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.phases import select, train
from prunefuse_ray.run.phases.score import facts
from prunefuse_ray.run.result import result_of
from prunefuse_ray.run.view import view_run
from prunefuse_ray.selection.rows import Rows
from prunefuse_ray.selection.shards import Shards
from prunefuse_ray.storage import Place
from tests.run.test_loop import killed_at
from tests.selection.test_coverage_selection import squares
from tests.selection.test_set_selection import apart, badge, k_centers
from tests.support.nets import OWN
from tests.support.pools import random_images, write_pool
from tests.support.runs import carried_out, tiny


class ChosenAlreadyError(Exception):
    """Ends a run as soon as it has chosen by its scores."""


def choose(config):
    """Run until the first choice by scores; returns the run directory."""

    def listen(event, step, _):
        if (event, step) == ("done", Step(1, "select")):
            raise ChosenAlreadyError

    with pytest.raises(ChosenAlreadyError):
        loop.run(config, listen)
    return loop.run_place(config).path


def read(root, name):
    """The files of round 0 below `name`, by rising id."""
    return pq.read_table(f"{root}/rounds/000/{name}").sort_by("id")


def matrix(table, column):
    return np.stack(table[column].to_numpy()).astype(float)


def selected(root):
    return pq.read_table(f"{root}/rounds/001/selected.parquet")


def test_k_centers_starts_from_the_labeled_features_of_the_same_proxy(local_ray, tiny_pool, tmp_path):
    root = choose(tiny(tiny_pool, tmp_path, selection={"strategy": "k_centers"}))
    scores, labeled = read(root, "scores"), read(root, "labeled")
    assert labeled["id"].to_pylist() == sorted(read(root, "labels.parquet")["id"].to_pylist())
    rows = k_centers(matrix(scores, "feature"), matrix(labeled, "feature"), 8)
    assert selected(root)["id"].to_pylist() == scores["id"].take(rows).to_pylist()
    assert selected(root)["score"].to_pylist() == scores["score"].take(rows).to_pylist()
    assert selected(root)["rank"].to_pylist() == list(range(8))
    ledger = Ledger(Place.at(str(tmp_path / "tiny")))
    told, one = ledger.require(Step(0, "score")).metrics, ledger.require(Step(-1, "init")).metrics["macs_per_sample"]
    assert told["macs"] == (scores.num_rows + labeled.num_rows) * one["proxy"], "the labeled ones cost as much"
    assert told["dense_macs"] == (scores.num_rows + labeled.num_rows) * one["dense"]


def test_badge_reads_gradients_that_the_saved_proxy_gives(local_ray, tiny_pool, tmp_path):
    """Through Ray Data and an actor. The gradients are checked against torch's own derivative."""
    import torch

    root = choose(tiny(tiny_pool, tmp_path, selection={"strategy": "badge"}))
    scores = read(root, "scores")
    a, h, ids = matrix(scores, "gradient"), matrix(scores, "feature"), scores["id"].to_pylist()
    rows = badge(a, h, 8, clocks(np.array(ids, object), 0, 0))
    assert selected(root)["id"].to_pylist() == [ids[i] for i in rows]

    files = {f.name: (f.read_bytes()) for f in (tmp_path / "tiny/rounds/000/proxies/0").iterdir()}
    network = networks.from_files(files, OWN).network.eval()
    classifier = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]
    pixels = random_images(120)
    for i in (0, 50, 100):
        x = (torch.tensor(pixels[int(ids[i][1:])]).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        logits = network(x)
        loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
        (gradient,) = torch.autograd.grad(loss, classifier.weight)
        np.testing.assert_allclose(np.outer(a[i], h[i]), gradient.numpy(), atol=1e-4)


def test_cluster_margin_chooses_of_the_smallest_margins(local_ray, tiny_pool, tmp_path):
    root = choose(tiny(tiny_pool, tmp_path, selection={"strategy": "cluster_margin"}))
    scores = read(root, "scores")
    assert len(set(selected(root)["id"].to_pylist())) == 8
    least = np.sort(scores["score"].to_numpy())[-80]
    assert (selected(root)["score"].to_numpy() >= least).all()


def test_per_group_takes_equally_many_of_each_predicted_class(local_ray, tiny_pool, tmp_path):
    root = choose(tiny(tiny_pool, tmp_path, selection={"per_group": "predicted"}))
    scores = read(root, "scores").to_pylist()
    groups = [[r for r in scores if r["predicted"] == g] for g in (0, 1)]
    wanted = []
    for rows, quota in zip(groups, round_robin([len(g) for g in groups], 8), strict=True):
        wanted += sorted(rows, key=lambda r: (-r["score"], r["id"]))[:quota]
    wanted.sort(key=lambda r: (-r["score"], r["id"]))
    assert selected(root)["id"].to_pylist() == [r["id"] for r in wanted]


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """A pool whose column `site` has a rare value, some nulls, and many of the rest."""
    where = tmp_path_factory.mktemp("sites")
    write_pool(where / "pool", random_images(120), files=6)
    write_pool(where / "test", random_images(40, seed=1), first_id=900)
    for file in (where / "pool").iterdir():
        table = pq.read_table(file)
        site = ["rare" if n < 5 else None if n < 30 else "usual" for n in (int(i[1:]) for i in table["id"].to_pylist())]
        pq.write_table(table.append_column("site", pa.array(site, pa.string())), file)
    return where


@pytest.mark.parametrize("actors", [None, pytest.param((1, 1), marks=pytest.mark.slow)])
def test_per_group_takes_equally_many_of_each_value_of_a_column(local_ray, sites, tmp_path, actors):
    change = {
        "selection": {"per_group": "group", "budgets": [10, 25]},
        "pool": {"group_column": "site"},
        "scoring": {"actors": actors},
    }
    config = tiny(sites, tmp_path, **change)
    root = choose(config)
    sites_of = {f"s{n:04d}": "rare" if n < 5 else "" if n < 30 else "usual" for n in range(120)}
    scores = read(root, "scores").to_pylist()
    assert all(r["group"] == sites_of[r["id"]] for r in scores)
    left = {g: sorted((r for r in scores if r["group"] == g), key=lambda r: (-r["score"], r["id"])) for g in
            ("rare", "", "usual")}  # fmt: skip
    quotas = dict(zip(sorted(left), round_robin([len(left[g]) for g in sorted(left)], 15), strict=True))
    assert quotas["rare"] == len(left["rare"]), "the rare ones are all wanted"
    assert abs(quotas[""] - quotas["usual"]) <= 1
    wanted = sorted((r for g in left for r in left[g][: quotas[g]]), key=lambda r: (-r["score"], r["id"]))
    assert selected(root)["id"].to_pylist() == [r["id"] for r in wanted]
    commit = Ledger(loop.run_place(config)).committed(Step(1, "select"))
    assert commit.metrics["per_group"] == quotas


def test_min_distance_keeps_the_chosen_apart_from_each_other_and_the_labeled(local_ray, tiny_pool, tmp_path):
    config = tiny(tiny_pool, tmp_path, selection={"min_distance": 0.1})
    root = choose(config)
    scores, labeled = read(root, "scores"), read(root, "labeled")
    x, known = matrix(scores, "feature"), matrix(labeled, "feature")
    rows = apart(x, scores["score"].to_numpy(), known, 8, 0.1)
    assert selected(root)["id"].to_pylist() == scores["id"].take(pa.array(rows)).to_pylist()
    commit = Ledger(loop.run_place(config)).committed(Step(1, "select"))
    assert 0 <= commit.metrics["closer_than_min_distance"] <= 8


def test_features_that_are_not_finite_stop_the_round_and_name_ids(local_ray, tiny_pool, tmp_path, monkeypatch):
    """As of a network that gives numbers for the test set, but not for the pool."""
    monkeypatch.setattr(train.math, "isfinite", lambda _: True)
    change = {"selection": {"strategy": "k_centers"}, "training": {"lr": 1e30, "warmup_epochs": 0}}
    with pytest.raises(ScoreError, match=r"not finite for 110 samples, e\.g\. ids 's"):
        loop.run(tiny(tiny_pool, tmp_path, **change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"per_group": "predicted", "strategy": "random"}, "asks no network"),
        ({"per_group": "predicted", "strategy": "badge"}, "selects a set of its own"),
        ({"min_distance": 0.5, "strategy": "k_centers"}, "min_distance 0.5 cannot be combined"),
        ({"min_distance": 0.5, "per_group": "predicted"}, "leave one out"),
        ({"min_distance": 0.0}, "min_distance"),
        ({"per_group": "country"}, "per_group"),
        ({"per_group": "group"}, "groups need both per_group 'group' and the column"),
        ({"strategy": "k_center"}, "did you mean 'k_centers'"),
        ({"class_balance": 0.5, "strategy": "badge"}, "weighs scores, and strategy 'badge' does not go by them"),
        ({"class_balance": 0.5, "strategy": "random"}, "does not go by them"),
        ({"strategy": "rare_classes"}, "name them in selection.wanted_classes"),
        ({"initial": "bald"}, "initial 'bald' asks a trained network"),
        ({"initial": "uncertainty_herding"}, "use one of random, k_centers, typiclust, prob_cover, max_herding"),
        ({"initial": "cal"}, "initial 'cal' asks a trained network"),
        ({"initial": "auto"}, "unknown acquisition strategy 'auto'"),
        ({"per_group": "predicted", "strategy": "auto"}, "strategy 'auto', which selects a set of its own"),
    ],
)
def test_what_cannot_be_combined_is_refused(tiny_pool, tmp_path, change, said):
    with pytest.raises(ConfigError) as caught:
        tiny(tiny_pool, tmp_path, selection=change)
    assert said in str(caught.value)


@pytest.mark.parametrize("change", [{"strategy": "k_centers"}, {"strategy": "badge"}, {"min_distance": 0.5}], ids=str)
def test_a_network_without_a_classifier_over_features_is_refused(local_ray, tiny_pool, tmp_path, change):
    more = {"network": {"architecture": "tests.support.nets:convolutional"}, "selection": change}
    with pytest.raises(NetworkError, match="features need a network"):
        loop.run(tiny(tiny_pool, tmp_path, **more))
    assert not list(tmp_path.iterdir())


MOMENTS = [
    ("inside", 0, "score"),
    ("commit", 0, "score"),
    ("commit", 1, "select"),
    ("done", 1, "select"),
    ("commit", 1, "score"),
]


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "selection",
    [
        {"strategy": "k_centers"},
        pytest.param({"strategy": "badge"}, marks=pytest.mark.slow),
        pytest.param({"strategy": "cluster_margin"}, marks=pytest.mark.slow),
        pytest.param({"min_distance": 0.2}, marks=pytest.mark.slow),
        pytest.param({"strategy": "auto", "initial": "typiclust", "hold_back": 2.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_killed_in_any_phase_chooses_the_same(local_ray, tiny_pool, tmp_path, selection):
    change, last = {"selection": merge({"budgets": [10, 18, 30]}, selection)}, Step(2, "select")
    carried_out(tiny(tiny_pool, tmp_path / "whole", **change), last)  # in the driver, which makes no difference
    killed = tiny(tiny_pool, tmp_path / "killed", **change, scoring={"actors": (1, 1)})
    killed_at([*MOMENTS, ("done", last.round, last.phase)], killed, tmp_path)
    for r in (0, 1, 2):
        whole, killed = (
            pq.read_table(tmp_path / run / f"tiny/rounds/{r:03d}/selected.parquet") for run in ("whole", "killed")
        )
        assert killed.equals(whole)


def test_an_initial_set_is_selected_by_the_features_of_the_network_as_it_is(local_ray, tiny_pool, tmp_path):
    config = tiny(tiny_pool, tmp_path, selection={"initial": "typiclust", "strategy": "uncertainty_herding"})
    root = choose(config)
    first = pq.read_table(f"{root}/rounds/000/selected.parquet")
    scores = pq.read_table(f"{root}/scores").sort_by("id")
    assert scores.num_rows == 120
    rows = Rows(
        ids=scores["id"].combine_chunks(),
        scores=scores["score"].to_numpy(),
        vectors=[matrix(scores, "feature").astype(np.float32)],
    )
    with Shards(rows, 0) as held:
        assert first.equals(TYPICLUST.select(held, 10, Chance(seed=0, round=-1)).cast(first.schema))
    ledger = Ledger(loop.run_place(config))
    assert ledger.committed(Step(-1, "score")).metrics["reason"].endswith("a network with no training yet")
    first, second = view_run(ledger).rounds
    assert (first.strategy, second.strategy) == ("typiclust", "uncertainty_herding")


def test_auto_decides_in_each_round_and_records_why(local_ray, tiny_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "FEW", 8)  # labels a class: 5 in round 0, 9 in round 1
    monkeypatch.setattr(auto, "MANY", 8)
    monkeypatch.setattr(auto, "IMBALANCED", 100.0)
    config = tiny(tiny_pool, tmp_path, selection={"strategy": "auto"})
    ledger = carried_out(config, Step(2, "finetune"))
    scored = [ledger.committed(Step(r, "score")).metrics for r in (0, 1)]
    assert [m["strategy"] for m in scored] == ["uncertainty_herding", "margin"]
    assert [m["reason"] for m in scored] == [
        "few labels (5 labels a class, below 8)",
        "many labels (9 labels a class, 8 or more)",
    ]
    second = pq.read_table(f"{ledger.root.path}/rounds/001/scores")
    second = second.sort_by([("score", "descending"), ("id", "ascending")])
    assert "feature" not in second.column_names, "margin reads none"
    last = pq.read_table(f"{ledger.root.path}/rounds/002/selected.parquet")
    assert last["id"].to_pylist() == second["id"].to_pylist()[:12]
    assert [r["strategy"] for r in result_of(config, ledger)["rounds"]] == ["random", "uncertainty_herding", "margin"]
    page = render(view_run(ledger))
    assert "few labels (5 labels a class, below 8)" in page


def test_a_leap_in_the_budgets_is_told_and_covered(local_ray, tiny_pool, tmp_path):
    def notes(**selection):
        return budget_notes(config_from_tree({"selection": {"budgets": [10, 18, 60], **selection}}), 2)

    said = "selection.budgets: from 18 labels to 60 at once is a leap"
    assert [note.startswith(said) for note in notes(strategy="margin")] == [True]
    assert notes(strategy="random") == notes(strategy="auto") == notes(strategy="k_centers") == []
    assert notes(strategy="margin", budgets=[10, 30, 90]) == []
    assert notes(strategy="margin")[0].endswith("put budgets between, or set selection.strategy to max_herding")
    for strategy in ("margin", "auto"):  # what covers goes by no scores, which weights need
        (note,) = notes(strategy=strategy, class_balance=1.0)
        assert note.endswith("put budgets between")
    leap = tiny(tiny_pool, tmp_path, selection={"strategy": "auto", "budgets": [10, 31]})
    ledger = carried_out(leap, Step(0, "score"))
    scored = ledger.committed(Step(0, "score")).metrics
    assert scored["strategy"] == "max_herding"
    assert scored["reason"].startswith("3.1 times as many labels at once, above 3")
    weighed = {"strategy": "auto", "budgets": [10, 31], "class_balance": 1.0}
    ledger = carried_out(tiny(tiny_pool, tmp_path / "weighed", selection=weighed), Step(0, "score"))
    assert ledger.committed(Step(0, "score")).metrics["strategy"] == "uncertainty_herding", "which goes by scores"


@pytest.mark.parametrize(
    "selection", [{"class_balance": 1.0}, {"strategy": "rare_classes", "wanted_classes": ["1"]}], ids=str
)
def test_scores_count_by_class(local_ray, tiny_pool, tmp_path, selection):
    config = tiny(tiny_pool, tmp_path, selection=selection)
    root = choose(config)
    scores = read(root, "scores")
    ledger = Ledger(loop.run_place(config))
    weights = ledger.committed(Step(0, "score")).metrics["class_weights"]
    counts = ledger.committed(Step(0, "label")).metrics["class_counts"]
    assert sum(counts) == 10
    assert (
        weights
        == class_weights(
            counts,
            balance=selection.get("class_balance", 0.0),
            wanted=[1] if "strategy" in selection else (),
            others=0.0,
        ).tolist()
    )
    by_score = scores.sort_by([("score", "descending"), ("id", "ascending")])
    assert selected(root)["id"].to_pylist() == by_score["id"].to_pylist()[:8]


@pytest.mark.parametrize("strategy", ["least_confidence", pytest.param("uncertainty_herding", marks=pytest.mark.slow)])
def test_what_is_like_no_labeled_sample_is_held_back_and_named(local_ray, tiny_pool, tmp_path, strategy):
    config = tiny(tiny_pool, tmp_path, selection={"strategy": strategy, "hold_back": 1.0, "budgets": [10, 18]})
    ledger = carried_out(config, Step(1, "select"))
    root = ledger.root.path
    held = pq.read_table(f"{root}/rounds/001/held_back.parquet")
    told = ledger.committed(Step(1, "select")).metrics
    assert told["held_back"] == held.num_rows > 0
    x, known = (matrix(read(root, name), "feature") for name in ("scores", "labeled"))
    near = dict(zip(read(root, "scores")["id"].to_pylist(), np.sqrt(squares(x, known)).min(1), strict=True))
    assert {i for i, d in near.items() if d > told["held_back_beyond"]} == set(held["id"].to_pylist())
    assert not set(held["id"].to_pylist()) & set(selected(root)["id"].to_pylist())
    assert told["held_back_farthest"][0] == held["id"][0].as_py() == max(near, key=near.get)
    assert not (ledger.root / "rounds/001/kept-scores").exists()
    assert f"{held.num_rows} samples before round 1" in render(view_run(ledger))


@pytest.mark.parametrize(
    ("pool", "trained", "strategy"),
    [
        ({"validation_path": "v"}, {"validation_accuracy": [0.3, 0.4, 0.2], "best_epoch": 1}, "uncertainty_herding"),
        ({"validation_path": "v"}, {"validation_accuracy": [0.3, 0.6, 0.5], "best_epoch": 1}, "margin"),
        ({}, {"test_accuracy": 0.3}, "margin"),
        ({"validation_share": 0.1}, {"validation_accuracy": [0.3, 0.4, 0.2], "best_epoch": 1}, "margin"),
    ],
)
def test_auto_goes_by_a_validation_set_of_its_own_alone(pool, trained, strategy):
    """Neither by the test set, nor by labels that the strategy itself has selected."""
    config = config_from_tree({"pool": {"source": "parquet", "path": "a", "test_path": "b", **pool}})
    assert auto.decide(facts(config, [600, 600], trained, 2.0)).strategy == strategy


def test_a_class_that_there_is_not_cannot_be_wanted(local_ray, tiny_pool, tmp_path):
    with pytest.raises(ConfigError, match=r"selection\.wanted_classes: 'cat' is no class of the pool.*they are 0, 1"):
        loop.run(tiny(tiny_pool, tmp_path, selection={"strategy": "rare_classes", "wanted_classes": ["cat"]}))
    assert not list(tmp_path.iterdir())


def test_holding_back_too_much_is_said(local_ray, tiny_pool, tmp_path):
    change = {"hold_back": 0.01, "budgets": [10, 118]}
    with pytest.raises(ScoreError, match=r"selection\.hold_back 0\.01 leaves \d+ samples; round 1 wants 108: raise it"):
        loop.run(tiny(tiny_pool, tmp_path, selection=change))


def test_a_class_without_labels_is_named(local_ray, tmp_path, caplog):
    write_pool(tmp_path / "pool" / "pool", random_images(60), label=[0] * 59 + [1])
    write_pool(tmp_path / "pool" / "test", random_images(20, seed=1), first_id=900)
    config = tiny(tmp_path / "pool", tmp_path, selection={"budgets": [6, 8]})
    root = choose(config)
    assert Ledger(loop.run_place(config)).committed(Step(0, "label")).metrics["class_counts"] == [6, 0]
    assert "round 0: 1 of 2 classes have no label yet (1)" in caplog.text
    assert root


@pytest.mark.parametrize(("close", "said"), [(0, []), (3, ["round 1: 3 of 8 selected samples are nearer than"])])
def test_samples_that_do_not_keep_the_distance_are_told_of(monkeypatch, caplog, close, said):
    """They are selected where too few others are left."""
    monkeypatch.setattr(select, "select_apart", lambda *_: ("the selected", close))
    config = config_from_tree({"selection": {"min_distance": 2.5}})
    context = SimpleNamespace(config=config, has=SimpleNamespace(cpus=1), ledger=SimpleNamespace(root=None))
    plan, scores = select.Plan(kind="apart", k=8), SimpleNamespace(paths=())
    found = select._select(context, Step(0, "score"), plan, None, scores, None)
    assert found == ("the selected", {"closer_than_min_distance": close})
    assert [r.message[: len(said[0])] for r in caplog.records if "min_distance" in r.message] == said


@pytest.mark.parametrize(("began", "now", "spread"), [(0, 480, 480), (7, 487, 487), (16, 2, 16)])
def test_features_are_spread_over_machines_that_have_come_since_the_run_began(monkeypatch, began, now, spread):
    """A cluster whose autoscaler starts from a head without CPUs would hold all of them in one actor."""
    asked = []
    monkeypatch.setattr(select, "cpus_now", lambda: now)
    monkeypatch.setattr(select, "select_apart", lambda *given: (asked.append(given[-1]), 0))
    config = config_from_tree({"selection": {"min_distance": 2.5}})
    context = SimpleNamespace(config=config, has=SimpleNamespace(cpus=began), ledger=SimpleNamespace(root=None))
    select._select(context, Step(0, "score"), select.Plan(kind="apart", k=8), None, SimpleNamespace(paths=()), None)
    assert asked == [spread]


def test_one_labeled_sample_says_nothing_of_what_is_usual(monkeypatch):
    held = pa.table({"id": pa.array([], pa.string()), "distance": pa.array([], pa.float64())})
    monkeypatch.setattr(select, "hold_back", lambda *_: SimpleNamespace(files=None, held=held, limit=float("inf")))
    monkeypatch.setattr(select, "_select", lambda *_: (None, {}))
    ledger = SimpleNamespace(
        root=None,
        files=lambda *_: (["a"], [1]),
        clear=lambda *_: None,
        place=lambda *_: None,
        require=lambda _: SimpleNamespace(metrics={"samples": 9}),
    )
    context = SimpleNamespace(config=config_from_tree({"selection": {"hold_back": 2.0}}), ledger=ledger)
    plan = select.Plan(kind="top_k", k=3)
    _, told, _ = select._from_scores(context, Step(1, "select"), Step(0, "score"), plan, "margin")
    assert told["held_back_beyond"] is None, "infinity is no JSON"


def held_back_from(labels: list[int]):
    """The context of a run that holds back, as far as `_from_scores` asks it."""
    metrics = {"samples": 3, "class_counts": [labels.count(0), labels.count(1)]}
    ledger = SimpleNamespace(
        root=None, files=lambda *_: (["a"], [1]), clear=lambda *_: None, place=lambda *_: None,
        require=lambda _: SimpleNamespace(metrics=metrics),
    )  # fmt: skip
    return SimpleNamespace(
        config=config_from_tree({"selection": {"hold_back": 2.0}}), ledger=ledger,
        info=SimpleNamespace(classes=["cat", "dog"]), labels=lambda _: pa.table({"label": pa.array(labels)}),
    )  # fmt: skip


def test_nothing_is_held_back_while_a_class_has_no_label(monkeypatch, caplog):
    """Its samples are as far away as foreign ones, and what is held back is never labeled."""
    monkeypatch.setattr(select, "hold_back", lambda *_: pytest.fail("held back"))
    monkeypatch.setattr(select, "_select", lambda *_: ("the selected", {}))
    for round_ in (0, 1):
        plan, of = select.Plan(kind="top_k", k=3), (Step(round_, "select"), Step(round_ - 1, "score"))
        assert select._from_scores(held_back_from([0, 0]), *of, plan, "margin") == ("the selected", {}, None)
    assert caplog.text.count("dog have none") == 2


def test_where_too_much_is_held_back_a_remedy_of_the_same_run_is_named(monkeypatch):
    held = pa.table({"id": pa.array(["a"]), "distance": pa.array([9.0])})
    monkeypatch.setattr(select, "hold_back", lambda *_: SimpleNamespace(files=None, held=held, limit=1.0))
    plan = select.Plan(kind="top_k", k=3)
    with pytest.raises(ScoreError, match="lower the budgets from this round on"):
        select._from_scores(held_back_from([0, 1]), Step(1, "select"), Step(0, "score"), plan, "margin")
