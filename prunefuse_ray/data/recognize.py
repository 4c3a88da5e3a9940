"""What a folder seems to hold: the fields of `pool` that fit it, by names, endings and the heads of some files.

These are guesses for a configuration that people read before they run it, so each is told with what it was seen by. A
run guesses nothing.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prunefuse_ray.config.sources import POOL_SOURCES
from prunefuse_ray.data.classes import features_names
from prunefuse_ray.data.folders import Lying, Walk, root_of
from prunefuse_ray.data.image_files import extensions
from prunefuse_ray.data.inspection import read_schema
from prunefuse_ray.data.label_tables import NO_LABEL
from prunefuse_ray.data.paths import normal
from prunefuse_ray.data.patterns import is_pattern
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import plain_type, tables
from prunefuse_ray.data.sources.huggingface import arrow_schema
from prunefuse_ray.data.sources.images import masks_among
from prunefuse_ray.data.sources.tables import CSV, JSONL, vector_of, whole
from prunefuse_ray.data.sources.webdataset import Sample, scan_tar
from prunefuse_ray.errors import PoolError, few
from prunefuse_ray.schemas import is_list
from prunefuse_ray.storage import Place, below
from prunefuse_ray.tasks.multi_label import is_set
from prunefuse_ray.tasks.regression import REGRESSION

TABLES = {"csv": CSV, "jsonl": JSONL}
ENDINGS = {
    ".parquet": "parquet", ".pq": "parquet", ".tar": "webdataset", ".arrow": "huggingface",
    **{suffix: name for name, tables in TABLES.items() for suffix in tables.suffixes},
}  # fmt: skip
"""Of files that hold many samples -> their source."""
PART = {
    "test": ("test", "tests", "testing", "heldout", "holdout", "eval", "evaluation"),
    "validation": ("val", "valid", "validation", "dev"),
    "pool": ("train", "training", "pool", "unlabeled", "unlabelled", "unsupervised"),
}
"""Part of a data set -> words by which folders and files name it."""
LABELS = ("label", "labels", "fine_label", "class", "target", "category", "y", "cls")
IDS = ("id", "sample_id", "image_id", "uuid", "key", "filename", "file_name", "path")
TEXTS = ("text", "content", "review", "sentence", "body", "document", "title")
VECTORS = ("embedding", "embeddings", "vector", "vectors", "features", "feature", "emb")
MOST_CLASSES = 1000
MOST_NUMBERS = 100_000
"""Classes that are numbered, where most of the numbers are seen."""
FRACTION = re.compile(r"\s*[-+]?\d+,\d+\s*")
"""A number as most of Europe writes it, which as a vector would be two, and which a run does not read."""
FILES_READ = 20
"""Files whose labels are looked at."""
ROWS_READ = 50
"""Rows by which the columns of CSV and JSON Lines, which have no types, are told."""


@dataclass(kw_only=True)
class Recognized:
    """What a folder seems to be."""

    fields: dict[str, Any]
    """Of `pool`, without those that have their defaults."""
    labeled: bool
    """Whether the pool's samples have labels."""
    task: str = "classification"
    """`tasks.TASKS`: what the labels seem to be."""
    why: dict[str, str] = field(default_factory=dict)
    """Field -> what it was seen by. `labeled`: likewise."""
    folders: frozenset[str] = frozenset()
    """Sub-folders that are taken for classes."""


def recognize(path: str, test: str | None = None) -> Recognized:
    """Look at a folder, one file, or the files of a pattern.

    Args:
        test: the test set, where it lies elsewhere.

    Raises:
        PoolError: nothing there that a source takes.
    """
    place = Place.at(path)
    files = _files(place)
    by_source: dict[str, list[Lying]] = defaultdict(list)
    for one in files:
        if (source := _source_of(one.name)) is not None:
            by_source[source].append(one)
    if not by_source:
        seen = Counter(posixpath.splitext(f.name)[1].lower() or "no ending" for f in files)
        there = ", ".join(f"{n} {ending}" for ending, n in seen.most_common(5)) or "nothing"
        raise PoolError(
            f"'{path}' holds no images, Parquet, CSV, JSON Lines, tar or Arrow files (there: {there}); name the folder "
            "of a pool, or write the configuration by hand: `prunefuse list sources` shows what there is"
        )
    # A table beside other files mostly lists them or their labels.
    of_samples = [source for source in by_source if source not in TABLES] or list(by_source)
    source = max(of_samples, key=lambda s: sum(f.size for f in by_source[s]))
    taken = by_source[source]
    if is_pattern(place) or place.fs.get_file_info(place.path).is_file:
        parts: dict[str, Any] = {"path": path}
        of_part = {"path": taken}
    else:
        tops = {one.name.partition("/")[0] for one in taken}
        if source == "images" and len(tops) == 1 and all("/" in one.name for one in taken):
            inner = recognize(below(path, *tops), test)  # one folder around all the others says nothing
            beside = {s: sum(f.name.partition("/")[0] not in tops for f in v) for s, v in by_source.items()}
            if told := ", ".join(f"{n} of {s}" for s, n in beside.items() if n):
                inner.why["source"] += f"; left aside beside it: {told}"
            return inner
        parts, of_part = _parts(path, taken, folders=source in ("images", "huggingface"))
    found = Recognized(fields={"source": source, **parts}, labeled=False)
    found.why["source"] = f"{len(taken):,} of {len(files):,} files" + (
        f"; left aside: {', '.join(f'{len(v)} of {s}' for s, v in by_source.items() if s != source)}"
        if len(by_source) > 1
        else ""
    )
    for setting, words in (("test_path", "test"), ("validation_path", "validation")):
        if setting in parts:
            found.why[setting] = f"by its name ({', '.join(PART[words][:3])}, ...)"
    if left := len(taken) - sum(map(len, of_part.values())):
        found.why["path"] = f"by its name; LEFT ASIDE: {left:,} others beside it. If they belong to the pool: {path}"
    root = root_of(place)
    paths = {setting: [posixpath.join(root.path, f.name) for f in fs] for setting, fs in of_part.items()}
    if test is not None:
        found.fields["test_path"], found.why["test_path"] = test, "--test"
        held = Place.at(test)
        paths.pop("test_path", None)  # of the one that was guessed
        if held.fs.equals(place.fs):
            names = [f.name for f in _files(held) if _source_of(f.name) == source]
            paths["test_path"] = [posixpath.join(root_of(held).path, name) for name in names]
    _READERS[source](found, root, paths)
    return found


def _files(place: Place) -> list[Lying]:
    return [f for f in Walk().at(place) if f.problem is None and not _hidden(f.name)]


def _source_of(name: str) -> str | None:
    return "images" if _is_image(name) else ENDINGS.get(posixpath.splitext(name)[1].lower())


def _is_image(name: str) -> bool:
    return name.lower().endswith(extensions())


def _hidden(name: str) -> bool:
    *above, last = name.split("/")
    if any(part.startswith((".", "_")) for part in above) or last.startswith("."):
        return True
    return last.startswith("_") and not _is_image(last)  # as cameras begin names


def _part_of(name: str, folders: bool) -> str | None:
    """The part of a data set that a file belongs to by its name below the root: its first folder, or, of files that
    hold many samples, the first or the last word of the file's own name."""
    *above, last = name.split("/")
    own = [word for word in re.split(r"[-_.\d]+", posixpath.splitext(last)[0]) if word]
    words = above[:1] if folders else [*above, *own[-1:], *own[:1]]
    for word in reversed(words):
        for part, names in PART.items():
            if word.lower() in names:
                return part
    return None


def _parts(path: str, files: Sequence[Lying], folders: bool) -> tuple[dict[str, Any], dict[str, list[Lying]]]:
    """(`path`, `test_path`, `validation_path` as far as they are there; the files of each)"""
    by_part: dict[str, list[Lying]] = defaultdict(list)
    for one in files:
        by_part[_part_of(one.name, folders) or "rest"].append(one)
    pool = by_part.get("pool") or by_part.get("rest")
    if not pool or (len(by_part) == 1):
        return {"path": path}, {"path": list(files)}
    named = [one for part, some in by_part.items() if part != "rest" for one in some]
    flat = not any(one.name.count("/") > 1 or one.name.endswith(".arrow") for one in named)
    if folders and "rest" in by_part and len(by_part) == 2 and flat:
        return {"path": path}, {"path": list(files)}  # a class that is called so, among the others
    settings = {"path": pool}
    if "test" in by_part:
        settings["test_path"] = by_part["test"]
        if "validation" in by_part:
            settings["validation_path"] = by_part["validation"]
    elif "validation" in by_part:
        settings["test_path"] = by_part["validation"]
    every = [f.name for f in files]
    written = {setting: _written(path, [f.name for f in some], folders, every) for setting, some in settings.items()}
    return written, settings


def _written(path: str, names: list[str], folders: bool, every: Sequence[str]) -> Any:
    """Files as people name them: their folders, or a pattern, or a list."""
    tops = sorted({name.partition("/")[0] for name in names})
    if folders or (all("/" in name for name in names) and len(tops) == 1):
        return below(path, tops[0]) if len(tops) == 1 else [below(path, top) for top in tops]
    if len(names) == 1:
        return below(path, names[0])
    above = {posixpath.dirname(name) for name in names}
    words = {re.split(r"[-_.\d]", posixpath.basename(name))[0] for name in names}
    if len(above) == len(words) == 1 and "" not in words:
        begin, ending = posixpath.join(*above, *words), posixpath.splitext(names[0])[1]
        alike = [n for n in every if n.startswith(begin) and n.endswith(ending) and posixpath.dirname(n) in above]
        if sorted(alike) == sorted(names):
            return below(path, f"{begin}*{ending}")
    return [below(path, name) for name in names]


# --- what the files of each source say -------------------------------------------------------------------------------


def _images(found: Recognized, root: Place, files: dict[str, list[str]]) -> None:
    """Sub-folders are classes, unless the test set has other ones or nearly every image has one of its own."""
    pool = _classes_below(found.fields["path"], root, files["path"])
    test = _classes_below(found.fields.get("test_path"), root, files.get("test_path", ()))
    if masks := masks_among([name or "images" for name in pool]):
        raise PoolError(
            f"'{masks}' beside the images seems to hold their masks: name the folder of the images; for a class of "
            f"every pixel, set task to segmentation and pool.mask_folder to {masks}"
        )
    flat = "" in pool
    if flat:
        found.why["labeled"] = f"{pool['']:,} images lie in no sub-folder"
    elif len(pool) < 2 or len(pool) > min(MOST_CLASSES, sum(pool.values()) / 2):
        found.why["labeled"] = f"its {len(pool)} sub-folders can hardly be classes"
    elif test and not pool.keys() <= test.keys():
        other = few(sorted(pool.keys() - test.keys()), 3)
        found.why["labeled"] = f"its sub-folders are not those of the test set ({other})"
    else:
        found.labeled, found.folders = True, frozenset(pool)
        found.why["labeled"] = f"{len(pool)} sub-folders, taken for classes"


def _classes_below(setting: Any, root: Place, paths: Iterable[str]) -> Counter[str]:
    """Sub-folder of a set -> its images; '' for those that lie in none."""
    tops = [root_of(Place.at(p)).path for p in ([setting] if isinstance(setting, str) else setting or ())]
    found: Counter[str] = Counter()
    for full in paths:
        top = next((t for t in tops if full.startswith(t + "/")), root.path)
        found[posixpath.dirname(full[len(top) + 1 :]).partition("/")[0]] += 1
    return found


def _columns(found: Recognized, schema: pa.Schema) -> None:
    """The columns of a table: samples, ids, labels."""
    source = POOL_SOURCES[found.fields["source"]]
    kinds = {f.name: plain_type(f.type) for f in schema}
    named_otherwise = {*IDS, *LABELS}

    def first(field_: str, wanted: Sequence[str], fits: Any) -> tuple[str | None, bool]:
        """The column that fits, and whether its name says so too; columns of ids and labels fit by name alone."""
        fitting = [name for name, kind in kinds.items() if field_ in source.fields and fits(kind)]
        by_name = [name for word in wanted for name in fitting if name.lower() == word]
        others = [name for name in fitting if name.lower() not in named_otherwise]
        return (by_name or others or [None])[0], bool(by_name)

    image, _ = first("image_column", ("image", "img", "picture", "photo"), _holds_images)
    text, text_by_name = first("text_column", TEXTS, pa.types.is_string)
    vector, vector_by_name = first("vector_column", VECTORS, _is_vector)
    if image is not None:
        text = vector = None
        if image != "image":
            found.fields["image_column"] = image
            found.why["image_column"] = "the column of encoded images"
    elif vector is not None and (vector_by_name or not text_by_name):
        found.fields["vector_column"] = vector
        found.why["vector_column"] = "lists of numbers" + (f"; the texts in '{text}' are left aside" if text else "")
        text = None
    elif text is not None:
        found.fields["text_column"] = text
        found.why["text_column"] = "a column of strings, and none of images"
    else:
        raise PoolError(f"no column holds images, texts or vectors; the columns are {', '.join(schema.names)}")
    if "id_column" in source.fields:
        id_ = next((n for w in IDS for n, k in kinds.items() if n.lower() == w and n != text and _is_id(k)), None)
        if id_ != source.defaults.get("id_column", "id"):
            found.fields["id_column"] = id_
            found.why["id_column"] = "by its name" if id_ else "none is named like ids: file name and row are"
    label = _label_column(found, schema)
    if label is not None:
        found.labeled = True
        what = "integers" if pa.types.is_integer(kinds[label]) else "names"
        if pa.types.is_floating(kinds[label]):
            found.task, what = REGRESSION.name, "numbers"
        found.why["labeled"] = f"the column '{label}' holds {what}"
        if label != "label":
            found.fields["label_column"] = label
    else:
        strings = [n for w in LABELS for n, k in kinds.items() if n.lower() == w and not pa.types.is_integer(k)]
        found.why["labeled"] = (
            f"the column '{strings[0]}' is of type {kinds[strings[0]]}: labels are integers 0 .. classes-1, or names"
            + (", and lists of them with `task: multi_label`" if _are_several(kinds[strings[0]]) else "")
            if strings
            else f"no column of integers is named like labels ({', '.join(LABELS[:4])}, ...)"
        )
        if numbers := [n for n, k in kinds.items() if pa.types.is_floating(k)]:
            found.why["labeled"] += (
                f"; numbers stand in {few(numbers, 5)}: to predict one, set task to regression and pool.label_column "
                "to it"
            )


def _are_several(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold several labels a sample: lists of numbers, or of words."""
    return is_set(kind) or (is_list(kind) and pa.types.is_string(plain_type(kind.value_type)))


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if pa.types.is_struct(kind):
        return any(kind.field(n).name == "bytes" for n in range(kind.num_fields))
    while is_list(kind):
        kind = kind.value_type
        if kind == pa.uint8():
            return True
    return "tensor" in str(kind)


def _is_vector(kind: pa.DataType) -> bool:
    return is_list(kind) and pa.types.is_floating(kind.value_type)


def _label_column(found: Recognized, schema: pa.Schema) -> str | None:
    """The column that is named like labels and can hold them: integers, numbers, and words where they are read."""
    kinds = {f.name: plain_type(f.type) for f in schema}
    names = found.fields["source"] in (*TABLES, "parquet")
    fitting = [
        n
        for n, k in kinds.items()
        if pa.types.is_integer(k) or pa.types.is_floating(k) or (names and pa.types.is_string(k))
    ]
    return next((n for w in LABELS for n in fitting if n.lower() == w), None)


def _labeled_files(
    found: Recognized, schema: pa.Schema, files: dict[str, list[str]], schema_of: Callable[[str], pa.Schema]
) -> tuple[str, list[str], pa.Schema]:
    """(column of the labels, files that have it, the schema of the first of them); the test set's where the pool has
    none."""
    labels = found.fields.get("label_column", "label")
    if found.labeled or not files.get("test_path"):
        return labels, [*files["path"], *files.get("test_path", ())], schema
    schema = schema_of(files["test_path"][0])
    labels = next((n for w in LABELS for n in schema.names if n.lower() == w), labels)
    if labels != "label":
        found.fields["label_column"] = labels
    return labels, files["test_path"], schema


def _numbers(found: Recognized, schema: pa.Schema, labels: str) -> bool:
    """Whether the labels, be it those of the test set alone, are numbers; says so."""
    if labels in schema.names and pa.types.is_floating(plain_type(schema.field(labels).type)):
        found.task = REGRESSION.name
    return found.task == REGRESSION.name


def _is_id(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or (pa.types.is_integer(kind) and not pa.types.is_uint64(kind))


def _parquet(found: Recognized, root: Place, files: dict[str, list[str]]) -> None:
    def schema_of(name: str) -> pa.Schema:
        return read_schema(root.fs, name, "pool.path")

    schema = schema_of(files["path"][0])
    _columns(found, schema)
    labels, names, schema = _labeled_files(found, schema, files, schema_of)
    if labels not in schema.names:
        return
    kind = plain_type(schema.field(labels).type)
    paths = tuple(n for n in names[:FILES_READ] if labels in schema_of(n).names)  # a test set may have none
    read = tables(Source(fs=root.fs, files=paths, sizes=(0,) * len(paths)), [labels])
    columns = (table[labels] for table in read)
    if _numbers(found, schema, labels):
        if found.labeled and any(column.null_count for column in columns):
            _with_gaps(found, labels)
        return
    several = _are_several(kind)
    if pa.types.is_nested(kind) and not several:
        return
    words = pa.types.is_string(plain_type(kind.value_type) if several else kind)
    values: set[Any] = set()
    for column in columns:
        values |= {*pc.unique(pc.list_flatten(column) if several else column).to_pylist()}
        if words and len(values) > MOST_CLASSES + 2:
            break
    named = features_names(schema, labels) is not None
    if found.labeled and any(_is_gap(value) or (named and value == -1) for value in values):  # as `datasets` writes it
        _with_gaps(found, labels)
    if named:
        return
    if words:
        _name_classes(found, {value for value in values if not _is_gap(value)}, labels)
    else:
        _count_classes(found, values, len(names))


def _tables(found: Recognized, root: Place, files: dict[str, list[str]]) -> None:
    rows_of = TABLES[found.fields["source"]].rows_of

    def rows(name: str) -> Iterator[Mapping[str, Any]]:
        return (row for _, row in rows_of(Place(root.fs, name), ()))

    def schema_of(name: str) -> pa.Schema:
        head = list(islice(rows(name), ROWS_READ))
        columns = dict.fromkeys(column for row in head for column in row)
        return pa.schema([(c, _kind_of([row.get(c) for row in head])) for c in columns])

    schema = schema_of(files["path"][0])
    _columns(found, schema)
    labels, names, schema = _labeled_files(found, schema, files, schema_of)
    if labels not in schema.names:
        return
    cells = (row.get(labels) for name in names[:FILES_READ] for row in rows(name) if row)
    if _numbers(found, schema, labels):
        if found.labeled and any(cell in (None, "") for cell in cells):
            _with_gaps(found, labels)
        return
    each = (one for cell in cells for one in (cell if isinstance(cell, list) else [cell]))
    values = {one for one in each if not isinstance(one, list | dict)}
    if found.labeled and any(map(_is_gap, values)):
        _with_gaps(found, labels)
    values = {value for value in values if not _is_gap(value)}
    if all(_is_whole(value) for value in values):
        _count_classes(found, values, len(names))
    elif len(words := {value for value in values if isinstance(value, str)}) == len(values):
        _name_classes(found, words, labels)


def _with_gaps(found: Recognized, labels: str) -> None:
    """A run refuses labels of which some are missing: people give them then."""
    found.labeled = False
    found.why["labeled"] = (
        f"the column '{labels}' is empty in some rows: people label; `pool.known_labels` takes the labels there are"
    )


def _is_gap(cell: Any) -> bool:
    """Whether a cell of labels holds none: nothing, or what programs write for nothing, as R writes NA; `none` and `na`
    may be classes."""
    said = cell.strip() if isinstance(cell, str) else cell
    return said is None or said == "NA" or (isinstance(said, str) and said.lower() in NO_LABEL - {"none", "na"})


def _name_classes(found: Recognized, values: Collection[str], labels: str) -> None:
    if len(values) > MOST_CLASSES:
        found.labeled = False
        found.why["labeled"] = f"the column '{labels}' holds more than {MOST_CLASSES:,} names: hardly classes"
    elif values:
        # As labels are compared with them: `cat ` is the class `cat`.
        found.fields["classes"] = sorted({normal(whole(value).strip()) for value in values})
        found.why["classes"] = f"the names in the column '{labels}'"


def _kind_of(cells: Sequence[Any]) -> pa.DataType:
    """The type that all cells with something in them have; null where they have none in common."""
    cells = [cell for cell in cells if cell not in (None, "")]
    numbers = [vector_of(cell) for cell in cells]
    if not cells:
        return pa.null()
    if all(_is_whole(cell) for cell in cells):
        return pa.int64()
    if all(_is_whole(cell) or (isinstance(cell, str) and FRACTION.fullmatch(cell)) for cell in cells):
        return pa.null()
    if all(vector is not None and len(vector) > 1 for vector in numbers):
        return pa.list_(pa.float32())
    if all(vector is not None and len(vector) == 1 for vector in numbers):
        return pa.float64()
    return pa.string() if all(isinstance(cell, str) for cell in cells) and None in numbers else pa.null()


def _is_whole(cell: Any) -> bool:
    if isinstance(cell, str):
        return re.fullmatch(r"\s*[-+]?\d+\s*", cell) is not None
    return isinstance(cell, int) and not isinstance(cell, bool)


def _webdataset(found: Recognized, root: Place, files: dict[str, list[str]]) -> None:
    first = Place(root.fs, files["path"][0])
    kinds: Counter[str] = Counter()
    field_: str | None = None
    try:
        with first.fs.open_input_stream(first.path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in islice(tar, 200):
                kind = posixpath.basename(member.name).partition(".")[2].lower()
                kinds[kind] += 1
                if kind == "json" and field_ is None and (content := tar.extractfile(member)) is not None:
                    field_ = _label_field(content.read())
    except (OSError, tarfile.TarError) as error:
        raise PoolError(f"{first.path}: cannot be read as an uncompressed tar file ({error})") from error
    if "cls" in kinds:
        found.labeled, found.why["labeled"] = True, "samples have a member .cls"
    elif field_ is not None:
        found.fields["label_column"] = f"json:{field_}"
        found.labeled, found.why["labeled"] = True, f"samples have a member .json with an integer '{field_}'"
    else:
        found.why["labeled"] = "samples have neither a member .cls nor an integer label in .json"
    names = [*(files["path"] if found.labeled else ()), *files.get("test_path", ())]
    label = found.fields.get("label_column", "cls")
    shards = (Place(root.fs, name) for name in names[:FILES_READ])
    values = (s.label for shard in shards for s in scan_tar(shard, label) if isinstance(s, Sample))
    _count_classes(found, values, len(names))


def _label_field(content: bytes) -> str | None:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return next((w for w in LABELS if isinstance(tree, dict) and type(tree.get(w)) is int), None)


def _huggingface(found: Recognized, root: Place, files: dict[str, list[str]]) -> None:
    schema = arrow_schema(Place(root.fs, files["path"][0]))
    _columns(found, schema)
    if found.labeled and features_names(schema, found.fields.get("label_column", "label")) is None:
        found.why["classes"] = "the files do not name them: set pool.classes"


def _count_classes(found: Recognized, labels: Iterable[Any], files: int) -> None:
    """The number of classes, from labels 0 .. classes-1."""
    values = set()
    for label in labels:
        with suppress(TypeError, ValueError):  # what is no number names no class by its number
            values.add(int(label))
    sparse = bool(values) and max(values) > MOST_CLASSES and 2 * len(values) <= max(values)
    if values and (min(values) < 0 or max(values) >= MOST_NUMBERS or sparse):
        found.labeled = False
        found.why["labeled"] = (
            f"labels from {min(values)} to {max(values)} hardly number classes, from 0 on: people label; to predict "
            "these numbers, set task to regression"
        )
    elif values:
        found.fields["classes"] = max(2, max(values) + 1)
        where = f" of {FILES_READ} of {files} files" if files > FILES_READ else ""
        found.why["classes"] = f"the largest label{where} is {max(values)}; better give their names"


_READERS = {
    "images": _images, "parquet": _parquet, "webdataset": _webdataset, "huggingface": _huggingface,
    **dict.fromkeys(TABLES, _tables),
}  # fmt: skip
