"""Selecting a set: a strategy over the candidates' shards, in one go or, where that is too much work, in two rounds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayActorError

from prunefuse_ray.acquisition import Chance, Strategy, hash_ids
from prunefuse_ray.acquisition.greedy import TOO_CLOSE, Rule
from prunefuse_ray.data.reading import ids_to_numpy
from prunefuse_ray.distributed.remote import GROUPS, plain_errors
from prunefuse_ray.selection.rows import Files, Rows, read
from prunefuse_ray.selection.shards import Shards, count_shards
from prunefuse_ray.selection.top_k import enough

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""A selection that loses an actor (with its node) is made again from the files; it comes out the same."""
EXACT_WORK = 10**13
"""Multiply-adds up to which a divisible strategy sees all candidates at once, about twenty minutes of one core."""
SURPLUS = 2
"""The first of two rounds takes so many times the samples that are wanted."""
MAX_PARTS = 16
"""Parts in the first of two rounds: more of them save work, but each then selects so few that all select alike."""
PART_BYTES = 2**30
"""Features of one part at most: it is one task's; where they are more, there are more parts."""
DEALT_ROW = 10_000
"""What it costs to read a row and deal it out, in multiply-adds."""

T = TypeVar("T")


def select_set(
    strategy: Strategy, files: Files, labeled: Files | None, k: int, chance: Chance, cpus: float
) -> pa.Table:
    """The k samples that a set strategy selects from score files.

    A divisible strategy with too much work (`parts_of`) works in two rounds: the samples are dealt into parts by the
    hashes of their ids, in each part SURPLUS x its share of k is selected, and k among all of these. Every part is a
    random sample of the pool and so looks like it; after Malkomes et al., "Fast Distributed k-Center Clustering with
    Outliers on Massive Data", NeurIPS 2015, who take k in every part, for a guarantee, and so save no work but time.
    What it costs in covering radius: `jobs/benchmark.py centers --two-rounds-rows 300000`.

    Args:
        strategy: one that selects sets.
        labeled: files with the vectors of the labeled samples; None: there are none, or the strategy reads none.
        cpus: of the cluster.

    Returns:
        (id, score, rank) in the order of the selection; the scores are those of the files.

    Raises:
        ScoreError: fewer than k scores, or vectors that are not finite.
    """
    if strategy.divisible:
        rows, dimensions = files.shape()
        parts = parts_of(rows, labeled.shape()[0] if labeled else 0, k, sum(dimensions))
        if parts > 1:
            return in_two_rounds(strategy, files, labeled, k, chance, parts)

    def whole() -> pa.Table:
        with shards_of(files, k, cpus, labeled) as shards:
            return _select(strategy, shards, k, chance)

    return attempt(whole)


def select_apart(files: Files, labeled: Files | None, k: int, min_distance: float, cpus: float) -> tuple[pa.Table, int]:
    """The k best scores among samples that keep `min_distance` from each other and from the labeled ones.

    From the best downwards, ties by id, each sample is taken unless one taken before, or a labeled one, is nearer
    (Euclidean distance of the features). Where too few keep it, the best of the others fill up.

    Returns:
        (id, score, rank) in the order of the selection, and how many of them do not keep the distance.
    """

    def select() -> tuple[pa.Table, int]:
        with shards_of(files, k, cpus, labeled) as shards:
            within = float(np.ldexp(float(min_distance), shards.powers[0])) ** 2
            selected = shards.greedy(Rule(kind="apart", within=within), k, from_labeled=True)
            return selected.table, int((selected.keys > TOO_CLOSE / 2).sum())

    return attempt(select)


@contextmanager
def shards_of(files: Files, k: int, cpus: float, labeled: Files | None = None) -> Iterator[Shards]:
    """The files' rows in as many shards as they are worth. ScoreError where there are fewer than k."""
    rows, dimensions = files.shape()
    enough(rows, k)  # with its score or without: where there is nothing, nothing can be read
    with Shards(files, count_shards(files, cpus, rows, dimensions), labeled) as shards:
        enough(shards.rows, k)
        yield shards


def attempt(selection: Callable[[], T]) -> T:
    """`selection()`, again where an actor was lost."""
    for n in range(1, ATTEMPTS):
        try:
            return selection()
        except RayActorError as error:
            logger.warning("selection lost an actor (%s); attempt %d of %d", error, n + 1, ATTEMPTS)
    return selection()


# --- two rounds -----------------------------------------------------------------------------------------------------


def parts_of(rows: int, labeled: int, k: int, dimensions: int) -> int:
    """Into how many parts a divisible strategy deals the samples; 1: it sees all at once. Sizes alone decide, not the
    cluster, so that the same pool gives the same selection.

    Two rounds are for more than EXACT_WORK, and where they at least halve it: every part begins from the labeled
    samples as the whole does, so these save nothing, and the second round grows with the square of k.
    """
    exact = rows * (labeled + k) * dimensions
    parts = max(int(np.clip(rows // k, 2, MAX_PARTS)), math.ceil(4 * rows * dimensions / PART_BYTES))
    first = rows * (DEALT_ROW + (labeled + SURPLUS * k / parts) * dimensions)
    second = SURPLUS * k * (labeled + k) * dimensions
    return parts if exact > EXACT_WORK and 2 * (first + second) <= exact else 1


def in_two_rounds(
    strategy: Strategy, files: Files, labeled: Files | None, k: int, chance: Chance, parts: int
) -> pa.Table:
    """The files are read once, by tasks that cut their rows into parts; then a task for every part, and one for all."""
    deal = ray.remote(num_cpus=0.5, num_returns=parts)(_deal)
    first = ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")(_select_in_part)
    second = ray.remote(num_cpus=0.5)(_select_among)
    dealt: list[Any] = [deal.remote(some, parts) for some in files.cut(max(GROUPS, parts))]
    share = -(-k * SURPLUS // parts)
    found = [first.remote(strategy, labeled, share, chance, *(d[n] for d in dealt)) for n in range(parts)]
    del dealt  # each part is forgotten as soon as its task is done
    with plain_errors():
        return ray.get(second.remote(strategy, labeled, k, chance, *found))


def _deal(files: Files, parts: int) -> tuple[Rows, ...]:
    """A task: rows by part. The hash of its id says where a row belongs, however the files are cut."""
    rows = read(files)
    part_N = hash_ids(ids_to_numpy(rows.ids)) % np.uint64(parts)
    order = np.argsort(part_N, kind="stable")
    return tuple(rows.take(some) for some in np.split(order, np.searchsorted(part_N[order], np.arange(1, parts))))


def _select_in_part(strategy: Strategy, labeled: Files | None, share: int, chance: Chance, *dealt: Rows) -> Rows:
    """The first round, a task: the strategy among the rows of one part."""
    rows = Rows.concat(dealt)
    if len(rows.ids) <= share:
        return rows
    with Shards(rows, 0, labeled) as shards:
        selected = _select(strategy, shards, share, chance)
        return shards.members[0].rows_of(selected["id"].combine_chunks())


def _select_among(strategy: Strategy, labeled: Files | None, k: int, chance: Chance, *parts: Rows) -> pa.Table:
    """The second round, a task: the strategy among what the parts have selected."""
    rows = Rows.concat(parts)
    enough(len(rows.ids), k)
    with Shards(rows, 0, labeled) as shards:
        return _select(strategy, shards, k, chance)


def _select(strategy: Strategy, shards: Shards, k: int, chance: Chance) -> pa.Table:
    assert strategy.select is not None
    return strategy.select(shards, k, chance)
