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

from prunefuse_ray.acquisition import Chance, Strategy, hash_ids, random_scores
from prunefuse_ray.acquisition.coverage import REFERENCES, REFERENCES_PER_SAMPLE
from prunefuse_ray.acquisition.greedy import TOO_CLOSE, Rule
from prunefuse_ray.acquisition.ranking import ranked
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
PAIRWISE_ROWS = 4_096
"""Rows of a part, for a strategy that compares them with each other."""
MAX_PAIRWISE_PARTS = 1_024
SHOWN = 5_000_000
"""Added to a round's number: the draw that shows samples to the second round is none that selected samples."""

T = TypeVar("T")


def select_set(
    strategy: Strategy, files: Files, labeled: Files | None, k: int, chance: Chance, cpus: float
) -> pa.Table:
    """The k samples that a set strategy selects from score files.

    A divisible strategy with too much work (`parts_of`) works in two rounds: the samples are dealt into parts by the
    hashes of their ids, in each part SURPLUS x its share of k is selected, and k among all of these. Every part is a
    random sample of the pool and so looks like it; after Malkomes et al., "Fast Distributed k-Center Clustering with
    Outliers on Massive Data", NeurIPS 2015, who take k in every part, for a guarantee, and so save no work but time.
    What it costs in covering radius: `jobs/benchmark.py centers --two-rounds-rows 300000`. A pairwise strategy does so
    in all but small pools, since it compares the samples of a part with each other (`pairwise_parts`); for a very large
    k the first round has to do (`pairwise_references`).

    Args:
        strategy: one that selects sets.
        labeled: files with the vectors of the labeled samples; None: there are none, or the strategy reads none.
        cpus: of the cluster.

    Returns:
        (id, score, rank) in the order of the selection; the scores are those of the files.

    Raises:
        ScoreError: fewer than k scores, or vectors that are not finite.
    """
    rows, dimensions = files.shape()
    enough(rows, k)
    if strategy.pairwise:
        parts = pairwise_parts(rows)
        if parts == 1:
            return _select_among(strategy, labeled, k, chance, None, [read(files)])
        return in_two_rounds(strategy, files, labeled, k, chance, parts)
    if strategy.divisible:
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


def pairwise_parts(rows: int) -> int:
    """Into how many parts samples are dealt for a strategy that compares those of a part with each other: of
    PAIRWISE_ROWS each, in a huge pool of more. The number of rows alone decides."""
    return min(MAX_PAIRWISE_PARTS, -(-rows // PAIRWISE_ROWS))


def pairwise_references(rows: int, k: int) -> int:
    """About how many samples of the pool a second round of such a strategy is shown; 0 where it would be more work than
    the first: the parts' selections then stand, those of the first rank before those of the second."""
    references = max(REFERENCES, k * REFERENCES_PER_SAMPLE)
    return references if SURPLUS * k * references <= rows * PAIRWISE_ROWS else 0


def in_two_rounds(
    strategy: Strategy, files: Files, labeled: Files | None, k: int, chance: Chance, parts: int
) -> pa.Table:
    """The files are read once, by tasks that deal their rows into piles of one part or some; then a task for every
    pile, and one for what was selected."""
    rows, dimensions = files.shape()
    piles = min(parts, max(GROUPS, math.ceil(4 * rows * sum(dimensions) / PART_BYTES)))
    references = pairwise_references(rows, k) if strategy.pairwise else 0
    again = not strategy.pairwise or references > 0
    share, of_rows = -(-k * SURPLUS // parts), references / max(1, rows)
    deal = ray.remote(num_cpus=0.5, num_returns=piles + 1)(_deal)
    first = ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")(_select_in_parts)
    dealt: list[Any] = [deal.remote(some, piles, chance, of_rows) for some in files.cut(max(GROUPS, piles))]
    shown = ray.remote(num_cpus=0)(_gathered).remote(*(d[-1] for d in dealt)) if references else None
    found = [
        first.remote(strategy, labeled, share, chance, piles, len(range(n, parts, piles)), *(d[n] for d in dealt))
        for n in range(piles)
    ]
    del dealt  # each pile is forgotten as soon as its task is done
    second = ray.remote(num_cpus=0.5)(_select_among if again else _in_turn)
    with plain_errors():
        return ray.get(second.remote(strategy, labeled, k, chance, shown, *found))


def _deal(files: Files, piles: int, chance: Chance, share: float) -> tuple[Rows, ...]:
    """A task: rows by pile, and a random share of them. The hash of its id says where a row belongs, however the files
    are cut."""
    rows = read(files)
    ids_N = ids_to_numpy(rows.ids)
    pile_N = hash_ids(ids_N) % np.uint64(piles)
    order = np.argsort(pile_N, kind="stable")
    dealt = [rows.take(some) for some in np.split(order, np.searchsorted(pile_N[order], np.arange(1, piles)))]
    shown = np.flatnonzero(random_scores(ids_N, chance.seed, SHOWN + chance.round) < share)
    return *dealt, rows.take(shown)


def _gathered(*rows: Rows) -> Rows:
    """A task: rows of several, by rising id."""
    return Rows.concat(rows).sorted()


def _select_in_parts(
    strategy: Strategy, labeled: Files | None, share: int, chance: Chance, piles: int, parts: int, *dealt: Rows
) -> list[Rows]:
    """The first round, a task: what the strategy selects of each part of a pile, in its order."""
    pile, known = _gathered(*dealt), labeled and read(labeled) if parts > 1 else labeled
    part_N = hash_ids(ids_to_numpy(pile.ids)) // np.uint64(piles) % np.uint64(parts)
    return [
        _select_in_part(strategy, known, share, chance, pile.take(np.flatnonzero(part_N == n))) for n in range(parts)
    ]


def _select_in_part(strategy: Strategy, labeled: Files | Rows | None, share: int, chance: Chance, rows: Rows) -> Rows:
    if len(rows.ids) <= share:
        return rows
    with Shards(rows, 0, labeled) as shards:
        selected = _select(strategy, shards, share, chance)
        return shards.members[0].rows_of(selected["id"].combine_chunks())


def _select_among(
    strategy: Strategy, labeled: Files | None, k: int, chance: Chance, references: Rows | None, *found: list[Rows]
) -> pa.Table:
    """The second round, a task: the strategy among what the parts have selected."""
    rows = _gathered(*(part for parts in found for part in parts))
    enough(len(rows.ids), k)
    with Shards(rows, 0, labeled, references) as shards:
        return _select(strategy, shards, k, chance)


def _in_turn(_strategy: Strategy, _labeled: Any, k: int, _chance: Chance, _shown: Any, *found: list[Rows]) -> pa.Table:
    """In place of the second round, a task: the first of each part, then the second of each, ..., ties by id."""
    parts = [part for parts in found for part in parts]
    enough(sum(len(part.ids) for part in parts), k)
    rows = pa.concat_tables(
        pa.table({"place": np.arange(len(part.ids)), "id": part.ids, "score": part.scores})
        for part in parts
        if len(part.ids)
    )
    return ranked(rows.sort_by([("place", "ascending"), ("id", "ascending")]).select(["id", "score"])[:k])


def _select(strategy: Strategy, shards: Shards, k: int, chance: Chance) -> pa.Table:
    assert strategy.select is not None
    return strategy.select(shards, k, chance)
