"""The phase `report`: what the run came to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from prunefuse_ray.data.label_tables import inert, inert_label
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
            "labels.csv": _all_labels(context),
            "result.json": result,
            "report.html": page.encode(),
        }
    )


def _all_labels(context: RunContext) -> bytes:
    """Every label as `pool.known_labels` takes it, for another run: (id, label by name). Those of a test set that was
    drawn stand among them: another run draws the same samples, and takes them for its test set."""
    labels, classes = context.labels(context.last).select(["id", "label"]), context.info.classes
    if len(context.drawn_test):
        tested = own_labels(context.test)
        labels = pa.concat_tables([labels, tested.cast(labels.schema)])
    task = TASKS[context.config.task]
    names = (inert_label(task.named(label, classes), classes, task) for label in labels["label"].to_pylist())
    return _table(["id", "label"], zip(_inert(labels["id"]), names, strict=True))


def _as_csv(context: RunContext, selected: pa.Table) -> bytes:
    """What was selected, for a spreadsheet: (round, rank, id, score, label by name where there is one)."""
    labels, classes = context.labels(context.last), context.info.classes
    given = dict(zip(labels["id"].to_pylist(), labels["label"].to_pylist(), strict=True))
    task = TASKS[context.config.task]
    named = {i: inert_label(task.named(label, classes), classes, task) for i, label in given.items()}
    names = (named.get(i, "") for i in selected["id"].to_pylist())
    scores = ("" if score is None else f"{score:.6g}" for score in selected["score"].to_pylist())
    places = (selected[name].to_pylist() for name in ("round", "rank"))
    return _table(
        ["round", "rank", "id", "score", "label"], zip(*places, _inert(selected["id"]), scores, names, strict=True)
    )


def _inert(ids: pa.ChunkedArray) -> list[Any]:
    return [inert(i) if isinstance(i, str) else i for i in ids.to_pylist()]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table that spreadsheets open as UTF-8, by its mark."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return written.getvalue().encode("utf-8-sig")


def _all_selected(context: RunContext) -> pa.Table:
    """What every round selected in one table: (id, round, score, rank), in the order of rounds and ranks."""
    tables = []
    for r in range(context.last + 1):
        selected = selected_of(context, r).sort_by("rank")
        tables.append(selected.add_column(1, "round", pa.array([r] * selected.num_rows, pa.int64())))
    return pa.concat_tables(tables)
