"""The phase `report`: what the run came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.data.label_tables import AT_ONCE, csv_bytes, inert, inert_label
from prunefuse_ray.data.labeled_set import own_labels
from prunefuse_ray.method.steps import FINETUNE, Step
from prunefuse_ray.report.page import render
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.phases.select import selected_of
from prunefuse_ray.run.result import result_of
from prunefuse_ray.run.view import view_run
from prunefuse_ray.tasks import TASKS


def run(context: RunContext, step: Step) -> Done:
    """The run's result, its page, all that was selected, all labels, and the final network under its final name."""
    result = result_of(context.config, context.ledger)
    fused = context.ledger.read_network(Step(context.last, FINETUNE), "fused")
    page = render(view_run(context.ledger, result))
    selected = _all_selected(context)
    return Done(
        outputs={
            **{f"fused/{k}": v for k, v in fused.items()},
            "selected.parquet": selected,
            "selected.csv": _as_csv(context, selected),
            LABELS_FILE: all_labels(context, context.last),
            "result.json": result,
            "report.html": page.encode(),
        }
    )


LABELS_FILE = "labels.csv"


def all_labels(context: RunContext, up_to: int) -> bytes:
    """Every label up to a round as `pool.known_labels` takes it, for another run: (id, label by name). Those of a test
    set that was drawn stand among them: another run draws the same samples, and takes them for its test set."""
    labels = context.labels(up_to).select(["id", "label"])
    if len(context.drawn_test):
        tested = own_labels(context.test)
        labels = pa.concat_tables([labels, tested.cast(labels.schema)])
    return csv_bytes(["id", "label"], _cells(labels, context))


def _as_csv(context: RunContext, selected: pa.Table) -> bytes:
    """What was selected, for a spreadsheet: (round, rank, id, score, label by name where there is one)."""
    labels = context.labels(context.last)
    place = pc.index_in(selected["id"], value_set=labels["id"].combine_chunks())
    given = selected.append_column("label", labels["label"].take(place))
    return csv_bytes(columns := ["round", "rank", "id", "score", "label"], _cells(given.select(columns), context))


def _cells(rows: pa.Table, context: RunContext) -> Iterator[list[Any]]:
    """What is written of each row: ids that are no formulas, scores of six digits, labels by name."""
    task, classes = TASKS[context.config.task], context.info.classes
    written: dict[str, Callable[[Any], Any]] = {
        "id": lambda id_: inert(id_) if isinstance(id_, str) else id_,
        "score": "{:.6g}".format,
        "label": lambda label: inert_label(task.named(label, classes), classes, task),
    }
    for batch in rows.to_batches(max_chunksize=AT_ONCE):  # as Python's objects a million rows take 100 MB
        for row in batch.to_pylist():
            yield ["" if cell is None else written.get(name, str)(cell) for name, cell in row.items()]


def _all_selected(context: RunContext) -> pa.Table:
    """What every round selected in one table: (id, round, score, rank), in the order of rounds and ranks."""
    tables = []
    for r in range(context.last + 1):
        selected = selected_of(context, r).sort_by("rank")
        tables.append(selected.add_column(1, "round", pa.array([r] * selected.num_rows, pa.int64())))
    return pa.concat_tables(tables)
