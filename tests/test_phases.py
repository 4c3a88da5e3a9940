"""The phases: what they do with samples that cannot be used, and with texts."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray import rounds
from prunefuse_ray.config_files import merge
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.images import encode_png
from prunefuse_ray.ledger import Ledger, Step
from prunefuse_ray.storage import Place

from .conftest import pictures, tiny, write_pool

# --- bad samples ---


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A pool of RGB pictures in which six samples are odd and three of those cannot be used."""
    where = tmp_path_factory.mktemp("spoiled")
    pixels = pictures(60, channels=3)
    images = [encode_png(p) for p in pixels]
    images[0] = b"not a picture"
    images[1] = images[1][: len(images[1]) // 2]
    images[2] = None
    images[3] = encode_png(pixels[3][:, :, 0])
    images[4] = encode_png(np.dstack([pixels[4], pixels[4][:, :, :1]]))
    images[5] = encode_png(pictures(1, size=20, channels=3)[0])
    write_pool(where / "pool", pixels, files=2, image=pa.array(images, pa.binary()))
    write_pool(where / "test", pictures(20, channels=3, seed=1), first_id=900)
    return where


def spoiled_config(spoiled, tmp_path, **more):
    change = {
        "pool": {"channels": 3, "image_size": [8, 8], "max_rejected": 0.1},
        "selection": {"budgets": [40, 57]},
    }
    return tiny(spoiled, tmp_path, **merge(change, more))


def test_bad_samples_are_recorded_and_never_selected(local_ray, spoiled, tmp_path):
    """The budget takes every usable sample of the pool, so each bad one would have been chosen at some time."""
    rounds.run(spoiled_config(spoiled, tmp_path))
    root = tmp_path / "tiny"
    rejected = {r["id"]: r["reason"] for r in pq.read_table(root / "rejected.parquet").to_pylist()}
    assert sorted(rejected) == ["s0000", "s0001", "s0002"]
    assert "known format" in rejected["s0000"]
    assert "null" in rejected["s0002"]
    chosen = [i for r in (0, 1) for i in pq.read_table(root / f"rounds/{r:03d}/labels.parquet")["id"].to_pylist()]
    assert sorted(chosen) == [f"s{i:04d}" for i in range(3, 60)]
    assert "3 " in (root / "report.html").read_text()


def test_pictures_of_another_size_are_rejected_on_request(local_ray, spoiled, tmp_path):
    change = {"pool": {"other_sizes": "reject"}, "selection": {"budgets": [40, 56]}}
    rounds.run(spoiled_config(spoiled, tmp_path, **change))
    rejected = {r["id"]: r["reason"] for r in pq.read_table(tmp_path / "tiny/rejected.parquet").to_pylist()}
    assert rejected["s0005"] == "20 x 20 pixels, expected 8 x 8"


def test_too_many_bad_samples_stop_the_run(local_ray, spoiled, tmp_path):
    with pytest.raises(ScoreError, match=r"pool\.max_rejected: [123] of 60 samples"):
        rounds.run(spoiled_config(spoiled, tmp_path, pool={"max_rejected": 0.01}))
    rounds.run(spoiled_config(spoiled, tmp_path))  # the remedy that the message names
    assert (tmp_path / "tiny" / "result.json").exists()


def test_a_budget_that_only_bad_samples_could_fill_is_refused(local_ray, spoiled, tmp_path):
    with pytest.raises(ScoreError, match="only 17 of the pool have a score; lower the last budget"):
        rounds.run(spoiled_config(spoiled, tmp_path, selection={"budgets": [40, 58]}))


def test_scores_that_are_not_finite_stop_the_round_and_name_ids(local_ray, tiny_pool, tmp_path):
    config = tiny(tiny_pool, tmp_path, training={"lr": 1e30, "warmup_epochs": 0})
    with pytest.raises(ScoreError, match=r"scores are not finite for 110 samples, e\.g\. ids 's"):
        rounds.run(config)
    ledger = Ledger(Place.at(str(tmp_path / "tiny")))
    assert ledger.committed(Step(0, "train")) is not None
    assert ledger.committed(Step(0, "score")) is None


# --- texts ---


def test_a_pool_of_texts_goes_through_the_whole_loop(local_ray, tmp_path):
    """Two classes told apart by their words; one text is empty."""
    words = [["fine", "good", "nice"], ["poor", "bad", "dull"]]
    rng = np.random.default_rng(0)
    for part, n in (("pool", 60), ("test", 20)):
        (tmp_path / part).mkdir()
        texts = [" ".join(rng.choice(words[i % 2], 6)) for i in range(n)]
        if part == "pool":
            texts[7] = " "
        table = {"id": list(range(n)), "text": texts, "label": [i % 2 for i in range(n)]}
        pq.write_table(pa.table(table), tmp_path / part / "a.parquet")
    recipe = {"epochs": 6, "augment": [], "lr": 0.05}
    change = {
        "pool": {"channels": 3, "text_column": "text", "text_length": 32, "max_rejected": 0.1},
        "network": {"architecture": "textcnn"}, "training": recipe, "finetuning": recipe,
        "selection": {"budgets": [20, 59], "strategy": "entropy"},
    }  # fmt: skip
    rounds.run(tiny(tmp_path, tmp_path / "runs", **change))
    root = tmp_path / "runs" / "tiny"
    assert pq.read_table(root / "rejected.parquet").to_pylist() == [{"id": "7", "reason": "an empty text"}]
    chosen = [i for r in (0, 1) for i in pq.read_table(root / f"rounds/{r:03d}/labels.parquet")["id"].to_pylist()]
    assert sorted(chosen) == sorted(set(range(60)) - {7})
    assert (root / "report.html").read_text().count("dull") > 0
