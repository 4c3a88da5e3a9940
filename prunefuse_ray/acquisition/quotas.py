"""Shares of a selection: how many samples of each group, and the best of each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]


def round_robin(sizes_G: npt.ArrayLike, k: int, order_G: Ints | None = None) -> Ints:
    """How many of k each group gets when they take one each in turn, by `order_G` (the smallest group first), until k
    are taken.

    So every group gets the same number, or all that it has (Citovsky et al. 2021, algorithm 2). Of groups of equal
    size the one with the smaller index goes first. k is at most the sum of the sizes.
    """
    sizes_G = np.asarray(sizes_G, np.int64)
    low, high = 0, int(sizes_G.max(initial=0))
    while low < high:  # the number of whole turns that k pays for
        turns = (low + high + 1) // 2
        low, high = (turns, high) if np.minimum(sizes_G, turns).sum() <= k else (low, turns - 1)
    quotas_G = np.minimum(sizes_G, low)
    order = turn_order(sizes_G) if order_G is None else order_G
    more = order[sizes_G[order] > low][: k - int(quotas_G.sum())]
    quotas_G[more] += 1
    return quotas_G


def turn_order(sizes_G: npt.ArrayLike) -> Ints:
    """Indices of the groups in the order of their turns: from the smallest, equals by index."""
    return np.argsort(np.asarray(sizes_G), kind="stable").astype(np.int64)


def place_in_group(sorted_groups_N: npt.NDArray) -> Ints:
    """0, 1, 2, ... within each run of equal values."""
    n = len(sorted_groups_N)
    starts = np.flatnonzero(np.r_[True, sorted_groups_N[1:] != sorted_groups_N[:-1]]) if n else np.zeros(0, np.int64)
    return np.arange(n) - np.repeat(starts, np.diff(np.r_[starts, n]))


def best_of_groups(rows: pa.Table, quotas: Ints) -> pa.Table:
    """Of (id, score, group) the `quotas[group]` rows of highest score in each group, ties by smaller id; by group."""
    keys = [("group", "ascending"), ("score", "descending"), ("id", "ascending")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=keys))
    groups = rows["group"].to_numpy()
    return rows.filter(pa.array(place_in_group(groups) < quotas[groups]))
