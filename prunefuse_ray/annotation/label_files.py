"""The files in which people answer a round: which ones of a folder are read, and what stands in them."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from prunefuse_ray.annotation.request import Answers, Id, Request
from prunefuse_ray.data.label_tables import (
    NO_LABEL,
    SHOWN,
    Labels,
    Line,
    TableError,
    plain,
    read_id,
    read_table,
    shortened,
)
from prunefuse_ray.data.paths import normal
from prunefuse_ray.errors import near
from prunefuse_ray.schemas import annotations_schema
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS

SAMPLES = "samples.csv"
"""What the round asks; people may fill it in as it lies there."""
ASKED = ("id", "path", "text", "guess", "probability", "score")
"""Its columns, which may stand in the others too: filling in a copy of it is the easiest way."""
OPTIONAL = ("annotator", "time", "unsure", *ASKED[1:])
"""unsure: filled in where the annotator has looked at the sample and cannot tell its class."""
SURE = NO_LABEL | {"0", "0.0", "false", "no", "n"}
"""What stands in such a column where that is not so, in lower case: tables have zeros and False in all other rows."""
LABELS = re.compile(r"labels(?:[-_. ]+(.+?))?\.(csv|tsv|txt|parquet|pq)", re.IGNORECASE)
"""Names of the files that are read, and in them the annotator."""
WORDS = "copy|copie|copia|cópia|kopie|kopia|kopi"
COPY = re.compile(
    r"^\d+$|[-_. ]*\(\d+\)$"
    rf"|[-_. ]*\([^()]*\b(?:{WORDS})\b[^()]*\)$|(?:^|[-_. ]+)sync-conflict-.*$"
    rf"|(?:^|[-–—_. ]+)\(?(?:{WORDS})\b.*$",
    re.IGNORECASE,
)
"""What systems, and programs that synchronize folders, add to the name of a copy: it is no part of the annotator's
name."""
TABLES = (
    ".csv",
    ".tsv",
    ".parquet",
    ".pq",
    ".xlsx",
    ".xls",
    ".xlsm",
    ".ods",
    ".numbers",
    ".json",
    ".jsonl",
    ".gz",
    ".zip",
)
"""Files of other names that may hold labels."""


def read_answers(request: Request, only: Callable[[str], bool] = lambda _: True) -> Answers:
    """What people have written into the folder of a round so far, checked as a whole.

    Args:
        only: which files are looked at, by their names.
    """
    rows: list[Row] = []
    faults, notes, digests = list[str](), list[str](), dict[str, str]()
    found = {posixpath.basename(info.path): info.mtime for info in request.place.files()}
    for name, written in found.items():
        if not only(name):
            continue
        read = name == SAMPLES or LABELS.fullmatch(name) is not None
        if not read:
            wrong, note = _unread(name, found)
            faults += wrong
            notes += note
            continue
        try:
            content = (request.place / name).read_bytes()
        except FileNotFoundError:  # taken back, or being saved anew, since it was listed
            continue
        try:
            table = read_table(content, ("id", "label"), OPTIONAL)
            here, wrong = _rows(name, table.lines, written or datetime.now(UTC))
        except TableError as error:
            if name == SAMPLES:  # nobody has to fill it in
                notes += [f"{name}: {fault}; it is not read" for fault in error.faults]
            else:
                faults += _of_file(name, error.faults)
            continue
        if name == SAMPLES and not any(row.filled or row.unsure for row in here):
            continue
        digests[name] = hashlib.sha256(content).hexdigest()
        rows += here
        faults += wrong
        notes += [f"{name}: {note}" for note in (*_copied(name), *table.notes)]
    annotations, wrong, more = check_labels(rows, request)
    unsure = _unsure(rows, request, annotations)
    return Answers(
        annotations=annotations, unsure=unsure, faults=(*faults, *wrong), notes=(*notes, *more), files=digests
    )


def _unsure(rows: Sequence[Row], request: Request, annotations: pa.Table) -> dict[tuple[Id, str], datetime]:
    """(id, annotator) -> when they said that they cannot tell, and have not labeled the sample since."""
    known = _Known(request.ids, request.id_type)
    labeled = set(zip(annotations["id"].to_pylist(), annotations["annotator"].to_pylist(), strict=True))
    said = {(known.find(row.id), row.annotator): row.time for row in rows if row.unsure}
    return {(i, who): time for (i, who), time in said.items() if i is not None and (i, who) not in labeled}


def changed_files(place: Place, taken: Mapping[str, str]) -> list[str]:
    """What has happened to the files of a round since its labels were taken from them.

    Args:
        place: the round's folder.
        taken: `Answers.files`, as they were then.
    """
    said = []
    there = {posixpath.basename(info.path) for info in place.files()}
    for name in sorted(there):
        if name in taken:
            with suppress(FileNotFoundError):  # removed since it was listed
                if (place / name).digest() != taken[name]:
                    said.append(f"{place.uri}/{name} has changed since its labels were taken")
        elif LABELS.fullmatch(name):
            said.append(f"{place.uri}/{name} has come since the labels of its round were taken")
    return said


def _unread(name: str, found: Iterable[str]) -> tuple[list[str], list[str]]:
    """(faults, notes) about a file that is not read."""
    if name.startswith((".", "~$")) or not name.lower().endswith(TABLES):
        return [], []
    if not re.match(r"labels(?![a-z])", name, re.IGNORECASE):
        return [], [f"{name} is not read: files with labels are called labels.csv, or labels-NAME.csv"]
    stem = _stem(name)
    if any(LABELS.fullmatch(other) and _stem(other) == stem for other in found):
        return [], [f"{name} is not read: the file of that name in CSV or Parquet is"]
    return [f"{name}: is no file that is read; save the table as 'CSV UTF-8', {stem}.csv"], []


def _stem(name: str) -> str:
    """A file's name without the endings of tables, in lower case."""
    stem = name.lower()
    while ending := next((e for e in (*TABLES, ".txt") if stem.endswith(e)), ""):
        stem = stem.removesuffix(ending)
    return stem


def _of_file(name: str, faults: Sequence[str]) -> list[str]:
    return [f"{name} {fault}" if fault.startswith("line ") else f"{name}: {fault}" for fault in faults]


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a labels file as it stands there."""

    where: str
    """File and line."""
    id: str | int | None
    label: str | int | None
    annotator: str
    time: datetime
    unsure: bool = False

    @property
    def filled(self) -> bool:
        return self.label is not None and str(self.label).strip() != ""


def _rows(name: str, lines: Iterable[Line], written: datetime) -> tuple[list[Row], list[str]]:
    """The rows of one file, and what is wrong with them.

    Args:
        written: when the file was written, the time of labels that tell none.
    """
    default = _annotator(name)
    rows, faults = [], []
    for line in lines:
        where = f"{name} line {line.number}"
        said = str(line.cells.get("time") or "").strip()
        time = _time(said, written)
        if time is None:
            faults.append(f"{where}: time '{said}' is no ISO 8601 date, e.g. 2026-01-31T12:00:00Z")
            continue
        rows.append(
            Row(
                where=where,
                id=line.cells["id"],
                label=line.cells["label"],
                annotator=normal(plain(str(line.cells.get("annotator") or "").strip())) or default,
                time=time,
                unsure=str(line.cells.get("unsure") or "").strip().lower() not in SURE,
            )
        )
    return rows, shortened(faults, "times")


def _annotator(name: str) -> str:
    """Whose labels a file holds, unless a column says otherwise: labels-anna.csv those of anna."""
    match = LABELS.fullmatch(name)
    return COPY.sub("", normal(match[1] or "")) if match else ""


def _copied(name: str) -> list[str]:
    """What to tell of a file that is taken for a copy of another one."""
    match, who = LABELS.fullmatch(name), _annotator(name)
    if match is None or who == normal(match[1] or ""):
        return []
    original = f"labels-{who}.csv" if who else "labels.csv"
    return [f"taken for a copy of {original}; labels of somebody else go into labels-NAME.csv"]


def _time(value: str, default: datetime) -> datetime | None:
    if value.lower() in NO_LABEL:
        return default
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


# --- what they say --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Wrong:
    unknown: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


def check_labels(rows: Sequence[Row], request: Request) -> tuple[pa.Table, list[str], list[str]]:
    """The labels as annotations (one given twice with the same value counts once), every fault in them, and what was
    understood otherwise than written. A row without a label is left out: it is missing."""
    classes, known = request.classes, _Known(request.ids, request.id_type)
    wrong, seen = _Wrong(), Counter[str]()
    given = Labels(task=TASKS[request.task], classes=classes, beside=request.place, seen=seen)
    taken: dict[tuple[Id, str], tuple[Row, int]] = {}
    for row in rows:
        empty, id_ = given.missing(row.label), known.find(row.id)
        if id_ is None and (row.unsure or not empty):
            meant = near(str(row.id), known.names) if len(wrong.unknown) < SHOWN else ""
            wrong.unknown.append(f"{row.where}: id '{'' if row.id is None else row.id}' was not asked for{meant}")
        if empty:
            continue
        seen["labels of rows that are marked as unsure, too, are taken"] += row.unsure
        label, reason = given.read(row.label)
        if reason is not None:
            wrong.outside.append(f"{row.where}: {reason}")
        if id_ is None or label is None:
            continue
        before = taken.setdefault((id_, row.annotator), (row, label))
        if before[1] != label:
            by = f" by '{row.annotator}'" if row.annotator else ""
            wrong.twice.append(
                f"{row.where}: id '{row.id}' is labeled '{row.label}'{by}, but '{before[0].label}' at {before[0].where}"
            )
    of_classes = not given.task.numbers and not given.task.pixels
    outside = "labels outside the classes" if of_classes else "labels that are none"
    faults = [*shortened(wrong.unknown, "unknown ids"), *shortened(wrong.outside, outside)]
    if wrong.outside and of_classes:
        faults.append(f"the classes are {', '.join(classes)}")
    columns: dict[str, list[Any]] = {
        "id": [i for i, _ in taken],
        "label": [n for _, n in taken.values()],
        "annotator": [a for _, a in taken],
        "source": ["files"] * len(taken),
        "time": [r.time for r, _ in taken.values()],
    }
    annotations = pa.table(columns, schema=annotations_schema(request.id_type, given.task.label_type)).sort_by(
        [("id", "ascending"), ("annotator", "ascending")]
    )
    return annotations, [*faults, *shortened(wrong.twice, "labels given twice")], given.notes


class _Known:
    """The ids that were asked for, found as people write them: with other blanks, or in the other Unicode form."""

    def __init__(self, ids: Sequence[Id], id_type: pa.DataType) -> None:
        self.id_type = id_type
        self.names = [str(i) for i in ids]
        self._exact = {i if isinstance(i, int) else normal(i): i for i in ids}

    def find(self, cell: str | int | None) -> Id | None:
        id_ = read_id(cell, self.id_type)
        if id_ is None or id_ in self._exact:
            return self._exact.get(id_) if id_ is not None else None
        return self._exact.get(id_.strip()) if isinstance(id_, str) else None
