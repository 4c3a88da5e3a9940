"""Labels by files: a round writes `to_label/samples.csv`, people put `labels.csv` (or Parquet) beside it."""

from __future__ import annotations

import csv
import io
import itertools
import posixpath
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray.annotation.request import BATCH, Answers, Asked, Id, Request, image_kind
from prunefuse_ray.annotation.votes import NAMED
from prunefuse_ray.errors import near
from prunefuse_ray.schemas import annotations_schema
from prunefuse_ray.storage import Place

SAMPLES = "samples.csv"
ASKED = ("id", "path", "text", "guess", "probability", "score")
"""Columns of `samples.csv`, which may stand in `labels.csv` too: filling in a copy of it is the easiest way."""
GIVEN = ("id", "label", "annotator", "time")
LABELS = r"labels(?:[-_. ](.+))?\.(?:csv|parquet)"
"""Names of the files that are read, and in them the annotator."""
WRITERS = 8


class Files:
    """An annotator who reads and writes files in the run directory."""

    def ask(self, request: Request) -> None:
        """Write `samples.csv`, and the images of a Parquet pool beside it; the CSV last, so that it is complete."""
        target = request.place / SAMPLES
        if target.exists():
            return
        asked = request.asked()
        if request.folder is not None:
            paths = {i: posixpath.join(_absolute(request.folder), str(i)) for i in asked}
        else:
            paths = _texts(request) if request.texts else _export(request, asked)
        written = io.StringIO()
        table = csv.writer(written, lineterminator="\n")
        table.writerow(["id", "text" if request.texts else "path", "guess", "probability", "score", "label"])
        for one in asked.values():
            table.writerow([one.id, paths[one.id], one.guess or "", _figure(one.probability), _figure(one.score), ""])
        # The byte order mark makes spreadsheets read the file as UTF-8.
        target.write_bytes(written.getvalue().encode("utf-8-sig"))

    def collect(self, request: Request) -> Answers:
        """Every `labels*.csv` and `labels*.parquet` of the folder, checked as a whole."""
        rows: list[Row] = []
        faults: list[str] = []
        for info in request.place.files():
            name = posixpath.basename(info.path)
            if re.fullmatch(LABELS, name) is None:
                continue
            time = info.mtime if info.mtime is not None else datetime.now(UTC)
            found, wrong = read_labels(Place(request.place.fs, info.path), time)
            rows += found
            faults += wrong
        annotations, wrong = check_labels(rows, request.ids, request.classes, request.id_type)
        return Answers(annotations=annotations, faults=(*faults, *wrong))

    def remedy(self, request: Request) -> str:
        return (
            f"in {request.place.path}/{SAMPLES}. Write labels.csv (or labels.parquet) beside it, with the columns id "
            f"and label ({', '.join(request.classes[:NAMED])}{', ...' if len(request.classes) > NAMED else ''}); then "
            "give the same command again"
        )


def _absolute(folder: str) -> str:
    return folder if "://" in folder else Place.at(folder).path


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _texts(request: Request) -> dict[Id, str]:
    return {i: v if isinstance(v, str) else v.decode(errors="replace") for i, v in request.values()}


def _export(request: Request, asked: dict[Id, Asked]) -> dict[Id, str]:
    """Write the images below `to_label/images`, named by rank and id, and return their paths from there."""

    def write(item: tuple[Id, bytes | str]) -> tuple[Id, str]:
        id_, data = item
        assert isinstance(data, bytes)
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", str(id_))[-80:].strip(".") or "sample"
        kind = image_kind(data)
        name = f"images/{asked[id_].rank:06d}-{safe.removesuffix('.' + kind)}.{kind}"
        (request.place / name).write_bytes(data)
        return id_, name

    found: dict[Id, str] = {}
    values = request.values(set(asked))
    with ThreadPoolExecutor(WRITERS) as threads:
        while some := list(itertools.islice(values, BATCH)):  # map() would read them all first
            found.update(threads.map(write, some))
    return found


# --- reading what people wrote --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a labels file as it stands there."""

    where: str
    """File and line."""
    id: str
    label: str
    annotator: str
    time: datetime


def read_labels(place: Place, written: datetime) -> tuple[list[Row], list[str]]:
    """The rows of one file, and what is wrong with its form. A row without a label is left out: it is missing.

    Args:
        written: when the file was written, the time of labels that tell none.
    """
    name = place.name
    try:
        lines = list(_parquet_lines(place) if name.endswith(".parquet") else _csv_lines(place.read_bytes()))
    except (ValueError, csv.Error, pa.ArrowException) as error:
        return [], [f"{name}: {error}"]
    if not lines:
        return [], [f"{name}: is empty; give a header line with the columns id and label"]
    header, body = lines[0][1], lines[1:]
    faults = [f"{name}: has no column '{c}'; it has {', '.join(header)}" for c in ("id", "label") if c not in header]
    known = {*ASKED, *GIVEN}
    for column in header:
        if column not in known:
            meant = near(column, GIVEN)
            faults.append(f"{name}: unknown column '{column}'{meant}; known: {', '.join(GIVEN)}")
    faults += [f"{name}: column '{c}' stands there twice" for c in sorted({c for c in header if header.count(c) > 1})]
    if faults:
        return [], faults
    # labels-anna.csv holds the labels of anna, unless a column says otherwise.
    match = re.fullmatch(LABELS, name)
    default = (match[1] or "") if match else ""
    rows = []
    for number, cells in body:
        if not any(cells):
            continue
        if len(cells) != len(header):
            faults.append(f"{name} line {number}: {len(cells)} cells, but the header has {len(header)}")
            continue
        row = dict(zip(header, cells, strict=True))
        time = _time(row.get("time", ""), written)
        if time is None:
            faults.append(f"{name} line {number}: time '{row['time']}' is no ISO 8601 date, e.g. 2026-01-31T12:00:00Z")
        elif row["label"].strip():
            rows.append(
                Row(
                    where=f"{name} line {number}",
                    id=row["id"],
                    label=row["label"].strip(),
                    annotator=row.get("annotator", "").strip() or default,
                    time=time,
                )
            )
    return rows, faults


def _time(value: str, default: datetime) -> datetime | None:
    if not value.strip():
        return default
    try:
        time = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _csv_lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells), the header first. Commas, semicolons or tabs, as spreadsheets of all countries write."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8; save the file as 'CSV UTF-8'") from error
    if not text.strip():
        raise ValueError("is empty; give a header line (id,label) and a line for each sample")
    if "\0" in text:
        raise ValueError("holds null characters (UTF-16?); save the file as 'CSV UTF-8'")
    first = text.lstrip().splitlines()[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    header = True
    before = 0
    for cells in reader:
        line, before = before + 1, reader.line_num
        if header and not any(cells):
            continue
        yield line, [c.strip() for c in cells] if header else cells
        header = False


def _parquet_lines(place: Place) -> Iterator[tuple[int, list[str]]]:
    table = pq.read_table(pa.BufferReader(place.read_bytes()))
    yield 0, table.column_names
    for number, row in enumerate(zip(*(table[c].to_pylist() for c in table.column_names), strict=True), 1):
        yield number, ["" if v is None else v.isoformat() if isinstance(v, datetime) else str(v) for v in row]


def check_labels(
    rows: Sequence[Row], ids: Sequence[Id], classes: Sequence[str], id_type: pa.DataType
) -> tuple[pa.Table, list[str]]:
    """The labels as annotations (a label given twice with the same value counts once), and every fault in them."""
    numbers = {name: n for n, name in enumerate(classes)}
    known = {str(i): i for i in ids}
    taken: dict[tuple[Id, str], tuple[Row, int]] = {}
    unknown, outside, twice = [], [], []
    for row in rows:
        id_, label = known.get(row.id, known.get(row.id.strip())), numbers.get(row.label)
        if id_ is None:
            unknown.append(f"{row.where}: id '{row.id}' was not asked for{near(row.id, known)}")
        if label is None:
            outside.append(f"{row.where}: label '{row.label}' is not a class{near(row.label, numbers)}")
        if id_ is None or label is None:
            continue
        before = taken.setdefault((id_, row.annotator), (row, label))
        if before[1] != label:
            by = f" by '{row.annotator}'" if row.annotator else ""
            twice.append(
                f"{row.where}: id '{row.id}' is labeled '{row.label}'{by}, but '{before[0].label}' at {before[0].where}"
            )
    faults = [*_short(unknown, "unknown ids"), *_short(outside, "labels outside the classes")]
    if outside:
        faults.append(f"the classes are {', '.join(classes)}")
    columns: dict[str, list[Any]] = {
        "id": [i for i, _ in taken],
        "label": [n for _, n in taken.values()],
        "annotator": [a for _, a in taken],
        "source": ["files"] * len(taken),
        "time": [r.time for r, _ in taken.values()],
    }
    annotations = pa.table(columns, schema=annotations_schema(id_type)).sort_by(
        [("id", "ascending"), ("annotator", "ascending")]
    )
    return annotations, [*faults, *_short(twice, "labels given twice")]


def _short(faults: Sequence[str], kind: str, most: int = 20) -> list[str]:
    more = [f"... and {len(faults) - most} more {kind}"] if len(faults) > most else []
    return [*faults[:most], *more]
