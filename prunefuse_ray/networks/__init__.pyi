from .architectures import ARCHITECTURES, are_probabilities, build, example_input, says_pixels
from .backends import AUTO, BACKENDS, Backend, Runner
from .committee import Committee, Ensemble, Members, check_partition
from .dropout import under_masks
from .encoders import encoder_spec, vocabulary
from .files import NETWORK_FILE, WEIGHTS_FILE, Dense, Selector, from_files, to_files
from .from_pool import meet, statistics, take
from .fusion import FUSION_RULES, FusionRule, Parts
from .fusion.fuse import fuse
from .importance import IMPORTANCES
from .indices import KeptIndices, Proxy, compose, gather, scatter
from .inference import (
    WithFeatures,
    channels_last,
    features_and_logits,
    inference_form,
    lone_samples,
    recalibrate_batch_norm,
    with_features,
)
from .measure import Row, macs, parameters, pruning_table
from .precision import fast_bf16, full_float32
from .pretrained import Named, is_name, named_weights
from .probe import as_trained
from .pruning import prune, split
from .specs import NetworkError, NetworkSpec, PrecisionError, PruningSpec
from .structure import copied
from .trained import Loaded, load_trained, shard_names

__all__ = [
    "ARCHITECTURES",
    "AUTO",
    "BACKENDS",
    "FUSION_RULES",
    "IMPORTANCES",
    "NETWORK_FILE",
    "WEIGHTS_FILE",
    "Backend",
    "Committee",
    "Dense",
    "Ensemble",
    "FusionRule",
    "KeptIndices",
    "Loaded",
    "Members",
    "Named",
    "NetworkError",
    "NetworkSpec",
    "Parts",
    "PrecisionError",
    "Proxy",
    "PruningSpec",
    "Row",
    "Runner",
    "Selector",
    "WithFeatures",
    "are_probabilities",
    "as_trained",
    "build",
    "channels_last",
    "check_partition",
    "compose",
    "copied",
    "encoder_spec",
    "example_input",
    "fast_bf16",
    "features_and_logits",
    "from_files",
    "full_float32",
    "fuse",
    "gather",
    "inference_form",
    "is_name",
    "load_trained",
    "lone_samples",
    "macs",
    "meet",
    "named_weights",
    "parameters",
    "prune",
    "pruning_table",
    "recalibrate_batch_norm",
    "says_pixels",
    "scatter",
    "shard_names",
    "split",
    "statistics",
    "take",
    "to_files",
    "under_masks",
    "vocabulary",
    "with_features",
]
