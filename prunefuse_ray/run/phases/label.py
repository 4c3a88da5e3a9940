"""The phase `label`: the labels of the selected samples, from the oracle (a column of the pool) or from people."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray.config import Config
from prunefuse_ray.data.labeled_set import check_sizes
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run.class_counts import class_counts, warn_of_missing
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.labeling import annotator_of, labeled, request_of, wait_for_labels
from prunefuse_ray.run.phases.select import selected_of


def decide(config: Config, step: Step, labels: int) -> Literal["nobody", "oracle", "people"]:
    """Who gives the labels of a round that begins with so many. An initial set of known labels alone asks nobody."""
    if step.round == 0 and labels == config.selection.budgets[0]:
        return "nobody"
    return "oracle" if config.annotation.kind == "oracle" else "people"


def run(context: RunContext, step: Step) -> Done:
    known = context.labels(step.round - 1)
    done = _done(context, step, known.num_rows)
    labels = done.outputs["labels.parquet"]
    assert isinstance(labels, pa.Table)
    if context.task.pixels and labels.num_rows:
        check_sizes(context.copied(done.written), labels)
    classes = context.info.classes
    counts = class_counts(context.config.task, pa.concat_tables([known, labels]), len(classes))
    if not context.task.numbers:
        warn_of_missing(counts, classes, step.round)
    return replace(done, metrics={**done.metrics, "class_counts": counts})


def _done(context: RunContext, step: Step, before: int) -> Done:
    match decide(context.config, step, before):
        case "nobody":
            none = context.labels_schema.empty_table()
            return Done(outputs={"labels.parquet": none}, metrics={"labels": before})
        case "oracle":
            return _from_oracle(context, step, before)
        case "people":
            return _from_people(context, step, before)


def _from_oracle(context: RunContext, step: Step, before: int) -> Done:
    ids = selected_of(context, step.round)["id"].combine_chunks()
    written = context.copy_samples(step, "samples", ids, label=True)
    fs = context.ledger.root.fs
    found = pa.concat_tables([pq.read_table(f.path, filesystem=fs, columns=["id", "label"]) for f in written])
    found = found.sort_by("id")
    labels = found.append_column("source", pa.array(["oracle"] * found.num_rows))
    return Done(
        outputs={"labels.parquet": labels.cast(context.labels_schema)},
        metrics={"labels": before + len(ids)},
        written=written,
    )


def _from_people(context: RunContext, step: Step, before: int) -> Done:
    """LabelsWaiting where they have not given them yet."""
    annotation = context.config.annotation
    annotator = annotator_of(annotation)
    assert annotator is not None
    request = request_of(context.config, context.ledger, context.info, step.round)
    taken = wait_for_labels(annotator, request, annotation)
    result = labeled(taken, context.info.id_type, annotation.kind, context.task)
    return Done(
        outputs=result.outputs,
        metrics={"labels": before + result.labels.num_rows, **result.metrics},
        written=context.ledger.root.fs.get_file_info([p.path for p in request.samples]),
    )
