"""The phase `label`: the labels of the selected samples, from the oracle (a column of the pool) or from people."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray.config import Config
from prunefuse_ray.data.draw import outside, within
from prunefuse_ray.data.labeled_set import check_masks
from prunefuse_ray.errors import LabelError
from prunefuse_ray.method.steps import REQUEST, Step
from prunefuse_ray.run import drawn_set
from prunefuse_ray.run.class_counts import class_counts, warn_of_missing
from prunefuse_ray.run.context import UNKNOWN, Done, RunContext
from prunefuse_ray.run.labeling import annotator_of, labeled, request_of, wait_for_labels
from prunefuse_ray.run.phases.select import selected_of


def decide(config: Config, step: Step, labels: int, tested: int = 0) -> Literal["nobody", "oracle", "people"]:
    """Who gives the labels of a round that begins with so many. An initial set of known labels alone asks nobody.

    Args:
        tested: samples of a test set that is labeled with this round and has no label yet.
    """
    if step.round == 0 and labels == config.selection.budgets[0] and not tested:
        return "nobody"
    return "oracle" if config.annotation.kind == "oracle" else "people"


def run(context: RunContext, step: Step) -> Done:
    known = context.labels(step.round - 1)
    done = _done(context, step, known.num_rows)
    labels = done.outputs["labels.parquet"]
    assert isinstance(labels, pa.Table)
    if context.task.pixels and labels.num_rows:
        check_masks(context.copied(done.written), labels)
    classes = context.info.classes
    counts = class_counts(context.config.task, pa.concat_tables([known, labels]), len(classes))
    if not context.task.numbers:
        warn_of_missing(counts, classes, step.round)
    return replace(done, metrics={**done.metrics, "class_counts": counts})


def _done(context: RunContext, step: Step, before: int) -> Done:
    tested = drawn_set.ids(context, step)
    known = drawn_set.known(context)
    match decide(context.config, step, before, len(tested) - known.num_rows):
        case "nobody":
            given = context.labels_schema.empty_table()
            done = Done(outputs={"labels.parquet": given}, metrics={"labels": before})
        case "oracle":
            done, given = _from_oracle(context, step, before), known
        case "people":
            done, given = _from_people(context, step, before, tested)
    if not len(tested):
        return done
    own = drawn_set.taken(context, step, pa.concat_tables([known, given]))
    return Done(
        outputs={**done.outputs, **own.outputs},
        metrics={**done.metrics, **own.metrics},
        written=[*done.written, *own.written],
    )


def _from_oracle(context: RunContext, step: Step, before: int) -> Done:
    ids = selected_of(context, step.round)["id"].combine_chunks()
    written = context.copy_samples(step, "samples", ids, label=True)
    fs = context.ledger.root.fs
    none = context.labels_schema.empty_table().select(["id", "label"])  # the known labels are the whole initial set
    tables = [pq.read_table(f.path, filesystem=fs, columns=["id", "label"]) for f in written] or [none]
    found = pa.concat_tables(tables).sort_by("id")
    labels = found.append_column("source", pa.array(["oracle"] * found.num_rows))
    return Done(
        outputs={"labels.parquet": labels.cast(context.labels_schema)},
        metrics={"labels": before + len(ids)},
        written=written,
    )


def _from_people(context: RunContext, step: Step, before: int, tested: pa.Array) -> tuple[Done, pa.Table]:
    """What they say of the round's samples, and their labels of those of the test set. LabelsWaiting where they have
    not given them yet."""
    annotation = context.config.annotation
    annotator = annotator_of(annotation)
    assert annotator is not None
    request = request_of(context.config, context.ledger, context.info, step.round)
    taken = wait_for_labels(annotator, request, annotation)
    result = labeled(taken, context.info.id_type, annotation.kind, context.task)
    labels, unknown = outside(result.labels, tested), outside(result.unknown, tested)
    if not before + labels.num_rows:
        raise LabelError(
            f"round {step.round}: all labels so far are of the test set (pool.test_samples), and nothing can be "
            "learned from those: label some of the other samples, and run the same command again"
        )
    copied = context.ledger.files(Step(step.round, REQUEST), "samples")[0]
    done = Done(
        outputs={
            **result.outputs,
            "labels.parquet": labels,
            **({UNKNOWN: unknown} if unknown.num_rows else {}),
        },
        metrics={"labels": before + labels.num_rows, **result.metrics},
        written=context.ledger.root.fs.get_file_info(copied),
    )
    return done, within(result.labels, tested)
