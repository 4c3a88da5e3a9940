"""From a run's files to its report: the right facts, without Ray."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.report.page import render
from prunefuse_ray.run import view
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.view import SHEET, view_run
from prunefuse_ray.schemas import doubts_schema, labels_schema, selected_schema
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks.classification import Classification
from tests.support import ROOT
from tests.support.pools import random_images

INFO = PoolInfo(
    source="parquet", path="p", rows=200, bytes=9, files=1, listing_digest="", id_digest="", id_type="string",
    classes=["cat", "dog"], sample_size=(8, 8),
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    """A run of two rounds in its second: 60 samples chosen by score, labeled, nothing trained yet."""
    ledger = Ledger(Place.at(str(tmp_path / "run")))
    ledger.create(to_tree(config_from_tree({"selection": {"budgets": [10, 70]}})), INFO.to_json())
    add(ledger, 0, 10, "a")
    histogram = {"edges": [0.0, 0.5, 1.0], "counts": [100, 90]}
    ledger.commit(Step(0, "score"), {}, {"histogram": histogram})
    add(ledger, 1, 60, "b")
    return ledger


def add(ledger, round_, n, prefix):
    ids = [f"{prefix}{i:02d}" for i in range(n)]
    scores = np.linspace(1, 0.4, n).astype(np.float32)
    table = pa.table({"id": ids, "score": scores, "rank": range(n)}, selected_schema("string"))
    ledger.commit(Step(round_, "select"), {"selected.parquet": table}, {})
    samples = ledger.place(Step(round_, "label"), "samples")
    images = pa.array([encode_png(p) for p in random_images(n)], pa.binary())
    (samples / "1.parquet").write_table(pa.table({"id": ids, "sample": images}))
    labels = pa.table(
        {"id": ids, "label": [i % 2 for i in range(n)], "source": ["oracle"] * n}, labels_schema("string")
    )
    ledger.commit(Step(round_, "label"), {"labels.parquet": labels}, {}, samples.files())


def test_doubtful_labels_come_with_their_samples_of_any_round(ledger):
    rows = [("a01", 1, 0.1, 0, 0.9), ("b00", 0, 0.3, 1, 0.7), ("b01", 1, 0.8, 1, 0.8)]
    columns = doubts_schema("string").names
    table = pa.Table.from_pylist([dict(zip(columns, r, strict=True)) for r in rows], doubts_schema("string"))
    ledger.commit(Step(1, "train"), {"doubts.parquet": table}, {"test_accuracy": 0.5})
    first, second = view_run(ledger).rounds
    assert first.doubts == []
    assert [(d.id, d.label, d.guess) for d in second.doubts] == [("a01", "dog", "cat"), ("b00", "cat", "dog")]
    assert second.doubts[0].image == encode_png(random_images(10)[1])


def test_a_run_in_progress_shows_what_is_committed(ledger):
    view = view_run(ledger)
    assert (view.complete, len(view.rounds), view.pool["rows"]) == (False, 2, 200)
    first, second = view.rounds
    assert (first.strategy, first.scores) == ("random", None)
    assert (second.strategy, second.labels, second.chosen) == ("least_confidence", 70, 60)
    assert second.scores.counts.tolist() == [100, 90]
    assert second.scores.threshold == pytest.approx(0.4)


def test_labels_that_people_have_still_to_give_are_not_counted(ledger):
    ledger.uncommit(Step(1, "label"))
    view = view_run(ledger)
    assert [(r.chosen, r.labels) for r in view.rounds] == [(10, 10), (60, 10)]
    assert "10 of 200 pool samples labeled" in render(view)
    ledger.uncommit(Step(0, "label"))
    assert view_run(ledger).rounds[0].labels == 0
    ledger.commit(Step(-1, "init"), {}, {"inputs": {"pool.known_labels": {"labels": 4}}})
    assert view_run(ledger).rounds[0].labels == 4, "those that were known beforehand"


def test_a_run_that_goes_on_with_more_labels_shows_nothing_of_its_old_end(ledger):
    """Else the last round, whose target is not trained yet, would have the accuracy of one with fewer labels."""
    result = {"rounds": [], "fused_accuracy": 0.913, "seconds": 1.0}
    ledger.commit(Step(-1, "report"), {"result.json": result}, {})
    assert (view_run(ledger).complete, "91.3%" in render(view_run(ledger))) == (True, True)
    ledger.take_budgets(config_from_tree({"selection": {"budgets": [10, 70, 90]}}))
    ledger.commit(Step(1, "score"), {}, {"histogram": {"edges": [0.0, 1.0], "counts": [120]}})
    add(ledger, 2, 20, "c")
    view = view_run(ledger)
    assert (view.complete, view.result, len(view.rounds)) == (False, None, 3)
    assert "91.3%" not in render(view)


def test_the_sheet_shows_both_ends_with_labels_and_images(ledger):
    first, second = view_run(ledger).rounds
    assert [c.id for c in second.first] == [f"b{i:02d}" for i in range(SHEET)]
    assert [c.id for c in second.last] == [f"b{i:02d}" for i in range(60 - SHEET, 60)]
    assert [c.label for c in second.first[:3]] == ["cat", "dog", "cat"]
    assert second.last[-1].image == encode_png(random_images(60)[59])
    assert len(first.first) == 10
    assert not first.last, "a sample is shown twice"


def test_a_directory_that_is_no_run_is_said(tmp_path):
    with pytest.raises(LedgerError, match="is this a run directory"):
        view_run(Ledger(Place.at(str(tmp_path))))


def test_the_report_starts_no_ray_and_loads_no_torch(ledger):
    code = (
        "import sys; from prunefuse_ray.cli import main; code = main(['report', sys.argv[1]]); import ray;"
        "assert not ray.is_initialized(); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, ledger.root.path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (Path(ledger.root.path) / "report.html").stat().st_size > 10_000


def test_doubtful_known_labels_come_with_their_samples(tmp_path):
    pool = {"source": "parquet", "path": "p", "test_path": "t", "known_labels": "known.csv"}
    ledger = Ledger(Place.at(str(tmp_path / "run")))
    ledger.create(to_tree(config_from_tree({"pool": pool, "selection": {"budgets": [12]}})), INFO.to_json())
    samples = ledger.place(Step(-1, "init"), "known/samples")
    image = encode_png(random_images(1)[0])
    (samples / "1.parquet").write_table(pa.table({"id": ["k0"], "sample": pa.array([image], pa.binary())}))
    ledger.commit(Step(-1, "init"), {}, {"inputs": {"pool.known_labels": {"labels": 1}}}, samples.files())
    add(ledger, 0, 10, "a")
    row = dict(zip(doubts_schema("string").names, ("k0", 1, 0.1, 0, 0.9), strict=True))
    table = pa.Table.from_pylist([row], doubts_schema("string"))
    ledger.commit(Step(0, "train"), {"doubts.parquet": table}, {"test_accuracy": 0.5})
    assert view_run(ledger).rounds[0].doubts[0].image == image


def test_samples_are_read_a_few_at_a_time(ledger, monkeypatch):
    seen, real = [], view.sample_values
    monkeypatch.setattr(view, "AT_ONCE", 16)
    monkeypatch.setattr(view, "sample_values", lambda c: seen.append(len(c)) or real(c))
    view_run(ledger)
    assert 0 < max(seen) <= 16


def test_an_image_that_its_label_cannot_be_drawn_on_ends_no_run(ledger, monkeypatch):
    def cut(self, image, label):
        raise OSError("image file is truncated (2 bytes not processed)")

    monkeypatch.setattr(Classification, "drawn", cut)
    first, _ = view_run(ledger).rounds
    assert first.first[0].image == encode_png(random_images(10)[0])


def test_doubts_are_looked_up_for_the_round_that_shows_them(ledger, monkeypatch):
    """For each, the samples of all rounds before it are read."""
    row = dict(zip(doubts_schema("string").names, ("a01", 1, 0.1, 0, 0.9), strict=True))
    for r in (0, 1):
        table = pa.Table.from_pylist([row], doubts_schema("string"))
        ledger.commit(Step(r, "train"), {"doubts.parquet": table}, {"test_accuracy": 0.5})
    asked, real = [], view.samples_as_seen
    monkeypatch.setattr(
        view, "samples_as_seen", lambda file, ids, *more: asked.append(ids.to_pylist()) or real(file, ids, *more)
    )
    first, second = view_run(ledger).rounds
    assert ([d.id for d in first.doubts], [d.id for d in second.doubts]) == ([], ["a01"])
    assert asked.count(["a01"]) == 2, "one file of each round"
