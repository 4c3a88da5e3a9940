"""Whole runs with an encoder of transformers in a folder: pruned, trained, asked, fused; ended and gone on with."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import prunefuse_ray
from prunefuse_ray.config.files import config_from_tree, merge, to_tree
from prunefuse_ray.errors import ConfigError, LedgerError, PruneFuseError
from prunefuse_ray.inference.onnx import to_onnx
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import loop
from prunefuse_ray.run.rank import Ranking, rank
from prunefuse_ray.sweep.config import sweep_from_tree
from prunefuse_ray.sweep.runner import run_sweep
from tests.support.encoders import folder
from tests.support.runs import carried_out, tiny

pytest.importorskip("transformers")

WORDS = [["fine", "good", "nice"], ["poor", "bad", "dull"]]


class Ended(Exception):
    pass


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """CSV files of two classes told apart by their words, and an encoder in a folder; one text is empty, one long."""
    where, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    said = []
    for part, n in (("pool", 60), ("test", 20)):
        (where / part).mkdir()
        with (where / part / "a.csv").open("w") as file:
            table = csv.writer(file)
            table.writerow(["id", "text", "label"])
            for i in range(n):
                count = 0 if (part, i) == ("pool", 7) else 40 if (part, i) == ("pool", 8) else rng.integers(3, 9)
                said.append(" ".join(rng.choice(WORDS[i % 2], count)))
                table.writerow([f"{part}{i}", said[-1], ["good", "bad"][i % 2]])
    folder(where / "encoder", said, vocabulary=60)
    return where


def config(texts, runs, **more):
    recipe = {"epochs": 6, "warmup_epochs": 1.0, "lr": 2e-3, "augment": [], "optimizer": "adamw"}
    change = {
        "pool": {
            "source": "csv", "text_column": "text", "text_length": 12, "classes": ["good", "bad"], "max_rejected": 0.1,
            "max_overlap": 0.9, "id_column": "id",
        },
        "network": {"architecture": f"transformers:{texts / 'encoder'}"}, "training": recipe, "finetuning": recipe,
        "selection": {"budgets": [16, 40], "strategy": "entropy"}, "scoring": {"backend": "torch", "precision": "fp32"},
        **more,
    }  # fmt: skip
    return tiny(texts, runs, **change)


@pytest.fixture(scope="module")
def done(local_ray, texts):
    """A run that was ended within a training, and then went on."""
    made = config(texts, texts / "runs", report={"baseline": True})

    def end(event, step, commit):
        if event == "done" and step == Step(1, "select"):
            raise Ended

    with pytest.raises(Ended):
        loop.run(made, end)
    return made, loop.run(made)


def test_a_run_begins_with_the_learned_weights_and_goes_on_after_an_end(done, texts):
    made, ledger = done
    assert made.network.weights == made.pool.tokenizer == str(texts / "encoder")
    begun = ledger.require(Step(-1, "init")).metrics
    assert any("new head" in note for note in begun["inputs"]["network.weights"]["notes"])
    assert begun["macs_per_sample"]["proxy"] < 0.6 * begun["macs_per_sample"]["dense"]
    result = json.loads((texts / "runs/tiny/result.json").read_text())
    assert result["fused_accuracy"] > 0.9
    assert "TF-IDF" in result["baseline"]["about"]
    again = carried_out(config(texts, texts / "again", report={"baseline": False}), Step(1, "select"))
    chosen = [[i for r in (0, 1) for i in pq.read_table(f"{root}/rounds/{r:03d}/selected.parquet")["id"].to_pylist()]
              for root in (ledger.root.path, again.root.path)]  # fmt: skip
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 40
    assert "pool7" not in chosen[0]


def test_its_network_needs_no_folder_to_predict_and_to_rank(done, texts, tmp_path):
    moved = shutil.copytree(texts / "runs/tiny/fused", tmp_path / "elsewhere")
    predictor = prunefuse_ray.load(str(moved))
    assert [p.label for p in predictor.predict(["a fine and nice one", "poor, dull, bad"])] == ["good", "bad"]
    pool = {"source": "csv", "path": str(texts / "pool"), "text_column": "text", "id_column": "id", "max_rejected": 0.1}
    ranked = rank(Ranking.model_validate({"pool": pool}), str(moved), str(tmp_path / "ranked"), 5)
    assert (ranked.scored, ranked.rejected, ranked.ranked) == (59, 1, 5)
    folder(tmp_path / "other", ["entirely different words"], vocabulary=40)
    with pytest.raises(ConfigError, match=r"pool\.tokenizer: .* is not what the network was trained with"):
        rank(Ranking.model_validate({"pool": {**pool, "tokenizer": str(tmp_path / "other")}}), str(moved),
             str(tmp_path / "no"), 5)  # fmt: skip


@pytest.mark.slow
def test_its_network_is_exported(done, texts):
    pytest.importorskip("onnxruntime")
    assert len(to_onnx(prunefuse_ray.load(str(texts / "runs/tiny")))) > 1000  # which compares the logits


def test_a_changed_folder_stops_a_run_that_began_with_it(done, texts):
    made, _ = done
    file = texts / "encoder" / "tokenizer.json"
    content = file.read_text()
    file.write_text(content.replace('"[UNK]"', '"[UNKNOWN]"'))
    try:
        with pytest.raises(LedgerError, match=r"pool\.tokenizer: .* not the one that the run began with"):
            loop.run(made.model_copy(update={"selection": made.selection.model_copy(update={"budgets": [16, 40, 44]})}))
    finally:
        file.write_text(content)


@pytest.mark.slow
def test_openvino_scores_as_torch_does(done, texts, tmp_path):
    pytest.importorskip("openvino")
    pool = {"source": "csv", "path": str(texts / "pool"), "text_column": "text", "id_column": "id", "max_rejected": 0.1}
    found = {}
    for backend in ("torch", "openvino"):
        tree = {"pool": pool, "scoring": {"backend": backend, "precision": "fp32"}}
        rank(Ranking.model_validate(tree), str(texts / "runs/tiny"), str(tmp_path / backend), 60)
        table = pq.read_table(tmp_path / backend / "ranked.parquet").sort_by("id")
        found[backend] = np.array(table["score"].to_pylist(), float)
    np.testing.assert_allclose(found["torch"], found["openvino"], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {"architecture": "transformers:nowhere"}}, "'nowhere' cannot be read .* that holds config.json"),
        ({"selection": {"selector": "svp:textcnn"}, "fusion": {"target": "scratch"}}, "does not read the tokens"),
        ({"pool": {"text_form": "bytes"}}, r"pool\.text_form 'bytes' is not what"),
        ({"pool": {"text_length": 99}}, "99 tokens, but the encoder reads at most 40"),
        ({"pool": {"text_length": 2}}, "2 tokens leave none for the text"),
        ({"pool": {"tokenizer": None}}, "without tokens: leave it out"),
        ({"network": {"architecture": "textcnn"}, "pool": {"tokenizer": "x"}}, "is for network.architecture transf"),
    ],
)
def test_what_does_not_go_together_is_refused(local_ray, texts, tmp_path, change, said):
    tree = merge(to_tree(config(texts, tmp_path)), change)
    with pytest.raises(PruneFuseError, match=said):
        loop.run(config_from_tree(tree))


def test_weights_are_random_where_null_says_so_and_asked_for_where_the_folder_has_none(local_ray, texts, tmp_path):
    shutil.copytree(texts / "encoder", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    bare = f"transformers:{tmp_path / 'bare'}"
    with pytest.raises(ConfigError, match=r"network\.weights: the folder .* set network\.weights to null"):
        loop.run(config(texts, tmp_path, network={"architecture": bare}))
    assert config(texts, tmp_path, network={"architecture": bare, "weights": None}).network.weights is None


@pytest.mark.slow
def test_trials_of_a_sweep_share_what_they_have_in_common(local_ray, texts, tmp_path):
    base = to_tree(config(texts, tmp_path, scoring={"actors": None, "backend": "torch", "precision": "fp32"}))
    sweep = sweep_from_tree({"base": base, "arms": {"fused": {}, "scratch": {"fusion": {"target": "scratch"}}},
                             "seeds": [0], "loggers": []})  # fmt: skip
    run_sweep(sweep, lambda *_, **__: None)
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("tiny/trials/*/result.json"))]
    assert len(results) == 2
    assert {result["proxy_accuracy"] for result in results} == {results[0]["proxy_accuracy"]}
