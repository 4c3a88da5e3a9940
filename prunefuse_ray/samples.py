"""Samples in memory: labeled samples of a run, and its test set, as uint8 tensors."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.errors import PoolError
from prunefuse_ray.forms import Form, decode_column
from prunefuse_ray.pool import Source, canonical, ids_to_numpy, opened


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
    for rows in canonical(source, label=labels is None):
        if labels is not None:
            # Looked up, not joined: Arrow's join takes no nested columns, and samples may be tensors.
            place = pc.index_in(rows["id"], value_set=labels["id"].combine_chunks())
            rows = rows.filter(pc.is_valid(place))
            rows = rows.append_column("label", labels["label"].take(place.drop_null()))
        for table in opened(rows, source):
            array, reasons = decode_column(table["sample"], form)
            for i, reason in enumerate(reasons):
                if reason is not None:
                    raise PoolError(
                        f"{posixpath.dirname(source.files[0])}: sample {table['id'][i].as_py()!r} cannot be read "
                        f"({reason}); remove or mend it"
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


HELD_OUT = 1_000_000
"""In place of a round's number: the draw that holds samples out is none of the draws that select."""

_test_sets: dict[tuple, Samples] = {}


def load_test(source: Source, form: Form) -> Samples:
    """The test set; the last one is kept, since in-process training evaluates on the same one after every round."""
    key = (source.files, source.sizes, form)
    if key not in _test_sets:
        _test_sets.clear()
        _test_sets[key] = load_samples(source, form)
    return _test_sets[key]
