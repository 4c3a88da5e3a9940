"""Tables of labels in every dialect, right and damaged."""

import csv
import io
import unicodedata
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray.annotation import Files, Request, request_schema
from prunefuse_ray.data.known_labels import read_known
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks.classification import CLASSIFICATION
from tests.fuzz.mutate import attempt, damaged, name

CLASSES = (["cat", "dog"], ["0", "1", "2"], ["1", "2", "3"], ["M\u00fcll", "Glas"], ["None", "some"], ["true", "false"],
           ["Tench, old", 'a "b"', "c;d"], ["nan", "x"])  # fmt: skip
STRINGS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary())


def case(rng: Random, where: Path) -> str:
    classes = rng.choice(CLASSES)
    integers = rng.random() < 0.2
    used: set[str] = set()
    ids = rng.sample(range(1000), 6) if integers else [name(rng, used) for _ in range(rng.randint(1, 12))]
    truth = {i: rng.choice([*range(len(classes)), None]) for i in ids}
    parquet = rng.random() < 0.25
    content = _parquet(rng, truth, classes) if parquet else _csv(rng, truth, classes)
    broken = rng.random() < 0.4
    content = damaged(rng, content) if broken else content
    file = f"labels.{'parquet' if parquet else rng.choice(('csv', 'CSV', 'tsv', 'txt'))}"
    (where / file).write_bytes(content)
    expected = {_nfc(i): label for i, label in truth.items() if label is not None}
    id_type = pa.int64() if integers else pa.string()

    info = PoolInfo(
        source="parquet", path="", rows=0, bytes=0, files=0, listing_digest="", id_digest="", sample_size=(8, 8),
        classes=classes, id_type="int64" if integers else "string",
    )  # fmt: skip
    known, refused = attempt(read_known, str(where / file), info, CLASSIFICATION)
    answers, _ = attempt(Files().collect, _request(where, ids, id_type, classes))
    if broken:
        labels = [] if known is None else known.table["label"].to_pylist()
        assert all(0 <= label < len(classes) for label in labels)
        return "right" if refused is None and not answers.faults else "refused"
    assert refused is None, refused
    assert not answers.faults, answers.faults
    assert dict(zip(*(known.table[c].to_pylist() for c in ("id", "label")), strict=True)) == expected
    found = {_nfc(i): n for i, n in zip(*(answers.annotations[c].to_pylist() for c in ("id", "label")), strict=True)}
    assert found == expected
    return "right"


def _nfc(id_):
    return unicodedata.normalize("NFC", id_) if isinstance(id_, str) else id_


def _request(where: Path, ids, id_type, classes) -> Request:
    rows = {"id": ids, "rank": range(len(ids)), "score": [0.5] * len(ids), "guess": [None] * len(ids),
            "probability": [None] * len(ids)}  # fmt: skip
    return Request(run="r", marker="m", round=0, classes=classes, rows=pa.table(rows, schema=request_schema(id_type)),
                   place=Place.at(str(where)), samples=(), texts=False)  # fmt: skip


def _written(rng: Random, label: int | None, classes: list[str]) -> str:
    """A label as a program or a person writes it."""
    if label is None:
        words = ["", " ", "NULL", "NaN", "N/A", "<NA>", "None"]
        return rng.choice([w for w in words if w.lower() not in {c.lower() for c in classes}])
    numbered = [str(n) for n in range(len(classes))]
    if classes != numbered and any(c.isdecimal() for c in classes):
        return rng.choice((classes[label], f" {classes[label]} "))
    return rng.choice((classes[label], classes[label], f" {classes[label]}", str(label), f"{label}.0", f"{label}.",
                       unicodedata.normalize("NFD", classes[label])))  # fmt: skip


def _csv(rng: Random, truth, classes) -> bytes:
    columns = ["id", "label", *rng.sample(["annotator", "path", "score", "remark"], rng.randint(0, 2))]
    columns = [c for c in columns if c != "annotator"] if rng.random() < 0.8 else columns
    if rng.random() < 0.3:
        rng.shuffle(columns)
    rows = []
    for id_, label in truth.items():
        cells = {"id": str(id_), "label": _written(rng, label, classes), "annotator": "", "path": "x/y", "score": "0.5",
                 "remark": rng.choice(("", "fine", "two\nlines", 'a "b", c;d'))}  # fmt: skip
        if isinstance(id_, str):
            cells["id"] = unicodedata.normalize(rng.choice(("NFC", "NFD")), id_)
        if rng.random() < 0.1:
            cells["id"] = f"  {cells['id']} "
        rows.append([cells[c] for c in columns])
        if rng.random() < 0.1:
            rows.append(rows[-1])
    header = [rng.choice((c, c, c.title(), c.upper(), f" {c}")) for c in columns]
    if rng.random() < 0.15:  # as pandas writes its index
        header, rows = ["", *header], [[str(n), *row] for n, row in enumerate(rows)]
    if rng.random() < 0.1:  # as spreadsheets fill lines up
        header, rows = [*header, "", ""], [[*row, "", ""] for row in rows]
    out = io.StringIO()
    delimiter = rng.choice(",,;;\t|")
    if rng.random() < 0.05:
        out.write(f"sep={delimiter}\r\n")
    writer = csv.writer(out, delimiter=delimiter, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
                        lineterminator=rng.choice(("\n", "\r\n")))  # fmt: skip
    writer.writerow(header)
    for row in rows:
        writer.writerow(row)
        if rng.random() < 0.05:
            writer.writerow([""] * rng.choice((0, len(header))))
    text = out.getvalue()
    if rng.random() < 0.2:
        text = text.rstrip("\r\n")
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))


def _parquet(rng: Random, truth, classes) -> bytes:
    ids = list(truth)
    string = rng.choice(STRINGS)
    columns = {"id": pa.array(ids, pa.int64()) if isinstance(ids[0], int) else pa.array(ids, pa.string()).cast(string)}
    numbers = not any(c.isdecimal() for c in classes) and rng.random() < 0.5
    if numbers:
        kind = rng.choice((pa.int8(), pa.int64(), pa.uint16(), pa.float32(), pa.float64()))
        columns["label"] = pa.array(list(truth.values()), pa.int64()).cast(kind)
    else:
        named = [None if n is None else classes[n] for n in truth.values()]
        columns["label"] = pa.array(named, pa.string()).cast(rng.choice(STRINGS))
    if rng.random() < 0.2:
        columns["__index_level_0__"] = pa.array(range(len(ids)))
    pq.write_table(pa.table(columns), out := io.BytesIO(), compression=rng.choice(("snappy", "zstd", "none")))
    return out.getvalue()
