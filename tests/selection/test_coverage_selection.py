"""The strategies that cover a pool, TypiClust and CAL against references of a few lines, for any number of shards."""

import tracemalloc
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.acquisition import STRATEGIES, Chance, coverage, typiclust
from prunefuse_ray.acquisition.draws import TIES
from prunefuse_ray.acquisition.fixed_point import Points, nearest
from prunefuse_ray.acquisition.max_coverage import STEPS, Coverage, Kernel
from prunefuse_ray.acquisition.probabilities import gradient_factor, softmax
from prunefuse_ray.acquisition.uncertainty import least_confidence
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.selection import set_selection, shards
from prunefuse_ray.selection.rows import Files, Rows, read, vector_column
from prunefuse_ray.selection.shards import Shards
from prunefuse_ray.storage import Place
from tests.selection.test_set_selection import C, Made, N, select

COVERAGE = {
    "max_herding": coverage.gaussian,
    "uncertainty_herding": coverage.gaussian,
    "facility_location": coverage.linear,
    "prob_cover": coverage.ball,
}


# --- references -------------------------------------------------------------------------------------------------------


def squares(a, b):
    return ((a[:, None].astype(float) - b[None].astype(float)) ** 2).sum(2)


def greedy(similar, covered, weights, k):
    """Max coverage by its definition, until nothing is to be gained: similar (N, N), covered (N,) by the labeled."""
    selected = []
    while len(selected) < k:
        gains = (weights[:, None] * np.maximum(similar - covered[:, None], 0)).sum(0)
        gains[selected] = 0
        if not gains.max():
            break
        selected.append(int(gains.argmax()))
        covered = np.maximum(covered, similar[:, selected[-1]])
    return selected


def typical(x, members):
    """Hacohen et al. 2022: the inverse of the mean distance to the 20 nearest in the cluster."""
    d = np.sqrt(squares(x[members], x[members]))
    np.fill_diagonal(d, np.inf)
    return 1 / np.sort(d, axis=1)[:, : min(20, len(members) - 1)].mean(1)


def contrasts(p, x, p_known, known):
    """Margatina et al. 2021, algorithm 1."""
    nearest = np.argsort(squares(x, known), axis=1)[:, :10]
    return [np.mean([(p_known[j] * np.log(p_known[j] / p[i])).sum() for j in nearest[i]]) for i in range(len(x))]


# --- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"strings": True}, {"clumps": 5}], ids=str)
@pytest.mark.parametrize("name", COVERAGE)
def test_coverage_is_maximized_greedily(tmp_path, sharded, change, name):
    made, chance = Made(tmp_path, **change), Chance(seed=3, round=1, classes=C)
    with Shards(read(made.files).sorted(), 0, made.known) as held:
        part = held.whole()
        kernel = COVERAGE[name](held, part, part.points, 40, chance)
        order = np.argsort(part.drawn(chance, TIES))  # by which equal gains are told apart
        known = np.concatenate([p.factors[0] for p in part.labeled()])
    x = part.points.factors[0]

    def similar(d):
        if kernel.squarings is None:
            return (d <= kernel.reach).astype(float)
        return np.rint(np.maximum(1 - d / kernel.reach, 0) ** 2**kernel.squarings * STEPS)

    weights = np.rint(made.scores.astype(float) * 1024) if name == "uncertainty_herding" else np.ones(N)
    expected = greedy(similar(squares(x, x))[:, order], similar(squares(x, known)).max(1), weights, 40)
    expected = order[expected].tolist()
    table = set_selection.select_set(STRATEGIES[name], made.files, made.known, 40, chance, sharded)
    found = made.rows(table)
    assert found[: len(expected)] == expected
    assert len(set(found)) == 40
    assert len(expected) == 40 or name == "prob_cover"


def test_where_few_samples_are_uncertain_the_next_most_uncertain_follow():
    """A network that is sure of nearly all: beside the few, the others weigh nothing."""
    rng = np.random.default_rng(0)
    scores = np.full(400, 1e-7, np.float32)
    scores[:10], scores[10:200] = 0.9, rng.uniform(1e-4, 3e-4, 190)
    x = rng.normal(size=(400, 8)).astype(np.float32)
    x[10:200, 0] += 30  # far from the others, so that none of those covers them
    rows = Rows(ids=pa.array(rng.permutation(400)), scores=scores, vectors=[x]).sorted()
    with Shards(rows, 0, None) as held:
        table = STRATEGIES["uncertainty_herding"].select(held, 60, Chance(seed=0, round=0, classes=2))
    assert table["score"].to_numpy()[-30:].min() > 1e-5


def test_copies_of_what_is_covered_do_not_fill_a_round():
    """Blank frames: the network is sure of none of them, and people have seen one."""
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    x[:60] = 5
    scores = np.full(400, 1e-7, np.float32)
    scores[:60] = 0.95
    known = Rows(ids=pa.array([1000]), scores=np.ones(1, np.float32), vectors=[x[:1].copy()])
    with Shards(Rows(ids=pa.array(np.arange(400)), scores=scores, vectors=[x]), 0, known) as held:
        found = STRATEGIES["uncertainty_herding"].select(held, 50, Chance(seed=0, round=0, classes=2))["id"]
    assert min(found.to_pylist()) >= 60


def test_where_nearly_all_are_copies_balls_cover_the_others():
    x = np.zeros((400, 16), np.float32)
    x[390:] = 3 * np.eye(16, dtype=np.float32)[:10]
    rows = Rows(ids=pa.array(np.arange(400)), scores=np.ones(400, np.float32), vectors=[x])
    with Shards(rows, 0, None) as held:
        found = STRATEGIES["prob_cover"].select(held, 11, Chance(seed=0, round=0, classes=2))["id"].to_pylist()
    assert set(range(390, 400)) < set(found)


def test_balls_of_many_classes_do_not_take_the_smallest_ids():
    """Ids may begin with the class, as the paths of images do."""
    x = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    rows = Rows(ids=pa.array(np.arange(400)), scores=np.ones(400, np.float32), vectors=[x])
    with Shards(rows, 0, None) as held:
        found = STRATEGIES["prob_cover"].select(held, 40, Chance(seed=0, round=0, classes=400))["id"].to_numpy()
    assert 100 < np.median(found) < 300


def test_as_many_classes_as_samples_leave_balls_that_hold_more_than_one():
    """Clusters of one or two samples would tell how near the nearest sample is, and nothing of classes."""
    rng = np.random.default_rng(0)
    x = (0.1 * rng.normal(size=(400, 8)) + np.repeat(rng.normal(size=(20, 8)), 20, axis=0)).astype(np.float32)
    rows = Rows(ids=pa.array(np.arange(400)), scores=np.ones(400, np.float32), vectors=[x])
    with Shards(rows, 0, None) as held:
        part = held.whole()
        reach = coverage.ball(held, part, part.points, 20, Chance(seed=0, round=0, classes=400)).reach
    inside = squares(part.points.factors[0], part.points.factors[0]) <= reach
    assert np.mean(inside.sum(1) > 1) > 0.5


def test_one_sample_far_off_does_not_make_one_ball_of_the_pool():
    x = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    x[:200, 0] += 8
    x[7] = 500
    rows = Rows(ids=pa.array(np.arange(400)), scores=np.ones(400, np.float32), vectors=[x])
    with Shards(rows, 0, None) as held:
        part = held.whole()
        reach = coverage.ball(held, part, part.points, 20, Chance(seed=0, round=0, classes=2)).reach
    assert np.sqrt(reach) / part.units[0] < 20, "the distance of the two classes is 8"


@pytest.mark.parametrize("far", [1e4, 1e6])
def test_one_sample_far_off_does_not_hide_how_the_others_lie(far):
    """A value that stands for a missing one, -9999 in a table, say."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    x[7] *= far
    rows = Rows(ids=pa.array(np.arange(200)), scores=np.ones(200, np.float32), vectors=[x])
    with Shards(rows, 0, None) as held:
        table = STRATEGIES["facility_location"].select(held, 20, Chance(seed=0, round=0, classes=2))
    found = table["id"].to_pylist()
    others = np.delete(np.arange(200), 7)
    d = squares(x[others], x[others])
    expected = others[greedy(d.max() - d, np.zeros(199), np.ones(199), 19)]
    distance = [
        np.sqrt(d[:, np.searchsorted(others, [i for i in some if i != 7])].min(1)).mean() for some in (found, expected)
    ]
    assert distance[0] <= 1.05 * distance[1]


def test_the_kernel_is_a_gaussian():
    d = np.linspace(0, 6, 100)
    one = np.zeros((1, 1))
    found = Kernel.gaussian(width=1.5).similarities(one, one[0], d[:, None], d**2)[0] / STEPS
    np.testing.assert_allclose(found, np.exp(-(d**2) / (2 * 1.5**2)), atol=0.02)


def test_the_radius_is_the_largest_at_which_the_balls_are_pure(tmp_path):
    made, chance = Made(tmp_path), Chance(seed=0, round=0, classes=C)
    with Shards(read(made.files).sorted(), 0, made.known) as held:
        part = held.whole()
        reach = coverage.ball(held, part, part.points, 40, chance).reach
        clusters = nearest(part.points, coverage.k_means(held, C, chance))[0]
    assert len(set(clusters)) == C
    d = squares(part.points.factors[0], part.points.factors[0])

    def impure(within):
        return np.mean([(d[i, clusters != clusters[i]] <= within).any() for i in range(N)])

    assert impure(reach) <= 0.05 < impure(reach + 1)


@pytest.mark.parametrize("kept", [0, 2**25])
def test_gains_stay_exact_and_the_value_is_what_was_covered(kept, monkeypatch):
    monkeypatch.setattr("prunefuse_ray.acquisition.max_coverage.KEPT_PAIRS", kept)
    rng = np.random.default_rng(0)
    x, y = (Points.of([np.rint(rng.normal(size=(n, 8)) * 1000).astype(np.float32)]) for n in (300, 200))
    weights = rng.integers(0, 1024, 200).astype(float)
    cover = Coverage(Kernel.gaussian(1500.0), x, y, weights)
    rows = cover.greedy(60)
    similar = np.rint(np.maximum(1 - squares(y.factors[0], x.factors[0]) / cover.kernel.reach, 0) ** 16 * STEPS)
    assert rows.tolist() == greedy(similar, np.zeros(200), weights, 60)
    assert cover.value() == pytest.approx((weights * similar[:, rows].max(1)).sum() / weights.sum() / STEPS)


def test_the_width_shrinks_as_labels_grow_and_does_not_mind_duplicates():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4)).astype(np.float32)
    x[1500:] = x[:500]
    with Shards(Rows(ids=pa.array(range(2000)), scores=np.ones(2000, np.float32), vectors=[x]), 0) as held:
        part = held.whole()
        reach = [
            coverage.gaussian(held, part, part.points, k, Chance(seed=0, round=0)).reach / part.units[0] ** 2
            for k in (10, 100, 1000)
        ]
    widths = np.sqrt(np.array(reach) / 32)
    assert 2 > widths[0] > 1.5 * widths[1] > 2 * widths[2] > 0.1


def test_duplicates_are_selected_when_nothing_else_is_left(tmp_path, sharded):
    made = Made(tmp_path, duplicates=150)
    rows = made.rows(select("max_herding", made.files, None, N, sharded))
    assert sorted(rows) == list(range(N))
    assert len({tuple(made.x[i]) for i in rows[: N - 150]}) == N - 150


def covered(x, known, rows, width):
    return np.exp(-squares(x, np.concatenate([known, x[rows]])) / (2 * width**2)).max(1).mean()


@pytest.mark.slow
def test_in_two_rounds_the_pool_is_covered_almost_as_well_whatever_the_files(tmp_path, local_ray, monkeypatch):
    made = Made(tmp_path, clumps=25)
    exact = made.rows(select("max_herding", made.files, made.known, 30, 2))
    monkeypatch.setattr(set_selection, "PAIRWISE_ROWS", 100)
    monkeypatch.setattr(set_selection, "REFERENCES", 200)
    found = made.rows(select("max_herding", made.files, made.known, 30, 2))
    assert len(set(found)) == 30
    assert found != exact
    by_chance = [np.random.default_rng(s).permutation(N)[:30] for s in range(20)]
    values = {name: covered(made.x, made.known_x, rows, 0.3) for name, rows in (("exact", exact), ("found", found))}
    chance = np.mean([covered(made.x, made.known_x, rows, 0.3) for rows in by_chance])
    assert values["found"] > 0.93 * values["exact"] > 1.2 * chance
    other = Made(tmp_path / "other", clumps=25)
    other.files = other.write("again", np.arange(N)[::-1], other.x, 3)
    assert other.rows(select("max_herding", other.files, other.known, 30, 1)) == found


@pytest.mark.slow
def test_a_very_large_k_is_shared_out_among_groups_of_parts(tmp_path, local_ray, monkeypatch):
    made = Made(tmp_path, clumps=25)
    monkeypatch.setattr(set_selection, "PAIRWISE_ROWS", 100)
    monkeypatch.setattr(set_selection, "GROUP_SAMPLES", 61)
    monkeypatch.setattr(set_selection, "SECOND_PAIRS", (0, 0))
    cut = set_selection.pairwise(N, 121)
    assert (cut.parts, cut.groups, cut.share) == (4, 2, 61)
    found = made.rows(select("max_herding", made.files, made.known, 121, 2))
    parts = set_selection.hash_ids(made.ids) % np.uint64(4)
    assert len(set(found)) == 121
    in_turn = parts[found[:120]].reshape(60, 2) % 2
    assert (in_turn.sum(axis=1) == 1).all(), "one of each group"


@pytest.mark.slow
def test_groups_are_not_asked_for_more_than_they_have(tmp_path, local_ray, monkeypatch):
    made = Made(tmp_path)
    monkeypatch.setattr(set_selection, "PAIRWISE_ROWS", 100)
    monkeypatch.setattr(set_selection, "GROUP_SAMPLES", 61)
    assert set_selection.pairwise(N, N).groups == 4
    assert sorted(made.rows(select("max_herding", made.files, made.known, N, 2))) == list(range(N))


@pytest.mark.parametrize(("k", "rows"), [(121, [122, 122]), (400, [93, 107, 110, 90]), (5, [1, 0, 9])], ids=str)
def test_shares_follow_what_groups_have(k, rows):
    shares = set_selection.shares_of(k, rows)
    assert sum(shares) == k
    assert all(share <= have for share, have in zip(shares, rows, strict=True))
    with pytest.raises(ScoreError, match=f"{sum(rows) + 1} samples are wanted"):
        set_selection.shares_of(sum(rows) + 1, rows)


@pytest.mark.parametrize(
    ("rows", "k", "expected"),
    [
        (2_048, 100, (1, 100, 1, 4_096)),
        (16_000, 320, (8, 320, 1, 4_096)),  # every part selects as much as is wanted
        (1_000_000, 1_000, (489, 128, 1, 4_096)),
        (1_000_000, 10_000, (489, 53, 1, 10_000)),
        (10_000_000, 1_000_000, (1_024, 1_954, 32, 31_250)),
    ],
)
def test_rounds_follow_from_sizes(rows, k, expected):
    cut = set_selection.pairwise(rows, k)
    assert (cut.parts, cut.share, cut.groups, cut.references) == expected


# --- TypiClust --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [512, 20])
def test_typiclust_takes_the_most_typical_of_clusters_without_labels_first(tmp_path, sharded, members, monkeypatch):
    """Given the clusters: those of one shard; any number finds the same."""
    monkeypatch.setattr(typiclust, "MEMBERS", members)
    monkeypatch.setattr(typiclust, "MAX_CLUSTERS", 12)
    made, chance = Made(tmp_path), Chance(seed=2, round=1)
    with Shards(read(made.files).sorted(), 0, made.known) as held:
        expected_table = typiclust.select(held, 30, chance)
        centers = typiclust.k_means(held, 12, chance)
        held.assign(centers)
        clusters, labels = held.members[0].clusters, held.labeled_clusters(centers)
    assert labels.sum() == 7
    table = select("typiclust", made.files, made.known, 30, sharded, 2, 1)
    assert table.equals(expected_table)
    found = made.rows(table)
    sizes = np.bincount(clusters, minlength=12)
    turn = sorted((g for g in range(12) if sizes[g] >= 5), key=lambda g: (labels[g], -sizes[g], g))
    assert [clusters[i] for i in found] == [turn[n % len(turn)] for n in range(30)]
    if members == 512:
        for g in turn:
            inside = np.flatnonzero(clusters == g)
            best = inside[np.argsort(-typical(made.x, inside), kind="stable")]
            assert [i for i in found if clusters[i] == g] == best[: sum(clusters[i] == g for i in found)].tolist()


# --- CAL --------------------------------------------------------------------------------------------------------------


def test_cal_selects_what_differs_most_from_its_labeled_neighbors(tmp_path, sharded):
    made = Made(tmp_path)
    known = made.write("known", None, made.known_x, 2)
    p = made.a.astype(float)
    p[np.arange(N), p.argmin(1)] += 1
    expected = np.argsort(-np.array(contrasts(p, made.x, p[:7], made.known_x)))[:50]
    columns = {"columns": ("gradient", "feature")}
    files, known = (type(f)(**{**vars(f), **columns}) for f in (made.files, known))
    found = made.rows(select("cal", files, known, 50, sharded))
    assert found == expected.tolist()


@pytest.mark.parametrize("gap", [20, 60])
def test_cal_knows_the_class_of_samples_that_the_network_is_all_too_sure_of(tmp_path, gap):
    """They are like their labeled neighbors, whatever the number of their class; the last sample is not."""
    logits = np.repeat(np.eye(3), 20, axis=0) * gap
    logits[-1] = [0, 0, 1]
    x = np.repeat(np.eye(3), 20, axis=0)

    def written(name, z, features):
        p = softmax(z)
        rows = {"id": np.arange(len(p)), "score": least_confidence(p), "feature": vector_column(np.float32(features)),
                "gradient": vector_column(gradient_factor(p))}  # fmt: skip
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(rows), path)
        where = Place.at(str(tmp_path))
        return Files(where=where, paths=(str(path),), sizes=(1,), columns=("gradient", "feature"))

    known = written("known", np.repeat(np.eye(3), 12, axis=0) * 8, np.repeat(np.eye(3), 12, axis=0))
    assert select("cal", written("pool", logits, x), known, 1, 1)["id"].to_pylist() == [59]


@pytest.mark.parametrize(
    "name", ["max_herding", *(pytest.param(n, marks=pytest.mark.slow) for n in ("typiclust", "cal"))]
)
def test_actors_select_what_one_process_does(tmp_path, local_ray, monkeypatch, name):
    made = Made(tmp_path)
    columns = {"columns": ("gradient", "feature") if name == "cal" else ("feature",)}
    files, known = (type(f)(**{**vars(f), **columns}) for f in (made.files, made.known))
    here = select(name, files, known, 60, 2)
    monkeypatch.setattr(shards, "BYTES_WORTH_AN_ACTOR", 64)
    assert select(name, files, known, 60, 2) == here


def test_how_sure_the_network_is_of_all_makes_no_difference_to_herding():
    rng = np.random.default_rng(0)
    x, scores = rng.normal(size=(400, 8)).astype(np.float32), rng.integers(1, 40, 400).astype(np.float32) / 40
    found = []
    for scale in (1, 2.0**-14):
        rows = Rows(ids=pa.array(np.arange(400)), scores=scores * np.float32(scale), vectors=[x.copy()])
        with Shards(rows, 0) as held:
            selected = STRATEGIES["uncertainty_herding"].select(held, 10, Chance(seed=0, round=0))
            found.append(selected["id"].to_pylist())
    assert found[0] == found[1]


def test_typicality_takes_no_room_for_all_pairs_and_bears_duplicates():
    x = np.rint(np.random.default_rng(0).normal(size=(4_000, 2)) * 1000).astype(np.float32)
    x[:30] = 5
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = typiclust.typicality(Points.of([x]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isinf(found[:30]).all()
    assert np.isfinite(found[30:]).all()
    assert peak < 64 * 2**20


def test_only_clusters_that_take_share_the_room_for_typiclusts_members(tmp_path, monkeypatch):
    made, seen, drawn = Made(tmp_path), [], typiclust._drawn
    monkeypatch.setattr(typiclust, "MEMBER_BYTES", 4 * made.x.shape[1] * 3 * 40)  # 40 members in each of three
    monkeypatch.setattr(typiclust, "_drawn", lambda part, m, chance: seen.append(m) or drawn(part, m, chance))
    with Shards(read(made.files), 0, made.known) as held:  # 3 and 7 labeled: ten clusters
        typiclust.select(held, 3, Chance(seed=0, round=0))
    assert sorted(seen[0].tolist())[-4:] == [0, 40, 40, 40]
