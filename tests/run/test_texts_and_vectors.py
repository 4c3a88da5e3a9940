"""Whole runs on texts and on vectors: what is learned from the pool, the baseline, and going on after an end."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import prunefuse_ray
from prunefuse_ray.method.steps import BASELINE, LEARN, Step
from prunefuse_ray.networks import ngrams
from prunefuse_ray.report import baseline
from prunefuse_ray.run import loop
from prunefuse_ray.run.rank import Ranking, rank
from prunefuse_ray.tasks import TASKS
from tests.support.runs import carried_out, tiny

RECIPE = {"epochs": 4, "augment": []}
TEXTS = {
    "pool": {"source": "csv", "text_column": "text", "text_length": 16, "classes": ["good", "bad"], "max_rejected": 0.1,
             "max_overlap": 0.9, "id_column": "id"},
    "network": {"architecture": "textngrams"}, "training": RECIPE, "finetuning": RECIPE,
    "selection": {"budgets": [16, 40], "strategy": "entropy"}, "report": {"baseline": True},
}  # fmt: skip


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """CSV files of two classes told apart by their words; one text is empty."""
    for name, value in {"HASHES": 2**12, "ROWS": 64, "TOPICS": 8, "HIDDEN": 8, "WORDS": 4}.items():
        monkeypatch.setattr(ngrams, name, value)
    words, rng = [["fine", "good", "nice"], ["poor", "bad", "dull"]], np.random.default_rng(0)
    for part, n in (("pool", 60), ("test", 20)):
        (tmp_path / part).mkdir()
        with (tmp_path / part / "a.csv").open("w") as file:
            table = csv.writer(file)
            table.writerow(["id", "text", "label"])
            for i in range(n):
                text = "" if (part, i) == ("pool", 7) else " ".join(rng.choice(words[i % 2], 6))
                table.writerow([f"{part}{i}", text, ["good", "bad"][i % 2]])
    return tmp_path


class Ended(Exception):
    pass


def test_a_run_on_texts_learns_from_the_pool_once_and_is_compared_with_the_baseline(local_ray, texts):
    config = tiny(texts, texts / "runs", **TEXTS)

    def end(event, step, commit):
        if event == "done" and step.phase == LEARN:
            raise Ended

    with pytest.raises(Ended):
        loop.run(config, end)
    begun = []
    ledger = loop.run(config, lambda event, step, _: begun.append(step.phase) if event == "start" else None)
    assert LEARN not in begun
    assert begun[-2:] == [BASELINE, "report"]
    assert ledger.require(Step(-1, LEARN)).metrics.items() >= {"samples": 59, "unreadable": 1, "pool": 60}.items()
    result = json.loads((texts / "runs/tiny/result.json").read_text())
    assert result["baseline_accuracy"] == 1.0
    assert result["baseline"].items() >= {"labels": 40, "of_labels": 40, "tested": 20, "of_tested": 20}.items()
    assert result["fused_accuracy"] > 0.9
    page = (texts / "runs/tiny/report.html").read_text()
    assert "TF-IDF of words and pairs" in page
    assert "59 of its samples" in page
    predictor = prunefuse_ray.load(str(texts / "runs/tiny"))
    assert [p.label for p in predictor.predict(["a fine and nice one", "poor, dull, bad"])] == ["good", "bad"]
    undisturbed = carried_out(tiny(texts, texts / "again", **TEXTS), Step(1, "select"))
    chosen = [[i for r in (0, 1) for i in pq.read_table(f"{root}/rounds/{r:03d}/selected.parquet")["id"].to_pylist()]
              for root in (ledger.root.path, undisturbed.root.path)]  # fmt: skip
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 40
    assert "pool7" not in chosen[0]
    pool = {"source": "csv", "path": str(texts / "pool"), "text_column": "text", "id_column": "id", "max_rejected": 0.1}
    ranked = rank(Ranking.model_validate({"pool": pool}), str(texts / "runs/tiny"), str(texts / "ranked"), 5)
    assert (ranked.scored, ranked.rejected, ranked.ranked) == (59, 1, 5)


def test_a_run_on_vectors_selects_by_any_strategy_and_rejects_what_is_no_number(local_ray, tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("pool", 60), ("test", 20)):
        (tmp_path / part).mkdir()
        rows = [{"v": (rng.normal(size=5) + 2 * (i % 2)).round(4).tolist(), "label": i % 2} for i in range(n)]
        if part == "pool":
            rows[7]["v"][2] = float("nan")
        (tmp_path / part / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    change = {
        "pool": {"source": "jsonl", "vector_column": "v", "classes": 2, "max_rejected": 0.1},
        "network": {"architecture": "mlp"}, "training": RECIPE, "finetuning": RECIPE,
        "selection": {"budgets": [10, 20], "strategy": "badge"}, "report": {"baseline": True},
    }  # fmt: skip
    loop.run(tiny(tmp_path, tmp_path / "runs", **change))
    root = tmp_path / "runs" / "tiny"
    assert pq.read_table(root / "rejected.parquet").to_pylist() == [
        {"id": "a.jsonl:7", "reason": "NaN or infinite numbers"}
    ]
    result = json.loads((root / "result.json").read_text())
    assert result["fused_accuracy"] > 0.8
    assert "the vectors, logistic regression" in result["baseline"]["about"]
    assert prunefuse_ray.load(str(root)).predict([[2.0] * 5, [0.0] * 5]) is not None


@pytest.mark.parametrize(
    ("fused", "said"), [(0.9, []), (0.8, ["The fused network LOSES to the baseline (−5.0 points)"])]
)
def test_it_is_said_plainly_where_the_fused_network_loses_to_the_baseline(fused, said):
    found = {"about": "a model", "labels": 10, "of_labels": 20, "tested": 5, "of_tested": 9}
    told = baseline.words(
        {"baseline": found, "baseline_accuracy": 0.85, "fused_accuracy": fused}, TASKS["classification"].metric
    )
    assert told[0] == "baseline 85.0%: a model; 10 labels (drawn from 20), 5 of 9 test samples"
    assert [line.partition(":")[0] for line in told[1:]] == said
    assert all(line.endswith("compare the two on the same ones first.") for line in told[1:])
    same = {"baseline": found, "baseline_accuracy": fused + 1e-5, "fused_accuracy": fused}
    assert len(baseline.words(same, TASKS["classification"].metric)) == 1, "both are written alike"
    assert baseline.words({}, TASKS["classification"].metric) == []
