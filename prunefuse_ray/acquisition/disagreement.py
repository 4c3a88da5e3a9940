"""Query by committee: how much the members of a committee disagree about a single sample."""

from __future__ import annotations

import math

import numpy as np

from prunefuse_ray.acquisition.probabilities import entropy_of
from prunefuse_ray.acquisition.strategy import Probabilities, Scores, Strategy

TIES = 1e-3
"""Share of `bald` in `vote_entropy`, at most."""


def bald(p_MNC: Probabilities) -> Scores:
    """Mutual information in nats between a sample's label and which member is right, in [0, log M]: the entropy of the
    mean probability less the mean entropy. Houlsby et al., "Bayesian Active Learning for Classification and Preference
    Learning", 2011 (arXiv 1112.5745)."""
    return np.maximum(entropy_of(p_MNC.mean(axis=0)) - entropy_of(p_MNC).mean(axis=0), 0.0).astype(np.float32)


def vote_entropy(p_MNC: Probabilities) -> Scores:
    """Entropy in nats of the members' votes, in [0, log M]. Dagan and Engelson, "Committee-Based Sampling for Training
    Probabilistic Classifiers", 1995. Few members give few values: a small share of it is `bald`, which decides among
    equal votes, weighs less than one vote, and is 0 where there is nothing to disagree about."""
    members, _, classes = p_MNC.shape
    # Of two classes, equal votes and those with one more on a side are about 2 / members² apart.
    ties = min(TIES, 1 / (members**2 * max(1.0, math.log(min(members, classes)))))
    votes_NC = (p_MNC.argmax(axis=2)[..., None] == np.arange(classes)).mean(axis=0)
    entropy_N = (1 - ties) * entropy_of(votes_NC) + ties * bald(p_MNC)
    entropy_N[~np.isfinite(p_MNC).all(axis=(0, 2))] = np.nan  # argmax makes a vote of NaN, too
    return entropy_N.astype(np.float32)


def consensus_kl(p_MNC: Probabilities) -> Scores:
    """Divergence in nats of the member that differs most, KL(member || mean probability), in [0, log M]. McCallum and
    Nigam, "Employing EM and Pool-Based Active Learning for Text Classification", 1998, take the members' mean instead
    of the largest, which is `bald`."""
    tiny = np.finfo(np.float64).tiny
    log_ratio = np.log(np.maximum(p_MNC, tiny)) - np.log(np.maximum(p_MNC.mean(axis=0), tiny))
    return np.maximum((p_MNC * log_ratio).sum(axis=2).max(axis=0), 0.0).astype(np.float32)


def variance(p_MNC: Probabilities) -> Scores:
    """Variance of the members' probabilities, summed over the classes, in [0, 1 - 1/M]: 0 where all say the same. Of
    numbers instead of probabilities it is query by committee for regression: Burbidge, Rowland and King, "Active
    Learning for Regression Based on Query by Committee", 2007."""
    return p_MNC.var(axis=0).sum(axis=-1).astype(np.float32)


def _log_members(classes: int, members: int) -> float:
    return math.log(members)


BALD = Strategy(
    name="bald",
    wants="committee members that are each sure of a different class",
    paper="Houlsby et al. 2011 (arXiv 1112.5745)",
    score=bald,
    largest=_log_members,
    members=True,
)
VOTE_ENTROPY = Strategy(
    name="vote_entropy",
    wants="committee members that vote for different classes",
    paper="Dagan, Engelson 1995",
    score=vote_entropy,
    largest=_log_members,
    members=True,
)
VARIANCE = Strategy(
    name="variance",
    wants="committee members whose predictions lie far apart",
    paper="Burbidge, Rowland, King 2007",
    score=variance,
    largest=lambda classes, members: 1.0 - 1.0 / members,
    members=True,
)
CONSENSUS_KL = Strategy(
    name="consensus_kl",
    wants="one committee member far from the mean of all",
    paper="McCallum, Nigam 1998",
    score=consensus_kl,
    largest=_log_members,
    members=True,
)
