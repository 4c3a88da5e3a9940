"""Scores against values worked out by hand, and hashes that never change."""

import numpy as np
import pytest

from prunefuse_ray.acquisition import entropy, hash_ids, least_confidence, margin, random_scores, softmax

PROBABILITIES = np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.06, 0.04]])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 7


def test_softmax_inverts_the_logarithm_and_survives_large_logits():
    np.testing.assert_allclose(softmax(LOGITS), PROBABILITIES, rtol=1e-5)
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0]], np.float32)), [[1, 0]])


def test_least_confidence():
    np.testing.assert_allclose(least_confidence(LOGITS), [0.5, 2 / 3, 0.1], rtol=1e-4)


def test_margin():
    np.testing.assert_allclose(margin(LOGITS), [0.75, 1.0, 1 - 0.84], rtol=1e-4)


def test_entropy():
    expected = [
        -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)),
        np.log(3),
        -np.sum(PROBABILITIES[2] * np.log(PROBABILITIES[2])),
    ]
    np.testing.assert_allclose(entropy(LOGITS), expected, rtol=1e-4)
    assert np.isfinite(entropy(np.array([[1e4, 0.0]], np.float32))).all()


@pytest.mark.parametrize("score", [least_confidence, margin, entropy])
def test_nan_logits_give_nan_scores(score):
    assert np.isnan(score(np.array([[np.nan, 1.0]], np.float32))).all()


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
