"""What a run is: the schema of its configuration, and how it is read from files and options."""

from prunefuse_ray.config.networks import Distillation, Fusion, Network, Pruning
from prunefuse_ray.config.pool import Pool, UntestedPool
from prunefuse_ray.config.schema import Annotation, Config, Run
from prunefuse_ray.config.scoring import Prepared, Scoring
from prunefuse_ray.config.section import Positive, Section
from prunefuse_ray.config.selection import Selection
from prunefuse_ray.config.training import Coreset, Pretraining, Recipe, Unlabeled, Workers

__all__ = [
    "Annotation",
    "Config",
    "Coreset",
    "Distillation",
    "Fusion",
    "Network",
    "Pool",
    "Positive",
    "Prepared",
    "Pretraining",
    "Pruning",
    "Recipe",
    "Run",
    "Scoring",
    "Section",
    "Selection",
    "Unlabeled",
    "UntestedPool",
    "Workers",
]
