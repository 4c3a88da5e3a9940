"""The phase `learn`: what the dense network takes from the pool before any label."""

from __future__ import annotations

import torch

from prunefuse_ray import networks
from prunefuse_ray.acquisition.draws import STATISTICS
from prunefuse_ray.errors import PoolError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.networks.from_pool import SAMPLES
from prunefuse_ray.run.context import Done, RunContext

STATISTICS_FILE = "statistics.safetensors"


def run(context: RunContext, step: Step) -> Done:
    """Statistics of the pool, or of SAMPLES of its samples, for the network's architecture."""
    drawn, values_N = context.drawn(SAMPLES, *STATISTICS)
    if not len(values_N):
        raise PoolError("pool.path: none of its samples can be read; name the right column")
    inputs = context.form.inputs(torch.from_numpy(values_N))
    found = networks.statistics(context.config.network.architecture, inputs)
    return Done(
        outputs={STATISTICS_FILE: found},
        metrics={"samples": len(values_N), "unreadable": drawn - len(values_N), "pool": context.info.rows},
    )
