"""What a run is: the schema of its configuration, and how it is read from files and options."""

from prunefuse_ray.config.schema import (
    Annotation,
    Config,
    Distillation,
    Fusion,
    Network,
    Pool,
    Positive,
    Prepared,
    Pruning,
    Recipe,
    Run,
    Scoring,
    Section,
    Selection,
    UntestedPool,
    Workers,
)

__all__ = [
    "Annotation",
    "Config",
    "Distillation",
    "Fusion",
    "Network",
    "Pool",
    "Positive",
    "Prepared",
    "Pruning",
    "Recipe",
    "Run",
    "Scoring",
    "Section",
    "Selection",
    "UntestedPool",
    "Workers",
]
