"""Acquisition strategies: plain numpy and Arrow, one file a family. Higher score = more wanted."""

from prunefuse_ray.acquisition.auto import AUTO
from prunefuse_ray.acquisition.hashing import hash_ids, random_scores
from prunefuse_ray.acquisition.strategy import Candidates, Chance, Part, Selected, Strategy
from prunefuse_ray.registry import Registry

STRATEGIES: Registry[Strategy] = Registry(
    "acquisition strategy",
    "prunefuse_ray.acquisition.strategy:Strategy",
    "prunefuse_ray.strategies",
    {
        "least_confidence": "prunefuse_ray.acquisition.uncertainty:LEAST_CONFIDENCE",
        "margin": "prunefuse_ray.acquisition.uncertainty:MARGIN",
        "entropy": "prunefuse_ray.acquisition.uncertainty:ENTROPY",
        "random": "prunefuse_ray.acquisition.random:RANDOM",
        "bald": "prunefuse_ray.acquisition.disagreement:BALD",
        "vote_entropy": "prunefuse_ray.acquisition.disagreement:VOTE_ENTROPY",
        "consensus_kl": "prunefuse_ray.acquisition.disagreement:CONSENSUS_KL",
        "variance": "prunefuse_ray.acquisition.disagreement:VARIANCE",
        "k_centers": "prunefuse_ray.acquisition.k_centers:K_CENTERS",
        "badge": "prunefuse_ray.acquisition.badge:BADGE",
        "cluster_margin": "prunefuse_ray.acquisition.cluster_margin:CLUSTER_MARGIN",
        "cal": "prunefuse_ray.acquisition.cal:CAL",
        "typiclust": "prunefuse_ray.acquisition.typiclust:TYPICLUST",
        "prob_cover": "prunefuse_ray.acquisition.coverage:PROB_COVER",
        "max_herding": "prunefuse_ray.acquisition.coverage:MAX_HERDING",
        "uncertainty_herding": "prunefuse_ray.acquisition.coverage:UNCERTAINTY_HERDING",
        "facility_location": "prunefuse_ray.acquisition.coverage:FACILITY_LOCATION",
        "rare_classes": "prunefuse_ray.acquisition.rare_classes:RARE_CLASSES",
    },
)

__all__ = ["AUTO", "STRATEGIES", "Candidates", "Chance", "Part", "Selected", "Strategy", "hash_ids", "random_scores"]
