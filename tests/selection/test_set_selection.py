"""Set strategies against references of a few lines, on one matrix in one process, for any number of shards."""

import os
import re
import signal
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import ObjectLostError, RayActorError

from prunefuse_ray.acquisition import STRATEGIES, Chance, random_scores
from prunefuse_ray.acquisition.cluster_margin import CLUSTER_MARGIN
from prunefuse_ray.acquisition.fixed_point import Points
from prunefuse_ray.acquisition.greedy import RACE, clocks
from prunefuse_ray.acquisition.k_centers import K_CENTERS
from prunefuse_ray.acquisition.quotas import round_robin
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.run.processes import descendants
from prunefuse_ray.selection import set_selection, shards
from prunefuse_ray.selection.rows import Files, Rows
from prunefuse_ray.selection.top_k import top_k
from prunefuse_ray.storage import Place
from tests.support import ROOT

N, D, C = 400, 16, 5


# --- references -------------------------------------------------------------------------------------------------------


def k_centers(x, known, k):
    """Sener & Savarese 2018, algorithm 1."""
    near = np.min([((x - c) ** 2).sum(1) for c in known], axis=0) if len(known) else np.full(len(x), np.inf)
    chosen = []
    for _ in range(k):
        near[chosen] = -1
        chosen.append(int(near.argmax()))
        near = np.minimum(near, ((x - x[chosen[-1]]) ** 2).sum(1))
    return chosen


def badge(a, h, k, e):
    """k-means++ over the explicit embeddings; e: an exponential random number for each row (see `race` there)."""
    g = np.einsum("nc,nd->ncd", a, h).reshape(len(a), -1)
    chosen = [int((g**2).sum(1).argmax())]
    near = ((g - g[chosen[0]]) ** 2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rings = e / near
        while len(chosen) < k:
            chosen.append(int(rings.argmin()))
            now, before = rings[chosen[-1]], near
            near = np.minimum(before, ((g - g[chosen[-1]]) ** 2).sum(1))
            rings = np.where(near > 0, now + (rings - now) * before / near, np.inf)
    return chosen


def cluster_margin(scores, clusters, k, m):
    """Citovsky et al. 2021, algorithm 2, with the lowest margin (highest score) first in each cluster."""
    left = {}
    for i in np.lexsort([np.arange(len(scores)), -scores]):
        if scores[i] >= np.sort(scores)[-m]:
            left.setdefault(clusters[i], []).append(int(i))
    turn, chosen = sorted(left, key=lambda c: (len(left[c]), c)), []
    while len(chosen) < k:
        for c in turn:
            if left[c] and len(chosen) < k:
                chosen.append(left[c].pop(0))
    return chosen


def apart(x, scores, known, k, distance):
    """The best first, unless too close to one chosen or known; then the best of those left over."""
    order = list(np.lexsort([np.arange(len(scores)), -scores]))
    chosen = []
    for i in order:
        if len(chosen) < k and all(((x[i] - c) ** 2).sum() >= distance**2 for c in [*known, *x[chosen]]):
            chosen.append(int(i))
    return (chosen + [int(i) for i in order if i not in chosen])[:k]


# --- the same from files ----------------------------------------------------------------------------------------------


def select(name, files, labeled, k, cpus, seed=0, round_=0):
    return set_selection.select_set(STRATEGIES[name], files, labeled, k, Chance(seed=seed, round=round_), cpus)


class Made:
    """A pool in score files, in an order that is not that of the ids; row i has the id i (or its string)."""

    def __init__(self, where, *, duplicates=0, strings=False, seed=0, clumps=None):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(N, D)).astype(np.float32)
        if clumps:  # separate heaps of equal width
            self.x = (self.x * 0.05 + rng.normal(size=(clumps, D))[rng.integers(0, clumps, N)]).astype(np.float32)
        if duplicates:
            self.x[-duplicates:] = self.x[:duplicates]
        p = rng.dirichlet(np.ones(C), N)
        self.a = (p - np.eye(C)[p.argmax(1)]).astype(np.float32)
        if duplicates:
            self.a[-duplicates:] = self.a[:duplicates]
        self.scores = (rng.integers(0, 40, N) / 40).astype(np.float32)
        self.known_x = rng.normal(size=(7, D)).astype(np.float32)
        self.ids = np.array([f"s{i:04d}" for i in range(N)], object) if strings else np.arange(N)
        self.where = Place.at(str(where))
        self.files = self.write("scores", rng.permutation(N), self.x, 7)
        self.known = self.write("labeled", None, self.known_x, 2)

    def write(self, name, order, x, files):
        paths = []
        order = np.arange(len(x)) if order is None else order
        for f in range(files):
            rows = order[f::files]
            table = {"id": self.ids[rows], "score": pa.array(self.scores[rows], pa.float32()),
                     "feature": fixed(x[rows]), "gradient": fixed(self.a[rows])}  # fmt: skip
            (self.where / name / f"{f}.parquet").write_table(pa.table(table))
            paths.append((self.where / name / f"{f}.parquet").path)
        return Files(where=self.where, paths=tuple(paths), sizes=(1,) * files)

    def with_columns(self, *columns):
        return Files(where=self.where, paths=self.files.paths, sizes=self.files.sizes, columns=columns)

    def rows(self, table):
        assert table["rank"].to_pylist() == list(range(table.num_rows))
        rows = [int(str(i).lstrip("s")) for i in table["id"].to_pylist()]
        np.testing.assert_array_equal(table["score"].to_numpy(), self.scores[rows])
        return rows


def fixed(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), pa.float32()), values.shape[1])


@pytest.mark.parametrize("change", [{}, {"duplicates": 150}, {"strings": True}, {"clumps": 5}], ids=str)
def test_k_centers_is_the_greedy_choice(tmp_path, sharded, change):
    made = Made(tmp_path, **change)
    expected = k_centers(made.x.astype(float), made.known_x.astype(float), 300)
    assert made.rows(select("k_centers", made.files, made.known, 300, sharded)) == expected


def test_k_centers_without_labeled_samples_begins_with_the_smallest_id(tmp_path, sharded):
    made = Made(tmp_path)
    expected = k_centers(made.x.astype(float), [], 50)
    assert made.rows(select("k_centers", made.files, None, 50, sharded)) == expected
    assert expected[0] == 0


@pytest.mark.parametrize("change", [{}, {"duplicates": 150}, {"strings": True}], ids=str)
def test_badge_is_k_means_plus_plus_of_the_explicit_embeddings(tmp_path, sharded, change):
    made = Made(tmp_path, **change)
    expected = badge(made.a.astype(float), made.x.astype(float), 200, clocks(made.ids, 3, 1))
    table = select("badge", made.with_columns("gradient", "feature"), None, 200, sharded, 3, 1)
    assert made.rows(table) == expected


def test_badge_takes_duplicates_only_when_nothing_else_is_left(tmp_path, sharded):
    made = Made(tmp_path, duplicates=150)
    rows = made.rows(select("badge", made.with_columns("gradient", "feature"), None, N, sharded))
    assert sorted(rows) == list(range(N))
    assert len({tuple(made.x[i]) for i in rows[: N - 150]}) == N - 150


def test_a_race_draws_with_probabilities_proportional_to_squared_distances():
    """The definition of k-means++: after the first, and after the second, over many seeds."""
    x = np.array([[9, 0], [8, 0], [0, 0], [0, 4], [-2, 1]], np.float32)
    rows = Rows(ids=pa.array(range(5)), scores=np.zeros(5, np.float32), vectors=[x.copy()])
    draws = 4000
    seconds, thirds = np.zeros(5), np.zeros(5)
    with shards.Shards(rows, 0) as held:
        for seed in range(draws):
            _, second, third = held.greedy(RACE, 3, chance=Chance(seed=seed, round=0)).table["id"].to_pylist()
            seconds[second] += 1
            thirds[third] += second == 3
    to_first = ((x - x[0]) ** 2).sum(1)
    expected = draws * to_first / to_first.sum()
    assert (np.abs(seconds - expected) <= 5 * np.sqrt(expected)).all()
    to_both = np.minimum(to_first, ((x - x[3]) ** 2).sum(1))
    expected = seconds[3] * to_both / to_both.sum()
    assert (np.abs(thirds - expected) <= 5 * np.sqrt(expected)).all()


def test_a_race_among_those_that_chance_left_draws_the_same_way():
    """What is scored in round 0 is what the initial set left, which was drawn with the same seed."""
    n, initial, draws = 120, 40, 1500
    x = np.repeat([1, 2, 4], n // 3).astype(np.float32)
    x[0] = 9  # the widest: the first
    near = (x - x[0]) ** 2
    found, expected = np.zeros(3), np.zeros(3)
    for seed in range(draws):
        rest = np.argsort(random_scores(np.arange(n), seed, 0))[: n - initial]
        rest = np.union1d(rest, [0])
        rows = Rows(ids=pa.array(rest), scores=np.zeros(len(rest), np.float32), vectors=[x[rest, None].copy()])
        with shards.Shards(rows, 0) as held:
            second = held.greedy(RACE, 2, chance=Chance(seed=seed, round=0)).table["id"][1].as_py()
        found[second // 40] += 1
        for group in range(3):
            expected[group] += near[rest[rest // 40 == group]].sum() / near[rest].sum()
    assert (np.abs(found - expected) <= 4 * np.sqrt(expected)).all()


def test_cluster_margin_takes_from_each_heap_in_turn(tmp_path, sharded):
    """Separate heaps, as many as clusters: any sound clustering finds them."""
    made = Made(tmp_path, clumps=10, seed=4)
    chosen = made.rows(select("cluster_margin", made.files, None, 30, sharded))
    heaps = np.unique([np.flatnonzero(((made.x - c) ** 2).sum(1) < 1)[0] for c in made.x], return_inverse=True)[1]
    assert len(set(heaps)) == 10
    # Which of equally large heaps comes first is a matter of their numbers, so turns are compared as sets.
    sizes = np.bincount(heaps[made.scores >= np.sort(made.scores)[-300]], minlength=10)
    got = np.bincount(heaps[chosen], minlength=10)
    np.testing.assert_array_equal(np.sort(got), np.sort(round_robin(sizes, 30)))
    for heap in set(heaps):
        best = sorted(np.flatnonzero(heaps == heap), key=lambda i: (-made.scores[i], i))
        assert [i for i in chosen if heaps[i] == heap] == best[: got[heap]]


def test_cluster_margin_is_the_papers_round_robin(tmp_path, sharded):
    """Given the clusters (those of one shard; any number finds the same)."""
    made = Made(tmp_path)
    with shards.Shards(made.files, 0) as held:
        expected_table = CLUSTER_MARGIN.select(held, 35, Chance(seed=2, round=1))
        clusters, order = held.members[0].clusters, held.members[0].ids.to_numpy()
    of_row = np.empty(N, int)
    of_row[order] = clusters
    table = select("cluster_margin", made.files, None, 35, sharded, 2, 1)
    assert table.equals(expected_table)
    assert made.rows(table) == cluster_margin(made.scores, of_row, 35, 350)


@pytest.mark.parametrize("k", [40, 390])
def test_samples_kept_apart_keep_the_distance_and_then_fills_up(tmp_path, sharded, k):
    made = Made(tmp_path, duplicates=100)
    table, close = set_selection.select_apart(made.files, made.known, k, 3.5, sharded)
    x, known = made.x.astype(float), made.known_x.astype(float)
    assert made.rows(table) == apart(x, made.scores, known, k, 3.5)
    whole = apart(x, made.scores, known, N, 3.5)
    kept = next(
        n for n, i in enumerate(whole) if any(((x[i] - c) ** 2).sum() < 3.5**2 for c in [*known, *x[whole[:n]]])
    )
    assert close == max(0, k - kept)


def test_the_smallest_scores_fill_up_in_their_order(tmp_path):
    made = Made(tmp_path)
    made.scores = np.array([0.9, 1e-14, 2e-14, 3e-14], np.float32)
    files = made.write("small", np.arange(4), np.zeros((4, D), np.float32), 1)
    table, close = set_selection.select_apart(files, None, 4, 0.5, 0)
    assert (made.rows(table), close) == ([0, 3, 2, 1], 3)


def test_scores_of_any_size_keep_their_distance(tmp_path):
    """A strategy of one's own may score by 1 / (p1 - p2)."""
    made = Made(tmp_path, duplicates=100)
    made.scores = (made.scores - np.float32(0.5)) * np.float32(1e12)
    files = made.write("large", np.arange(N), made.x, 2)
    table, close = set_selection.select_apart(files, None, 390, 3.5, 0)
    expected = apart(made.x.astype(float), made.scores, [], 390, 3.5)
    assert made.rows(table) == expected
    assert 0 < close < 390


@pytest.mark.slow
def test_in_two_rounds_the_choice_covers_almost_as_well_whatever_the_files(tmp_path, local_ray, monkeypatch):
    made = Made(tmp_path)
    x, known = made.x.astype(float), made.known_x.astype(float)

    def radius():
        chosen = made.rows(select("k_centers", made.files, made.known, 60, 2))
        assert len(set(chosen)) == 60
        return chosen, np.sqrt(np.min([((x - c) ** 2).sum(1) for c in [*known, *x[chosen]]], axis=0).max())

    _, exact = radius()
    monkeypatch.setattr(set_selection, "parts_of", lambda *_: 6)
    chosen, found = radius()
    assert found < 1.5 * exact
    other = Made(tmp_path / "other")
    other.files = other.write("again", np.arange(N)[::-1], other.x, 3)
    assert other.rows(select("k_centers", other.files, other.known, 60, 2)) == chosen
    monkeypatch.undo()
    made.x[17, 3] = np.nan
    made.files = made.write("broken", None, made.x, 2)
    cut = set_selection.divided(60, 6)
    with pytest.raises(ScoreError) as caught:
        set_selection.in_two_rounds(K_CENTERS, made.files, made.known, 60, Chance(seed=0, round=0), cut)
    assert str(caught.value).startswith("features are not finite, e.g. of the samples 17: the network diverged")


def test_every_row_is_read_once_and_dealt_to_one_part(tmp_path):
    made = Made(tmp_path, strings=True)
    *parts, shown = set_selection._deal(made.files, 5, Chance(seed=0, round=0), 0.1)
    ids = [i for part in parts for i in part.ids.to_pylist()]
    assert sorted(ids) == made.ids.tolist()
    for part in parts:
        assert 40 < len(part.ids) < 130
        rows = [int(i[1:]) for i in part.ids.to_pylist()]
        np.testing.assert_array_equal(part.vectors[0], made.x[rows])
        np.testing.assert_array_equal(part.scores, made.scores[rows])
    *again, _ = set_selection._deal(made.with_columns("feature").cut(2)[1], 5, Chance(seed=0, round=0), 0.1)
    assert 15 < len(shown.ids) < 70
    assert all(set(some.ids.to_pylist()) <= set(part.ids.to_pylist()) for some, part in zip(again, parts, strict=True))


@pytest.mark.parametrize(
    ("rows", "known", "k", "dimensions", "parts"),
    [
        (50_000, 1_000, 5_000, 64, 1),
        (1_000_000, 10_000, 10_000, 64, 1),
        (20_000_000, 1_000, 10_000, 64, 16),
        (2_000_000, 1_000, 100_000, 64, 16),
        (20_000_000, 10_000, 10_000, 64, 1),  # most of the work is for the labeled ones, in two rounds, too
        (1_000_000, 1_000, 200_000, 64, 1),  # the second round alone is nearly as much
        (10**9, 100, 100, 64, 1),  # reading is as much
        (10**9, 10_000, 100_000, 64, 239),  # a gigabyte in each at most
    ],
)
def test_two_rounds_are_for_where_they_save_work(rows, known, k, dimensions, parts):
    assert set_selection.parts_of(rows, known, k, dimensions) == parts


@pytest.mark.parametrize("strategy", ["k_centers", "badge", "cluster_margin", "apart"])
@pytest.mark.parametrize("nothing", ["no files", "no scores"])
def test_a_pool_with_nothing_left_to_choose_from_is_said(tmp_path, strategy, nothing, sharded):
    made = Made(tmp_path)
    columns = ("gradient", "feature") if strategy == "badge" else ("feature",)
    files = made.with_columns(*columns)
    if nothing == "no files":
        files = replace(files, paths=(), sizes=())
    else:
        for path in files.paths:
            table = pq.read_table(path)
            pq.write_table(table.set_column(1, "score", pa.nulls(len(table), pa.float32())), path)
    call = {
        "k_centers": lambda: select("k_centers", files, made.known, 3, sharded),
        "badge": lambda: select("badge", files, None, 3, sharded),
        "cluster_margin": lambda: select("cluster_margin", files, None, 3, sharded),
        "apart": lambda: set_selection.select_apart(files, made.known, 3, 3.5, sharded),
    }[strategy]
    with pytest.raises(ScoreError) as said:
        call()
    with pytest.raises(ScoreError) as expected:
        top_k(list(files.paths), made.where, 3)
    assert str(said.value) == str(expected.value)
    assert "3 samples are wanted, but only 0 of the pool have a score" in str(said.value)


@pytest.mark.parametrize("strategy", ["k_centers", "badge", "cluster_margin", "apart"])
def test_actors_choose_what_one_process_does(tmp_path, local_ray, monkeypatch, strategy):
    made = Made(tmp_path)
    call = {
        "k_centers": lambda: select("k_centers", made.files, made.known, 60, 2),
        "badge": lambda: select("badge", made.with_columns("gradient", "feature"), None, 60, 2),
        "cluster_margin": lambda: select("cluster_margin", made.files, None, 60, 2),
        "apart": lambda: set_selection.select_apart(made.files, made.known, 60, 3.5, 2),
    }[strategy]
    here = call()
    monkeypatch.setattr(shards, "BYTES_WORTH_AN_ACTOR", 64)
    assert call() == here


def test_rows_without_a_score_are_never_chosen(tmp_path, sharded):
    made = Made(tmp_path)
    for path in made.files.paths:
        table = pq.read_table(path)
        mask = np.array([i % 2 == 0 for i in table["id"].to_pylist()])
        scores = pa.array(table["score"].to_numpy(), pa.float32(), mask=mask)
        pq.write_table(table.set_column(1, "score", scores), path)
    rows = made.rows(select("k_centers", made.files, made.known, N // 2, sharded))
    assert sorted(rows) == list(range(1, N, 2))
    with pytest.raises(ScoreError, match=f"{N // 2 + 1} samples are wanted, but only {N // 2} of the pool"):
        select("k_centers", made.files, made.known, N // 2 + 1, sharded)


def test_references_are_drawn_among_what_can_be_chosen(tmp_path, local_ray):
    """What is rejected or held back stands in the score files without a score, and may be most of them."""
    made = Made(tmp_path)
    alone = made.write("alone", None, made.x, 1)  # a task for each file, and one for each part
    rows = pa.concat_tables([pq.read_table(path) for path in alone.paths])
    far = rows.set_column(0, "id", pa.array(made.ids + N))
    far = far.set_column(1, "score", pa.nulls(N, pa.float32()))
    among = tmp_path / "among.parquet"
    pq.write_table(pa.concat_tables([rows, *[far] * 20]), among)
    mixed = replace(alone, paths=(str(among),), sizes=(among.stat().st_size,))
    assert mixed.shape() == alone.shape()
    cut = set_selection.Rounds(parts=2, share=20, references=30)
    chance = Chance(seed=0, round=0)
    found = [
        set_selection.in_two_rounds(STRATEGIES["max_herding"], files, None, 10, chance, cut) for files in (alone, mixed)
    ]
    assert found[0].equals(found[1])


def test_features_that_are_not_finite_are_named(tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(shards, "BYTES_WORTH_AN_ACTOR", 64)
    made = Made(tmp_path)
    made.x[17, 3] = np.nan
    made.files = made.write("broken", None, made.x, 2)
    with pytest.raises(ScoreError, match=r"features are not finite, e\.g\. of the samples 17: the network diverged"):
        select("k_centers", made.files, made.known, 5, 2)


def test_shards_are_as_many_as_there_is_work_for(tmp_path):
    files = Files(where=Place.at(str(tmp_path)), paths=tuple("abcdef"), sizes=(1,) * 6)
    assert shards.count_shards(files, 16, 100_000, [64]) == 0
    assert shards.count_shards(files, 16, 500_000, [64]) == 4
    assert shards.count_shards(files, 2, 500_000, [64]) == 2
    assert shards.count_shards(files, 16, 10**8, [64]) == 6


@pytest.mark.parametrize("far", [1e4, 1e20, 3e38])
def test_one_sample_far_off_leaves_the_others_their_distances(far):
    rng = np.random.default_rng(0)
    heaps = np.repeat(rng.normal(size=(20, 8)) * 10, 10, axis=0)
    x = (heaps + rng.normal(size=(200, 8)) * 0.1).astype(np.float32)
    x[7] = far
    with shards.Shards(Rows(ids=pa.array(np.arange(200)), scores=np.ones(200, np.float32), vectors=[x]), 0) as held:
        found = K_CENTERS.select(held, 21, Chance(seed=0, round=0))["id"].to_pylist()
    assert 7 in found
    assert {i // 10 for i in found} == set(range(20))


def test_cluster_margin_costs_what_the_documents_say(tmp_path, monkeypatch):
    pairs, whole = [], Points.distances
    monkeypatch.setattr(Points, "distances", lambda p, c: pairs.append(len(p) * len(c)) or whole(p, c))
    select("cluster_margin", Made(tmp_path).files, None, 35, 0)  # ten clusters
    text = (ROOT / "docs/how-to/strategies.md").read_text(encoding="utf-8")
    stated = int(re.search(r"`cluster_margin` \| at most ([\d,]+)·N·D", text)[1].replace(",", ""))
    assert sum(pairs) <= (stated / 1_000 + 1) * 10 * N  # one more: the driver's own candidates


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["SIGKILL", "SIGSTOP and SIGKILL"])
def test_a_selection_whose_shard_is_killed_comes_out_the_same(tmp_path, local_ray, monkeypatch, caplog, number):
    """In the middle, after its first samples; a stopped process is ended by the supervisor (`run/supervisor.py`)."""
    made = Made(tmp_path)
    expected = select("k_centers", made.files, made.known, 300, 1)
    monkeypatch.setattr(shards, "BYTES_WORTH_AN_ACTOR", 2**12)
    monkeypatch.setattr(shards, "STEP_BYTES", 0)  # few samples a step: many are still to come
    struck, take = [], shards._take

    def strike_and_take(*args):
        if not struck:
            struck.extend(sorted(alive() - before))
            os.kill(struck[0], number)
            if number == signal.SIGSTOP:
                threading.Timer(1.0, os.kill, (struck[0], signal.SIGKILL)).start()
        return take(*args)

    def alive():
        return {p.pid for p in descendants(os.getpid()) if p.name.startswith("ray::Shard") and p.state != "Z"}

    before = alive()  # of the test before, which may take a moment to end
    monkeypatch.setattr(shards, "_take", strike_and_take)
    assert select("k_centers", made.files, made.known, 300, 2).equals(expected)
    assert len(struck) == 2
    assert caplog.text.count("selection lost an actor") == 1


@pytest.mark.parametrize("strategy", ["cal", "cluster_margin", "typiclust"])
def test_a_shard_in_which_nothing_can_be_chosen_is_passed_over(tmp_path, sharded, strategy):
    """All rows of its files were rejected or held back."""
    made = Made(tmp_path)
    columns = ("gradient", "feature") if strategy == "cal" else ("feature",)
    files = replace(made.write("two", None, made.x, 2), columns=columns)  # even ids, odd ids
    table = pq.read_table(files.paths[0])
    pq.write_table(table.set_column(1, "score", pa.nulls(len(table), pa.float32())), files.paths[0])
    rows = made.rows(select(strategy, files, replace(made.known, columns=columns), 20, sharded))
    assert len(set(rows)) == 20
    assert all(i % 2 for i in rows)


def test_a_selection_that_loses_an_actor_is_made_again_and_not_for_ever(caplog):
    answers = iter([RayActorError(), ObjectLostError("ab", None, ""), "the selected"])

    def selection():
        if isinstance(one := next(answers), Exception):
            raise one
        return one

    assert set_selection.attempt(selection) == "the selected"
    assert caplog.text.count("selection lost an actor") == 2
    calls = []

    def lost():
        calls.append(1)
        raise RayActorError()

    with pytest.raises(RayActorError):
        set_selection.attempt(lost)
    assert len(calls) == set_selection.ATTEMPTS
