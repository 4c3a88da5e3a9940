"""Scoring backends: what runs a network while a pool is scored. One file a library; nothing of pools, rounds or Ray."""

from prunefuse_ray.networks.backends.backend import Backend, Runner
from prunefuse_ray.registry import Registry

BACKENDS: Registry[Backend] = Registry(
    "scoring backend",
    "prunefuse_ray.networks.backends.backend:Backend",
    "prunefuse_ray.backends",
    {
        "eager": "prunefuse_ray.networks.backends.pytorch:EAGER",
        "torch": "prunefuse_ray.networks.backends.pytorch:TORCH",
        "compile": "prunefuse_ray.networks.backends.pytorch:COMPILE",
        "openvino": "prunefuse_ray.networks.backends.openvino:OPENVINO",
    },
)

AUTO = "auto"
"""In place of a backend's name: whichever is fastest, of those that say when they are worth trying (`Backend.auto`)."""

__all__ = ["AUTO", "BACKENDS", "Backend", "Runner"]
