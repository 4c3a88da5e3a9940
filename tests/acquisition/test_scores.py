"""Scores against values worked out by hand, and hashes that never change."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefuse_ray.acquisition import draws, hash_ids, random_scores
from prunefuse_ray.acquisition.draws import HELD_OUT
from prunefuse_ray.acquisition.fixed_point import Points, cluster_sums, exponent, nearest, to_fixed
from prunefuse_ray.acquisition.greedy import clocks
from prunefuse_ray.acquisition.probabilities import gradient_factor, softmax
from prunefuse_ray.acquisition.quotas import place_in_group, round_robin
from prunefuse_ray.acquisition.uncertainty import entropy, least_confidence, margin
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.method.steps import FINETUNE, round_seed

PROBABILITIES = np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.06, 0.04]])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 7


def test_softmax_inverts_the_logarithm_and_survives_large_logits():
    np.testing.assert_allclose(softmax(LOGITS), PROBABILITIES, rtol=1e-5)
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0]], np.float32)), [[1, 0]])


def test_least_confidence():
    np.testing.assert_allclose(least_confidence(PROBABILITIES), [0.5, 2 / 3, 0.1], rtol=1e-4)


def test_margin():
    np.testing.assert_allclose(margin(PROBABILITIES), [0.75, 1.0, 1 - 0.84], rtol=1e-4)


def test_entropy():
    expected = [
        -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)),
        np.log(3),
        -np.sum(PROBABILITIES[2] * np.log(PROBABILITIES[2])),
    ]
    np.testing.assert_allclose(entropy(PROBABILITIES), expected, rtol=1e-4)
    assert np.isfinite(entropy(softmax(np.array([[1e4, 0.0]], np.float32)))).all()


@pytest.mark.parametrize("score", [least_confidence, margin, entropy])
def test_nan_logits_give_nan_scores(score):
    assert np.isnan(score(softmax(np.array([[np.nan, 1.0]], np.float32)))).all()


def test_hashes_are_the_same_in_every_process_and_release():
    # Known values: a changed hash would change the initial set of every run.
    assert hash_ids(np.array(["digit-0000"], object))[0] == 10512393404740898256
    assert hash_ids(np.array([7], np.int64))[0] == 1346066267577507604


def test_random_scores_depend_on_id_seed_and_round_alone():
    ids = np.array([f"s{i}" for i in range(5000)], object)
    scores = random_scores(ids, 0, 0)
    order = np.random.default_rng(0).permutation(len(ids))
    np.testing.assert_array_equal(random_scores(ids[order], 0, 0), scores[order])
    for other in (random_scores(ids, 1, 0), random_scores(ids, 0, 1)):
        assert abs(np.corrcoef(scores, other)[0, 1]) < 0.05
    counts, _ = np.histogram(scores, 10, (0, 1))
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.9)
    assert scores.min() >= 0
    assert scores.max() < 1


def test_random_scores_of_consecutive_integers_are_uniform():
    counts, _ = np.histogram(random_scores(np.arange(10_000), 3, 2), 10, (0, 1))
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.9)


def test_the_gradient_factor_is_p_minus_the_predicted_class():
    expected = PROBABILITIES - np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(gradient_factor(PROBABILITIES), expected, atol=1e-5)


def test_clocks_are_exponential_and_depend_on_the_id_alone():
    ids = np.arange(20_000)
    times = clocks(ids, 0, 0)
    np.testing.assert_array_equal(clocks(ids[::-7], 0, 0), times[::-7])
    assert times.min() > 0
    for quantile in (0.1, 0.5, 0.9, 0.99):  # share of times below t: 1 - exp(-t)
        assert np.mean(times < -np.log(1 - quantile)) == pytest.approx(quantile, abs=0.02)
    assert abs(np.corrcoef(times, clocks(ids, 0, 1))[0, 1]) < 0.03


def test_draws_for_different_purposes_have_nothing_in_common():
    """Clocks, initial set, random choices and held-out samples all hash the same ids with the same seed."""
    ids = np.array([f"s{i}" for i in range(20_000)], object)
    found = {("random", r): random_scores(ids, 0, r) for r in (0, 1, 2, HELD_OUT)}
    found |= {("clock", r): np.exp(-clocks(ids, 0, r)) for r in (0, 1, 2)}
    for (one, x), (other, y) in itertools.combinations(found.items(), 2):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.03, (one, other)
        both = np.mean((x > 0.9) & (y > 0.9))  # what a choice looks at: the extremes
        assert both == pytest.approx(0.01, abs=0.003), (one, other)


@pytest.mark.parametrize("seed", [0, 1, 7, 2_001])
def test_no_two_purposes_have_the_numbers_of_a_draw_in_common(seed):
    rounds, config = range(-1, 1_001), config_from_tree({"run": {"seed": seed}})
    by_round = {name: {(seed, getattr(draws, name) + r) for r in rounds} for name in BY_ROUND}
    fixed_seed = {name: {value} for name, value in vars(draws).items() if isinstance(value, tuple)}
    others = {
        "random": {(seed, r) for r in rounds},
        "HELD_OUT": {(seed, HELD_OUT)},
        "CORE_SET": {(round_seed(config, r, FINETUNE), draws.CORE_SET) for r in rounds},
    }
    numbers = by_round | fixed_seed | others
    assert numbers.keys() == {name for name in vars(draws) if name.isupper()} | {"random"}, "all of them"
    meet = {frozenset(pair) for pair in itertools.combinations(numbers, 2) if numbers[pair[0]] & numbers[pair[1]]}
    assert meet == (KEPT if seed == 0 else set())


BY_ROUND = ("RACES", "FILLING", "TIES", "TYPICAL", "SHOWN")
KEPT = {frozenset({"STATISTICS", "RACES"}), frozenset({"TEST_SET", "TYPICAL"})}
"""What recorded runs depend on (`acquisition/draws.py`)."""


# --- points in fixed point ---


def fixed(values):
    return to_fixed(values.astype(np.float32).copy(), exponent(float(np.abs(values).max()), values.shape[1]))


@pytest.mark.parametrize("d", [1, 3, 64, 1000, 2048])
def test_distances_are_those_of_exact_integers_however_the_rows_are_cut(d):
    rng = np.random.default_rng(d)
    x = fixed(rng.normal(size=(37, d)) * 10.0 ** rng.integers(-3, 3, d))
    points = Points.of([x])
    whole = points.distances(points)
    exact = [[sum((int(a) - int(b)) ** 2 for a, b in zip(p, q, strict=True)) for p in x[:5]] for q in x[:4]]
    assert [[int(v) for v in row] for row in whole[:4, :5]] == exact
    for rows in (slice(0, 1), slice(5, 12), slice(36, 37)):
        for centers in (slice(0, 37), slice(7, 8)):
            np.testing.assert_array_equal(
                points.take(rows).distances(points.take(centers)), whole[centers, rows], strict=True
            )


def test_distances_of_outer_products_are_those_of_the_embeddings():
    rng = np.random.default_rng(0)
    a, h = rng.normal(size=(20, 4)), rng.normal(size=(20, 9))
    points = Points.of([fixed(a), fixed(h)])
    g = np.einsum("nc,nd->ncd", *(f.astype(float) for f in points.factors)).reshape(20, -1)
    expected = ((g[:, None] - g[None]) ** 2).sum(2)
    np.testing.assert_allclose(points.distances(points), expected, rtol=1e-9, atol=1e-9 * expected.max())
    assert (np.diag(points.distances(points)) == 0).all()


def test_fixed_point_keeps_values_to_a_millionth_of_the_largest():
    x = np.random.default_rng(0).normal(size=(50, 2048)).astype(np.float32)
    power = exponent(float(np.abs(x).max()), 2048)
    np.testing.assert_allclose(np.ldexp(to_fixed(x.copy(), power), -power), x, atol=2e-6 * np.abs(x).max())
    assert exponent(0.0, 8) == 0


def test_cluster_sums_add_up_whatever_the_shards():
    rng = np.random.default_rng(0)
    points, centers = Points.of([fixed(rng.normal(size=(5000, 6)))]), Points.of([fixed(rng.normal(size=(9, 6)))])
    found, squares = nearest(points, centers)
    np.testing.assert_array_equal(found, points.distances(centers).argmin(0))
    np.testing.assert_array_equal(squares, points.distances(centers).min(0))
    sums, counts = cluster_sums(points, found, 9)
    for k in range(9):
        np.testing.assert_array_equal(sums[k], points.factors[0][found == k].astype(float).sum(0))
    parts = [cluster_sums(points.take(s), found[s], 9) for s in (slice(0, 1234), slice(1234, 5000))]
    np.testing.assert_array_equal(parts[0][0] + parts[1][0], sums)
    assert counts.sum() == 5000


# --- quotas ---


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.data())
def test_round_robin_is_taking_one_each_in_turn(sizes, data):
    k = data.draw(st.integers(0, sum(sizes)))
    taken, turn = [0] * len(sizes), sorted(range(len(sizes)), key=lambda g: (sizes[g], g))
    while sum(taken) < k:
        for g in turn:
            if taken[g] < sizes[g] and sum(taken) < k:
                taken[g] += 1
    assert round_robin(sizes, k).tolist() == taken


def test_places_in_groups_count_from_zero():
    assert place_in_group(np.array([2, 2, 2, 5, 7, 7])).tolist() == [0, 1, 2, 0, 0, 1]
    assert place_in_group(np.array([], int)).tolist() == []
