"""The phase `report`: what the run came to."""

from __future__ import annotations

import csv
import io

import pyarrow as pa

from prunefuse_ray.data.label_tables import inert
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
    context.ledger.write_json("result.json", result)
    page = render(view_run(context.ledger))
    return Done(
        outputs={
            **{f"fused/{k}": v for k, v in fused.items()},
            "selected.parquet": _all_selected(context),
            "labels.csv": _all_labels(context),
            "result.json": result,
            "report.html": page.encode(),
        }
    )


def _all_labels(context: RunContext) -> bytes:
    """Every label as `pool.known_labels` takes it, for another run: (id, label by name)."""
    labels, classes = context.labels(context.last), context.info.classes
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(["id", "label"])
    task = TASKS[context.config.task]
    names = (task.named(label, classes) for label in labels["label"].to_pylist())
    ids = (inert(i) if isinstance(i, str) else i for i in labels["id"].to_pylist())
    table.writerows(zip(ids, names, strict=True))
    return written.getvalue().encode("utf-8-sig")


def _all_selected(context: RunContext) -> pa.Table:
    """What every round selected in one table: (id, round, score, rank), in the order of rounds and ranks."""
    tables = []
    for r in range(context.last + 1):
        selected = selected_of(context, r).sort_by("rank")
        tables.append(selected.add_column(1, "round", pa.array([r] * selected.num_rows, pa.int64())))
    return pa.concat_tables(tables)
