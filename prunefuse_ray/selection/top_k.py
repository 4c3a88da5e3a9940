"""The exact global selection over score files: top-k by a radix select, in bounded memory and without a global sort.

Scores are mapped to 32-bit keys that order like the scores. One pass counts the upper 16 bits, so that the bucket where
the k-th best lies is known. If that has few rows a second pass gathers it and what is above, and the best of these are
taken. Else the lower 16 bits inside the bucket are counted first; then the threshold is known exactly, and of the rows
on it those of smallest id are gathered. Every pass is one task per group of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunefuse_ray.acquisition.quotas import best_of_groups, round_robin
from prunefuse_ray.acquisition.ranking import (
    best,
    ranked,
    score_counts,
    score_of,
    threshold_bucket,
)
from prunefuse_ray.distributed.remote import over_files
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.storage import Place

BATCH_ROWS = 1 << 20
ENOUGH = 2
"""Times k rows, which are gathered without a second count: it would cost more than it saves."""
REMEDY = "lower the budgets from this round on, or enlarge the pool (between rounds: pool.allow_growth)"
"""Of too few samples."""


def top_k(files: list[str], where: Place, k: int) -> pa.Table:
    """The k best rows of score files: (id, score, rank), by falling score, ties by rising id. Null scores never.

    The driver holds O(k) rows.

    Raises:
        ScoreError: fewer than k scores.
    """
    counts = np.sum(list(over_files(_count, files, where, None)), axis=0)
    enough(int(counts.sum()), k)
    bucket, above = threshold_bucket(counts, k)
    least, ties = bucket << 16, None
    if above + int(counts[bucket]) > ENOUGH * k:
        low, above_low = threshold_bucket(np.sum(list(over_files(_count, files, where, bucket)), axis=0), k - above)
        least, ties = (bucket << 16) | low, k - above - above_low
    return ranked(best(pa.concat_tables(over_files(_gather, files, where, least, ties)), k))


def top_k_of_groups(files: list[str], where: Place, k: int, column: str) -> tuple[pa.Table, dict[Any, int]]:
    """The k best rows of score files with equal shares of the groups that `column` names (the predicted class, say).

    The groups take one sample each in turn, the rarest first, each its best, until k are taken: where a group has too
    few, the others share the rest. Exact; every task and the driver hold O(k) rows.

    Returns:
        (id, score, rank) by falling score, ties by rising id; and how many samples of each group were chosen, of those
        groups of which any were.

    Raises:
        ScoreError: fewer than k scores.
    """
    counted: Counter[Any] = sum(over_files(_count_groups, files, where, column), Counter())
    enough(counted.total(), k)
    groups = sorted(counted)
    quotas = round_robin([counted[g] for g in groups], k)
    rows: pa.Table | None = None
    for part in over_files(_gather_groups, files, where, column, groups, quotas):
        rows = best_of_groups(part if rows is None else pa.concat_tables([rows, part]), quotas)
    assert rows is not None
    chosen = {group: int(n) for group, n in zip(groups, quotas, strict=True) if n}
    return ranked(best(rows.select(["id", "score"]), k)), chosen


def enough(found: int, k: int) -> None:
    """ScoreError where fewer than k samples have a score."""
    if found < k:
        raise ScoreError(
            f"selection.budgets: {k} samples are wanted, but only {found} of the pool have a score; {REMEDY}"
        )


def _tables(files: list[str], where: Place, columns: list[str]) -> Iterator[pa.Table]:
    """The rows that have a score."""
    for file in files:
        with where.fs.open_input_file(file) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=BATCH_ROWS, columns=columns):
                table = pa.Table.from_batches([batch])
                if table["score"].null_count:
                    table = table.filter(pc.is_valid(table["score"]))
                yield table


def _count(files: list[str], where: Place, bucket: int | None) -> npt.NDArray[np.int64]:
    """`key_counts` of the scores in these files."""
    counts = np.zeros(1 << 16, np.int64)
    for table in _tables(files, where, ["score"]):
        counts += score_counts(table["score"].to_numpy(), bucket)
    return counts


def _gather(files: list[str], where: Place, least: int, ties: int | None) -> pa.Table:
    """Rows above the key `least`, and of those on it the `ties` with the smallest ids; None: all."""
    limit, above, equal = score_of(least), [], None
    for table in _tables(files, where, ["id", "score"]):
        scores = table["score"].to_numpy()
        above.append(table.filter(pa.array(scores >= limit if ties is None else scores > limit)))
        if ties is not None:
            on_it = table.filter(pa.array(scores == limit))
            equal = best(on_it if equal is None else pa.concat_tables([equal, on_it]), ties)
    return pa.concat_tables([*above, *([equal] if equal is not None else [])])


def _count_groups(files: list[str], where: Place, column: str) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for table in _tables(files, where, ["score", column]):
        for found in pc.value_counts(table[column]).to_pylist():
            counts[found["values"]] += found["counts"]
    return counts


def _gather_groups(
    files: list[str], where: Place, column: str, groups: list[Any], quotas: npt.NDArray[np.int64]
) -> pa.Table:
    """The rows of these files that could be among the best of their groups: (id, score, place of the group)."""
    kept: pa.Table | None = None
    for table in _tables(files, where, ["id", "score", column]):
        number = pc.index_in(table[column], value_set=pa.array(groups, table[column].type))
        rows = table.select(["id", "score"]).append_column("group", number)
        kept = best_of_groups(rows if kept is None else pa.concat_tables([kept, rows]), quotas)
    assert kept is not None
    return kept
