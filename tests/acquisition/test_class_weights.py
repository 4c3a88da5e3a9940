"""Preferences among classes."""

import numpy as np
import pytest

from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.acquisition.class_weights import class_weights, weighted
from prunefuse_ray.errors import ScoreError


def test_weights_are_the_inverse_frequency_smoothed():
    counts = np.array([1000, 100, 10])
    weights = class_weights(counts, balance=1.0)
    assert weights[2] == 1
    assert weights[0] < weights[1] < 0.5
    assert weights[0] == pytest.approx((10 + 37 + 1) / (1000 + 37 + 1))  # a tenth of the mean, and one
    np.testing.assert_allclose(class_weights(counts, balance=0.5), weights**0.5)
    assert class_weights(counts).tolist() == [1, 1, 1]
    assert class_weights([0, 0]).tolist() == [1, 1]


def test_a_class_without_labels_has_the_largest_weight_and_a_finite_one():
    weights = class_weights([0, 50, 50], balance=1.0)
    assert weights.max() == weights[0] == 1
    assert (weights > 0).all()


def test_wanted_classes_count_more():
    assert class_weights([5, 5, 5], wanted=[1]).tolist() == [0.125, 1, 0.125]
    assert class_weights([5, 5, 5], wanted=[0, 2], others=0.0).tolist() == [1, 0, 1]


def test_scores_count_as_much_as_the_classes_that_are_expected():
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    scores = weighted(np.array([0.2, 1, 0.2], np.float32), p, (1.0, 0.25))
    np.testing.assert_allclose(scores, [0.2 * 0.925, 0.625, 0.2 * 0.325], rtol=1e-6)
    assert scores.dtype == np.float32


def test_the_strategy_for_rare_classes_is_their_probability():
    p = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    scores = weighted(STRATEGIES["rare_classes"].score(p), p, class_weights([1, 2, 3, 4], wanted=[1, 3], others=0.0))
    np.testing.assert_allclose(scores, p[:, 1] + p[:, 3], rtol=1e-6)


def test_scores_below_zero_are_not_weighed():
    """The smallest weight would make them the most wanted; what rounding leaves below 0 is as good as 0."""
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    with pytest.raises(ScoreError, match="scores below 0"):
        weighted(np.array([-0.9, -0.9], np.float32), p, (0.2, 1.0))
    assert weighted(np.array([-1e-8, 0.5], np.float32), p, (0.2, 1.0)).argmax() == 1
