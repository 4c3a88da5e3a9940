"""One pass of a saved network over a pool: what a run does every round, and `rank` does once.

Into files that are kept as they are written: after a kill the same pass goes on with the rows that are missing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch

from prunefuse_ray import config as cfg
from prunefuse_ray.data.inventory import check_share
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.prepared import chunk_rows, usage
from prunefuse_ray.data.reading import head
from prunefuse_ray.data.sample_format import read_column
from prunefuse_ray.distributed.resources import ScoringPlan, beside_decoding
from prunefuse_ray.errors import ScoreError, causes
from prunefuse_ray.scoring.backend_choice import check, choose, measured_rate, unlike
from prunefuse_ray.scoring.scorer import ScoringJob, score_pool
from prunefuse_ray.scoring.summary import summarize
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

DECODED = 64
"""Samples by which decoding is timed."""
NEARLY = 0.9
"""Share of what there is room for with which a pool counts as prepared: that of single chunks is decided by chance."""


@contextmanager
def fitting(what: str, scoring: cfg.Scoring, other: str) -> Iterator[None]:
    """Inside, a batch that does not fit into the memory of a GPU is said as such; of an actor the error comes wrapped.

    Args:
        what: what is under way.
        other: the option under which other settings begin anew.
    """
    try:
        yield
    except Exception as error:
        if not any(isinstance(one, torch.OutOfMemoryError) for one in causes(error)):
            raise
        shared = 0 < scoring.gpus < 1
        where = f"an actor's share of the GPU's memory (scoring.gpus {scoring.gpus:g})" if shared else (
            "the memory of the GPU"
        )  # fmt: skip
        fewer, larger = (", or with fewer actors (scoring.actors)", " or a larger scoring.gpus") if shared else ("", "")
        raise ScoreError(
            f"{what}: a batch does not fit into {where}: run the same command where a GPU has more memory free{fewer}; "
            f"or under another {other} with a smaller scoring.batch_size{larger}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class ScorePass:
    """What is scored, by what, and where the scores go."""

    root: Place
    """The directory that keeps by which backend its pool is scored (`backend_choice.choose`)."""
    record: Callable[[str, bytes], object]
    """Writes a file of this name there; refuses where another driver has taken over."""
    source: Source
    rows: int
    """Of the whole pool."""
    exclude: pa.Array
    """Ids of its rows that are not scored."""
    network: Place
    macs: int
    """Multiply-accumulates of the network per sample."""
    classes: int
    members: int
    """Of a committee; 1 for a single network."""
    out: Place
    checkpoint: Place
    """Where the ids of finished rows are kept."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a pass came to."""

    job: ScoringJob
    """As it was carried out: with the backend of the choice."""
    written: list[pafs.FileInfo]
    rejected: pa.Table
    """(id, reason) of the samples that cannot be used."""
    held_out: pa.Table
    """(id, row): samples that have the content of a row of the held-out sets, as far as they were compared."""
    metrics: dict[str, Any]


def score(
    what: ScorePass, scoring: cfg.Scoring, job: ScoringJob, plan: ScoringPlan, discard: Callable[[], None]
) -> Scored:
    """Score every sample of the pool but the excluded ones.

    Args:
        discard: removes what was written, where it cannot be used.

    Raises:
        ScoreError: scores that are not finite, or another number of rows than the pool has. They were discarded.
    """
    job = choose(what.root, scoring, what.network, job, plan, what.rows, what.rows * what.macs, what.record)
    before = {file.path for file in what.out.written()}  # by an earlier start, which was ended
    started = time.perf_counter()
    written = write_scores(what, job, _with_decoding(what, job, plan))
    seconds = time.perf_counter() - started
    largest = TASKS[job.task].strategies[job.strategy].largest(what.classes, what.members)
    try:
        summary = summarize([f.path for f in written], what.out, largest)
        if summary.rows != (expected := what.rows - len(what.exclude)):
            raise ScoreError(
                f"{summary.rows} rows were scored of {expected}: the pool changed meanwhile, or two processes wrote "
                "here; the scores were removed, run again"
            )
    except ScoreError:
        discard()
        raise
    kept = sum(pq.read_metadata(f.path, filesystem=what.out.fs).num_rows for f in written if f.path in before)
    inference = check(what.source, what.network, job, plan)
    if told := unlike(inference):
        logger.warning(told)
    return Scored(
        job=job,
        written=written,
        rejected=summary.rejected,
        held_out=summary.held_out,
        metrics={
            "samples": summary.scored,
            "seconds": of_all_starts(seconds, summary.rows, kept),
            "samples_per_second": max(0, summary.scored - kept) / seconds,
            "rejected": summary.rejected.num_rows,
            "conversions": summary.conversions,
            "histogram": summary.histogram,
            "macs": summary.scored * what.macs,
            "inference": inference,
        },
    )


ENOUGH = 0.1
"""Share of a pass that its last start has to have scored to tell how quick the others were: less is its own start."""


def of_all_starts(seconds: float, rows: int, kept: int) -> float:
    """What a pass has taken in all, where earlier starts had scored `kept` of its rows: they are taken to have been as
    quick as the last one. Where that scored hardly any, its seconds alone are known."""
    return seconds * rows / (rows - kept) if rows - kept >= max(1, ENOUGH * rows) else seconds


def _with_decoding(what: ScorePass, job: ScoringJob, plan: ScoringPlan) -> ScoringPlan:
    """The plan, with CPUs for decoding where the pool is not prepared."""
    rate = measured_rate(what.root)
    if plan.alone or plan.gpus or rate is None:
        return plan
    if (kept := what.source.prepared) is not None:
        used = usage(kept, job.form)
        # By bytes where they tell: the last chunk of a file is a short one, and of a small file the only one.
        raw = used["bytes"] // math.prod(job.form.shape) if kept.format == "raw" else math.inf
        if min(raw, used["files"] * chunk_rows(job.form)) >= NEARLY * kept.share * what.rows:
            return plan
    sample = head(what.source, DECODED)["sample"]
    started = time.perf_counter()
    read_column(sample, job.form)
    decode = (time.perf_counter() - started) / max(len(sample), 1)
    return beside_decoding(plan, decode=decode, network=plan.cpus / rate)


def write_scores(what: ScorePass, job: ScoringJob, plan: ScoringPlan) -> list[pafs.FileInfo]:
    """Score into files below `out`, or go on with it; returns the files."""
    for place in (what.out, what.checkpoint):
        place.fs.create_dir(place.path, recursive=True)
    score_pool(
        what.source,
        what.network,
        job,
        plan,
        exclude=what.exclude,
        rows=what.rows,
        out=what.out,
        checkpoint=what.checkpoint,
    )
    return what.out.written()


def check_rejected(rejected: pa.Table, rows: int, allowed: float, remedy: str) -> None:
    """ScoreError where more than the `allowed` share of so many samples cannot be used."""
    first = rejected.slice(0, 1).to_pylist()
    example = f"{first[0]['id']!r}: {first[0]['reason']}" if first else ""
    check_share(rejected.num_rows, rows, allowed, example, remedy)
