"""Tables of labels as people export them: text in any dialect of CSV, or Parquet; the one reader for all of them.

A cell is read as it stands there. Where two readings are possible the table is refused, with the line; what was
understood otherwise than written, and what was left aside, is told. What a label or an id means is not decided here but
by `Labels`, of the classes and the task.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray.data.paths import normal
from prunefuse_ray.data.reading import refuse_pickles
from prunefuse_ray.errors import PoolError, near
from prunefuse_ray.storage import LFS_POINTER, LFS_REMEDY, Place
from prunefuse_ray.tasks import Task
from prunefuse_ray.tasks.segmentation import URI, is_coco

Cell: TypeAlias = str | int | None
"""Text as it stands there, a whole number of a column of numbers, or nothing."""

DELIMITERS = ",;\t|"
NO_LABEL = frozenset({"", "nan", "na", "n/a", "#n/a", "null", "none", "<na>"})
"""What programs write where there is no value, in lower case."""
SHOWN = 20
EXACT = 2**53
"""Below this a floating-point number is the whole number that it was made of; beyond, it may be its neighbor."""
EXACT_OF = {pa.float16(): 2**11, pa.float32(): 2**24}
"""The same of shorter ones."""
SLIP = 0.8
"""Likeness from which a name is a slip of the pen for a column that need not be there: `filepath` is none of `path`."""
AT_ONCE = 10_000
"""Rows that are Python's objects at one time, of tables that may have millions."""
# samples.csv has texts in its cells, and people fill in copies of it.
csv.field_size_limit(2**31 - 1)


class TableError(ValueError):
    """A table that cannot be read as one; a message for each fault."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table below its header."""

    number: int
    """Of the line in the file; of a Parquet file that of the row, from 1."""
    cells: dict[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    lines: Iterator[Line]
    """Read as they are asked for, once: there may be millions."""
    notes: list[str]
    """What was left aside, and what was understood otherwise than written; whole after the last line."""


def read_table(content: bytes, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read a table that has `columns`; of others those that are `optional` are kept.

    Raises:
        TableError: not a table, a table of another kind, columns that are missing or misspelt; after the last line,
            lines of another length.
    """
    lines = _parquet(content, {*columns, *optional}) if content[:4] == b"PAR1" else _text(content, columns)
    header_line = next(lines, None)
    if header_line is None:
        raise TableError(f"is empty; give a header line with the columns {' and '.join(columns)}")
    header, notes = _header([_plain(cell) for cell in header_line[1]], columns, optional)
    return Table(lines=_named(lines, header, notes), notes=notes)


def _named(lines: Iterable[tuple[int, list[Cell]]], header: Sequence[str], notes: list[str]) -> Iterator[Line]:
    """The lines with the cells of the columns that have a name, as `Table.lines`."""
    faults: list[str] = []
    unnamed = {i: False for i, name in enumerate(header) if not name}
    """Columns without a name -> whether a cell of theirs is filled."""
    numbered = True
    for number, cells in lines:
        if all(cell is None or cell == "" for cell in cells):
            continue
        # Spreadsheets fill lines up with empty cells.
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            faults.append(f"line {number}: {len(cells)} cells, but the header has {len(header)}")
            continue
        for i in unnamed:
            unnamed[i] |= cells[i] not in (None, "")
        numbered = numbered and re.fullmatch(r"\d+", str(cells[0])) is not None
        yield Line(number=number, cells={name: cell for name, cell in zip(header, cells, strict=True) if name})
    for i in (i for i, filled in unnamed.items() if filled):
        if i == 0 and numbered:
            notes.append("a first column of row numbers without a name is left aside")
        else:
            faults.append(f"column {i + 1} has no name, and cells that are not empty")
    if faults:
        raise TableError(*shortened(faults, "lines of another length"))


def shortened(faults: Sequence[str], kind: str) -> list[str]:
    """The first few, and how many more of this kind there are."""
    more = [f"... and {len(faults) - SHOWN} more {kind}"] if len(faults) > SHOWN else []
    return [*faults[:SHOWN], *more]


# --- what labels and ids mean ---------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Labels:
    """Reads the labels of one table, and counts what it understood otherwise than written."""

    task: Task
    classes: Sequence[str]
    beside: Place | None = None
    """The folder of the table: where labels are files, their names are relative to it."""
    seen: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)
    """What is wrong with a label: likenesses take long to find, and a wrong label often comes many times."""

    def missing(self, cell: Cell) -> bool:
        """Whether there is no label: an empty cell, or a word for none that is no class's name."""
        text = "" if cell is None else str(cell).strip()
        if text.lower() not in NO_LABEL or self.task.label(text, self.classes) is not None:
            return False
        if text:
            self.seen[f"labels '{text}' are read as missing"] += 1
        return True

    def read(self, cell: Cell) -> tuple[Any, str | None]:
        """(a label as the task has it, None) or (None, what is wrong with it)."""
        if not isinstance(cell, str):
            return self._number(cell)
        if self.task.pixels and is_coco(cell.strip()):
            label = self.task.label(cell.strip(), self.classes)
            return label, None if label is not None else f"'{cell.strip()[:40]} ...': {self._fault}"
        if self.task.pixels and not cell.startswith(URI):
            return self._file(cell.strip())
        text = cell.strip()
        if self.task.label(text, self.classes) is None:
            text = plain(text)  # of a class that begins as a formula does
        label = self.task.label(text, self.classes)
        whole = _whole(text)
        if label is None and whole is not None and whole != text:
            label = self.task.label(whole, self.classes)
            if label is not None:
                self.seen[f"labels such as '{text}' are read as '{whole}'"] += 1
        if label is None:
            if text not in self.wrong:
                meant = near(text, map(str, self.classes)) if len(self.wrong) < SHOWN else ""
                self.wrong[text] = f"label '{text}' is {self._none(meant)}"
            return None, self.wrong[text]
        if whole is not None and self.task.label(int(whole), self.classes) != label:
            self.seen["labels that are numbers are read as the names of classes"] += 1
        return label, None

    def _number(self, cell: int | None) -> tuple[Any, str | None]:
        label, by_name = self.task.label(cell, self.classes), self.task.label(str(cell), self.classes)
        if label is None and by_name is None:
            return None, f"label {cell} is {self._none()}"
        if label != by_name:
            return None, (
                f"label {cell} is a number: it may mean the class called '{cell}', or the class that has this number; "
                "write the names of the classes, in a column of strings"
            )
        return label, None

    def _file(self, name: str) -> tuple[Any, str | None]:
        """A label that is a file below the table's folder."""
        if self.beside is None or name.startswith("/") or ".." in name.split("/") or ":" in name:
            return None, f"label '{name}' is no file below the folder of the table"
        try:
            content = (self.beside / name).read_bytes()
        except OSError:
            return None, f"label '{name}' is no file in {self.beside.path}"
        label = self.task.label(content, self.classes)
        return label, None if label is not None else f"'{name}': {self._fault}"

    @property
    def _fault(self) -> str:
        return self.task.not_a_label(len(self.classes))

    def _none(self, meant: str = "") -> str:
        return self.task.not_a_label(len(self.classes)) if self.task.numbers else f"not a class{meant}"

    @property
    def notes(self) -> list[str]:
        return [f"{count:,} {what}" for what, count in self.seen.items() if count]


def read_id(cell: Cell, id_type: pa.DataType) -> str | int | None:
    """An id as a pool of this type has it; None where it cannot be one. Text keeps its blanks."""
    if cell is None or cell == "":
        return None
    if pa.types.is_integer(id_type):
        whole = str(cell) if isinstance(cell, int) else _whole(cell.strip())
        return int(whole) if whole is not None and -(2**63) <= int(whole) < 2**63 else None
    return normal(plain(str(cell)))


FORMULA = "=+-@\t\r'"
"""What a cell begins with that a spreadsheet runs, and the mark by which it does not."""


def inert(cell: str) -> str:
    """Text for a table that people open in a spreadsheet: never a formula. `plain` gives it back."""
    return f"'{cell}" if cell.startswith(tuple(FORMULA)) else cell


def inert_label(name: str, classes: Sequence[str], task: Task) -> str:
    """A label by name likewise, so that `Labels` reads the same one: as it is where its inert form is another one, and
    where it is a number, which is no formula."""
    return name if task.numbers or task.label(inert(name), classes) is not None else inert(name)


def plain(cell: str) -> str:
    """The text of which `inert` made a cell."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(tuple(FORMULA)) else cell


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table that spreadsheets open as UTF-8, by its mark. Lines end as RFC 4180 has it: where they end otherwise,
    Python before 3.11.9 and 3.12.3 leaves a carriage return in a cell bare, and readers end the line there."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\r\n")
    table.writerow(header)
    table.writerows(rows)
    return written.getvalue().encode("utf-8-sig")


def _whole(text: str) -> str | None:
    """A whole number as its digits, without the zeros that programs add behind a point (1.0, 1,00); else None. Three
    zeros may be thousands."""
    matched = re.fullmatch(r"(-?\d{1,19})([.,](?:0{1,2}|0{4,})?)?", text)
    if matched is None or not matched[1].isascii() or (matched[2] and abs(int(matched[1])) >= EXACT):
        return None
    return matched[1]


# --- the forms of files ---------------------------------------------------------------------------------------------

OTHER_FORMS = (
    (b"PK\x03\x04", "a spreadsheet (xlsx, ods) or another zip archive; save the table as 'CSV UTF-8'"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet of old Excel (xls); save the table as 'CSV UTF-8'"),
    (b"\x1f\x8b", "compressed; unpack it"),
    (b"BZh", "compressed; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed; unpack it"),
    (b"ARROW1", "an Arrow file (Feather); write the table as CSV or Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream; write the table as CSV or Parquet"),
    (b"SQLite format 3", "a database; export the table as CSV"),
    (b"%PDF", "a PDF; export the table as CSV"),
    (b"{\\rtf", "a document; save the table as 'CSV UTF-8'"),
    (LFS_POINTER, LFS_REMEDY),
)
"""First bytes -> what such a file is, and the remedy."""


def _text(content: bytes, columns: Sequence[str]) -> Iterator[tuple[int, list[Cell]]]:
    """(line number, cells), the header first."""
    for start, said in OTHER_FORMS:
        if content.startswith(start):
            raise TableError(f"is {said}")
    text = _decoded(content)
    begin = text[:4096].lstrip()[:64].lower()
    if begin.startswith(("<!doctype", "<html", "<?xml")):
        raise TableError("is a web page or XML; save the table as 'CSV UTF-8'")
    if begin.startswith(("{", "[")):
        raise TableError("is JSON; write the table as CSV or Parquet")
    named = re.match(r"\s*sep=(.)\r?\n", text)  # Excel's own word on the delimiter
    delimiter = named[1] if named else delimiter_of(text, columns)
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    header, before = True, 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if (header and not any(cell.strip() for cell in cells)) or (named and line == named[0].count("\n")):
                continue
            header = False
            yield line, list(cells)
    except csv.Error as error:
        raise TableError(f"line {reader.line_num}: {error}") from error


def _lines(text: str) -> Iterator[str]:
    """The lines one after the other: a list of them, or `io.StringIO`, takes several times the text's own memory."""
    return (found[0] for found in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))


def _decoded(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 that says so at its beginning; no other encoding says which one it is."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text = content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise TableError(f"is not whole UTF-16 ({error.reason}); save the file as 'CSV UTF-8'") from error
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise TableError(f"line {line} is not UTF-8; save the file as 'CSV UTF-8'") from error
    if "\0" in text:
        raise TableError("holds null characters (UTF-16?); save the file as 'CSV UTF-8'")
    return text.lstrip("\ufeff")


def delimiter_of(text: str, columns: Sequence[str]) -> str:
    """The delimiter under which the header has the columns, else the most frequent one in it."""
    first = next((line for line in _lines(text) if line.strip(f" \r\n{DELIMITERS}")), "")

    def named(delimiter: str) -> int:
        cells = next(csv.reader([first], delimiter=delimiter), [])
        return len({_plain(cell) for cell in cells} & {_plain(column) for column in columns})

    return max(DELIMITERS, key=lambda d: (named(d), first.count(d)))


def _parquet(content: bytes, wanted: Collection[str]) -> Iterator[tuple[int, list[Cell]]]:
    """(number of the row, cells), the header first. Columns that are not `wanted`, such as images, are not read."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        refuse_pickles(file.schema_arrow, "it")
        names = file.schema_arrow.names
        kept = [i for i, name in enumerate(names) if not re.fullmatch(r"__index_level_\d+__", name)]  # of pandas
        yield 0, [names[i] for i in kept]
        exact = [EXACT_OF.get(file.schema_arrow.field(i).type, EXACT) for i in kept]
        read = [names[i] if _plain(names[i]) in wanted else None for i in kept]
        number = 0
        for batch in file.iter_batches(batch_size=AT_ONCE, columns=[name for name in read if name is not None]):
            nothing = [None] * batch.num_rows
            for row in zip(*(nothing if n is None else batch.column(n).to_pylist() for n in read), strict=True):
                number += 1
                yield number, [_cell(value, number, most) for value, most in zip(row, exact, strict=True)]
    except PoolError as error:
        raise TableError(str(error)) from error
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise TableError(f"is no Parquet file that can be read ({error})") from error


def _cell(value: Any, number: int, most: int) -> Cell:
    """A value of Parquet as a cell.

    Args:
        most: below this a floating-point number of its column is exact.
    """
    match value:
        case None | int() if not isinstance(value, bool):
            return value
        case float() | Decimal():
            if value != value:
                return None
            if isinstance(value, float) and abs(value) >= most:
                return f"{value:.16e}"  # the same number, and never an id
            whole = value.to_integral_value() if isinstance(value, Decimal) else value // 1  # of any number of digits
            return int(value) if value == whole else str(value)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise TableError(f"line {number}: bytes that are not UTF-8") from error
        case date():
            return value.isoformat()
        case list() | dict():
            with suppress(TypeError, ValueError):  # bytes, of which nobody makes a label
                return json.dumps(value, ensure_ascii=False)
    return str(value)


def _plain(name: Cell) -> str:
    """A column's name in the form in which names are compared."""
    return unicodedata.normalize("NFC", str(name or "")).strip().strip("\ufeff").lower()


def _header(names: list[str], columns: Sequence[str], optional: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns, those that nobody needs left without a name; and what was left aside."""
    while names and not names[-1]:
        names.pop()
    known = [*columns, *optional]
    faults = [f"has no column '{c}'; it has {', '.join(filter(None, names)) or 'none'}" for c in columns
              if c not in names]  # fmt: skip
    faults += [f"column '{c}' stands there twice" for c in known if names.count(c) > 1]
    aside = []
    for name in dict.fromkeys(names):
        if name and name not in known:
            meant = near(name, [c for c in columns if c not in names])
            if meant := meant or near(name, [c for c in optional if c not in names], SLIP):
                faults.append(f"unknown column '{name}'{meant}; known: {', '.join(known)}")
            aside.append(name)
    if faults:
        raise TableError(*faults)
    return names, [f"columns left aside: {', '.join(aside)}"] if aside else []
