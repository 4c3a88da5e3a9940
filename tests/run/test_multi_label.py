"""Whole runs with several classes a sample: on scenes of digits, on texts, by a committee, with labels from people."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prunefuse_ray
from prunefuse_ray.annotation.page import Desk
from prunefuse_ray.config.schema import Config
from prunefuse_ray.errors import ConfigError, LabelError, LabelsWaiting, PoolError
from prunefuse_ray.method.steps import LABEL, SCORE, TRAIN, Step
from prunefuse_ray.networks import ngrams
from prunefuse_ray.run import loop
from prunefuse_ray.run.growth import seen_info
from prunefuse_ray.run.labeling import request_of
from prunefuse_ray.run.rank import Ranking, rank
from prunefuse_ray.run.result import result_of
from prunefuse_ray.tasks.multi_label import MULTI_LABEL
from tests.support.runs import tiny
from tests.support.scenes import scenes, write_scenes

NETWORK = "tests.support.nets:tiny"
DIGITS = [str(n) for n in range(10)]
MULTI = {"task": "multi_label", "pool": {"classes": 10}, "training": {"augment": []}, "finetuning": {"augment": []}}


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 80, 40)
    return root


@pytest.fixture(scope="module")
def finished(local_ray, where):
    config = tiny(where, where / "runs", **MULTI, selection={"strategy": "entropy"}, report={"baseline": True})
    return loop.run(config)


def test_a_run_on_scenes_keeps_the_sets_of_the_pool(finished, where):
    given = dict(zip(*pq.read_table(where / "pool", columns=["id", "label"]).to_pydict().values(), strict=True))
    labels = finished.labels([Step(r, LABEL) for r in range(3)], "string", MULTI_LABEL.label_type).to_pylist()
    assert len(labels) == 30
    assert {row["id"]: row["label"] for row in labels} == {row["id"]: sorted(given[row["id"]]) for row in labels}
    with open(f"{finished.root.path}/labels.csv", encoding="utf-8-sig") as file:
        written = {row["id"]: row["label"] for row in csv.DictReader(file)}
    assert written == {row["id"]: MULTI_LABEL.named(row["label"], DIGITS) for row in labels}
    counts = finished.require(Step(2, LABEL)).metrics["class_counts"]
    assert counts == [sum(digit in given[row["id"]] for row in labels) for digit in range(10)]


def test_its_figures_report_and_predictions(finished, where):
    result = json.loads((where / "runs/tiny/result.json").read_text())
    assert 0 < result["fused_map"] <= 1
    assert "logistic regression" in result["baseline"]["about"]
    assert result["baseline_map"] > 0.3, "ten classes, a fifth of the scenes each"
    page = (where / "runs/tiny/report.html").read_text()
    assert "mAP" in page
    assert "Labels by class" in page or "by class" in page
    metrics = finished.require(Step(0, TRAIN)).metrics
    assert {"test_map", "test_f1_macro", "test_f1_micro", "test_loss"} <= metrics.keys()
    assert any(
        len(label) > 1 for label in pq.read_table(where / "runs/tiny/rounds/002/doubts.parquet")["label"].to_pylist()
    )
    predictor = prunefuse_ray.load(f"{finished.root.path}/fused", trusted=NETWORK)
    images, _ = scenes(3, 5)
    for found in predictor.predict(list(images)):
        assert set(found.labels) == {name for name, p in found.probabilities.items() if p >= 0.5}
        assert list(found.probabilities) == DIGITS


def test_its_proxy_ranks_another_pool(finished, where, tmp_path):
    pool = {"source": "parquet", "path": str(where / "test")}
    proxy = f"{finished.root.path}/rounds/002/proxies/0"
    ranked = rank(Ranking.model_validate({"pool": pool}), proxy, str(tmp_path / "ranked"), 5, NETWORK)
    assert (ranked.scored, ranked.ranked) == (40, 5)
    scores = pq.read_table(tmp_path / "ranked" / "scores")["score"].to_numpy()
    assert (scores > 0).all()
    wrong = Ranking.model_validate({"pool": pool, "selection": {"strategy": "vote_entropy"}})
    with pytest.raises(ConfigError, match=r"'vote_entropy' makes no sense for task 'multi_label'.*entropy"):
        rank(wrong, proxy, str(tmp_path / "no"), 5, NETWORK)


@pytest.mark.slow
def test_its_labels_are_known_labels_of_another_run_and_people_give_the_rest(finished, where, tmp_path):
    more = {"annotation": {"kind": "files"}, "selection": {"budgets": [30, 34]},
            "pool": MULTI["pool"] | {"known_labels": f"{finished.root.path}/labels.csv"}}  # fmt: skip
    config: Config = tiny(where, tmp_path / "runs", **(MULTI | more))
    with pytest.raises(LabelsWaiting):
        ledger = loop.run(config)
    root = tmp_path / "runs/tiny"
    known = pq.read_table(root / "known/labels.parquet").sort_by("id")
    assert known["label"].to_pylist() == [row["label"] for row in sorted(_labels(finished), key=lambda row: row["id"])]
    folder = root / "rounds/001/to_label"
    with (folder / "samples.csv").open(encoding="utf-8-sig") as file:
        asked = list(csv.DictReader(file))
    assert all(MULTI_LABEL.label(row["guess"], DIGITS) is not None for row in asked)
    given = ["3;7", "[]", '["1", "2", "9"]', "0"]
    (folder / "labels.csv").write_text(
        "id,label\n" + "".join(f'{row["id"]},"{label.replace(chr(34), chr(34) * 2)}"\n'
                               for row, label in zip(asked, given, strict=True))
    )  # fmt: skip
    ledger = loop.run(config)
    new = ledger.labels([Step(1, LABEL)], "string", MULTI_LABEL.label_type).to_pylist()
    assert {row["id"]: row["label"] for row in new} == {
        row["id"]: label for row, label in zip(asked, ([3, 7], [], [1, 2, 9], [0]), strict=True)
    }
    desk = Desk(request_of(config, ledger, seen_info(config, ledger), 1))
    desk.answer("ann", [(0, [2, 7]), (1, [])])
    desk.answer("ann", [(2, None)])
    with open(desk.request.place.path + "/labels-page-ann.csv", encoding="utf-8-sig") as file:
        assert [(row["label"], row["unsure"]) for row in csv.DictReader(file)] == [("2;7", ""), ("[]", ""), ("", "yes")]
    assert desk.progress("ann")["by_class"] == {2: 1, 7: 1}
    assert desk.undo("ann")[0].get("label") is None
    desk.answer("ann", [(0, [1])])
    assert desk.undo("ann")[0]["label"] == [2, 7]
    for wrong in (3, [10], [1, 1], [True]):
        with pytest.raises(LabelError, match="cannot be labeled"):
            desk.answer("ann", [(0, wrong)])
    desk.close()


def _labels(ledger):
    return ledger.labels([Step(r, LABEL) for r in range(3)], "string", MULTI_LABEL.label_type).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["bald", "uncertainty_herding"])
def test_a_committee_and_a_strategy_of_features(local_ray, where, tmp_path, strategy):
    config = tiny(where, tmp_path / "runs", **MULTI, selection={"strategy": strategy, "budgets": [10, 16]})
    ledger = loop.run(config)
    assert config.pruning.committee == (2 if strategy == "bald" else 1)
    assert ledger.require(Step(0, SCORE)).metrics["strategy"] == strategy
    assert 0 < result_of(config, ledger)["fused_map"] <= 1


@pytest.mark.slow
def test_texts_with_separators_and_lists(local_ray, tmp_path, monkeypatch):
    rows = [("sport", "ball"), ("money", "bank"), ("news", "today")]
    for name, value in {"HASHES": 2**12, "ROWS": 64, "TOPICS": 8, "HIDDEN": 8, "WORDS": 4}.items():
        monkeypatch.setattr(ngrams, name, value)
    for part, n in (("pool", 60), ("test", 20)):
        (tmp_path / part).mkdir()
        lines = []
        for i in range(n):
            there = [r for j, r in enumerate(rows) if (i + 1) >> j & 1]
            text = " ".join([f"{part}{i}", *(word for _, word in there)] * 2)
            label = [name for name, _ in there] if i % 2 else "; ".join(name for name, _ in there) or "[]"
            lines.append(json.dumps({"text": text, "label": label}))
        (tmp_path / part / "a.jsonl").write_text("\n".join(lines))
    change = {
        "task": "multi_label", "network": {"architecture": "textngrams"}, "selection": {"budgets": [16, 30]},
        "pool": {"source": "jsonl", "text_column": "text", "text_length": 16, "classes": [name for name, _ in rows]},
        "training": {"epochs": 2, "augment": []}, "finetuning": {"epochs": 2, "augment": []},
        "report": {"baseline": True},
    }  # fmt: skip
    ledger = loop.run(tiny(tmp_path, tmp_path / "runs", **change))
    result = json.loads((tmp_path / "runs/tiny/result.json").read_text())
    assert result["baseline_map"] > 0.9
    assert ledger.require(Step(1, LABEL)).metrics["labels"] == 30


def test_labels_of_another_kind_are_refused_before_anything_is_written(local_ray, where, tmp_path):
    for part in ("pool", "test"):
        (tmp_path / part).mkdir()
        table = pq.read_table(where / part)
        pq.write_table(table.set_column(2, "label", pa.array([3] * len(table))), tmp_path / part / "a.parquet")
    with pytest.raises(PoolError, match="of type int64; labels are lists of integers"):
        loop.run(tiny(tmp_path, tmp_path / "runs", **MULTI))
    with pytest.raises(PoolError, match=r"of type list<.*; labels are integers"):
        loop.run(tiny(where, tmp_path / "runs", pool={"classes": 10}))
    assert not (tmp_path / "runs" / "tiny").exists()
