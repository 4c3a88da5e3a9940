"""Trained weights by name: the file in the cache of the library that knows the name, downloaded by it where it is not
there yet. What is in the file is read by `trained.py`, like any other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from prunefuse_ray import progress
from prunefuse_ray.networks.specs import NetworkError, first_line
from prunefuse_ray.networks.trained import shard_names

LIBRARIES = ("torchvision", "timm", "huggingface")
DEFAULT = "DEFAULT"
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a repository or folder in Hugging Face's form may hold its weights in; the first one counts, as there."""
REBASED = ("googlenet", "inception_v3")
"""Of torchvision's networks those whose weights were trained on values from -1 to 1. With `weights=` torchvision builds
them so that they bring images there from ImageNet's mean and deviation (`transform_input`), which ours do not."""
PATTERNS = ["model*.safetensors*", "pytorch_model*.bin*"]


@dataclass(frozen=True, kw_only=True)
class Named:
    """Weights that a library knows by name."""

    file: str
    """In the library's cache on this machine; of an index the others lie beside it."""
    mean: tuple[float, ...] | None
    """By which the images were normalized in training, where the library says so."""
    std: tuple[float, ...] | None


def is_name(weights: str) -> bool:
    library, colon, _ = weights.partition(":")
    return bool(colon) and library in LIBRARIES and "://" not in weights


def named_weights(weights: str, architecture: str) -> Named:
    """The file of the weights `torchvision:NAME` or `torchvision:DEFAULT`, `timm:NAME` or `timm:DEFAULT`, or
    `huggingface:OWNER/NAME[@REVISION]`.

    Raises:
        NetworkError: a name that the library does not have for this architecture, or that cannot be downloaded.
    """
    library, _, name = weights.partition(":")
    if library == "huggingface":
        return Named(file=_of_hub(weights, *_repository(weights, name)), mean=None, std=None)
    family, _, model = architecture.rpartition(":")
    if family != library:
        raise NetworkError(
            f"network.weights: '{weights}' is for an architecture of {library}, and network.architecture is "
            f"'{architecture}': name {library}:NAME there, or give a file"
        )
    return (_of_torchvision if library == "torchvision" else _of_timm)(weights, name, model)


def _of_torchvision(weights: str, name: str, model: str) -> Named:
    from torchvision import models

    known = models.get_model_weights(model).__members__
    if name not in known:
        given = ", ".join(f"torchvision:{one}" for one in known) or "none"
        raise NetworkError(f"network.weights: torchvision has no '{name}' for {model}; it has {given}")
    entry: Any = known[name]
    transforms = entry.transforms()
    mean, std = getattr(transforms, "mean", None), getattr(transforms, "std", None)
    if model in REBASED:
        mean = std = [0.5] * 3
    return Named(file=_of_url(weights, entry.url), mean=mean and tuple(mean), std=std and tuple(std))


def _of_timm(weights: str, name: str, model: str) -> Named:
    try:
        import timm
    except ImportError as error:
        raise NetworkError(
            f"network.weights: '{weights}' needs the timm extra; pip install 'prunefuse-ray[timm]'"
        ) from error
    wanted = model if name == DEFAULT else name
    try:
        config = timm.get_pretrained_cfg(wanted) if timm.is_model(wanted.partition(".")[0]) else None
    except RuntimeError:  # a network that it has, with a tag that it has not
        config = None
    if config is None or wanted.partition(".")[0] != model.partition(".")[0]:
        given = ", ".join(f"timm:{one}" for one in timm.list_pretrained(f"{model.partition('.')[0]}.*")) or "none"
        raise NetworkError(f"network.weights: timm has no '{name}' for {model}; it has {given}")
    if config.hf_hub_id:
        files = (config.hf_hub_filename,) if config.hf_hub_filename else FILES
        file = _of_hub(weights, config.hf_hub_id, None, files)
    elif config.url:
        file = _of_url(weights, str(config.url))
    else:
        raise NetworkError(f"network.weights: timm has no trained weights of {wanted}; give a file")
    return Named(file=file, mean=config.mean, std=config.std)


def _of_url(weights: str, url: str) -> str:
    """The file in torch.hub's cache (TORCH_HOME), by the last part of its address."""
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.exists(file):
        # Compares the file's digest with the one in its name.
        load = torch.hub.load_state_dict_from_url
        _fetched(weights, file, url, lambda: load(url, map_location="cpu", check_hash=True, weights_only=True))
    return file


def _repository(weights: str, name: str) -> tuple[str, str | None]:
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise NetworkError(f"network.weights: '{weights}' names no repository: write huggingface:OWNER/NAME")
    return repository, revision or None


def _of_hub(weights: str, repository: str, revision: str | None, files: tuple[str, ...] = FILES) -> str:
    """The file in the Hugging Face cache (HF_HOME). What is there is taken: the network is asked only for the rest."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise NetworkError(
            f"network.weights: '{weights}' needs huggingface_hub; pip install 'prunefuse-ray[timm]'"
        ) from error

    def folder(local: bool) -> str:
        patterns = [*PATTERNS, *files]
        return snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=local)

    def found(where: str) -> str | None:
        return next((path for name in files if _whole(path := os.path.join(where, name))), None)

    try:
        if (file := found(folder(local=True))) is not None:
            return file
    except OSError:
        pass  # nothing of it is here
    where = _fetched(weights, "the Hugging Face cache", f"https://huggingface.co/{repository}", lambda: folder(False))
    if (file := found(where)) is None:
        raise NetworkError(f"network.weights: '{weights}' holds none of {', '.join(files)}; give a file")
    return file


def _whole(path: str) -> bool:
    """Whether a file is there; of an index, whether all that it names is: a download may have been stopped between."""
    if not os.path.exists(path) or not path.endswith(".json"):
        return os.path.exists(path)
    names = shard_names(Path(path).read_bytes())
    return all(os.path.exists(os.path.join(os.path.dirname(path), name)) for name in names)


def _fetched(weights: str, where: str, url: str, fetch: Callable[[], Any]) -> Any:
    try:
        with progress.waiting():  # for the other side: over a slow line nothing else moves here for minutes
            return fetch()
    except (OSError, URLError, RuntimeError, ValueError) as error:  # no network, no such file, another digest
        raise NetworkError(
            f"network.weights: '{weights}' is not in {where}, and cannot be downloaded ({first_line(error)}): let this "
            f"machine reach {url}, put the file there, or name a file"
        ) from error
