"""Uncertainty sampling: how unsure the network is of a single sample.

Settles, B., "Active Learning Literature Survey", 2009, section 3.1.
"""

from __future__ import annotations

import math

import numpy as np

from prunefuse_ray.acquisition.probabilities import entropy_of
from prunefuse_ray.acquisition.strategy import Probabilities, Scores, Strategy

SURVEY = "Settles 2009, section 3.1"


def least_confidence(p_NC: Probabilities) -> Scores:
    """1 - probability of the likeliest class, in [0, 1 - 1/C]."""
    return (1.0 - p_NC.max(axis=1)).astype(np.float32)


def margin(p_NC: Probabilities) -> Scores:
    """1 - (largest probability - second largest), in [0, 1]."""
    top2_N2 = np.partition(p_NC, -2, axis=1)[:, -2:]
    return (1.0 - (top2_N2[:, 1] - top2_N2[:, 0])).astype(np.float32)


def entropy(p_NC: Probabilities) -> Scores:
    """Entropy of the class probabilities in nats, in [0, log C]."""
    return entropy_of(p_NC).astype(np.float32)


LEAST_CONFIDENCE = Strategy(
    name="least_confidence", wants="a low largest probability", paper=SURVEY, score=least_confidence
)
MARGIN = Strategy(name="margin", wants="two likely classes", paper=SURVEY, score=margin)
ENTROPY = Strategy(
    name="entropy",
    wants="an even distribution",
    paper=SURVEY,
    score=entropy,
    largest=lambda classes, members: math.log(classes),
)
