"""Orders of scored rows: higher score first, ties by smaller id."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Keys = npt.NDArray[np.uint32]


def best(rows: pa.Table, k: int, by: str = "score") -> pa.Table:
    """The k rows of highest score, ties by smaller id, in that order."""
    rows = rows.combine_chunks()  # else every chunk is sorted by itself, and these are merged
    return rows.take(pc.sort_indices(rows, sort_keys=[(by, "descending"), ("id", "ascending")])[:k])


def ranked(rows: pa.Table) -> pa.Table:
    """(id, score, rank) of rows in the order of their selection."""
    return rows.append_column("rank", pa.array(np.arange(rows.num_rows, dtype=np.int64)))


def sort_keys(scores: npt.NDArray[np.float32]) -> Keys:
    """Unsigned keys in the order of the scores (higher score, higher key); -0.0 equals 0.0. No NaN."""
    bits = (scores + np.float32(0.0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def key_counts(keys: Keys, bucket: int | None) -> npt.NDArray[np.int64]:
    """(2^16,) histogram of the upper half of the keys, or of the lower half of those in one bucket of the upper."""
    upper = keys >> np.uint32(16)
    return np.bincount(upper if bucket is None else keys[upper == bucket] & np.uint32(0xFFFF), minlength=1 << 16)


def score_counts(scores: npt.NDArray[np.float32], bucket: int | None) -> npt.NDArray[np.int64]:
    """`key_counts` of the keys of scores."""
    if bucket is None:
        return upper_counts(np.ascontiguousarray(scores))
    return key_counts(sort_keys(scores), bucket)


def upper_counts(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """`key_counts(sort_keys(scores), None)` of contiguous scores, from the upper halves of their bits as they are."""
    raw = np.bincount(scores.view(np.uint16)[int(sys.byteorder == "little") :: 2], minlength=1 << 16)
    if raw[0x8000]:  # -0.0, which equals 0.0, may be among these
        return key_counts(sort_keys(scores), None)
    return np.concatenate([raw[:0x7FFF:-1], raw[:0x8000]])


def score_of(key: int) -> np.float32:
    """The score that has this key; -inf for keys below all scores."""
    bits = key ^ 0x80000000 if key >> 31 else key ^ 0xFFFFFFFF
    score = np.array([bits], np.uint32).view(np.float32)[0]
    return np.float32(-np.inf) if np.isnan(score) else score


def threshold_bucket(counts: npt.NDArray[np.int64], k: int) -> tuple[int, int]:
    """The bucket that holds the k-th largest key, and how many keys lie in higher buckets."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    return len(counts) - 1 - place, int(from_top[place] - counts[len(counts) - 1 - place])
