"""Selecting a set: a strategy over the candidates' shards, in one go or, where that is too much work, in two rounds."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import ObjectLostError, RayActorError

from prunefuse_ray.acquisition import Chance, Strategy, hash_ids, random_scores
from prunefuse_ray.acquisition.coverage import REFERENCES, REFERENCES_PER_SAMPLE
from prunefuse_ray.acquisition.draws import SHOWN
from prunefuse_ray.acquisition.greedy import TOO_CLOSE, Rule
from prunefuse_ray.acquisition.ranking import ranked
from prunefuse_ray.data.ids import ids_to_numpy
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
PAIRWISE_ROWS = 2_048
"""Rows of a part, for a strategy that compares them with each other."""
MAX_PAIRWISE_PARTS = 1_024
GROUP_SAMPLES = 32_000
"""Samples that one second round of such a strategy selects, at most."""
SECOND_PAIRS = 5 * 10**7, 3 * 10**8
"""Pairs of candidates and references for which it has time, at least and at most: between them an eighth of the first
round's. 10^7 take about a second of a core."""

T = TypeVar("T")


def select_set(
    strategy: Strategy, files: Files, labeled: Files | None, k: int, chance: Chance, cpus: float
) -> pa.Table:
    """The k samples that a set strategy selects from score files.

    A divisible strategy with too much work (`parts_of`) works in two rounds: the samples are dealt into parts by the
    hashes of their ids, in each part SURPLUS x its share of k is selected, and k among all of these. Every part is a
    random sample of the pool and so looks like it; after Malkomes et al., "Fast Distributed k-Center Clustering with
    Outliers on Massive Data", NeurIPS 2015, who take k in every part, for a guarantee, and so save no work but time.
    What it costs in covering radius: `jobs/benchmark.py centers --two-rounds-rows 300000`. A strategy that compares
    samples with each other does so in all but small pools (`pairwise`).

    Args:
        strategy: one that selects sets.
        labeled: files with the vectors of the labeled samples; None: there are none, or the strategy reads none.
        cpus: of the cluster.

    Returns:
        (id, score, rank) in the order of the selection; the scores are those of the files.

    Raises:
        ScoreError: fewer than k scores, or vectors that are not finite.
    """
    enough(files.shape()[0], k)
    if (cut := rounds_of(strategy, files, labeled, k)) is not None:
        return in_two_rounds(strategy, files, labeled, k, chance, cut)
    if strategy.pairwise:
        return _select_among(strategy, labeled, k, chance, None, [read(files)])

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
        except (RayActorError, ObjectLostError) as error:  # an answer may be lost with its node before it is fetched
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


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How a selection in two rounds is cut. Sizes alone decide, so that the same pool gives the same selection."""

    parts: int
    share: int
    """Samples that the first round selects in each part, at most."""
    groups: int = 1
    """Second rounds side by side, each among what some of the parts have selected."""
    references: int = 0
    """About so many random samples of the pool are shown to a second round."""


def rounds_of(strategy: Strategy, source: Files | Rows, labeled: Files | Rows | None, k: int) -> Rounds | None:
    """How two rounds are cut; None: the strategy sees all samples at once."""
    rows, dimensions = source.shape()
    if strategy.pairwise:
        cut = pairwise(rows, k)
        return cut if cut.parts > 1 else None
    if not strategy.divisible:
        return None
    parts = parts_of(rows, labeled.shape()[0] if labeled else 0, k, sum(dimensions))
    return divided(k, parts) if parts > 1 else None


def divided(k: int, parts: int) -> Rounds:
    """For a divisible strategy in so many parts (`parts_of`)."""
    return Rounds(parts=parts, share=-(-k * SURPLUS // parts))


def pairwise(rows: int, k: int) -> Rounds:
    """For a strategy that compares the samples of a part with each other: parts of PAIRWISE_ROWS, in a huge pool of
    more. Each selects as much as a second round can compare with its references, up to k: so many are enough for
    GreeDi's guarantee (Mirzasoleiman et al. 2013), however alike the parts' selections are. A very large k is shared
    out among groups of parts."""
    parts = min(MAX_PAIRWISE_PARTS, -(-rows // PAIRWISE_ROWS))
    groups = min(parts, GROUPS, -(-k // GROUP_SAMPLES))
    references = max(REFERENCES, -(-k // groups) * REFERENCES_PER_SAMPLE)
    pairs = int(np.clip(rows * PAIRWISE_ROWS // 8, *SECOND_PAIRS))
    candidates = max(SURPLUS * k, groups * pairs // references)
    return Rounds(parts=parts, share=min(k, -(-candidates // parts)), groups=groups, references=references)


def in_two_rounds(
    strategy: Strategy, source: Files | Rows, labeled: Files | Rows | None, k: int, chance: Chance, cut: Rounds
) -> pa.Table:
    """The files are read once, by tasks that deal their rows into piles of one part or some; then a task for every
    pile, and one for every group of what was selected. Rows in memory go to the tasks through Ray's store."""
    rows, dimensions = source.shape()
    piles = min(cut.parts, max(GROUPS, math.ceil(4 * rows * sum(dimensions) / PART_BYTES)))
    of_rows = cut.references / max(1, rows)
    deal = ray.remote(num_cpus=0.5, num_returns=piles + 1)(_deal)
    first = ray.remote(num_cpus=0.5, num_returns=2, scheduling_strategy="SPREAD")(_select_in_parts)
    second = ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")(_select_among)
    dealt: list[Any] = [deal.remote(some, piles, chance, of_rows) for some in source.cut(max(GROUPS, piles))]
    shown = ray.remote(num_cpus=0)(_gathered).remote(*(d[-1] for d in dealt)) if cut.references else None
    parts = [len(range(n, cut.parts, piles)) for n in range(piles)]
    known: Any = ray.put(labeled)  # once for all tasks
    found: list[Any] = [
        first.remote(strategy, known, cut.share, chance, piles, parts[n], *(d[n] for d in dealt)) for n in range(piles)
    ]
    del dealt  # each pile is forgotten as soon as its task is done
    groups = [found[g :: cut.groups] for g in range(cut.groups)]
    with plain_errors():
        shares = shares_of(k, [sum(ray.get([count for _, count in group])) for group in groups])
        return _in_turn(
            ray.get(
                [
                    second.remote(strategy, known, share, chance, shown, *(rows for rows, _ in group))
                    for group, share in zip(groups, shares, strict=True)
                    if share
                ]
            )
        )


def shares_of(k: int, rows: Sequence[int]) -> list[int]:
    """How many of k samples each group selects: in proportion to what it has, so that none is asked for more.
    ScoreError where all together have fewer."""
    enough(sum(rows), k)
    ends = [k * end // sum(rows) for end in itertools.accumulate(rows)]
    return [end - before for before, end in itertools.pairwise([0, *ends])]


def _deal(files: Files | Rows, piles: int, chance: Chance, share: float) -> tuple[Rows, ...]:
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
    strategy: Strategy, labeled: Files | Rows | None, share: int, chance: Chance, piles: int, parts: int, *dealt: Rows
) -> tuple[list[Rows], int]:
    """The first round, a task: what the strategy selects of each part of a pile, in its order, and how many rows."""
    pile, known = _gathered(*dealt), labeled and read(labeled) if parts > 1 else labeled
    part_N = hash_ids(ids_to_numpy(pile.ids)) // np.uint64(piles) % np.uint64(parts)
    selected = [
        _select_in_part(strategy, known, share, chance, pile.take(np.flatnonzero(part_N == n))) for n in range(parts)
    ]
    return selected, sum(len(rows.ids) for rows in selected)


def _select_in_part(strategy: Strategy, labeled: Files | Rows | None, share: int, chance: Chance, rows: Rows) -> Rows:
    if len(rows.ids) <= share:
        return rows
    with Shards(rows, 0, labeled) as shards:
        selected = _select(strategy, shards, share, chance)
        return shards.members[0].rows_of(selected["id"].combine_chunks())


def _select_among(
    strategy: Strategy,
    labeled: Files | Rows | None,
    k: int,
    chance: Chance,
    references: Rows | None,
    *found: list[Rows],
) -> pa.Table:
    """The second round, a task: the strategy among what the parts have selected."""
    rows = _gathered(*(part for parts in found for part in parts))
    enough(len(rows.ids), k)
    with Shards(rows, 0, labeled, references) as shards:
        return _select(strategy, shards, k, chance)


def _in_turn(selected: Sequence[pa.Table]) -> pa.Table:
    """What the groups have selected: the first of each, then the second of each, ..., ties by id."""
    rows = pa.concat_tables(selected).sort_by([("rank", "ascending"), ("id", "ascending")])
    return selected[0] if len(selected) == 1 else ranked(rows.select(["id", "score"]))


def _select(strategy: Strategy, shards: Shards, k: int, chance: Chance) -> pa.Table:
    assert strategy.select is not None
    return strategy.select(shards, k, chance)
