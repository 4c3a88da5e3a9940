"""Whole runs on numbers: turned digits, two columns of a table, texts; with labels from people, ranking and export."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prunefuse_ray
from prunefuse_ray.data.recognize import recognize
from prunefuse_ray.errors import ConfigError, LabelError, LabelsWaiting, PoolError
from prunefuse_ray.inference.onnx import to_onnx
from prunefuse_ray.method.steps import LABEL, SCORE, SELECT, TRAIN, Step
from prunefuse_ray.networks import ngrams
from prunefuse_ray.run import loop
from prunefuse_ray.run.rank import Ranking, rank
from tests.support.angles import turned, write_angles
from tests.support.runs import RECIPE, carried_out, tiny

NETWORK = "tests.support.nets:tiny"
PLAIN = {"training": {"augment": []}, "finetuning": {"augment": []}}
ANGLES = {"task": "regression", "pool": {"label_column": "angle", "classes": None}, **PLAIN}


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    root = tmp_path_factory.mktemp("angles")
    write_angles(root, 80, 40)
    return root


@pytest.fixture(scope="module")
def finished(local_ray, where):
    more = {"selection": {"strategy": "variance", "per_group": "predicted"}, "report": {"baseline": True}}
    return loop.run(tiny(where, where / "runs", **ANGLES, **more))


def test_labels_figures_and_report_are_in_the_units_of_the_pool(finished, where):
    given = dict(zip(*pq.read_table(where / "pool", columns=["id", "angle"]).to_pydict().values(), strict=True))
    with open(f"{finished.root.path}/labels.csv", encoding="utf-8-sig") as file:
        written = {row["id"]: float(row["label"]) for row in csv.DictReader(file)}
    assert len(written) == 30
    assert written == {id_: given[id_] for id_ in written}
    metrics = finished.require(Step(0, TRAIN)).metrics
    assert {"test_r2", "test_mae", "test_rmse", "test_points"} <= metrics.keys()
    truth, guess = np.array(metrics["test_points"]).T
    assert metrics["test_mae"] == pytest.approx(np.abs(truth - guess).mean(), rel=1e-3)
    result = json.loads((where / "runs/tiny/result.json").read_text())
    assert "ridge regression" in result["baseline"]["about"]
    assert "the mean of the labels alone: MAE 3" in result["baseline"]["about"], "of angles within 75 degrees"
    assert result["baseline_r2"] > 0.3
    page = (where / "runs/tiny/report.html").read_text()
    for said in ("Predicted numbers", "Targets", "angle as the fused network predicts it", "MAE on the test set"):
        assert said in page
    doubts = pq.read_table(where / "runs/tiny/rounds/002/doubts.parquet")
    far = [abs(row["label"][0] - row["guess"][0]) for row in doubts.to_pylist()]
    assert far == sorted(far, reverse=True)
    assert doubts["probability"].null_count == len(far)


def test_a_selection_is_shared_out_among_the_fifths(finished):
    groups = finished.require(Step(1, SELECT)).metrics["per_group"]
    assert all(name.startswith("angle, fifth") for name in groups)
    assert sum(groups.values()) == 8
    assert finished.require(Step(0, SCORE)).metrics["strategy"] == "variance"


def test_predictions_and_the_exported_network_speak_in_units(finished):
    onnxruntime = pytest.importorskip("onnxruntime")
    predictor = prunefuse_ray.load(f"{finished.root.path}/fused", trusted=NETWORK)
    images, _ = turned(3, 5)
    found = [p.values["angle"] for p in predictor.predict(list(images))]
    session = onnxruntime.InferenceSession(to_onnx(predictor))
    assert session.run(None, {"samples": images[..., None]})[0][:, 0] == pytest.approx(found, rel=1e-3, abs=1e-2)


def test_its_proxies_rank_another_pool(finished, where, tmp_path):
    pool = {"source": "parquet", "path": str(where / "test")}
    ranking = Ranking.model_validate({"pool": pool, "selection": {"strategy": "variance"}})
    proxies = f"{finished.root.path}/rounds/002/proxies"
    ranked = rank(ranking, proxies, str(tmp_path / "ranked"), 5, NETWORK, predictions=True)
    assert (ranked.scored, ranked.ranked) == (40, 5)
    assert (pq.read_table(tmp_path / "ranked" / "scores")["score"].to_numpy() > 0).all()
    written = pq.read_table(tmp_path / "ranked" / "predictions").sort_by("id").to_pylist()
    images = pq.read_table(where / "test").sort_by("id")
    found = prunefuse_ray.load(proxies, trusted=NETWORK).predict(images["image"].to_pylist())
    assert [row["prediction"][0] for row in written] == pytest.approx([p.values["angle"] for p in found], rel=1e-4)
    assert written[0]["probability"] is None
    assert float(written[0]["words"]) == written[0]["prediction"][0]
    with pytest.raises(ConfigError, match=r"'variance' asks the members of a committee.* the directory of a committee"):
        rank(Ranking.model_validate({"pool": pool}), f"{proxies}/0", str(tmp_path / "no"), 5, NETWORK)
    fused = f"{finished.root.path}/fused"
    for _ in range(2):  # again: what is recorded is taken
        found = rank(
            Ranking.model_validate({"pool": pool}), fused, str(tmp_path / "told"), 5, NETWORK, predictions=True
        )
        assert (found.scored, found.ranked) == (40, 0)
    assert pq.read_table(tmp_path / "told" / "predictions").num_rows == 40
    assert pq.read_table(tmp_path / "told" / "ranked.parquet").num_rows == 0


@pytest.mark.slow
def test_its_labels_are_known_labels_of_another_run_and_people_give_the_rest(finished, where, tmp_path):
    more = {"annotation": {"kind": "files"}, "selection": {"budgets": [30, 33], "strategy": "max_herding"},
            "pool": ANGLES["pool"] | {"known_labels": f"{finished.root.path}/labels.csv"}}  # fmt: skip
    config = tiny(where, tmp_path / "runs", **(ANGLES | more))
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    folder = tmp_path / "runs/tiny/rounds/001/to_label"
    with (folder / "samples.csv").open(encoding="utf-8-sig") as file:
        asked = list(csv.DictReader(file))
    assert all(abs(float(row["guess"])) < 200 for row in asked)
    rows = "".join(f"{row['id']},{label}\n" for row, label in zip(asked, ["-3.5", "7", "1e1"], strict=True))
    (folder / "labels.csv").write_text("id,label\n" + f"{asked[0]['id']},about 3\n")
    with pytest.raises(LabelError, match="label 'about 3' is no finite number"):
        loop.run(config)
    (folder / "labels.csv").write_text("id,label\n" + rows)
    ledger = loop.run(config)
    new = pq.read_table(tmp_path / "runs/tiny/rounds/001/labels.parquet")
    assert dict(zip(*new.select(["id", "label"]).to_pydict().values(), strict=True)) == {
        row["id"]: [label] for row, label in zip(asked, (-3.5, 7.0, 10.0), strict=True)
    }
    assert ledger.require(Step(1, LABEL)).metrics["labels"] == 33


def test_two_columns_of_a_table_are_one_label(local_ray, tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("pool", 60), ("test", 30)):
        (tmp_path / part).mkdir()
        x = rng.normal(size=(n, 4))
        targets = np.stack([1000 * x[:, 0] + 5, x[:, 1] - x[:, 2]], 1)
        lines = [f'"{" ".join(map(str, v))}",{a:.4f},{b:.4f}' for v, (a, b) in zip(x, targets, strict=True)]
        (tmp_path / part / "a.csv").write_text("v,income,change\n" + "\n".join(lines))
    change = {
        "task": "regression", "network": {"architecture": "mlp"}, "selection": {"budgets": [20, 40]},
        "pool": {"source": "csv", "vector_column": "v", "label_column": ["income", "change"], "classes": None},
        "training": RECIPE | {"augment": [], "epochs": 20}, "finetuning": RECIPE | {"augment": [], "epochs": 20},
        "report": {"baseline": True},
    }  # fmt: skip
    loop.run(tiny(tmp_path, tmp_path / "runs", **change))
    result = json.loads((tmp_path / "runs/tiny/result.json").read_text())
    assert result["baseline_r2"] > 0.99, "both are linear"
    assert result["fused_r2"] > 0.8
    (found,) = prunefuse_ray.load(tmp_path / "runs/tiny").predict([[1.0, 0.0, 0.0, 0.0]])
    assert found.values.keys() == {"income", "change"}
    assert found.values["income"] > 500
    with (tmp_path / "pool" / "a.csv").open("a") as file:
        file.write('\n"1 2 3 4",,2\n"1 2 3 4",NaN,2\n')
    with pytest.raises(PoolError, match=r"pool\.path: 2 labels that are not 2 finite numbers, e\.g\. \['', '2'\]"):
        loop.run(tiny(tmp_path, tmp_path / "others", **change))


@pytest.mark.slow
def test_texts_have_numbers_too(local_ray, tmp_path, monkeypatch):
    for name, value in {"HASHES": 2**12, "ROWS": 64, "TOPICS": 8, "HIDDEN": 8, "WORDS": 4}.items():
        monkeypatch.setattr(ngrams, name, value)
    for part, n in (("pool", 60), ("test", 20)):
        (tmp_path / part).mkdir()
        lines = [json.dumps({"text": f"{part}{i} " + "good " * (i % 5) + "film", "stars": i % 5}) for i in range(n)]
        (tmp_path / part / "a.jsonl").write_text("\n".join(lines))
    change = {
        "task": "regression", "network": {"architecture": "textngrams"}, "selection": {"budgets": [16, 30]},
        "pool": {"source": "jsonl", "text_column": "text", "text_length": 16, "label_column": "stars", "classes": None},
        "training": {"epochs": 2, "augment": []}, "finetuning": {"epochs": 2, "augment": []},
        "report": {"baseline": True},
    }  # fmt: skip
    loop.run(tiny(tmp_path, tmp_path / "runs", **change))
    assert json.loads((tmp_path / "runs/tiny/result.json").read_text())["baseline_r2"] > 0.5


def test_what_is_no_number_is_named_and_counted_before_anything_is_written(local_ray, where, tmp_path):
    for part in ("pool", "test"):
        (tmp_path / part).mkdir()
        table = pq.read_table(where / part)
        angle = [None, float("nan"), *table["angle"].to_pylist()[2:]]
        pq.write_table(table.set_column(2, "angle", pa.array(angle)), tmp_path / part / "a.parquet")
    with pytest.raises(
        PoolError, match=r"column 'angle' has 2 labels that are no finite number, e\.g\. None \(id 'poo"
    ):
        loop.run(tiny(tmp_path, tmp_path / "runs", **ANGLES))
    with pytest.raises(PoolError, match="of type double; labels are integers"):
        loop.run(tiny(where, tmp_path / "runs", pool={"label_column": "angle"}))
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_column_of_numbers_is_recognized(where, tmp_path):
    table = pq.read_table(where / "pool")
    pq.write_table(table, tmp_path / "a.parquet")
    found = recognize(str(tmp_path / "a.parquet"))
    assert (found.task, found.labeled) == ("classification", False)
    assert "numbers stand in angle: to predict one, set task to regression" in found.why["labeled"]
    pq.write_table(table.rename_columns(["id", "image", "target"]), tmp_path / "a.parquet")
    found = recognize(str(tmp_path / "a.parquet"))
    assert (found.task, found.labeled, found.fields["label_column"]) == ("regression", True, "target")
    (tmp_path / "b.csv").write_text("v,y\n1 2,0.5\n2 3,1\n")
    found = recognize(str(tmp_path / "b.csv"))
    assert (found.task, found.fields.get("classes")) == ("regression", None)


def test_a_test_set_may_be_drawn_from_the_pool(local_ray, where, tmp_path):
    more = {"pool": ANGLES["pool"] | {"test_path": None, "test_samples": 20}, "selection": {"budgets": [10, 14]}}
    ledger = carried_out(tiny(where, tmp_path / "runs", **(ANGLES | more)), Step(1, TRAIN))
    assert ledger.require(Step(0, LABEL)).metrics["test_samples"] == 20
    assert "test_r2" in ledger.require(Step(1, TRAIN)).metrics
