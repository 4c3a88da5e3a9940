"""What a trained network says of a round's samples: a guess for annotators, and labels that it finds unlikely."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prunefuse_ray import networks
from prunefuse_ray.data.ids import IdSet, ids_to_numpy
from prunefuse_ray.data.pool import Source, groups
from prunefuse_ray.data.prepared import decoded
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.distributed.remote import over
from prunefuse_ray.schemas import doubts_schema
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task

BATCH = 256
PIXELS_BATCH, PIXELS_OUTPUTS = 16, 2**25
"""Where every pixel has its probabilities, so many samples at a time, and of many classes so many probabilities."""


def predict(
    source: Source,
    network: dict[str, bytes],
    form: Form,
    labels: pa.Table | None = None,
    *,
    task: str,
    units: Mapping[str, Any] | None = None,
    trusted: Collection[str] = (),
    in_process: bool,
) -> pa.Table:
    """(id, guess, probability) of the samples of `source`, read a few at a time; with `labels` (id, label) those of
    the labeled samples alone, with the columns `label` and `label_probability` besides.

    Args:
        source: Parquet files of (id, sample).
        network: a saved network, as `networks.to_files` made it.
        task: that it was trained for (`tasks.TASKS`).
        units: `Task.units` of that training.
        trusted: architectures of the user's own that the configuration names (`networks.from_files`).
        in_process: here, instead of in tasks on the cluster.
    """
    if not source.files:
        return pa.table({"id": pa.array([], pa.string())})
    known = None if labels is None else IdSet.of(labels["id"].combine_chunks())
    args = (network, form, labels, known, task, units, tuple(trusted))
    # Forward passes are the work, not the bytes read: where they do not belong here, a single task is worth its start.
    parts = over(_predict, groups(source), *args, size=0 if in_process else math.inf)
    found = pa.concat_tables(part for part in parts if part is not None)
    # A sample that people left without a label may have been chosen again in a later round: it counts once.
    _, first = np.unique(ids_to_numpy(found["id"]), return_index=True)
    return found.take(pa.array(np.sort(first)))


def export(
    source: Source,
    network: dict[str, bytes],
    form: Form,
    classes: Sequence[str],
    out: Place,
    *,
    task: str,
    size: float,
    units: Mapping[str, Any] | None = None,
    trusted: Collection[str] = (),
) -> int:
    """What a network says of every sample that can be read, into Parquet files below `out`: (id, prediction as
    `Task.label_type`, its probability, null where it has none, and words for people). Returns how many there are.

    Args:
        size: bytes of all samples, which may lie elsewhere than in the source's own files.
    """
    parts = list(enumerate(groups(source)))
    args = (network, form, tuple(classes), out, task, units, tuple(trusted))
    return sum(over(_export, parts, *args, size=size))


def _export(
    numbered: tuple[int, Source],
    network: dict[str, bytes],
    form: Form,
    classes: Sequence[str],
    out: Place,
    task_name: str,
    units: Mapping[str, Any] | None,
    trusted: tuple[str, ...],
) -> int:
    number, source = numbered
    file, writer, count = out / f"part-{number:05d}.parquet", None, 0
    with ExitStack() as closing:
        for found in _predicted(source, network, form, None, None, task_name, units, trusted):
            words = [TASKS[task_name].caption(guess, classes) for guess in found["guess"].to_pylist()]
            table = found.rename_columns({"guess": "prediction"}).append_column("words", pa.array(words, pa.string()))
            if writer is None:
                writer = closing.enter_context(pq.ParquetWriter(file.path, table.schema, filesystem=file.fs))
            writer.write_table(table)
            count += table.num_rows
    return count


def _predict(*args: Any) -> pa.Table | None:
    """`_predicted` as one table; None where the files hold none of the samples."""
    parts = list(_predicted(*args))
    return pa.concat_tables(parts) if parts else None


@torch.inference_mode()
def _predicted(
    source: Source,
    network: dict[str, bytes],
    form: Form,
    labels: pa.Table | None,
    known: IdSet | None,
    task_name: str,
    units: Mapping[str, Any] | None,
    trusted: tuple[str, ...],
) -> Iterator[pa.Table]:
    """The same of some of the files, a chunk at a time."""
    task = TASKS[task_name].with_units(units)
    saved = networks.from_files(network, trusted)
    model, size = networks.inference_form(saved.network), BATCH
    if task.pixels:
        members = len(saved.members) if isinstance(saved, networks.Committee) else 1
        each = members * saved.spec.classes * math.prod(form.network_shape[1:])
        size = max(1, min(PIXELS_BATCH, PIXELS_OUTPUTS // each))
    for chunk in decoded(source, form, only=known):
        chunk = chunk.filter(np.array([why is None for why in chunk.samples.rejected], bool))
        # What comes from the prepared pool is read-only, which torch's tensors cannot be.
        rows, values_N = chunk.rows, torch.from_numpy(np.require(chunk.samples.values_N, requirements="W"))
        if labels is not None and known is not None:
            rows = rows.append_column("label", labels["label"].take(pa.array(known.find(rows["id"]))))
        guessed = []
        for first in range(0, len(values_N), size):
            outputs = task.consensus(model(form.inputs(values_N[first : first + size]))).float()
            guessed.append(_guessed(rows.slice(first, size), task, task.probabilities(outputs.numpy()), form))
        # As one piece: thousands of small ones between what comes and goes keep the memory of that from being reused.
        if guessed:
            yield pa.concat_tables(guessed).combine_chunks()


def _guessed(rows: pa.Table, task: Task, p_NC: npt.NDArray[np.float64], form: Form) -> pa.Table:
    guess_N, probability_N = task.guesses(p_NC)
    columns = {
        "id": rows["id"],
        "guess": pa.array(guess_N if guess_N.dtype == np.int64 else list(guess_N), task.label_type),
        # Nothing where a guess has no probability; one of NaN is that of a broken network, and stays.
        "probability": pa.array(probability_N, pa.float32(), mask=np.full(len(p_NC), task.numbers)),
    }
    if "label" in rows.column_names:
        columns["label"] = rows["label"]
        own_N = task.label_probabilities(p_NC, task.targets(rows["label"], form))
        columns["label_probability"] = pa.array(own_N, pa.float32())
    return pa.table(columns)


def doubts(predicted: pa.Table) -> pa.Table:
    """Predictions of labeled samples, the most doubtful label first (ties by id): `doubts_schema`.

    Self-confidence, the probability of the given label, is the ranking of Northcutt, Jiang and Chuang, "Confident
    Learning", 2021 (arXiv 1911.00068), section 4. Here the network was trained on the labels that it judges, so it
    doubts fewer of them than a cross-validated one would.
    """
    kind = "int64" if pa.types.is_integer(predicted.schema.field("id").type) else "string"
    schema = doubts_schema(kind, predicted.schema.field("label").type)
    return (
        predicted.select(schema.names).sort_by([("label_probability", "ascending"), ("id", "ascending")]).cast(schema)
    )
