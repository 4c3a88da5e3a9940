"""From the labels that several people gave to the one label a sample is trained with; plain tables, no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from prunefuse_ray.annotation.request import Answers, Id
from prunefuse_ray.errors import few
from prunefuse_ray.schemas import agreement_schema
from prunefuse_ray.tasks import Task
from prunefuse_ray.tasks.classification import CLASSIFICATION

NAMED = 10  # ids named in a message


def majority(annotations: pa.Table, task: Task = CLASSIFICATION) -> pa.Table:
    """The label that most annotators of each sample gave, or that a task makes of theirs (`Task.agreed`), by rising id:
    `agreement_schema`.

    `agreement` is the share of annotators who gave that label. Among labels with equally many votes the one that
    comes first in the classes wins, and `tie` is true.
    """
    votes: dict[Id, list[Any]] = {}
    for id_, label in zip(annotations["id"].to_pylist(), annotations["label"].to_pylist(), strict=True):
        votes.setdefault(id_, []).append(label)
    rows = []
    for id_, given in votes.items():
        label, agreement, tie = task.agreed(given)
        rows.append({"id": id_, "label": label, "annotators": len(given), "agreement": agreement, "tie": tie})
    schema = agreement_schema(annotations.schema.field("id").type, task.label_type)
    return pa.Table.from_pylist(rows, schema).sort_by("id")


@dataclass(frozen=True, kw_only=True)
class Take:
    """The labels can be taken."""

    annotations: pa.Table
    missing: int
    """Samples without a label."""
    unknown: tuple[Id, ...] = ()
    """Those of them that people looked at, and nobody could tell: they are not asked about again. The others go back to
    the pool."""
    notes: tuple[str, ...] = ()
    """`Answers.notes`"""
    files: Mapping[str, str] = field(default_factory=dict)
    """`Answers.files`"""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Labels are missing, and nothing else is wrong."""

    missing: tuple[Id, ...]
    notes: tuple[str, ...] = ()
    """`Answers.notes`"""


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """Something has to be put right first."""

    faults: tuple[str, ...]


def decide(
    ids: Sequence[Id], answers: Answers, *, labels_per_sample: int, accept_partial: bool
) -> Take | Wait | Refuse:
    """What to do with the answers to a round that asked for `ids`. Faults are never passed over; missing labels are,
    on request, as soon as one sample has a label. An annotator who cannot tell a sample's class has answered: where
    nobody can, the sample is unknown."""
    given = Counter(answers.annotations["id"].to_pylist())
    unsure = Counter(id_ for id_, _ in answers.unsure)
    missing = tuple(i for i in ids if given[i] + unsure[i] < labels_per_sample)
    if answers.faults:
        said = [f"{len(missing)} of {len(ids)} samples lack labels: {named(missing)}"] if missing and given else []
        return Refuse(faults=(*answers.faults, *said))
    if not given or (missing and not accept_partial):
        silent = () if missing or not unsure else ("every sample is marked as unsure: at least one needs a label",)
        return Wait(missing=missing or tuple(ids), notes=(*answers.notes, *silent))
    lacking = sum(given[i] == 0 for i in ids)
    unknown = tuple(i for i in ids if unsure[i] and not given[i])
    samples, they = ("sample", "it is") if len(unknown) == 1 else ("samples", "they are")
    notes = [
        f"nobody could tell the class of {len(unknown)} {samples} ({named(unknown)}); {they} not asked about again"
    ]
    return Take(
        annotations=answers.annotations,
        missing=lacking,
        unknown=unknown,
        notes=(*answers.notes, *(notes if unknown else ())),
        files=answers.files,
    )


def named(ids: Sequence[object]) -> str:
    """The first few of some ids, and how many more there are."""
    return few(ids, NAMED)
