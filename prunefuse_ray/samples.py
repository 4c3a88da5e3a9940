"""Samples in memory: labeled samples of a run, and its test set, as uint8 tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prunefuse_ray.errors import PoolError
from prunefuse_ray.forms import Form, decode_column
from prunefuse_ray.pool import Source, load_images, refuse_pickles


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples in memory: uint8 pixels (N, H, W, C) and labels (N,), in the order of their ids."""

    values_N: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


_loaded: dict[tuple, Samples] = {}


def load_samples(source: Source, form: Form, labels: pa.Table | None = None) -> Samples:
    """Read and decode the samples of `source` that have a label, in `labels` or else in the source's own column.

    Raises:
        PoolError: a sample that cannot be read, or a label without its sample.
    """
    ids, pixels, found = [], [], []
    for file in source.files:
        table = pq.read_table(file, filesystem=source.fs)
        refuse_pickles(table.schema, file)
        kept = [
            source.id_column,
            source.sample_column if source.image_root is None else None,
            source.label_column if labels is None else None,
        ]
        names = {source.id_column: "id", source.sample_column: "sample", source.label_column: "label"}
        table = table.select([c for c in kept if c is not None]).rename_columns(
            [names[c] for c in kept if c is not None]
        )
        if labels is not None:
            # Looked up, not joined: Arrow's join takes no nested columns, and samples may be tensors.
            place = pc.index_in(table["id"], value_set=labels["id"].combine_chunks())
            table = table.filter(pc.is_valid(place))
            table = table.append_column("label", labels["label"].take(place.drop_null()))
        if source.image_root is not None:
            table = load_images(table, source.image_root)
        array, reasons = decode_column(table["sample"], form)
        for i, reason in enumerate(reasons):
            if reason is not None:
                raise PoolError(
                    f"{file}: sample {table['id'][i].as_py()!r} cannot be read ({reason}); remove or mend it"
                )
        ids += table["id"].chunks
        pixels.append(array)
        found.append(table["label"].to_numpy().astype(np.int64))
    order = pc.sort_indices(pa.chunked_array(ids)).to_numpy()
    if labels is not None and len(order) != labels.num_rows:
        raise PoolError(f"{labels.num_rows} labels, but {len(order)} of their samples; the run directory is damaged")
    return Samples(
        values_N=torch.from_numpy(np.concatenate(pixels)[order]),
        labels_N=torch.from_numpy(np.concatenate(found)[order]),
    )


_test_sets: dict[tuple, Samples] = {}


def load_test(source: Source, form: Form) -> Samples:
    """The test set; the last one is kept, since in-process training evaluates on the same one after every round."""
    key = (source.files, source.sizes, form)
    if key not in _test_sets:
        _test_sets.clear()
        _test_sets[key] = load_samples(source, form)
    return _test_sets[key]
