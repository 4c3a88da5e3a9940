"""Disagreement of committees against its definitions."""

import numpy as np
import pytest
import scipy.stats

from prunefuse_ray.acquisition.disagreement import bald, consensus_kl, vote_entropy
from prunefuse_ray.acquisition.probabilities import softmax


def test_disagreement_is_what_its_definitions_say():
    p = softmax(np.random.default_rng(0).normal(0, 3, (3, 50, 4)).astype(np.float32))
    for i in range(50):
        mean = p[:, i].mean(0)
        members = [scipy.stats.entropy(p[m, i]) for m in range(3)]
        assert bald(p)[i] == pytest.approx(scipy.stats.entropy(mean) - np.mean(members), abs=1e-6)
        divergences = [scipy.stats.entropy(p[m, i], mean) for m in range(3)]
        assert consensus_kl(p)[i] == pytest.approx(max(divergences), abs=1e-6)
        votes = np.bincount(p[:, i].argmax(1), minlength=4) / 3
        expected = 0.999 * scipy.stats.entropy(votes) + 0.001 * bald(p)[i]
        assert vote_entropy(p)[i] == pytest.approx(expected, abs=1e-6)


def test_equal_votes_are_ordered_by_how_sure_the_members_are():
    p = np.array([[[0.51, 0.49], [0.99, 0.01], [0.9, 0.1]], [[0.49, 0.51], [0.01, 0.99], [0.8, 0.2]]])
    assert np.argsort(-vote_entropy(p)).tolist() == [1, 0, 2]


def test_sure_members_do_not_outweigh_a_vote():
    """A hundred members: 50 to 50 and hardly sure, against 51 to 49 and sure."""
    even = [[0.51, 0.49]] * 50 + [[0.49, 0.51]] * 50
    odd = [[1.0, 0.0]] * 51 + [[0.0, 1.0]] * 49
    scores = vote_entropy(np.array([even, odd]).transpose(1, 0, 2))
    assert scores[0] > scores[1]


@pytest.mark.parametrize("score", [bald, consensus_kl, vote_entropy])
def test_members_that_agree_disagree_about_nothing(score):
    one = softmax(np.random.default_rng(1).normal(0, 50, (1, 20, 5)).astype(np.float32))
    broken = np.repeat(one, 2, axis=0)
    broken[1, 3] = np.nan  # one member diverged: its argmax is a class none the less
    assert np.flatnonzero(np.isnan(score(broken))).tolist() == [3]
    np.testing.assert_array_equal(score(np.repeat(one, 2, axis=0)), np.zeros(20, np.float32))
