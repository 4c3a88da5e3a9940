"""What the figures of a run depend on beside its configuration: versions, the processor, code of the user's own."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prunefuse_ray.config import Config
from prunefuse_ray.distributed.machine import cores, cpu
from prunefuse_ray.networks.architectures import is_custom

PACKAGES = (
    "torch",
    "torchvision",
    "torch-pruning",
    "numpy",
    "pillow",
    "onnxruntime",
    "openvino",
    "timm",
    "transformers",
)
"""Those that compute scores or decode samples."""


def environment(config: Config) -> dict[str, dict[str, str]]:
    """What there is: versions and the driver's machine, and the SHA-256 of each file of the user's own code that the
    configuration names. What such a file imports is not looked at."""
    versions = {**dict(_versions()), "training": "on GPUs" if config.workers.gpu else "on CPUs"}
    return {"versions": versions, "code": {name: _digest(name) for name in _own_modules(config)}}


def changes(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What people should know where a run goes on in another environment than that in which it began."""
    told = []
    versions, old = now["versions"], before.get("versions", {})
    if others := [name for name in old if versions.get(name) != old[name]]:
        began = ", ".join(f"{name} {old[name]}" for name in others)
        found = ", ".join(f"{name} {versions.get(name, 'not installed')}" for name in others)
        told.append(
            f"{found}: the run began with {began}; scores are equal only up to rounding then, and the same seed may "
            "select other samples"
        )
    for module, digest in before.get("code", {}).items():
        if digest and now["code"].get(module) not in (None, "", digest):
            told.append(
                f"{module}: your code has changed since the run began; what is done is kept, the rest is done by the "
                "code as it is now"
            )
    return told


def _versions() -> Iterator[tuple[str, str]]:
    for package in ("prunefuse-ray", *PACKAGES):
        with suppress(PackageNotFoundError):
            yield package, version(package)
    yield "processor", cpu()[0]
    yield "cores", str(cores())


def _own_modules(config: Config) -> list[str]:
    named = (
        config.network.architecture,
        config.selection.selector.removeprefix("svp:"),
        config.selection.strategy,
        config.selection.initial,
        config.task,
        config.pool.source,
        config.fusion.rule,
        config.scoring.backend,
    )
    return sorted({name.partition(":")[0] for name in named if is_custom(name)})


def _digest(module: str) -> str:
    """Of the module's file; of one that has none (a notebook's), or cannot be found, an empty word."""
    with suppress(ImportError, ValueError, OSError):
        loaded = sys.modules.get(module)
        found = loaded.__spec__ if loaded is not None else importlib.util.find_spec(module)
        if found is not None and found.origin is not None:
            return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
    return ""
