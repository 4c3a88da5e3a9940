"""The exact top-k against a full sort, on scores made to be awkward."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefuse_ray.acquisition.ranking import key_counts, score_of, sort_keys, threshold_bucket, upper_counts
from prunefuse_ray.distributed import remote
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.selection.top_k import top_k, top_k_of_groups
from prunefuse_ray.storage import Place

pytestmark = pytest.mark.usefixtures("either_way")

AWKWARD = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, np.inf, -np.inf, 0.5, np.nextafter(0.5, 1), 3e38], np.float32)


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=60))
def test_keys_order_like_scores(values):
    scores = np.array(values, np.float32)
    keys = sort_keys(scores).astype(np.int64)
    for relation in (np.less, np.equal):
        np.testing.assert_array_equal(relation(keys[:, None], keys[None]), relation(scores[:, None], scores[None]))


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), max_size=60))
def test_halves_of_keys_are_counted_from_the_scores_themselves(values):
    scores = np.array(values, np.float32)
    np.testing.assert_array_equal(upper_counts(scores), key_counts(sort_keys(scores), None))
    for score, key in zip(scores, sort_keys(scores).tolist(), strict=True):
        assert score_of(key) == score
        assert score_of(key >> 16 << 16) <= score


def test_threshold_bucket_finds_the_kth_largest():
    counts = np.array([3, 0, 2, 1], np.int64)  # one key in bucket 3, two in 2, three in 0
    assert [threshold_bucket(counts, k) for k in (1, 2, 3, 4, 6)] == [(3, 0), (2, 1), (2, 1), (0, 3), (0, 3)]


def write_scores(directory, ids, scores, files):
    directory.mkdir()
    step = -(-len(ids) // files)
    paths = []
    for f in range(files):
        part = slice(f * step, (f + 1) * step)
        mask = np.isnan(scores[part])
        table = pa.table({"id": ids[part], "score": pa.array(scores[part], pa.float32(), mask=mask)})
        pq.write_table(table, directory / f"{f}.parquet", row_group_size=1000)
        paths.append(str(directory / f"{f}.parquet"))
    return paths


def reference(ids, scores, k):
    usable = [i for i in range(len(ids)) if not np.isnan(scores[i])]
    return [ids[i] for i in sorted(usable, key=lambda i: (-float(scores[i]), ids[i]))[:k]]


CASES = {
    "uniform": lambda rng, n: rng.random(n),
    "all equal": lambda rng, n: np.full(n, 0.25),
    "few values": lambda rng, n: rng.integers(0, 3, n) / 7,
    "one narrow bucket": lambda rng, n: 0.5 + rng.integers(0, 50, n) * 2.0**-24,
    "awkward": lambda rng, n: rng.choice(AWKWARD, n),
    "a third rejected": lambda rng, n: np.where(rng.random(n) < 1 / 3, np.nan, rng.random(n)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["string", "integer"])
def test_top_k_is_the_head_of_a_full_sort(tmp_path, local_ray, case, kind):
    rng = np.random.default_rng(0)
    n = 5000
    scores = CASES[case](rng, n).astype(np.float32)
    numbers = rng.permutation(n)
    ids = [f"s{i}" for i in numbers] if kind == "string" else [int(i) for i in numbers]
    files = write_scores(tmp_path / "scores", ids, scores, 7)
    for k in (1, 17, 2500):
        chosen = top_k(files, Place.at(str(tmp_path)), k)
        assert chosen["id"].to_pylist() == reference(ids, scores, k)
        assert chosen["rank"].to_pylist() == list(range(k))


def test_the_choice_does_not_depend_on_how_rows_lie_in_files(tmp_path, local_ray):
    rng = np.random.default_rng(1)
    scores = (rng.integers(0, 20, 3000) / 20).astype(np.float32)
    ids = [f"s{i:04d}" for i in range(3000)]
    one = top_k(write_scores(tmp_path / "a", ids, scores, 1), Place.at(str(tmp_path)), 100)
    order = rng.permutation(3000)
    other = write_scores(tmp_path / "b", [ids[i] for i in order], scores[order], 90)
    assert top_k(other, Place.at(str(tmp_path)), 100).equals(one)


def test_tasks_find_what_one_process_does(tmp_path, local_ray, monkeypatch):
    scores = np.random.default_rng(2).random(500, np.float32)
    files = write_scores(tmp_path / "a", [f"s{i:04d}" for i in range(500)], scores, 5)
    here = top_k(files, Place.at(str(tmp_path)), 50)
    monkeypatch.setattr(remote, "WORTH_A_TASK", -1)
    assert top_k(files, Place.at(str(tmp_path)), 50).equals(here)


def test_too_few_scores_are_said(tmp_path, local_ray):
    files = write_scores(tmp_path / "scores", ["a", "b"], np.array([0.5, np.nan], np.float32), 1)
    with pytest.raises(ScoreError, match=r"selection\.budgets: 2 samples are wanted, but only 1"):
        top_k(files, Place.at(str(tmp_path)), 2)


# --- quotas ---


@pytest.mark.parametrize("files", [1, 9])
@pytest.mark.parametrize("k", [1, 40, 390])
def test_classes_share_the_choice_equally_as_far_as_they_go(tmp_path, local_ray, files, k):
    """Four classes of very different frequency, one of them missing, many equal scores, some samples rejected."""
    rng = np.random.default_rng(2)
    n = 500
    predicted = rng.choice([0, 1, 3, 4], n, p=[0.9, 0.06, 0.03, 0.01])
    scores = (rng.integers(0, 30, n) / 30).astype(np.float32)
    scores[rng.random(n) < 0.1] = np.nan
    ids = [int(i) for i in rng.permutation(n)]
    paths = write_scores(tmp_path / "scores", ids, scores, files)
    step = -(-n // files)
    for f, path in enumerate(paths):
        part = pa.array(predicted[f * step : (f + 1) * step], pa.int32())
        pq.write_table(pq.read_table(path).append_column("predicted", part), path)
    rows, left = [], {g: reference_rows(ids, scores, predicted == g) for g in (0, 1, 3, 4)}
    turn = sorted(left, key=lambda g: (len(left[g]), g))
    while len(rows) < k:
        for g in turn:
            if left[g] and len(rows) < k:
                rows.append(left[g].pop(0))
    expected = sorted(rows, key=lambda i: (-float(scores[i]), ids[i]))
    chosen, groups = top_k_of_groups(paths, Place.at(str(tmp_path)), k, "predicted")
    assert chosen["id"].to_pylist() == [ids[i] for i in expected]
    assert chosen["rank"].to_pylist() == list(range(k))
    assert sum(groups.values()) == k
    assert groups == {g: c for g in left if (c := int(sum(predicted[rows] == g)))}, "only groups with samples chosen"


def reference_rows(ids, scores, among):
    rows = [i for i in np.flatnonzero(among) if not np.isnan(scores[i])]
    return sorted(rows, key=lambda i: (-float(scores[i]), ids[i]))


def test_too_few_scores_for_all_classes_are_said(tmp_path, local_ray):
    (path,) = write_scores(tmp_path / "scores", ["a", "b"], np.array([0.5, np.nan], np.float32), 1)
    pq.write_table(pq.read_table(path).append_column("predicted", pa.array([0, 1], pa.int32())), path)
    with pytest.raises(ScoreError, match=r"selection\.budgets: 2 samples are wanted, but only 1"):
        top_k_of_groups([path], Place.at(str(tmp_path)), 2, "predicted")
