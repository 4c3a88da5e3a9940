"""Dense networks by name, their pruned proxies, and fusion: plain torch, nothing of Ray."""

from prunefuse_ray.networks.architectures import ARCHITECTURES, build, example_input
from prunefuse_ray.networks.files import NETWORK_FILE, WEIGHTS_FILE, Dense, from_files, to_files
from prunefuse_ray.networks.fusion import FUSION_RULES, fuse
from prunefuse_ray.networks.indices import KeptIndices, Proxy, compose, gather, scatter
from prunefuse_ray.networks.inference import features_and_logits, inference_form, recalibrate_batch_norm
from prunefuse_ray.networks.measure import Row, macs, parameters, pruning_table
from prunefuse_ray.networks.pruning import prune
from prunefuse_ray.networks.specs import IMPORTANCES, NetworkError, NetworkSpec, PruningSpec
from prunefuse_ray.networks.trained import Loaded, load_trained

__all__ = [
    "ARCHITECTURES",
    "FUSION_RULES",
    "IMPORTANCES",
    "NETWORK_FILE",
    "WEIGHTS_FILE",
    "Dense",
    "KeptIndices",
    "Loaded",
    "NetworkError",
    "NetworkSpec",
    "Proxy",
    "PruningSpec",
    "Row",
    "build",
    "compose",
    "example_input",
    "features_and_logits",
    "from_files",
    "fuse",
    "gather",
    "inference_form",
    "load_trained",
    "macs",
    "parameters",
    "prune",
    "pruning_table",
    "recalibrate_batch_norm",
    "scatter",
    "to_files",
]
