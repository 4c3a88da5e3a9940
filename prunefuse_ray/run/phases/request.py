"""The phase `request`: what people are asked about, before their labels are taken."""

from __future__ import annotations

from prunefuse_ray.method.selector import proxies, trusted
from prunefuse_ray.method.steps import TRAIN, Step
from prunefuse_ray.run import drawn_set
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.labeling import TABLE, TEST_SAMPLES, request_table
from prunefuse_ray.run.phases.select import selected_of
from prunefuse_ray.scoring.predictions import predict


def run(context: RunContext, step: Step) -> Done:
    """The selected samples, and what the proxy of the round before makes of them. In round 0 also those of a test set
    that was drawn from the pool: in one order with the others, so that nobody labels them with other care."""
    selected = selected_of(context, step.round)
    written = context.copy_samples(step, "samples", selected["id"].combine_chunks())
    guesses = None
    if step.round:
        guesses = predict(
            context.copied(written),
            context.ledger.read_network(Step(step.round - 1, TRAIN), proxies(context.config)),
            context.form,
            task=context.config.task,
            units=context.fitted_task(step.round - 1).units,
            trusted=trusted(context.config),
            in_process=context.training.in_process,
        )
    tested = drawn_set.ids(context, step)
    asked = drawn_set.unknown(context, tested)
    copies = context.copy_samples(step, TEST_SAMPLES, tested, test=True) if len(tested) else []
    rows = drawn_set.shuffled(selected, asked) if len(asked) else selected
    return Done(
        outputs={TABLE: request_table(rows, guesses, context.info.id_type, context.task)},
        metrics={"samples": rows.num_rows, **({"of_test_set": len(asked)} if len(tested) else {})},
        written=[*written, *copies],
    )
