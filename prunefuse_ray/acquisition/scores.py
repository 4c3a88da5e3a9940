"""Scores of single samples: uncertainty of a network's prediction, or chance.

Settles, B., "Active Learning Literature Survey", 2009, section 3.1, for the uncertainty measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.floating]


def softmax(logits_NC: Floats) -> npt.NDArray[np.float64]:
    """Class probabilities (N, C) of logits (N, C), in float64."""
    z_NC = logits_NC.astype(np.float64)
    z_NC = z_NC - z_NC.max(axis=1, keepdims=True)
    e_NC = np.exp(z_NC)
    return e_NC / e_NC.sum(axis=1, keepdims=True)


def least_confidence(logits_NC: Floats) -> npt.NDArray[np.float32]:
    """1 - probability of the likeliest class, in [0, 1 - 1/C]."""
    return (1.0 - softmax(logits_NC).max(axis=1)).astype(np.float32)


def margin(logits_NC: Floats) -> npt.NDArray[np.float32]:
    """1 - (largest probability - second largest), in [0, 1]."""
    top2_N2 = np.partition(softmax(logits_NC), -2, axis=1)[:, -2:]
    return (1.0 - (top2_N2[:, 1] - top2_N2[:, 0])).astype(np.float32)


def entropy(logits_NC: Floats) -> npt.NDArray[np.float32]:
    """Entropy of the class probabilities in nats, in [0, log C]."""
    return _entropy(softmax(logits_NC)).astype(np.float32)


def consensus(logits: Floats) -> Floats:
    """Logits (N, C) of a network's outputs: as they are; of a committee's (M, N, C), those of the members' mean
    probability."""
    if logits.ndim == 2:
        return logits
    return np.log(np.maximum(_each_softmax(logits).mean(axis=0), np.finfo(np.float64).tiny))


def bald(logits_MNC: Floats) -> npt.NDArray[np.float32]:
    """Mutual information in nats between a sample's label and which member is right, in [0, log M]: the entropy of the
    mean probability less the mean entropy. Houlsby et al., "Bayesian Active Learning for Classification and Preference
    Learning", 2011 (arXiv 1112.5745)."""
    p_MNC = _each_softmax(logits_MNC)
    return np.maximum(_entropy(p_MNC.mean(axis=0)) - _entropy(p_MNC).mean(axis=0), 0.0).astype(np.float32)


def vote_entropy(logits_MNC: Floats) -> npt.NDArray[np.float32]:
    """Entropy in nats of the members' votes, in [0, log M]. Dagan and Engelson, "Committee-Based Sampling for Training
    Probabilistic Classifiers", 1995. Few members give few values: ties break by id."""
    classes = logits_MNC.shape[2]
    votes_NC = (logits_MNC.argmax(axis=2)[..., None] == np.arange(classes)).mean(axis=0)
    entropy_N = _entropy(votes_NC)
    entropy_N[~np.isfinite(logits_MNC).all(axis=(0, 2))] = np.nan  # argmax makes a vote of NaN, too
    return entropy_N.astype(np.float32)


def consensus_kl(logits_MNC: Floats) -> npt.NDArray[np.float32]:
    """Divergence in nats of the member that differs most, KL(member || mean probability), in [0, log M]. McCallum and
    Nigam, "Employing EM and Pool-Based Active Learning for Text Classification", 1998, take the members' mean instead
    of the largest, which is `bald`."""
    p_MNC = _each_softmax(logits_MNC)
    tiny = np.finfo(np.float64).tiny
    log_ratio = np.log(np.maximum(p_MNC, tiny)) - np.log(np.maximum(p_MNC.mean(axis=0), tiny))
    return np.maximum((p_MNC * log_ratio).sum(axis=2).max(axis=0), 0.0).astype(np.float32)


def _each_softmax(logits_MNC: Floats) -> npt.NDArray[np.float64]:
    return softmax(logits_MNC.reshape(-1, logits_MNC.shape[-1])).reshape(logits_MNC.shape)


def _entropy(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the last axis, in nats."""
    return -np.sum(p * np.log(np.maximum(p, np.finfo(np.float64).tiny)), axis=-1)


def hash_ids(ids_N: npt.NDArray) -> npt.NDArray[np.uint64]:
    """64-bit hashes of ids (strings or integers), the same in every process and on every machine."""
    return pd.util.hash_array(ids_N, categorize=False)


def gradient_factor(logits_NC: Floats) -> npt.NDArray[np.float32]:
    """p - y (N, C), y the one-hot predicted class: the gradient of the cross-entropy, at the label that the network
    would give itself, with respect to the logits. Times the features it is BADGE's gradient embedding."""
    a_NC = softmax(logits_NC)
    a_NC[np.arange(len(a_NC)), logits_NC.argmax(axis=1)] -= 1.0
    return a_NC.astype(np.float32)


def random_scores(ids_N: npt.NDArray, seed: int, round_: int) -> npt.NDArray[np.float32]:
    """Uniform scores in [0, 1) that depend on (id, seed, round) alone, so neither order nor sharding matters."""
    return (mix(hash_ids(ids_N), seed, round_) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def mix(hashes_N: npt.NDArray[np.uint64], seed: int, round_: int) -> npt.NDArray[np.uint64]:
    """64 random bits of each (hash, seed, round)."""
    x_N = hashes_N ^ np.uint64((seed * 0x9E3779B97F4A7C15 + round_ * 0xD1B54A32D192ED03) % 2**64)
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the input reaches every bit of the output.
    with np.errstate(over="ignore"):
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


@dataclass(frozen=True)
class Strategy:
    """An acquisition strategy. `score` maps logits (N, C) to scores (N,); None where no network is asked.

    Strategies that choose a set by more than these scores say what else the choice reads.
    """

    name: str
    score: Callable[[Floats], npt.NDArray[np.float32]] | None
    features: bool = False
    """The penultimate features: a set strategy."""
    gradients: bool = False
    """The factor `gradient_factor`."""
    labeled: bool = False
    """The features of the labeled samples, too."""
    members: bool = False
    """Only for a committee: `score` takes its members' logits (M, N, C)."""


STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        Strategy("least_confidence", least_confidence),
        Strategy("margin", margin),
        Strategy("entropy", entropy),
        Strategy("bald", bald, members=True),
        Strategy("vote_entropy", vote_entropy, members=True),
        Strategy("consensus_kl", consensus_kl, members=True),
        Strategy("random", None),
        Strategy("k_centers", least_confidence, features=True, labeled=True),
        Strategy("badge", least_confidence, features=True, gradients=True),
        Strategy("cluster_margin", margin, features=True),
    )
}
