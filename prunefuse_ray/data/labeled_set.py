"""Decoded samples for training: the labeled samples of a run, and its test set, as uint8 tensors.

Decoding is paid once per training, not once per epoch. A set that does not fit in memory is decoded into a file on the
node's disk and mapped: batches come out of it in the same order, and are the same to the bit.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.data.pool import Source, part
from prunefuse_ray.data.reading import canonical, ids_to_numpy, opened, tables
from prunefuse_ray.data.sample_format import Form, decode_column
from prunefuse_ray.errors import PoolError

HELD_OUT = 1_000_000
"""In place of a round's number: the draw that holds samples out is none of the draws that select."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples: uint8 values (N, *form.shape) and labels (N,), in the order of their ids."""

    values_N: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


def sample_bytes(samples: int, form: Form) -> int:
    """Bytes of so many decoded samples."""
    return samples * math.prod(form.shape)


def load_samples(
    source: Source, form: Form, labels: pa.Table | None = None, file: Path | None = None, fill: bool = True
) -> Samples:
    """Read and decode the samples of `source` that have a label, in `labels` or else in the source's own column.

    Args:
        file: on this node's disk, to hold the decoded values in place of memory.
        fill: write that file; False where another process has done so, and this one only maps it.

    Raises:
        PoolError: a sample that cannot be read, a label without its sample, or too little room on the disk.
    """
    index = _index(source, labels)
    shape = (len(index.labels_N), *form.shape)
    values_N = np.zeros(shape, np.uint8) if file is None else _map(file, shape, fill)
    if file is None or fill:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            list(threads.map(lambda i: _decode(source, i, form, index.places[i], values_N), range(len(source.files))))
    return Samples(values_N=torch.from_numpy(values_N), labels_N=torch.from_numpy(index.labels_N))


@dataclass(frozen=True)
class _Index:
    """Where every row of every file belongs."""

    places: list[npt.NDArray[np.int64]]
    """Per file: the place of each row in the order of the ids, -1 for one without a label."""
    labels_N: npt.NDArray[np.int64]


def _index(source: Source, labels: pa.Table | None) -> _Index:
    ids, kept, found = [], [], []
    names = [source.id_column]
    # A sample that people left without a label in one round may have been chosen again in another: it counts once.
    taken = np.zeros(0 if labels is None else labels.num_rows, bool)
    if labels is None:
        assert source.label_column is not None
        names.append(source.label_column)
    for number in range(len(source.files)):
        count, rows_of_file = 0, []
        for table in tables(part(source, [number]), names):
            own = table[source.id_column]
            rows, label = np.arange(table.num_rows), None if labels is not None else table[names[1]]
            if labels is not None:
                # Looked up, not joined: Arrow's join takes no nested columns, and samples may be tensors.
                place = pc.index_in(own.cast(labels["id"].type), value_set=labels["id"].combine_chunks())
                at_N = place.drop_null().to_numpy()
                new_N = np.sort(np.unique(at_N, return_index=True)[1])
                new_N = new_N[~taken[at_N[new_N]]]
                taken[at_N[new_N]] = True
                rows = np.flatnonzero(pc.is_valid(place).to_numpy())[new_N]
                label = labels["label"].take(pa.array(at_N[new_N]))
            ids += own.take(pa.array(rows)).chunks
            found.append(np.asarray(label).astype(np.int64))
            rows_of_file.append(rows + count)
            count += table.num_rows
        kept.append((count, np.concatenate([np.empty(0, np.int64), *rows_of_file])))
    order = pc.sort_indices(pa.chunked_array(ids)).to_numpy()
    if labels is not None and len(order) != labels.num_rows:
        raise PoolError(f"{labels.num_rows} labels, but {len(order)} of their samples; the run directory is damaged")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    places, start = [], 0
    for count, rows in kept:
        place = np.full(count, -1, np.int64)
        place[rows] = rank[start : start + len(rows)]
        places.append(place)
        start += len(rows)
    return _Index(places, np.concatenate(found)[order])


def _decode(
    source: Source, number: int, form: Form, place_N: npt.NDArray[np.int64], values_N: npt.NDArray[np.uint8]
) -> None:
    """Decode the labeled samples of one file into their places."""
    start = 0
    for rows in canonical(part(source, [number])):
        here_N, first = place_N[start : start + rows.num_rows], 0
        start += rows.num_rows
        places_N = here_N[here_N >= 0]
        for table in opened(rows.filter(pa.array(here_N >= 0)), source):
            decoded_N, reasons = decode_column(table["sample"], form)
            for i, reason in enumerate(reasons):
                if reason is not None:
                    raise PoolError(
                        f"{source.files[number]}: sample {table['id'][i].as_py()!r} cannot be read ({reason}); "
                        "remove or mend it"
                    )
            values_N[places_N[first : first + table.num_rows]] = decoded_N
            first += table.num_rows


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
            with file.open("wb") as made:
                os.posix_fallocate(made.fileno(), 0, size)  # now, and not as a SIGBUS in mid-training
        except OSError as error:
            file.unlink(missing_ok=True)
            raise PoolError(
                f"{file.parent}: no room for {size / 2**30:.1f} GiB of decoded samples ({error.strerror}); set TMPDIR "
                "to a larger disk on the training nodes, or raise workers.sample_memory_gb"
            ) from error
    # Writable also for those who only read: a tensor cannot be made of a read-only array.
    return np.memmap(file, np.uint8, mode="r+", shape=shape)


_test_sets: dict[tuple, Samples] = {}


def load_test(source: Source, form: Form) -> Samples:
    """The test set; the last one is kept, since in-process training evaluates on the same one after every round."""
    key = (source.files, source.sizes, form)
    if key not in _test_sets:
        _test_sets.clear()
        _test_sets[key] = load_samples(source, form)
    return _test_sets[key]
