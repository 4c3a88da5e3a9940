"""A scoring pass as a whole: what it leaves where it is not the pool that it was meant for."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.config.scoring import Scoring
from prunefuse_ray.data.pool import Prepared
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.scoring import score_pass
from prunefuse_ray.scoring.score_pass import ScorePass, of_all_starts, score
from prunefuse_ray.storage import Place
from tests.scoring.test_score_pool import HERE, JOB, ROWS, network, source

assert network  # a fixture, as source is
assert source


@pytest.fixture
def what(source, network, tmp_path):
    root = Place.at(str(tmp_path / "run"))
    return ScorePass(
        root=root,
        record=Ledger(root).write_file,
        source=source,
        rows=ROWS,
        exclude=pa.array([], pa.int64()),
        network=network,
        macs=1,
        classes=10,
        members=1,
        out=root / "scores",
        checkpoint=root / "checkpoint",
    )


def test_a_pass_over_another_number_of_rows_is_refused_and_removed(what):
    with pytest.raises(ScoreError, match=rf"{ROWS} rows were scored of {ROWS + 1}"):
        score(replace(what, rows=ROWS + 1), Scoring(), JOB, HERE, what.out.delete)
    assert what.out.files() == []


def test_the_seconds_of_a_pass_are_those_of_all_its_starts(what, monkeypatch):
    """After a kill the rows of earlier starts are there, and what they took counts."""
    assert of_all_starts(6.0, 100, 0) == 6.0
    assert of_all_starts(6.0, 100, 75) == 24.0
    assert of_all_starts(6.0, 100, 100) == 6.0, "the last start scored nothing"
    assert of_all_starts(12.0, 1_000, 999) == 12.0, "and here it took its time to begin"
    whole = score(what, Scoring(), JOB, HERE, what.out.delete)
    rows = pa.concat_tables(pq.read_table(f.path, filesystem=what.out.fs) for f in whole.written)
    again = replace(what, out=what.root / "again")
    (again.out / "first.parquet").write_table(rows.slice(0, ROWS * 3 // 4))

    def the_rest(*_):
        time.sleep(0.1)
        (again.out / "rest.parquet").write_table(rows.slice(ROWS * 3 // 4))
        return again.out.written()

    monkeypatch.setattr(score_pass, "write_scores", the_rest)
    assert score(again, Scoring(), JOB, HERE, again.out.delete).metrics["seconds"] > 0.39


@pytest.mark.parametrize(("files", "bytes_", "format_", "decodes"), [
    (13, ROWS * 64, "raw", False), (13, ROWS * 64 // 2, "raw", True), (6, ROWS * 64, "raw", True),
    (13, ROWS * 64 // 5, "jpeg", False), (6, ROWS * 64 // 5, "jpeg", True),
])  # fmt: skip
def test_short_chunks_do_not_count_as_whole_ones(what, monkeypatch, files, bytes_, format_, decodes):
    """A pool of many small files has a chunk of each."""
    kept = replace(what.source, prepared=Prepared(place=what.root / "kept", format=format_))
    monkeypatch.setattr(score_pass, "chunk_rows", lambda _: 16)
    monkeypatch.setattr(score_pass, "usage", lambda *_: {"files": files, "bytes": bytes_})
    monkeypatch.setattr(score_pass, "measured_rate", lambda _: 1e9)
    monkeypatch.setattr(score_pass, "beside_decoding", lambda *_, **__: "with decoding")
    plan = replace(HERE, here=False, alone=False)
    found = score_pass._with_decoding(replace(what, source=kept), SimpleNamespace(form=JOB.form), plan)
    assert found == ("with decoding" if decodes else plan)
