"""Ids of samples: their hashes, and sets of them in which many tables are looked up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.acquisition import hash_ids

AT_ONCE = 65_536
"""Ids that are Python's objects at one time."""


def ids_to_numpy(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Ids as int64 or as an array of Python strings: the one form whose hashes are compared."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy().astype(np.int64)
    return np.array(ids.to_pylist(), dtype=object)


def of_one_width(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as the tables of a run have them: int64, however wide a file has its integers, or strings."""
    return ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string())


def id_hashes(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A hash of each id (N,), uint64."""
    parts = [hash_ids(ids_to_numpy(ids.slice(first, AT_ONCE))) for first in range(0, len(ids), AT_ONCE)]
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def id_digest(ids: pa.ChunkedArray | pa.Array) -> int:
    """Order-independent digest of ids; the digest of two sets together is the sum of theirs, modulo 2^64."""
    return digest_of(id_hashes(ids))


def digest_of(hashes_N: npt.NDArray[np.uint64]) -> int:
    """`id_digest` of ids of which these are the hashes."""
    return int(hashes_N.sum(dtype=np.uint64))


@dataclass(frozen=True)
class IdSet:
    """Ids (N,) in which a pass over the pool looks up every table that it reads.

    They are sorted by their hashes once, and a table costs O(rows log N). `pyarrow.compute.is_in` makes a hash table of
    all N for every call: a million take 50 MB and 70 ms each time, strings 200 ms.
    """

    ids: pa.Array
    hashes_N: npt.NDArray[np.uint64]
    """Ascending."""
    order_N: npt.NDArray[np.int64]
    """Per hash, the place of its id."""
    alike: bool
    """Whether two different ids have the same hash."""

    @classmethod
    def of(cls, ids: pa.Array | IdSet) -> IdSet:
        if isinstance(ids, IdSet):
            return ids
        hashes_N = id_hashes(ids)
        order_N = np.argsort(hashes_N, kind="stable")
        hashes_N = hashes_N[order_N]
        again = np.flatnonzero(hashes_N[1:] == hashes_N[:-1])
        one, other = (ids.take(pa.array(order_N[places])) for places in (again, again + 1))
        return cls(ids, hashes_N, order_N, not one.equals(other))

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int64]:
        """The place of each (M,) in `self.ids`, the first one of several; -1 where it is not among them."""
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        ids = ids.cast(self.ids.type)
        if self.alike:
            return pc.fill_null(pc.index_in(ids, value_set=self.ids), -1).to_numpy().astype(np.int64)
        found_M = np.full(len(ids), -1, np.int64)
        if not len(self):
            return found_M
        hashes_M = id_hashes(ids)
        near_M = np.minimum(np.searchsorted(self.hashes_N, hashes_M), len(self) - 1)
        hit_M = np.flatnonzero(self.hashes_N[near_M] == hashes_M)
        places = self.order_N[near_M[hit_M]]
        same = pc.equal(self.ids.take(pa.array(places)), ids.take(pa.array(hit_M)))
        found_M[hit_M] = np.where(same.to_numpy(zero_copy_only=False), places, -1)
        return found_M

    def holds(self, ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
        """Whether each (M,) is among them."""
        return self.find(ids) >= 0
