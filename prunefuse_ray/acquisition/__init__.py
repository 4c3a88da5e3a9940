"""Acquisition strategies on plain arrays: how much a sample is wanted. Higher = more wanted."""

from prunefuse_ray.acquisition.scores import (
    STRATEGIES,
    Strategy,
    entropy,
    hash_ids,
    least_confidence,
    margin,
    random_scores,
    softmax,
)

__all__ = [
    "STRATEGIES",
    "Strategy",
    "entropy",
    "hash_ids",
    "least_confidence",
    "margin",
    "random_scores",
    "softmax",
]
