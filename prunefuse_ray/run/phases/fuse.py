"""The phase `fuse`: the trained proxy's weights go back into the network that it was pruned from."""

from __future__ import annotations

from prunefuse_ray import networks
from prunefuse_ray.method.selector import fused_network, proxies, trusted
from prunefuse_ray.method.steps import FINETUNE, INIT, PRETRAIN, TRAIN, Step, base, pretrained_target
from prunefuse_ray.run.context import Done, RunContext


def run(context: RunContext, step: Step) -> Done:
    """The target network before its training: fused, or for comparisons the dense one as it was initialized, or
    pre-trained where it selects itself."""
    config, ledger = context.config, context.ledger
    origin = base(config, step.round)
    if pretrained_target(config):
        files = ledger.read_network(Step(-1, PRETRAIN), proxies(config, "pretrained"))
    elif origin.phase == INIT:
        files = ledger.read_network(origin, "dense")
    else:
        files = ledger.read_network(Step(origin.round, FINETUNE), "fused")
    dense = networks.from_files(files, trusted(config))
    target = dense.network
    if config.fusion.target == "fused":
        proxy = networks.from_files(ledger.read_network(Step(step.round, TRAIN), proxies(config)), trusted(config))
        target = fused_network(config, target, proxy)
    fused = networks.to_files(networks.Dense(network=target, spec=dense.spec))
    return Done(outputs={f"fused-initial/{k}": v for k, v in fused.items()})
