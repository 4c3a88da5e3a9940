"""What of a run's pool may be learned from without labels, and what is known of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.prepared import chunk_rows, decoded
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.data.stream import decoded_rows, decoded_stream, spans
from prunefuse_ray.data.unlabeled import Unlabeled
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.method.steps import GROW, LABEL, PRETRAIN, SCORE, SELECT, Step, steps
from prunefuse_ray.run.class_counts import class_counts
from prunefuse_ray.run.context import RunContext
from prunefuse_ray.schemas import REJECTED, arrow_type, held_back_schema

HELD_BACK = "held_back.parquet"
PARTS = 64
"""That the driver looks through side by side."""


def unlabeled(context: RunContext, round_: int, validation: pa.Array) -> Unlabeled:
    """The samples that a training of a round may learn from without their labels: all of the pool but those held out
    for validation, those of the contents that the pool has still to be compared with, rejected ones, and those that
    the last selection has held back as foreign (each judges all that is left, by a better network than the one
    before). A pool that no phase has looked through yet is looked through first.

    Args:
        validation: ids of the labeled samples that are held out.
    """
    if not _looked_through(context):
        _look_through(context)
    id_type = arrow_type(context.info.id_type)
    rejected = context.ledger.rejected()["id"].cast(id_type).combine_chunks()
    return Unlabeled(
        source=context.pool,
        exclude=pa.concat_arrays([validation.cast(id_type), rejected, _held_back(context, round_)]),
        held_out=context.held_out_contents,
    )


def _held_back(context: RunContext, round_: int) -> pa.Array:
    """None yet in a pre-training, which comes before the first selection."""
    selected = [Step(round_, SELECT)] if round_ >= 0 else []
    return context.ledger.tables(selected, HELD_BACK, held_back_schema(context.info.id_type))["id"].combine_chunks()


def _looked_through(context: RunContext) -> bool:
    """Whether a phase has decoded all that the pool has by now. A pre-training that was decided against has not."""
    looked = False
    for step in steps(context.config):
        if (commit := context.ledger.committed(step)) is None:
            continue
        if step.phase == GROW and commit.metrics["samples"]:
            looked = False
        elif step.phase in (PRETRAIN, SCORE) and commit.metrics.get("method") != "none":
            looked = True
    return looked


def _look_through(context: RunContext) -> None:
    """Decode the whole pool once, into the prepared pool where there is one, and record what cannot be decoded: by the
    driver where it also scores the pool itself, else by tasks on all machines. ScoreError where that is too much."""
    tables: list[Any]
    if context.scoring.here:
        parts = spans(context.pool, chunk_rows(context.form), PARTS)
        tables = context.here(partial(_unusable_in, form=context.form), parts)
    else:
        rows = decoded_stream(context.pool, context.form)
        found = rows.map_batches(_unusable, batch_format="pyarrow", batch_size=None, num_cpus=0.25)
        with plain_errors():
            tables = list(found.iter_batches(batch_format="pyarrow", batch_size=None))
    context.note_rejected(pa.concat_tables([REJECTED.empty_table(), *(t.cast(REJECTED) for t in tables if t.num_rows)]))


def _unusable_in(source: Source, form: Form) -> pa.Table:
    found = [_unusable(decoded_rows(chunk)) for chunk in decoded(source, form)]
    return pa.concat_tables([REJECTED.empty_table(), *found])


def _unusable(rows: pa.Table) -> pa.Table:
    """(id, reason) of those of `decoded_stream`'s rows that cannot be decoded."""
    bad = rows.filter(pc.is_valid(rows["rejected"]))
    return pa.table({"id": bad["id"].cast(pa.string()), "reason": bad["rejected"]}).cast(REJECTED)


def prior(context: RunContext, round_: int) -> tuple[float, ...]:
    """The shares of the classes in the pool, as far as labels tell: those of the initial set where that was drawn at
    random, since later labels are of samples that a strategy wanted; else those of all labels. No class has none."""
    first = context.ledger.labels([Step(0, LABEL)], context.info.id_type)
    chance = context.config.selection.initial == "random" and first.num_rows
    return shares(
        class_counts(context.config.task, first if chance else context.labels(round_), len(context.info.classes))
    )


def shares(counts: Sequence[int]) -> tuple[float, ...]:
    """Shares of classes of which so many labels were drawn, brought towards equal ones by as much of their unevenness
    as chance explains (James-Stein shrinkage: Hausser and Strimmer 2009, JMLR 10, section 2). Guesses that are aligned
    to the raw shares would learn the noise of the draw: of 1,000 labels of ten equal classes some 4 % of them. At least
    as much as by one more label of each class, so that no class has none."""
    n, classes = sum(counts), len(counts)
    p_C = [count / n for count in counts] if n else [0.0] * classes
    uneven = sum((p - 1 / classes) ** 2 for p in p_C)
    if n < 2 or not uneven:
        return (1 / classes,) * classes
    by_chance = (1 - sum(p * p for p in p_C)) / (n - 1)
    chance = min(1.0, max(classes / (n + classes), by_chance / uneven))
    return tuple(chance / classes + (1 - chance) * p for p in p_C)
