"""How the labels of a round come from people: the request that is put to them, the wait, and what is recorded."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray import annotation, progress
from prunefuse_ray import config as cfg
from prunefuse_ray.annotation import Annotator, Answers, Request
from prunefuse_ray.annotation.label_files import changed_files
from prunefuse_ray.config.schema import Config
from prunefuse_ray.config.sources import POOL_SOURCES
from prunefuse_ray.data.patterns import is_pattern
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.errors import LabelError, LabelsWaiting
from prunefuse_ray.method.steps import LABEL, REQUEST, Step
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.schemas import arrow_type, labels_schema, unknown_schema
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task

logger = logging.getLogger(__name__)

POLL = 10.0  # seconds between looks for labels
AT_REST = 2.0
"""Seconds in which files of labels that came while the run waited must not change: a half-written one may end in the
middle of a label."""
TABLE = "request.parquet"
TEST_SAMPLES = "test-samples"
"""Copies of the samples of a drawn test set, until their labels are there."""


def annotator_of(config: cfg.Annotation) -> Annotator | None:
    """Who labels; None for the oracle. LabelError where a server is named and the environment holds no token."""
    match config.kind:
        case "oracle":
            return None
        case "files":
            return annotation.Files()
        case "label_studio":
            assert config.url is not None, "validated by config.Annotation"
            return annotation.connect(
                config.url,
                labels_per_sample=config.labels_per_sample,
                image_url=config.image_url,
                image_size=config.image_size,
            )


def request_table(chosen: pa.Table, guesses: pa.Table | None, id_type: str, task: Task) -> pa.Table:
    """The chosen samples (id, score, rank) with the proxy's guesses (id, guess, probability), by rank."""
    rows = chosen.sort_by("rank")
    schema = annotation.request_schema(arrow_type(id_type), task.label_type)
    if guesses is None:
        for name in ("guess", "probability"):
            rows = rows.append_column(name, pa.nulls(rows.num_rows, schema.field(name).type))
    else:
        place = pc.index_in(rows["id"], value_set=guesses["id"].combine_chunks())
        for name in ("guess", "probability"):
            rows = rows.append_column(name, guesses[name].take(place))
    return rows.select(schema.names).cast(schema)


def request_of(config: Config, ledger: Ledger, info: PoolInfo, round_: int) -> Request:
    """The committed request of a round."""
    step = Step(round_, REQUEST)
    return Request(
        run=config.run.name,
        marker=run_marker(ledger),
        round=round_,
        classes=info.classes,
        rows=ledger.read_table(
            step, TABLE, annotation.request_schema(arrow_type(info.id_type), TASKS[config.task].label_type)
        ),
        place=ledger.place(step, "to_label"),
        samples=tuple(
            Place(ledger.root.fs, path) for name in ("samples", TEST_SAMPLES) for path in ledger.files(step, name)[0]
        ),
        texts=(config.pool.text_column or config.pool.vector_column) is not None,
        task=config.task,
        value_range=config.pool.value_range,
        folder=_folder(config.pool),
    )


def _folder(pool: cfg.Pool) -> str | None:
    """The one folder that ids are paths below; None where the samples have to be exported for people to see them."""
    one = isinstance(pool.path, str) and not is_pattern(Place.at(pool.path))
    return str(pool.path) if POOL_SOURCES[pool.source].ids_are_paths and one else None


def run_marker(ledger: Ledger) -> str:
    """Tells this run from all others, whatever it is called by now and however its pool has grown: the name and the
    pool with which it began, and when."""
    name, pool = ledger.read_config().run.name, ledger.read_pool()["id_digest"]
    began = ledger.require(Step(-1, "init")).finished
    return hashlib.sha256(f"{name}|{pool}|{began}".encode()).hexdigest()[:16]


def changed_answers(config: Config, ledger: Ledger) -> list[str]:
    """What has happened to files of labels since the labels were taken from them: they are not taken again."""
    said = []
    for round_ in range(len(config.selection.budgets)):
        commit = ledger.committed(Step(round_, LABEL))
        if commit is not None and "files" in commit.metrics:
            place = ledger.place(Step(round_, LABEL), "to_label")
            said += changed_files(place, commit.metrics["files"]) if place.exists() else []
    remedy = "the run goes on with what it took; for other labels start another run, with pool.known_labels"
    return [f"{one}: {remedy}" for one in said]


def wait_for_labels(annotator: Annotator, request: Request, config: cfg.Annotation) -> annotation.Take:
    """Put the request before the annotators and take their labels.

    Raises:
        LabelsWaiting: labels are missing after `config.wait` seconds; nothing was taken.
        LabelError: something is wrong with the labels; nothing was taken.
    """
    annotator.ask(request)
    deadline = time.monotonic() + config.wait
    answers, seen = annotator.collect(request), None  # who does not answer at all is said at once
    looks = _looks(annotator, request, answers)
    while True:
        left = deadline - time.monotonic()
        decision = annotation.decide(
            request.ids,
            answers,
            labels_per_sample=config.labels_per_sample,
            accept_partial=config.accept_partial and left <= 0,  # until then the others may still come
        )
        if seen is not None and not isinstance(decision, annotation.Wait) and seen != (answers.files, answers.faults):
            seen = answers.files, answers.faults
            with progress.waiting():
                time.sleep(AT_REST)
            answers = next(looks)
            continue
        match decision:
            case annotation.Take():
                for note in decision.notes:
                    logger.warning("the labels of round %d: %s", request.round, note)
                return decision
            case annotation.Refuse(faults=faults):
                said = "\n  ".join(faults)
                raise LabelError(
                    f"the labels of round {request.round} cannot be taken; fix these and run the same command "
                    f"again:\n  {said}"
                )
            case annotation.Wait(missing=missing, notes=notes):
                if left <= 0:
                    said = "".join(f"\n  {note}" for note in notes)
                    raise LabelsWaiting(_waiting(annotator, request, missing, config.wait) + said)
                with progress.waiting():
                    time.sleep(min(POLL, left))
                seen, answers = (answers.files, answers.faults), next(looks)


def _looks(annotator: Annotator, request: Request, answers: Answers) -> Iterator[Answers]:
    """What they have given at each look; as before where nobody answers, which is said once."""
    said = None
    while True:
        try:
            answers, said = annotator.collect(request), None
        except annotation.Away as error:
            if str(error) != said:
                said = str(error)
                logger.warning("%s. The run goes on waiting", said)
        yield answers


def _waiting(annotator: Annotator, request: Request, missing: tuple[Any, ...], wait: float) -> str:
    total = len(request.ids)
    if len(missing) == total:
        return f"{total} samples of round {request.round} wait for labels {annotator.remedy(request)}"
    at_once = " --annotation.wait 0" if wait else ""
    return (
        f"{len(missing)} of {total} samples of round {request.round} still wait for labels "
        f"{annotator.remedy(request)}. Missing: {annotation.named(missing)}. To go on without them: --accept-partial"
        f"{at_once}"
    )


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """What a round's labels come to."""

    labels: pa.Table
    unknown: pa.Table
    """`unknown_schema`"""
    outputs: Mapping[str, pa.Table]
    metrics: Mapping[str, Any]


def labeled(take: annotation.Take, id_type: str, kind: str, task: Task) -> Labeled:
    """One label per sample by majority, and beside it every label given and how they agreed."""
    votes = annotation.majority(take.annotations, task)
    if tied := votes.filter(votes["tie"])["id"].to_pylist():
        logger.warning(
            "%d of %d samples have as many votes for another label (%s): the label that comes first counts, and "
            "agreement.parquet marks them. Corrections belong into the file that they correct",
            len(tied),
            votes.num_rows,
            annotation.named(tied),
        )
    labels = (
        votes.select(["id", "label"])
        .append_column("source", pa.array([kind] * votes.num_rows, pa.string()))
        .cast(labels_schema(id_type, task.label_type))
    )
    several = votes.filter(pc.greater(votes["annotators"], 1))  # one person agrees with nobody
    return Labeled(
        labels=labels,
        unknown=pa.table([pa.array(take.unknown, arrow_type(id_type))], unknown_schema(id_type)),
        outputs={"labels.parquet": labels, "annotations.parquet": take.annotations, "agreement.parquet": votes},
        metrics={
            "missing": take.missing,
            "annotations": take.annotations.num_rows,
            "annotators": len(set(take.annotations["annotator"].to_pylist())),
            "agreement": pc.mean(several["agreement"]).as_py() if several.num_rows else None,
            "ties": len(tied),
            "notes": list(take.notes),
            "files": dict(take.files),
        },
    )
