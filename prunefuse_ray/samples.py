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
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prunefuse_ray.errors import PoolError
from prunefuse_ray.forms import Form, decode_column
from prunefuse_ray.pool import Source, load_images, refuse_pickles

ROWS_AT_ONCE = 256
"""Encoded samples held while decoding."""


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
    names = [source.id_column] if labels is not None else [source.id_column, source.label_column]
    ids, kept, found = [], [], []
    for file in source.files:
        table = pq.read_table(file, filesystem=source.fs, columns=names)
        rows = np.arange(table.num_rows)
        label = None if labels is not None else table[source.label_column]
        if labels is not None:
            # Looked up, not joined: Arrow's join takes no nested columns, and samples may be tensors.
            place = pc.index_in(table[source.id_column], value_set=labels["id"].combine_chunks())
            rows = np.flatnonzero(pc.is_valid(place).to_numpy())
            label = labels["label"].take(place.drop_null())
        ids += table[source.id_column].take(pa.array(rows)).chunks
        kept.append((table.num_rows, rows))
        found.append(np.asarray(label).astype(np.int64))
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
    name, start = source.files[number], 0
    columns = [source.id_column, *([source.sample_column] if source.image_root is None else [])]
    with source.fs.open_input_file(name) as stream:
        parquet = pq.ParquetFile(stream)
        refuse_pickles(parquet.schema_arrow, name)
        for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            here_N = place_N[start : start + batch.num_rows]
            start += batch.num_rows
            names = {source.id_column: "id", source.sample_column: "sample"}
            table = pa.Table.from_batches([batch]).select(columns).rename_columns([names[c] for c in columns])
            table = table.filter(pa.array(here_N >= 0))
            if not table.num_rows:
                continue
            if source.image_root is not None:
                table = load_images(table, source.image_root)
            decoded_N, reasons = decode_column(table["sample"], form)
            for i, reason in enumerate(reasons):
                if reason is not None:
                    raise PoolError(
                        f"{name}: sample {table['id'][i].as_py()!r} cannot be read ({reason}); remove or mend it"
                    )
            values_N[here_N[here_N >= 0]] = decoded_N


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
