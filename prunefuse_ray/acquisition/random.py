"""Random selection: the baseline of every comparison. A hash of the id decides (`hashing.random_scores`)."""

from prunefuse_ray.acquisition.strategy import Strategy

RANDOM = Strategy(name="random", wants="nothing: equal chances")
