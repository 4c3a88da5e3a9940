"""Fusion: a trained proxy's weights go back into the dense network that it was pruned from. Plain torch.

PruneFuse: Kousar, Bhatti and Moon, arXiv 2603.26138 (2026). The rules differ in what becomes of the other weights.
"""

from prunefuse_ray.networks.fusion.rule import FusionRule, Parts
from prunefuse_ray.registry import Registry

FUSION_RULES: Registry[FusionRule] = Registry(
    "fusion rule",
    "prunefuse_ray.networks.fusion.rule:FusionRule",
    "prunefuse_ray.fusion_rules",
    {
        "keep": "prunefuse_ray.networks.fusion.rules:KEEP",
        "function_preserving": "prunefuse_ray.networks.fusion.rules:FUNCTION_PRESERVING",
        "scaled": "prunefuse_ray.networks.fusion.rules:SCALED",
        "shrink_perturb": "prunefuse_ray.networks.fusion.rules:SHRINK_PERTURB",
        "variance_transfer": "prunefuse_ray.networks.fusion.rules:VARIANCE_TRANSFER",
        "net2wider": "prunefuse_ray.networks.fusion.rules:NET2WIDER",
        "positional": "prunefuse_ray.networks.fusion.rules:POSITIONAL",
    },
)

__all__ = ["FUSION_RULES", "FusionRule", "Parts"]
