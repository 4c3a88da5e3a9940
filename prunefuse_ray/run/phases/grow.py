"""The phase `grow`: files that have come into the pool since it was last looked at."""

from __future__ import annotations

from prunefuse_ray.data.draw import outside
from prunefuse_ray.method.steps import Step, to_select
from prunefuse_ray.run import growth
from prunefuse_ray.run.context import Done, RunContext, too_few


def run(context: RunContext, step: Step) -> Done:
    """Take in the new files. Where the next round would still find too few samples nothing is recorded, so that the
    same command looks again."""
    outputs, metrics = growth.grow(context.config, context.ledger, context.info)
    labels = context.labels(step.round).num_rows
    rejected = context.ledger.rejected()  # also those of a drawn test set, which are none of the pool's samples
    gone = labels + len(context.unknown(step.round)) + outside(rejected, context.drawn_test).num_rows
    left = context.info.rows + metrics["samples"] - gone
    if left < (wanted := to_select(context.config, step.round + 1, labels)):
        raise too_few(step.round + 1, wanted, left)
    return Done(outputs=outputs, metrics=metrics)
