"""Batches of the pool's samples without their labels, in a random order: what a training learns from beside labels.

The order is a function of the seed and the number of the step alone (of a pool that does not fit into memory, of that
memory, too): the same batches for any number of workers, and after a resume. A pool is cut into its chunks
(`prepared.py`); every pass goes over them in an order of its own, a *window* of as many as fit into memory at a time,
and draws the samples of a window at random. So a pool that fits is read once, and a larger one a window after the
other, from the prepared pool wherever that has it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from prunefuse_ray.data.contents import HeldOut
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.data.pool import Source, part
from prunefuse_ray.data.prepared import chunk_rows, decoded
from prunefuse_ray.data.reading import footers
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place

Numbers: TypeAlias = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Unlabeled:
    """The samples of the pool that may be learned from, without their labels."""

    source: Source
    exclude: pa.Array
    """Ids of those that may not: held out for validation, rejected, held back."""
    held_out: Place | None = None
    """Contents of the held-out sets (`contents.HeldOut`): samples that have one of them may not, either."""


@dataclass(frozen=True)
class _Chunk:
    """Some rows of one of the source's files."""

    file: int
    first: int
    end: int

    @property
    def rows(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One pass over the pool."""

    windows: list[Numbers]
    """The chunks of each."""
    ends_N: Numbers
    """Samples up to the end of each."""

    def window(self, offset: int) -> tuple[int, int]:
        """The window that has the sample of this number, and the number of its own first sample."""
        window = int(np.searchsorted(self.ends_N, offset, side="right"))
        return window, int(self.ends_N[window - 1]) if window else 0


class PoolBatches:
    """Batches by the number of their step."""

    def __init__(self, pool: Unlabeled, form: Form, *, batch: int, seed: int, memory: int) -> None:
        """
        Args:
            batch: samples of a batch.
            memory: bytes of decoded samples to hold.

        Raises:
            PoolError: nothing may be learned from.
        """
        self.form, self.batch, self.seed = form, batch, seed
        self._pool, self._exclude = pool, IdSet.of(pool.exclude)
        self._held_out = None if pool.held_out is None else HeldOut.at(pool.held_out)
        size = chunk_rows(form)
        self._chunks = [
            _Chunk(number, first, min(first + size, rows))
            for number, (rows, _) in enumerate(footers(pool.source))
            for first in range(0, rows, size)
        ]
        self.rows = sum(chunk.rows for chunk in self._chunks)
        if not self.rows:
            raise PoolError("pool.path: holds no sample to learn from without labels")
        self._window = max(1, memory // (size * int(np.prod(form.shape))))
        self._held: OrderedDict[int, Tensor] = OrderedDict()
        self._passes: OrderedDict[int, _Pass] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], tuple[Numbers, Numbers]] = OrderedDict()

    def places(self, step: int) -> list[tuple[int, int]]:
        """(chunk, row within it) of every sample of a step's batch. A pass ends where it ends, within a batch too."""
        places: list[tuple[int, int]] = []
        while len(places) < self.batch:
            number, offset = divmod(step * self.batch + len(places), self.rows)
            window, first = self._pass(number).window(offset)
            chunk_N, row_N = _kept(self._windows, (number, window), partial(self._shuffled, number, window))
            here = slice(offset - first, offset - first + self.batch - len(places))
            places += zip(chunk_N[here].tolist(), row_N[here].tolist(), strict=True)
        return places

    def _pass(self, number: int) -> _Pass:
        def made() -> _Pass:
            order = np.random.default_rng([self.seed, number]).permutation(len(self._chunks))
            windows = [order[first : first + self._window] for first in range(0, len(order), self._window)]
            rows = [sum(self._chunks[c].rows for c in window) for window in windows]
            return _Pass(windows=windows, ends_N=np.cumsum(rows))

        return _kept(self._passes, number, made)

    def _shuffled(self, number: int, window: int) -> tuple[Numbers, Numbers]:
        """Chunk and row (N,) of all samples of a window, in its order."""
        chunks = self._pass(number).windows[window]
        chunk_N = np.repeat(chunks, [self._chunks[c].rows for c in chunks])
        row_N = np.concatenate([np.arange(self._chunks[c].rows) for c in chunks])
        order_N = np.random.default_rng([self.seed, number, window]).permutation(len(row_N))
        return chunk_N[order_N], row_N[order_N]

    def values(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """uint8 (N, *form.shape) of the samples at these places.

        The samples of a chunk that may be learned from share the places of all its rows evenly: rows may lie in the
        order of classes, and some classes must not come more often than others. A chunk that has none gives its places
        to another one."""
        return torch.stack([self._value(chunk, row) for chunk, row in places])

    def _value(self, chunk: int, row: int) -> Tensor:
        for step in range(len(self._chunks)):
            number = (chunk + step) % len(self._chunks)
            values_N = self._values(number)
            if len(values_N):
                return values_N[row * len(values_N) // self._chunks[chunk].rows]
        raise PoolError(
            "pool.path: none of its samples may be learned from without labels: all are left out or rejected"
        )

    def _values(self, number: int) -> Tensor:
        """The usable samples of a chunk."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        chunk = self._chunks[number]
        one = replace(part(self._pool.source, [chunk.file]), spans=((chunk.first, chunk.end),))
        # Whole, as the prepared pool keeps it: what may not be learned from is left out here.
        found = next(decoded(one, self.form), None)
        if found is None:  # all of it is set aside
            return self._keep(number, torch.zeros((0, *self.form.shape), dtype=torch.uint8))
        samples = found.samples
        usable_N = np.array([why is None for why in samples.rejected])
        usable_N &= ~self._exclude.holds(found.rows["id"])
        if self._held_out is not None:
            usable_N &= self._held_out.column(samples.digests).is_null().to_numpy(zero_copy_only=False)
        return self._keep(number, torch.from_numpy(samples.values_N[usable_N]))

    def _keep(self, number: int, values_N: Tensor) -> Tensor:
        self._held[number] = values_N
        while len(self._held) > self._window:
            self._held.popitem(last=False)
        return self._held[number]


def _kept(cache: OrderedDict[Any, T], key: Any, make: Callable[[], T]) -> T:
    """What was made for the key; the last two are kept, for a batch that begins in one and ends in the next."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > 2:
            cache.popitem(last=False)
    return cache[key]
