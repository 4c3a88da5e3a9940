"""Checks of a pool's Parquet files over their id and label columns, in tasks, with memory bounded by hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray

from prunefuse_ray.data.classes import contradiction, features_names
from prunefuse_ray.data.ids import digest_of, id_hashes
from prunefuse_ray.data.index import (
    HASHES_PER_BUCKET,
    duplicate_hashes,
    duplicates,
    ids_of,
    in_buckets,
    label_counts,
    normal_ids,
)
from prunefuse_ray.data.paths import normal
from prunefuse_ray.data.pool import Source, groups
from prunefuse_ray.data.reading import (
    in_tasks,
    label_columns,
    labels_of,
    plain_type,
    raw_labels,
    refuse_pickles,
    tables,
)
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.distributed import remote
from prunefuse_ray.errors import IdsError, PoolError, excerpt, few
from prunefuse_ray.schemas import is_list
from prunefuse_ray.storage import Place, pointed
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tasks.classification import CLASSIFICATION


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What Parquet files were found to hold."""

    rows: int
    id_digest: int
    id_type: str
    labels: Counter[int]


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What one task saw of its files."""

    rows: int
    digest: int
    labels: Counter[int]
    wrong: int
    """Labels that are none."""
    bad_labels: list[str]
    """The first of them."""
    empty: int
    """Cells of the columns of labels that hold nothing."""


def inspect_parquet(
    source: Source,
    samples: SampleSet,
    classes: Sequence[str],
    new: Collection[str] = (),
    field_ids: Mapping[str, int] | None = None,
) -> Inspected:
    """Check Parquet files over their id and label columns.

    Args:
        new: those of the files that have come since the others were found good.
        field_ids: of an Iceberg table: column -> its number, which tells it from another one that had its name before.

    Raises:
        PoolError: a missing column, files of different types, null or duplicate ids, labels that are no classes.
    """
    field = samples.field
    schema = read_schema(source.fs, next(f for f in source.files if f not in new), field)
    id_type = _check_columns(schema, source, field, samples.sample_setting)
    looks = in_tasks(_look, source, _kinds(schema, source), field_ids or {}, samples, classes)
    if faults := [fault for _, found in looks for fault in found]:
        remedy = (
            "fix it or take it away; if it is still being written, run the same command again when it is whole"
            if new
            else "fix them, or name the files that belong together"
        )
        raise PoolError(f"{field}: {few(faults, 5, '; ', '; and {} more such files')}; {remedy}")
    rows = sum(n for n, _ in looks)
    if not rows:
        raise PoolError(f"{field}: holds no rows; give a pool with samples in it")
    buckets = -(-rows // HASHES_PER_BUCKET)
    scans, twice = _scan(source, len(classes), buckets)
    if wrong := sum(scan.wrong for scan in scans):
        bad = [label for scan in scans for label in scan.bad_labels]
        gaps = (
            "; where only some samples have a label, set annotation.kind, and pool.known_labels to a table of these"
            if any(scan.empty for scan in scans)
            else ""
        )
        raise PoolError(
            f"{field}: {_column(source)} has {wrong:,} labels that are {samples.task.not_a_label(len(classes))}, e.g. "
            f"{'; '.join(bad[:5])}; fix them or pool.classes{gaps}"
        )
    if len(twice):
        ids, counts = sum(in_tasks(_ids_of_hashes, source, twice), Counter[Any]()), Counter[Any]()
        for i, times in ids.items():
            counts[normal(i) if isinstance(i, str) else i] += times
        repeated = sorted(i for i in ids if counts[normal(i) if isinstance(i, str) else i] > 1)
        if repeated:
            raise IdsError(
                f"{field}: column '{source.id_column}' has duplicate ids, e.g. "
                f"{', '.join(map(repr, repeated[:5]))}; make ids unique (two Unicode forms of a name, NFC and NFD, are "
                "one id)"
            )
    return Inspected(
        rows=rows,
        id_digest=sum(s.digest for s in scans) % 2**64,
        id_type=id_type,
        labels=sum((s.labels for s in scans), Counter()),
    )


def read_schema(fs: pafs.FileSystem, file: str, field: str) -> pa.Schema:
    """The schema of a Parquet file; PoolError where it is none."""
    try:
        schema = pq.read_schema(file, filesystem=fs)
        _ = schema.names  # they may not be UTF-8
        return schema
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PoolError(f"{field}: {_unreadable(fs, file, error)}") from error


def _check_columns(schema: pa.Schema, source: Source, field: str, samples: str) -> str:
    wanted = {samples: source.sample_column}
    if source.names is None:
        wanted["id_column"] = source.id_column
    if source.group_column is not None:
        wanted["group_column"] = source.group_column
    labels = () if source.label_column is None else label_columns(source)
    for name, column in [*wanted.items(), *(("label_column", column) for column in labels)]:
        if column not in schema.names:
            remedy = "; null makes ids of file names and row numbers" if name == "id_column" else ""
            raise PoolError(f"pool.{name}: {field} has no column '{column}'; it has {', '.join(schema.names)}{remedy}")
        if schema.names.count(column) > 1:
            raise PoolError(f"pool.{name}: {field} has column '{column}' twice; rename one")
    if samples == "text_column" and not pa.types.is_string(plain_type(schema.field(source.sample_column).type)):
        raise PoolError(
            f"pool.text_column: '{source.sample_column}' is of type "
            f"{schema.field(source.sample_column).type}; name a column of strings"
        )
    if samples == "vector_column" and not _is_vector(schema.field(source.sample_column).type):
        raise PoolError(
            f"pool.vector_column: '{source.sample_column}' is of type "
            f"{schema.field(source.sample_column).type}; name a column of lists of numbers"
        )
    if source.group_column is not None:
        kind = schema.field(source.group_column).type
        if not pa.types.is_string(plain_type(kind)) and not pa.types.is_integer(plain_type(kind)):
            raise PoolError(
                f"pool.group_column: '{source.group_column}' is of type {kind}; groups are strings or integers"
            )
    if source.names is not None:
        return "string"
    kind = plain_type(schema.field(source.id_column).type)
    if pa.types.is_uint64(kind):
        raise PoolError(f"pool.id_column: '{source.id_column}' is of type {kind}; cast it to int64 or to strings")
    if pa.types.is_integer(kind):
        return "int64"
    if pa.types.is_string(kind):
        return "string"
    raise PoolError(f"pool.id_column: '{source.id_column}' is of type {kind}; ids are strings or integers")


def _is_vector(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):  # a tensor
        return True
    return is_list(kind) and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _kinds(schema: pa.Schema, source: Source) -> dict[str, str]:
    """Column -> what it holds, as far as all files of a pool have to agree: the width of integers may differ."""
    columns = [source.sample_column, *(label_columns(source) if source.label_column else ()), source.group_column]
    columns += [source.id_column] if source.names is None else []
    found = {}
    for column in (c for c in columns if c is not None):
        kind = plain_type(schema.field(column).type) if schema.names.count(column) == 1 else None
        if kind is None:
            found[column] = "there twice" if column in schema.names else "missing"
        elif pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
            found[column] = "integers"
        else:
            found[column] = "strings" if pa.types.is_string(kind) else str(kind)
            if is_list(kind):
                found[column] = f"lists of {plain_type(kind.value_type)}"
    return found


def _look(
    source: Source, kinds: dict[str, str], field_ids: Mapping[str, int], samples: SampleSet, classes: Sequence[str]
) -> tuple[int, list[str]]:
    """Rows of a part of a pool, and what its files lack of `kinds`, or say otherwise of the classes, by their
    footers."""
    rows, faults = 0, []
    labels = source.label_column if isinstance(source.label_column, str) and not samples.task.numbers else None
    for file in source.files:
        try:
            footer = pq.read_metadata(file, filesystem=source.fs)
            schema = footer.schema.to_arrow_schema()
            _ = schema.names
            refuse_pickles(schema, file)
        except PoolError as error:
            faults.append(str(error))
            continue
        except (OSError, ValueError, pa.ArrowException) as error:
            faults.append(_unreadable(source.fs, file, error))
            continue
        rows += footer.num_rows - len(source.deleted.get(file, ()))
        if _paths_alone(footer, source.sample_column):
            faults.append(
                f"'{file}': column '{source.sample_column}' holds the paths of images and not their bytes: write them "
                "into it (datasets: save_to_disk or push_to_hub, or embed_table_storage before to_parquet)"
            )
        found = _kinds(schema, source)
        faults += [
            f"'{file}': its column '{c}' is another one than the table's '{c}', which was renamed; rewrite the table's "
            "data files"
            for c in kinds if schema.names.count(c) == 1 and not _same_field(schema.field(c), field_ids.get(c))
        ]  # fmt: skip
        faults += [f"'{file}': column '{c}' is {found[c]}, before {k}" for c, k in kinds.items() if found[c] != k]
        if labels is not None and (why := contradiction(samples, classes, features_names(schema, labels))):
            faults.append(f"'{file}': {why}")
        if labels is not None and schema.names.count(labels) == 1 and _may_be_names(schema, labels, source.class_names):
            faults.append(
                f"'{file}': column '{labels}' holds integers, which may be the numbers of classes or the names of "
                "others: write them as strings, or give the classes other names ('1 star')"
            )
    return rows, faults


def _may_be_names(schema: pa.Schema, column: str, classes: Sequence[str]) -> bool:
    """Whether a column holds whole numbers, or lists of them, and some class is called by the number of another."""
    kind = plain_type(schema.field(column).type)
    if not pa.types.is_integer(kind.value_type if is_list(kind) else kind) or features_names(schema, column):
        return False
    number = CLASSIFICATION.label
    return any(number(str(n), classes) not in (None, n) for n in range(len(classes)))


def _same_field(field: pa.Field, number: int | None) -> bool:
    """Whether a file's column is the one that its table knows by this number; files from elsewhere have none."""
    written = (field.metadata or {}).get(b"PARQUET:field_id")
    return number is None or written is None or int(written) == number


def _unreadable(fs: pafs.FileSystem, file: str, error: Exception) -> str:
    return f"'{file}' is no Parquet file that can be read ({error}){pointed(Place(fs, file))}"


def _paths_alone(footer: pq.FileMetaData, column: str) -> bool:
    """Whether a column of images {bytes, path} holds paths and no bytes, as datasets' `to_parquet` leaves it."""
    found = {"bytes": 0, "path": 0}
    for g in range(footer.num_row_groups):
        group = footer.row_group(g)
        for c in range(group.num_columns):
            chunk = group.column(c)
            for part in found:
                if chunk.path_in_schema == f"{column}.{part}":
                    nulls = chunk.statistics.null_count if chunk.statistics is not None else None
                    found[part] += chunk.num_values if nulls is None else group.num_rows - nulls
    return found["path"] > 0 and found["bytes"] == 0


def _scan(source: Source, classes: int, buckets: int) -> tuple[list[_Scan], np.ndarray]:
    """What the parts of a source hold, and hashes of ids that it holds twice. The hashes stay where they were made."""
    if sum(source.sizes) <= remote.WORTH_A_TASK:
        scan, *hashes = _scan_ids(source, classes, 1)
        return [scan], duplicate_hashes(*hashes)
    task = ray.remote(num_cpus=0.5, num_returns=buckets + 1)(_scan_ids)
    answers: list[Any] = [task.remote(group, classes, buckets) for group in groups(source)]
    with remote.plain_errors():
        return cast(list[_Scan], ray.get([a[0] for a in answers])), duplicates(answers)


def _scan_ids(source: Source, classes: int, buckets: int) -> tuple[Any, ...]:
    hashes, digest, bad, bad_rows = [], 0, list[str](), 0
    rows, gaps, labels_seen = 0, 0, Counter[int]()
    task, named = TASKS[source.task], () if source.label_column is None else label_columns(source)
    columns = list(dict.fromkeys([source.id_column, *named]))
    for table in tables(source, columns):
        ids = table[source.id_column]
        rows += table.num_rows
        if ids.null_count:
            raise PoolError(f"pool.id_column: '{source.id_column}' has {ids.null_count} null ids; fill them in")
        if not pa.types.is_integer(ids.type) and (empty := pc.sum(pc.equal(ids, "")).as_py()):
            raise PoolError(
                f"pool.id_column: '{source.id_column}' has {empty} empty ids, which no table of labels can name; fill "
                "them in"
            )
        normal, own = normal_ids(ids), id_hashes(ids)
        digest = (digest + digest_of(own)) % 2**64
        hashes.append(own if normal is ids else id_hashes(normal))
        if source.label_column is None:
            continue
        try:
            wrong = table.filter(task.invalid_labels(raw_labels(table, source), classes))
        except TypeError as error:
            kinds = ", ".join(dict.fromkeys(str(table[column].type) for column in named))
            raise PoolError(
                f"pool.label_column: {_column(source).removeprefix('column ')} is of type {kinds}; labels are {error}"
            ) from error
        if not wrong.num_rows:
            labels_seen += label_counts(labels_of(table, source), task, classes)
        bad_rows += wrong.num_rows
        gaps += sum(table[column].null_count for column in named)
        for row in wrong.slice(0, 5).to_pylist():
            label = row[named[0]] if len(named) == 1 else [row[column] for column in named]
            bad.append(f"{excerpt(str(label))} (id {row[source.id_column]!r})")
    all_hashes = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    scan = _Scan(rows=rows, digest=digest, labels=labels_seen, wrong=bad_rows, bad_labels=bad, empty=gaps)
    return scan, *in_buckets(all_hashes, buckets)


def _column(source: Source) -> str:
    """The columns of labels in words."""
    named = label_columns(source)
    return f"column{'s' * (len(named) > 1)} '{', '.join(named)}'"


def _ids_of_hashes(source: Source, hashes: np.ndarray) -> Counter[Any]:
    found = Counter[Any]()
    for table in tables(source, [source.id_column]):
        found.update(ids_of(table[source.id_column], hashes))
    return found
