"""From a run directory to what the report shows: reads files alone and starts no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.config.files import to_tree
from prunefuse_ray.config.schema import Config
from prunefuse_ray.data.colors import Range
from prunefuse_ray.data.image_files import as_seen
from prunefuse_ray.data.images import encode_png, sample_values
from prunefuse_ray.data.inventory import INVENTORY
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.reading import parquet_file, refuse_pickles
from prunefuse_ray.data.vectors import shown
from prunefuse_ray.method.steps import INIT, PRETRAIN, REPORT, SCORE, Step
from prunefuse_ray.report.view import Chosen, Doubt, RoundView, RunView, ScoreHistogram
from prunefuse_ray.run.growth import seen_info
from prunefuse_ray.run.ledger import KNOWN_SAMPLES, Commit, Ledger, labels_so_far
from prunefuse_ray.schemas import doubts_schema, labels_schema, selected_schema
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task

AT_ONCE = 64
SHEET = 24
"""Samples shown from either end of a round's choice."""


def view_run(ledger: Ledger, result: Mapping[str, Any] | None = None) -> RunView:
    """Everything of a run that its report shows. Raises LedgerError where the directory is no run or is damaged.

    Args:
        result: what the run came to, where nobody has recorded that yet.
    """
    config = ledger.read_config()
    info = seen_info(config, ledger)
    recorded = ledger.root / "result.json"
    # Without its commit the file is of the run as it ended before it was given more labels.
    if result is None and ledger.committed(Step(-1, REPORT)) and recorded.exists():
        result = recorded.read_json()
    rejected = ledger.rejected()
    chosen = [r for r in range(len(config.selection.budgets)) if ledger.committed(Step(r, "select"))]
    rounds = [view_round(ledger, config, info, r) for r in chosen]
    # The last doubts are shown, and only they are worth reading the samples of all rounds for.
    for n in reversed(range(len(rounds))):
        if doubts := _doubts(ledger, config, info, rounds[n].round):
            rounds[n] = replace(rounds[n], doubts=doubts)
            break
    learned = ledger.committed(Step(-1, PRETRAIN))
    first = ledger.committed(Step(-1, SCORE))
    return RunView(
        name=config.run.name,
        directory=ledger.root.uri,
        complete=result is not None,
        metric=TASKS[config.task].metric,
        numbers=TASKS[config.task].numbers,
        pixels=TASKS[config.task].pixels,
        beside=TASKS[config.task].beside,
        config=to_tree(config),
        pool={"rows": info.rows, "files": info.files, "bytes": info.bytes, "classes": info.classes, "path": info.path},
        rounds=rounds,
        result=None if result is None else dict(result),
        rejected=[(r["id"], r["reason"]) for r in rejected.slice(0, 20).to_pylist()],
        rejected_count=rejected.num_rows,
        pretraining=None if learned is None else learned.metrics,
        initial=None if first is None else first.metrics,
        inventory=account.read_json() if (account := ledger.root / INVENTORY).exists() else None,
    )


def view_round(ledger: Ledger, config: Config, info: PoolInfo, round_: int) -> RoundView:
    """One round: figures, the distribution of the scores that it was chosen from, and the ends of its choice."""
    selected = ledger.read_table(Step(round_, "select"), "selected.parquet", selected_schema(info.id_type))
    scored = ledger.committed(Step(round_ - 1, "score"))
    metrics = ledger.root / "rounds" / f"{round_:03d}" / "metrics.json"
    count = selected.num_rows
    first = selected.slice(0, min(SHEET, count))
    last = selected.slice(max(first.num_rows, count - SHEET))
    return RoundView(
        round=round_,
        labels=labels_so_far(config, ledger, round_),
        chosen=count,
        strategy=scored.metrics.get("strategy", config.selection.strategy) if scored else "random",
        reason=_reason(scored),
        metrics=metrics.read_json() if metrics.exists() else {},
        scores=None if scored is None else _histogram(scored.metrics["histogram"], selected),
        first=_chosen(ledger, config, info, round_, first),
        last=_chosen(ledger, config, info, round_, last),
    )


def _reason(scored: Commit | None) -> str:
    """Why a pass scored for its strategy; nothing where the configuration just names it."""
    reason = scored.metrics.get("reason", "") if scored else ""
    return "" if reason == "selection.strategy" else reason


def _doubts(ledger: Ledger, config: Config, info: PoolInfo, round_: int) -> list[Doubt]:
    """The first few labels that the round's proxy finds less likely than another class."""
    step = Step(round_, "train")
    if not ledger.committed(step):
        return []
    task = TASKS[config.task]
    schema = doubts_schema(info.id_type, task.label_type)
    rows = ledger.read_table(step, "doubts.parquet", schema)
    if not task.numbers and not task.pixels:
        other = [a != b for a, b in zip(rows["label"].to_pylist(), rows["guess"].to_pylist(), strict=True)]
        rows = rows.filter(pa.array(other, pa.bool_()))
    rows = rows.slice(0, SHEET)
    if not rows.num_rows:
        return []
    wanted = rows["id"].combine_chunks()
    samples: dict[Any, bytes | str | None] = {}
    held = [(Step(r, "label"), "samples") for r in range(round_ + 1)]
    held += [(Step(-1, INIT), KNOWN_SAMPLES)] if config.pool.known_labels is not None else []
    for step, name in held:
        for path in ledger.files(step, name)[0]:
            samples |= samples_as_seen(Place(ledger.root.fs, path), wanted, config.pool.value_range)
    doubts = []
    for row in rows.to_pylist():
        sample = samples.get(row["id"])
        text, image = (sample, None) if isinstance(sample, str) else (None, sample)
        named = {"id": str(row["id"]), **{name: task.caption(row[name], info.classes) for name in ("label", "guess")}}
        image = image if image is None else _drawn(task, image, row["label"])
        doubts.append(Doubt(**row | named, image=image, text=text))
    return doubts


def _histogram(saved: dict[str, Any], selected: pa.Table) -> ScoreHistogram:
    threshold = pc.min(selected["score"]).as_py()
    return ScoreHistogram(edges=np.array(saved["edges"]), counts=np.array(saved["counts"]), threshold=threshold)


def _chosen(ledger: Ledger, config: Config, info: PoolInfo, round_: int, rows: pa.Table) -> list[Chosen]:
    """The rows with their labels and images, as far as the round has been labeled."""
    step = Step(round_, "label")
    samples: dict[Any, bytes | str | None] = {}
    labels: dict[Any, Any] = {}
    task = TASKS[config.task]
    if ledger.committed(step):
        wanted = rows["id"].combine_chunks()
        recorded = ledger.read_table(step, "labels.parquet", labels_schema(info.id_type, task.label_type))
        for row in recorded.filter(pc.is_in(recorded["id"], value_set=wanted)).to_pylist():
            labels[row["id"]] = row["label"]
        for path in ledger.files(step, "samples")[0]:
            samples |= samples_as_seen(Place(ledger.root.fs, path), wanted, config.pool.value_range)
    chosen = []
    for row in rows.to_pylist():
        id_, sample = row["id"], samples.get(row["id"])
        text, image = (sample, None) if isinstance(sample, str) else (None, sample)
        label = labels.get(id_)
        caption = "" if label is None else task.caption(label, info.classes)
        image = image if image is None or label is None else _drawn(task, image, label)
        chosen.append(Chosen(id=str(id_), score=row["score"], rank=row["rank"], label=caption, image=image, text=text))
    return chosen


def _drawn(task: Task, image: bytes, label: Any) -> bytes:
    """The image with its label; without where no decoder takes it: a JPEG without its end mark is a sample, too."""
    try:
        return task.drawn(image, label)
    except Exception:  # whatever a codec raises: no page may end a run
        return image


def samples_as_seen(file: Place, wanted: pa.Array, value_range: Range | None) -> dict[Any, bytes | str | None]:
    """Samples by id: texts as they are, images as people see them. A few are read at a time: a file holds a round's."""
    columns, found = ["id", "sample"], dict[Any, bytes | str | None]()
    with file.fs.open_input_file(file.path) as stream:
        parquet = parquet_file(stream, columns)
        refuse_pickles(parquet.schema_arrow, file.path)
        for batch in parquet.iter_batches(batch_size=AT_ONCE, columns=columns):
            table = pa.Table.from_batches([batch])
            table = table.filter(pc.is_in(table["id"], value_set=wanted))
            values = (_shown(v, value_range) for v in sample_values(table["sample"]))
            found |= dict(zip(table["id"].to_pylist(), values, strict=True))
    return found


def _shown(value: object, value_range: Range | None) -> bytes | str | None:
    if isinstance(value, bytes):
        return as_seen(value, value_range)
    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    return shown(array) if array.ndim == 1 else encode_png(array)
