"""What is like no labeled sample is named and left out, whatever the files."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.selection.hold_back import hold_back
from prunefuse_ray.selection.rows import read
from tests.selection.test_set_selection import Made, N, select


@pytest.fixture
def made(tmp_path):
    """400 samples around the origin, of which 12 lie far outside; 60 labeled ones."""
    made = Made(tmp_path, strings=True)
    made.x[100:112] += 30 * np.sign(made.x[100:112])
    made.known_x = np.random.default_rng(9).normal(size=(60, made.x.shape[1])).astype(np.float32)
    made.files = made.write("far", None, made.x, 7)
    made.known = made.write("known", None, made.known_x, 2)
    return made


def distances(a, b):
    return np.sqrt(((a[:, None].astype(float) - b[None].astype(float)) ** 2).sum(2))


def test_samples_far_from_all_labeled_ones_have_no_score_in_the_copies(made):
    kept = hold_back(made.files, made.known, 1.5, made.where / "kept")
    among = distances(made.known_x, made.known_x)
    np.fill_diagonal(among, np.inf)
    usual = np.sort(among.min(1))[int(0.95 * 60)]
    assert kept.limit == pytest.approx(1.5 * usual, rel=1e-5)
    near = distances(made.x, made.known_x).min(1)
    expected = sorted((i for i in range(N) if near[i] > kept.limit), key=lambda i: -near[i])
    assert kept.held["id"].to_pylist() == made.ids[expected].tolist()
    assert set(range(100, 112)) <= set(expected)
    np.testing.assert_allclose(kept.held["distance"].to_numpy(), near[expected], rtol=1e-5)
    rows = read(kept.files)
    assert sorted(rows.ids.to_pylist()) == sorted(set(made.ids) - set(made.ids[expected]))
    whole = read(made.files)
    assert len(whole.ids) == N, "the score files themselves stay as they are"


def test_selections_read_the_copies_and_do_not_depend_on_the_files(made):
    kept = hold_back(made.files, made.known, 2.0, made.where / "kept")
    rows = made.rows(select("k_centers", kept.files, made.known, 40, 0))
    assert not set(rows) & set(range(100, 112))
    made.files = made.write("again", np.arange(N)[::-1], made.x, 3)
    again = hold_back(made.files, replace(made.known, paths=made.known.paths[::-1]), 2.0, made.where / "kept-again")
    assert again.held.equals(kept.held)
    assert made.rows(select("k_centers", again.files, made.known, 40, 0)) == rows


def test_rows_without_a_score_stay_without_and_are_not_named(made):
    path = made.files.paths[0]
    table = pq.read_table(path)
    mask = np.zeros(len(table), bool)
    mask[:5] = True
    scores = pa.array(table["score"].to_numpy(), pa.float32(), mask=mask)
    pq.write_table(table.set_column(1, "score", scores), path)
    kept = hold_back(made.files, made.known, 1e-6, made.where / "kept")
    assert kept.held.num_rows == N - 5
    assert not set(kept.held["id"].to_pylist()) & set(table["id"].to_pylist()[:5])


@pytest.mark.parametrize("far", [1e9, 3e38])
def test_one_labeled_sample_far_off_hides_no_foreign_ones(made, far):
    made.known_x[0] = far
    known = made.write("known-far", None, made.known_x, 2)
    held = hold_back(made.files, known, 1.5, made.where / "kept").held["id"].to_pylist()
    assert set(made.ids[100:112]) <= set(held)
