from .architectures import ARCHITECTURES, build, example_input
from .backends import Runner, has_openvino, runner
from .committee import (
    COMMITTEE_RULES,
    Committee,
    Ensemble,
    Members,
    check_partition,
    consensus,
    fuse_committee,
)
from .files import NETWORK_FILE, WEIGHTS_FILE, Dense, Selector, from_files, to_files
from .fusion import FUSION_RULES, fuse
from .indices import KeptIndices, Proxy, compose, gather, scatter
from .inference import (
    channels_last,
    features_and_logits,
    inference_form,
    recalibrate_batch_norm,
)
from .measure import Row, macs, parameters, pruning_table
from .precision import fast_bf16
from .pruning import prune, split
from .specs import IMPORTANCES, NetworkError, NetworkSpec, PruningSpec
from .trained import Loaded, load_trained

__all__ = [
    "ARCHITECTURES",
    "COMMITTEE_RULES",
    "FUSION_RULES",
    "IMPORTANCES",
    "NETWORK_FILE",
    "WEIGHTS_FILE",
    "Committee",
    "Dense",
    "Ensemble",
    "KeptIndices",
    "Loaded",
    "Members",
    "NetworkError",
    "NetworkSpec",
    "Proxy",
    "PruningSpec",
    "Row",
    "Runner",
    "Selector",
    "build",
    "channels_last",
    "check_partition",
    "compose",
    "consensus",
    "example_input",
    "fast_bf16",
    "features_and_logits",
    "from_files",
    "fuse",
    "fuse_committee",
    "gather",
    "has_openvino",
    "inference_form",
    "load_trained",
    "macs",
    "parameters",
    "prune",
    "pruning_table",
    "recalibrate_batch_norm",
    "runner",
    "scatter",
    "split",
    "to_files",
]
