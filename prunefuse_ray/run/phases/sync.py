"""The phase `sync` (T_sync of the paper): the fused network, pruned for the next rounds' proxy."""

from __future__ import annotations

from prunefuse_ray import networks
from prunefuse_ray.method.selector import make_selector, proxies, trusted
from prunefuse_ray.method.steps import FINETUNE, Step
from prunefuse_ray.run.context import Done, RunContext


def run(context: RunContext, step: Step) -> Done:
    """Prune the fine-tuned fused network."""
    config = context.config
    fused = networks.from_files(context.ledger.read_network(Step(step.round, FINETUNE), "fused"), trusted(config))
    proxy = make_selector(config, networks.Dense(network=fused.network, spec=fused.spec))
    return Done(outputs={f"{proxies(config, 'next')}/{k}": v for k, v in networks.to_files(proxy).items()})
