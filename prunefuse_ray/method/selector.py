"""From a configuration to the networks of the method: the dense one, what selects, the fused one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from prunefuse_ray import networks
from prunefuse_ray.config import Config
from prunefuse_ray.config.networks import encoder_folder
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.sample_format import form_of, tokenizer_file
from prunefuse_ray.data.texts import TokenForm
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.networks.from_pool import STATISTICS
from prunefuse_ray.networks.pretrained import FILES
from prunefuse_ray.storage import Place, below, parted, read_input
from prunefuse_ray.tasks import TASKS


def network_spec(config: Config, info: PoolInfo) -> networks.NetworkSpec:
    form = form_of(config.pool, info)
    spec = spec_of(config.network.architecture, len(info.classes), form.network_shape)
    if isinstance(form, TokenForm) and form.vocabulary > (known := networks.vocabulary(spec)):
        raise ConfigError(
            f"pool.tokenizer: knows {form.vocabulary} tokens, but the encoder of network.architecture {known}: name "
            "the tokenizer that it was trained with"
        )
    return spec


def spec_of(architecture: str, classes: int, shape: tuple[int, ...]) -> networks.NetworkSpec:
    """A network by its name in a configuration: of `transformers:FOLDER` with what the folder says of it."""
    folder = encoder_folder(architecture)
    if folder is None:
        return networks.NetworkSpec(architecture=architecture, classes=classes, input_shape=shape)
    return networks.encoder_spec(folder, _encoder_config(folder), classes=classes, length=shape[0])


def _encoder_config(folder: str) -> bytes:
    return read_input("network.architecture", folder, "config.json")


def input_digests(config: Config) -> dict[str, str]:
    """Field -> SHA-256 of what it names that the form of the samples and the shape of the network depend on, as far as
    it is still there."""
    found = {}
    if (folder := encoder_folder(config.network.architecture)) is not None:
        with suppress(ConfigError):
            found["network.architecture"] = hashlib.sha256(_encoder_config(folder)).hexdigest()
    if config.pool.tokenizer is not None:
        with suppress(ConfigError):
            found["pool.tokenizer"] = hashlib.sha256(tokenizer_file(config.pool.tokenizer)).hexdigest()
    return found


def dense_network(
    config: Config, spec: networks.NetworkSpec, statistics: bytes | None = None
) -> tuple[networks.Dense, dict[str, Any]]:
    """The dense network as it starts, from its seed (and what it takes of the pool) or from trained weights; and what
    is recorded of these.

    Raises NetworkError, and ConfigError where the file of the weights cannot be read.
    """
    dense = networks.Dense(network=networks.build(spec, seed=config.run.seed), spec=spec)
    check_outputs(config, dense, "network.architecture")
    if statistics is not None:
        networks.take(dense.network, statistics)
    path = config.network.weights
    if path is None:
        return dense, {}
    named = networks.named_weights(path, spec.architecture) if networks.is_name(path) else None
    content, shards = _weight_files(path if named is None else named.file)
    loaded = networks.load_trained(dense.network, spec, content, shards)
    digest, notes = _digest(content, shards), [*loaded.notes(), *_normalized(config, named)]
    return dense, {"sha256": digest, **dataclasses.asdict(loaded), "notes": notes}


def _normalized(config: Config, named: networks.Named | None) -> list[str]:
    """What is to be said where the weights were trained on images that were normalized otherwise."""
    if named is None or named.mean is None or named.std is None:
        return []
    mine, theirs = (config.pool.mean, config.pool.std), (list(named.mean), list(named.std))
    each = tuple(own * len(of) if len(own) == 1 else own for own, of in zip(mine, theirs, strict=True))
    if each == theirs:
        return []
    return [
        f"trained with mean {theirs[0]} and std {theirs[1]}, and pool.mean is {mine[0]}, pool.std {mine[1]}: set them "
        "to the same"
    ]


def check_outputs(config: Config, network: networks.Dense, field: str) -> None:
    """ConfigError where a network says a class for every pixel and the task wants one for the whole, or otherwise."""
    if (wanted := TASKS[config.task].pixels) != networks.says_pixels(network.network, network.spec):
        found, remedy = (
            ("one class for a whole image", "fcn_resnet20, torchvision:fcn_resnet50, deeplabv3_resnet50 or the like")
            if wanted
            else ("a class for every pixel", "another network, or task segmentation")
        )
        raise ConfigError(f"{field}: {network.spec.architecture} says {found}; for task '{config.task}' use {remedy}")


def weights_digest(path: str) -> str:
    """SHA-256 of the file of the weights; of an index, of it and of the files that it names."""
    return _digest(*_weight_files(path))


def _weight_files(path: str) -> tuple[bytes, dict[str, bytes]]:
    """The file (of a folder the one in it that transformers would read), and where it is an index, those beside it.
    ConfigError where one of them cannot be read."""
    if (folder := Place.at(path)).is_directory:
        inside = next((name for name in FILES if (folder / name).exists()), None)
        if inside is None:
            raise ConfigError(
                f"network.weights: the folder '{path}' has none of {', '.join(FILES)}: name the file, or set "
                "network.weights to null to begin with random weights"
            )
        path = below(path, inside)
    content, parent = read_input("network.weights", path), parted(path)[0]
    names = networks.shard_names(content)
    return content, {name: read_input("network.weights", below(parent, name)) for name in names}


def _digest(content: bytes, shards: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(content)
    for name in sorted(shards):
        digest.update(shards[name])
    return digest.hexdigest()


def trusted(config: Config) -> tuple[str, ...]:
    """The architectures that the configuration names: of all code that a saved network may ask for, only theirs."""
    return config.network.architecture, config.selection.selector.partition(":")[2]


def proxies(config: Config, parent: str = "proxies") -> str:
    """Where below a step's directory the selecting network lies; a committee's members are 0, 1, ... in it."""
    return parent if config.pruning.committee > 1 else f"{parent}/0"


def make_selector(config: Config, dense: networks.Dense) -> networks.Selector:
    """What selects, with its initial weights: a proxy pruned from `dense` or a committee of them, `dense` itself, or
    another architecture."""
    kind, _, architecture = config.selection.selector.partition(":")
    if kind == "dense":
        return dense
    if kind == "svp":
        if dense.spec.config is not None:
            raise ConfigError(
                f"selection.selector: '{config.selection.selector}' does not read the tokens of "
                f"{dense.spec.architecture}: use proxy or dense"
            )
        if architecture in STATISTICS:
            raise ConfigError(
                f"selection.selector: '{config.selection.selector}' begins with statistics of the pool, which only "
                "network.architecture takes: name another network, or set network.architecture to it and "
                "selection.selector to proxy or dense"
            )
        spec = dataclasses.replace(dense.spec, architecture=architecture)
        try:
            other = networks.Dense(network=networks.build(spec, seed=config.run.seed), spec=spec)
            check_outputs(config, other, "selection.selector")
            return other
        except networks.NetworkError as error:
            reason = str(error).removeprefix("network.architecture: ")
            raise ConfigError(f"selection.selector: {reason}") from error
    members = config.pruning.committee
    pruning = networks.PruningSpec(**config.pruning.model_dump(exclude={"committee"}), seed=config.run.seed)
    if members > 1:
        return networks.Committee(networks.split(dense.network, dense.spec, pruning, members))
    return networks.prune(dense.network, dense.spec, pruning)


def fused_network(config: Config, dense: nn.Module, selector: networks.Selector) -> nn.Module:
    """`dense` with the selector's weights in it. Raises NetworkError where the configured rule cannot be applied."""
    assert isinstance(selector, networks.Proxy | networks.Committee)  # config: only pruned proxies can be fused
    rule = config.fusion.rule
    parameters = config.fusion.model_dump(include=set(networks.FUSION_RULES[rule].parameters))
    return networks.fuse(dense, selector, rule, **parameters)
