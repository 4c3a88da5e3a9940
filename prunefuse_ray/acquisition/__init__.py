"""Acquisition strategies on plain arrays: how much a sample is wanted. Higher = more wanted."""

from prunefuse_ray.acquisition.fixed_point import Points, cluster_sums, exponent, means, nearest_center, to_fixed
from prunefuse_ray.acquisition.greedy import OPEN, TAKEN, TOO_CLOSE, Front, Rule, clocks, first_keys, take_in_turn
from prunefuse_ray.acquisition.quotas import place_in_group, round_robin, turn_order
from prunefuse_ray.acquisition.scores import (
    STRATEGIES,
    Strategy,
    bald,
    consensus,
    consensus_kl,
    entropy,
    gradient_factor,
    hash_ids,
    least_confidence,
    margin,
    random_scores,
    softmax,
    vote_entropy,
)

__all__ = [
    "OPEN",
    "STRATEGIES",
    "TAKEN",
    "TOO_CLOSE",
    "Front",
    "Points",
    "Rule",
    "Strategy",
    "bald",
    "clocks",
    "cluster_sums",
    "consensus",
    "consensus_kl",
    "entropy",
    "exponent",
    "first_keys",
    "gradient_factor",
    "hash_ids",
    "least_confidence",
    "margin",
    "means",
    "nearest_center",
    "place_in_group",
    "random_scores",
    "round_robin",
    "softmax",
    "take_in_turn",
    "to_fixed",
    "turn_order",
    "vote_entropy",
]
