"""Tables of texts and vectors as people export them: CSV, and JSON Lines.

They are read once, and their samples copied into the run directory: a cell has no place in the file that could be read
again without all before it. A file that is not what it says is refused, with the line; a cell that holds no sample
becomes a sample that cannot be read, which is counted.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.fs as pafs

from prunefuse_ray import config as cfg
from prunefuse_ray.data.index import Found, Index, check_unique, scanned
from prunefuse_ray.data.label_tables import OTHER_FORMS, delimiter_of
from prunefuse_ray.data.left_out import LeftOut
from prunefuse_ray.data.paths import Listing, check_names, locate, normal
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError, near
from prunefuse_ray.storage import Place

ROWS = 5_000
"""Of an index, made at once."""
HEAD = 2**16
"""Bytes by which a file's encoding and delimiter are told."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")

DECIMAL_COMMAS = re.compile(r"[^\s,]+,[^\s,]+(?:\s+[^\s,]+,[^\s,]+)+")
"""Numbers with blanks between, each with a comma in it, as most of Europe writes fractions."""

Row = Mapping[str, Any]
Rows = Callable[[Place, Sequence[str]], Iterator[tuple[int, Row]]]
"""rows(file, columns that it must have): (line, cells by column)."""


@dataclass(frozen=True)
class Tables(SourceReader):
    """An id is FILE:ROW, or stands in a column."""

    copies: ClassVar[bool] = True

    rows_of: Rows
    suffixes: tuple[str, ...]

    def unique_ids(self, pool: cfg.Pool) -> bool:
        return pool.id_column is not None

    def listing(self, samples: SampleSet) -> Listing:
        return locate(samples.paths, self.suffixes, samples.field)

    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        check_names(listing, samples.field)
        columns = (samples.pool.id_column, samples.sample_column, samples.label_column)
        scan = _Scan(self.rows_of, samples.text)
        found = scanned(scan, columns, samples, listing, self.rows(samples), classes, new)
        if samples.pool.id_column is not None:
            check_unique(found, samples, samples.pool.id_column)
        return found

    def rows(self, samples: SampleSet) -> Source:
        return Source(
            fs=pafs.LocalFileSystem(), files=(), sizes=(), sample_column="sample",
            label_column="label" if samples.labeled else None, task=samples.task_name,
        )  # fmt: skip


@dataclass(frozen=True)
class _Scan:
    """What `index.scanned` calls of a file."""

    rows_of: Rows
    text: bool

    def __call__(
        self, place: Place, name: str, id_: str | None, sample: str, label: str | tuple[str, ...] | None
    ) -> Iterator[Found]:
        labels = label if isinstance(label, tuple) else (label,)
        wanted = [column for column in (id_, sample, *labels) if column is not None]
        numbered = enumerate(self.rows_of(place, wanted))
        while some := list(itertools.islice(numbered, ROWS)):
            empty = [LeftOut(f"{name}:{n}", "row of empty cells") for n, (_, row) in some if not row]
            some = [one for one in some if one[1][1]]
            values = [row.get(sample) for _, (_, row) in some]
            yield Found(
                untyped=True,
                ids=[f"{name}:{n}" if id_ is None else _id(row.get(id_), id_, place, line) for n, (line, row) in some],
                labels=[_label(row, label, place, line) for _, (line, row) in some],
                columns={
                    "sample": pa.array(map(_text, values), pa.string())
                    if self.text
                    else pa.array(map(vector_of, values), pa.list_(pa.float32()))
                },
                left_out=empty,
            )


def _label(row: Row, column: str | tuple[str, ...] | None, place: Place, line: int) -> Any:
    if isinstance(column, tuple):
        return [_label(row, one, place, line) for one in column]
    return column and _named(row.get(column), column, place, line)


def _id(cell: Any, column: str, place: Place, line: int) -> str:
    if isinstance(cell, bool) or not isinstance(cell, str | int) or cell == "":
        raise _fault(place, line, f"{cell!r} in column '{column}' is no id; fill it in, or set pool.id_column to null")
    return normal(str(_named(cell, column, place, line)))


def _named(cell: Any, column: str, place: Place, line: int) -> Any:
    """An id or a label, which nothing may stand in for."""
    if isinstance(cell, str) and whole(cell) != cell:
        raise _fault(place, line, f"{cell!r} in column '{column}' has half of a surrogate pair, no character; fix it")
    return cell


def _text(cell: Any) -> str | None:
    """A text; what is no character in it becomes U+FFFD, as bytes that are no text do: so it is counted."""
    return whole(cell) if isinstance(cell, str) else None


def whole(text: str) -> str:
    """With U+FFFD for each half of a surrogate pair that stands alone, which JSON can spell and no file can hold."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def vector_of(cell: Any) -> list[float] | None:
    """A list of numbers, or its spelling in JSON or with blanks, commas or semicolons between; None where it is none,
    or where commas may stand for points (`0,5;0,25`). A null in it is no number, and so the vector cannot be used."""
    if isinstance(cell, str):
        inside = cell.strip().strip("[]").strip()
        if "," in inside and (";" in inside or DECIMAL_COMMAS.fullmatch(inside)):
            return None
        cells = inside.replace(",", " ").replace(";", " ").split()
    else:
        cells = cell if isinstance(cell, list) else []
    try:
        return [math.nan if one is None else float(one) for one in cells] or None
    except (TypeError, ValueError, OverflowError):
        return None


# --- the forms of files ---


def _csv_rows(place: Place, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    with _opened(place) as (head, lines):
        delimiter = delimiter_of(head, columns)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        before = 0
        try:
            for cells in reader:
                line, before = before + 1, reader.line_num
                if not cells or (header is None and not any(cells)):  # a blank line is no row
                    continue
                if line == 1 and cells == ["sep=", ""]:  # Excel's own word on the delimiter, which is told by it
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    _check_header(header, columns, place)
                elif not any(cells):
                    yield line, {}
                elif len(cells) != len(header):
                    raise _fault(place, line, f"{len(cells)} cells, but the header has {len(header)}; fix it")
                else:
                    yield line, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise _fault(place, reader.line_num, f"{error}; fix it") from error
        except UnicodeError as error:
            raise _encoding(place, before + 1, error) from error


def _json_rows(place: Place, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    line, rows = 0, 0
    there: dict[str, None] = {}  # fields of any row so far: exporters leave out those without a value
    with _opened(place) as (_, lines):
        try:
            for line, text in enumerate(lines, 1):
                if not text.strip():
                    continue
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise _fault(place, line, f"a {type(row).__name__}, expected an object of columns")
                rows += 1
                if rows <= ROWS:
                    there.update(dict.fromkeys(row))
                if rows == ROWS:
                    _check_header(list(there), columns, place)
                yield line, row
            if 0 < rows < ROWS:
                _check_header(list(there), columns, place)
        except UnicodeError as error:
            raise _encoding(place, line + 1, error) from error
        except (ValueError, RecursionError) as error:
            raise _fault(place, line, f"no JSON ({error}); one object a line, fix it") from error


class _opened:
    """A text file, in UTF-8 or in UTF-16 that says so at its beginning: its first line, and its lines."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __enter__(self) -> tuple[str, Iterable[str]]:
        try:
            with self.place.fs.open_input_stream(self.place.path) as stream:
                head = stream.read(HEAD)
        except OSError as error:
            raise PoolError(f"'{self.place.path}' cannot be read ({error})") from error
        for start, said in OTHER_FORMS:
            if head.startswith(start) and start not in UTF16:
                raise PoolError(f"'{self.place.path}' is {said}")
        encoding = "utf-16" if head.startswith(UTF16) else "utf-8-sig"
        if encoding == "utf-8-sig" and b"\0" in head:
            raise PoolError(f"'{self.place.path}' holds null characters (UTF-16?); save it as UTF-8")
        raw: Any = self.place.fs.open_input_stream(self.place.path)
        self.lines = io.TextIOWrapper(io.BufferedReader(raw), encoding=encoding, newline="")
        return head.decode(encoding, errors="ignore"), self.lines

    def __exit__(self, *_: object) -> None:
        self.lines.close()


def _check_header(header: Sequence[str], columns: Sequence[str], place: Place) -> None:
    for column in columns:
        if column not in header:
            raise _lacks(place, column, header)
        if header.count(column) > 1:
            raise PoolError(f"'{place.path}': column '{column}' stands there twice; rename one")


def _lacks(place: Place, column: str, there: Sequence[str]) -> PoolError:
    known = ", ".join(there) or "none"
    return PoolError(f"'{place.path}' has no column '{column}'{near(column, there)}; it has {known}")


def _fault(place: Place, line: int, what: str) -> PoolError:
    return PoolError(f"'{place.path}', line {line}: {what}")


def _encoding(place: Place, line: int, error: UnicodeError) -> PoolError:
    reason = getattr(error, "reason", None) or error
    return PoolError(f"'{place.path}' is not UTF-8 from about line {line} on ({reason}); save it as UTF-8")


CSV = Tables(_csv_rows, (".csv", ".tsv"))
JSONL = Tables(_json_rows, (".jsonl", ".ndjson"))
