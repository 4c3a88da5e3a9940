"""The phase `request`: what people are asked about, before their labels are taken."""

from __future__ import annotations

from prunefuse_ray.data.pool import Source
from prunefuse_ray.method.selector import proxies, trusted
from prunefuse_ray.method.steps import TRAIN, Step
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.labeling import TABLE, request_table
from prunefuse_ray.run.phases.select import selected_of
from prunefuse_ray.scoring.predictions import predict


def run(context: RunContext, step: Step) -> Done:
    """The selected samples, and what the proxy of the round before makes of them."""
    selected = selected_of(context, step.round)
    written = context.copy_samples(step, "samples", selected["id"].combine_chunks())
    guesses = None
    if step.round:
        source = Source(
            fs=context.ledger.root.fs,
            sample_column="sample",
            files=tuple(f.path for f in written),
            sizes=tuple(f.size for f in written),
        )
        guesses = predict(
            source,
            context.ledger.read_network(Step(step.round - 1, TRAIN), proxies(context.config)),
            context.form,
            task=context.config.task,
            units=context.fitted_task(step.round - 1).units,
            trusted=trusted(context.config),
            in_process=context.training.in_process,
        )
    return Done(
        outputs={TABLE: request_table(selected, guesses, context.info.id_type, context.task)},
        metrics={"samples": selected.num_rows},
        written=written,
    )
