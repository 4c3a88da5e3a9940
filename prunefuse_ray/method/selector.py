"""From a configuration to the networks of the method: the dense one, what selects, the fused one."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from torch import nn

from prunefuse_ray import networks
from prunefuse_ray.config import Config
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.sample_format import form_of
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.storage import read_input


def network_spec(config: Config, info: PoolInfo) -> networks.NetworkSpec:
    form = form_of(config.pool, info)
    return networks.NetworkSpec(
        architecture=config.network.architecture, classes=len(info.classes), input_shape=form.network_shape
    )


def dense_network(config: Config, spec: networks.NetworkSpec) -> tuple[networks.Dense, dict[str, Any]]:
    """The dense network as it starts, from its seed or from trained weights; and what is recorded of these.

    Raises NetworkError, and ConfigError where the file of the weights cannot be read.
    """
    dense = networks.Dense(network=networks.build(spec, seed=config.run.seed), spec=spec)
    path = config.network.weights
    if path is None:
        return dense, {}
    content = read_input("network.weights", path)
    loaded = networks.load_trained(dense.network, spec, content)
    return dense, {"sha256": hashlib.sha256(content).hexdigest(), "replaced": loaded.replaced}


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
        spec = dataclasses.replace(dense.spec, architecture=architecture)
        try:
            return networks.Dense(network=networks.build(spec, seed=config.run.seed), spec=spec)
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
