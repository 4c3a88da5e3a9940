"""Decoded samples for training: the labeled samples of a run, and its test set, as uint8 tensors.

Decoding is paid once per run (`prepared.py`), or once per training. A set that does not fit in memory is decoded into
a file on the node's disk and mapped: batches come out of it in the same order, and are the same to the bit.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.acquisition.draws import HELD_OUT
from prunefuse_ray.data.ids import IdSet, ids_to_numpy, of_one_width
from prunefuse_ray.data.images import image_size, sample_values
from prunefuse_ray.data.pool import Source, part
from prunefuse_ray.data.prepared import decoded
from prunefuse_ray.data.reading import canonical, label_columns, labels_of, opened, tables
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.errors import PoolError, Rejected
from prunefuse_ray.tasks import TASKS, Task

logger = logging.getLogger(__name__)

SHOWN = 5
"""Faults that are named."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples: uint8 values (N, *form.shape) and labels (N, ...) as `Task.targets`, in the order of their ids."""

    values_N: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


def sample_bytes(samples: int, form: Form) -> int:
    """Bytes of so many decoded samples."""
    return samples * math.prod(form.shape)


def load_samples(
    source: Source,
    form: Form,
    labels: pa.Table | None = None,
    file: Path | None = None,
    fill: bool = True,
    mapped: Callable[[], None] = lambda: None,
) -> Samples:
    """The decoded samples of `source` that have a label, in `labels` (id, label) or else in the source's own column.

    Args:
        file: on this node's disk, to hold the decoded values in place of memory.
        fill: make and write that file; False where another process does so, and this one only maps it.
        mapped: called once this process has mapped it, before it writes anything: from then on it needs no name.

    Raises:
        PoolError: a sample that cannot be read, a label without its sample, or too little room on the disk.
    """
    ids, labels_N = _in_order(own_labels(source) if labels is None else labels, TASKS[source.task], form)
    shape = (len(ids), *form.shape)
    values_N = np.zeros(shape, np.uint8) if file is None else _map(file, shape, fill)
    mapped()
    if file is None or fill:
        found_N, wanted = np.zeros(len(ids), bool), IdSet.of(ids)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            parts = [part(source, [number]) for number in range(len(source.files))]
            list(threads.map(lambda one: _fill(one, form, wanted, values_N, found_N), parts))
        if not found_N.all():
            raise PoolError(f"{len(ids)} labels, but {found_N.sum()} of their samples; the run directory is damaged")
    return Samples(values_N=torch.from_numpy(values_N), labels_N=torch.from_numpy(labels_N))


def check_masks(source: Source, labels: pa.Table | None = None) -> None:
    """PoolError where labels of pixels are not as large as their images (they would be scaled onto the wrong ones), or
    where those of a held-out set are of one class, and of pixels that are left out.

    Args:
        labels: (id, label); None: the source's own. Those of one round may be of one class: this is a warning.
    """
    task = TASKS[source.task]
    faults, count = list[str](), 0
    numbers = set[int]()
    wanted = None if labels is None else IdSet.of(labels["id"].combine_chunks())
    for rows in canonical(source, only=wanted, label=labels is None):
        if labels is not None and wanted is not None:
            rows = rows.append_column("label", labels["label"].take(pa.array(wanted.find(rows["id"]))))
        for some in opened(rows, source):
            for id_, value, label in zip(
                some["id"].to_pylist(), sample_values(some["sample"]), some["label"].to_pylist(), strict=True
            ):
                if len(numbers - {task.left_out}) < 2:
                    numbers |= task.numbers_in(label)
                with suppress(Rejected):  # it is found again where it is decoded
                    if value is not None and (why := task.unlike(label, image_size(value, _channels(value)))):
                        count += 1
                        faults += [f"{id_!r}: {why}"] if len(faults) < SHOWN else []
    if count:
        raise PoolError(f"{count:,} labels do not fit their images ({'; '.join(faults)}); fix them, or leave them out")
    if task.left_out in numbers and len(numbers) < 3:
        told = (
            f"the masks hold no numbers but {' and '.join(map(str, sorted(numbers)))}, and {task.left_out} means "
            "pixels that are left out: where it stands for a class, write the number of that class"
        )
        if labels is None:
            raise PoolError(f"of a held-out set {told}")
        logger.warning(told)


def _channels(value: Any) -> int:
    return value.shape[2] if isinstance(value, np.ndarray) and value.ndim == 3 else 1


def own_labels(source: Source) -> pa.Table:
    """(id, label) of every row of a labeled source."""
    columns = list(dict.fromkeys([source.id_column, *label_columns(source)]))
    return pa.concat_tables(
        pa.table([of_one_width(table[source.id_column]), labels_of(table, source)], ["id", "label"])
        for table in tables(source, columns)
    )


def _in_order(labels: pa.Table, task: Task, form: Form) -> tuple[pa.Array, npt.NDArray[Any]]:
    """Ids (N,) and what is trained on (N, ...) in the order of the ids."""
    rows = labels.sort_by("id")
    return of_one_width(rows["id"]).combine_chunks(), task.targets(rows["label"], form)


def _fill(
    source: Source,
    form: Form,
    ids: IdSet,
    values_N: npt.NDArray[np.uint8],
    found_N: npt.NDArray[np.bool_],
) -> None:
    """Put the samples of one file into their places. A sample that people left without a label in one round may have
    been selected again in another: it is there twice, and the same."""
    for chunk in decoded(source, form, only=ids):
        for id_, why in zip(chunk.rows["id"], chunk.samples.rejected, strict=True):
            if why is not None:
                raise PoolError(f"{source.files[0]}: sample {id_.as_py()!r} cannot be read ({why}); remove or fix it")
        place_N = ids.find(chunk.rows["id"])
        values_N[place_N] = chunk.samples.values_N
        found_N[place_N] = True


def held_out(labels: pa.Table, share: float, seed: int) -> tuple[pa.Table, pa.Table]:
    """Labels (id, label) as (for training, for validation): each sample by a hash of its id, so that it stays on its
    side while the labeled set grows; at least one on either side."""
    if share == 0 or labels.num_rows < 2:
        return labels, labels.slice(0, 0)
    draws = random_scores(ids_to_numpy(labels["id"]), seed, HELD_OUT)
    mask = draws < share
    if not mask.any():
        mask[draws.argmin()] = True
    if mask.all():
        mask[draws.argmax()] = False
    return labels.filter(pa.array(~mask)), labels.filter(pa.array(mask))


def _map(file: Path, shape: tuple[int, ...], fill: bool) -> npt.NDArray[np.uint8]:
    if fill:
        size = math.prod(shape)
        try:
            with open(file, "wb", opener=_for_its_owner) as made:
                os.posix_fallocate(made.fileno(), 0, size)  # now, and not as a SIGBUS in mid-training
        except OSError as error:
            file.unlink(missing_ok=True)
            raise PoolError(
                f"{file.parent}: no room for {size / 2**30:.1f} GiB of decoded samples ({error.strerror}); set TMPDIR "
                "to a larger disk on the training nodes, or raise workers.sample_memory_gb"
            ) from error
    # Writable also for those who only read: a tensor cannot be made of a read-only array.
    return np.memmap(file, np.uint8, mode="r+", shape=shape)


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


_test_sets: list[tuple[Any, Samples]] = []


def load_within(memory: float, source: Source, form: Form, labels: pa.Table | None = None) -> Samples:
    """`load_samples`; where they take more bytes than `memory`, in a file of this node's disk, without a name."""
    labels = own_labels(source) if labels is None else labels
    if sample_bytes(labels.num_rows, form) <= memory:
        return load_samples(source, form, labels)
    file = Path(tempfile.gettempdir()) / f"prunefuse-{uuid.uuid4().hex}"
    return load_samples(source, form, labels, file, mapped=file.unlink)


def load_test(source: Source, form: Form, memory: float = math.inf) -> Samples:
    """The test set; the last one is kept, since in-process training evaluates on the same one after every round. A file
    that was changed meanwhile, as a notebook's may be, is read again; so is another column of the same files."""
    changed = [info.mtime_ns for info in source.fs.get_file_info(list(source.files))]
    key = (_read_as(source), changed, form)
    if not _test_sets or _test_sets[0][0] != key:
        _test_sets[:] = [(key, load_within(memory, source, form))]
    return _test_sets[0][1]


def _read_as(source: Source) -> dict[str, Any]:
    """All that decides what is read of a source, to be compared."""
    told = {one.name: getattr(source, one.name) for one in fields(source) if one.name != "prepared"}
    told["deleted"] = {file: rows.tolist() for file, rows in source.deleted.items()}
    told["without"] = None if source.without is None else source.without.ids
    return told
