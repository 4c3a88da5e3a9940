"""Tables of a data lake at one version: which files they have then, and which rows of these are deleted.

Delta Lake and Apache Iceberg keep rows in Parquet files and say in a log which files a version consists of. Their own
libraries resolve the version; the files are read where they lie, as any Parquet pool. What the log says about rows is
respected (deletion vectors of Delta, position deletes of Iceberg) or refused by name (equality deletes, column mapping,
partition columns, columns that were renamed): no row is read that the table does not have.

Specifications: https://github.com/delta-io/delta/blob/master/PROTOCOL.md, https://iceberg.apache.org/spec/.
"""

from __future__ import annotations

import os
import posixpath
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunefuse_ray.data.paths import Listing, TableVersion
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.parquet import ParquetFiles
from prunefuse_ray.errors import PoolError, few, near
from prunefuse_ray.storage import Place, s3_options


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A table at one version."""

    version: str
    location: str
    """Where it lies: what its files' names are relative to."""
    columns: Sequence[str]
    files: Mapping[str, int]
    """Path or URI -> bytes."""
    deleted: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Path or URI -> numbers of rows."""
    field_ids: Mapping[str, int] = field(default_factory=dict)
    partitions: Sequence[str] = ()
    """Columns whose values stand in no file."""


class LakeTable(ParquetFiles):
    """A table whose rows lie in Parquet files."""

    name: ClassVar[str]

    @abstractmethod
    def snapshot(self, samples: SampleSet, path: str) -> Snapshot:
        """The table at the version that the configuration names, or at its newest one. PoolError where there is
        none."""

    def listing(self, samples: SampleSet) -> Listing:
        path = one_table(samples)
        found = self.snapshot(samples, path)
        check_columns(samples, self.name, found.columns)
        for column in wanted_columns(samples).values():
            if column in found.partitions:
                raise PoolError(
                    f"{samples.field}: the {self.name} table is partitioned by '{column}', whose values stand in its "
                    "log and in no file; give it a copy of that column under another name, and name this one"
                )
        if not found.files:
            raise PoolError(f"{samples.field}: the {self.name} table '{path}' has no rows at version {found.version}")
        return listed(found, _cut(path)[1])


def one_table(samples: SampleSet) -> str:
    """The path of a set that is one table."""
    if not isinstance(samples.paths, str):
        raise PoolError(f"{samples.field}: {samples.paths}: give one table, since a version is that of one")
    return samples.paths


def wanted_columns(samples: SampleSet) -> dict[str, str]:
    """The columns that are read of a set: setting -> column; several columns of labels as label_column, label_column 2,
    ..."""
    pool, labels = samples.pool, samples.label_column
    names: dict[str, str | None] = {"id_column": pool.id_column, samples.sample_setting: samples.sample_column}
    if samples.setting == "path":
        names["group_column"] = pool.group_column
    for number, column in enumerate(labels if isinstance(labels, tuple) else [labels], 1):
        names["label_column" if number == 1 else f"label_column {number}"] = column
    return {setting: column for setting, column in names.items() if column is not None}


def check_columns(samples: SampleSet, format_: str, there: Sequence[str]) -> None:
    """PoolError where a table has not the columns that the configuration names."""
    for setting, column in wanted_columns(samples).items():
        if column not in there:
            remedy = "; null makes ids of file names and row numbers" if setting == "id_column" else ""
            raise PoolError(
                f"pool.{setting}: the {format_} table of {samples.field} has no column '{column}'"
                f"{near(column, there)}; it has {', '.join(there)}{remedy}"
            )


@contextmanager
def opening(samples: SampleSet, format_: str, extra: str) -> Any:
    """Faults of a table's library as PoolError."""
    at = "" if samples.version is None else f" at {samples.version_setting} {samples.version}"
    try:
        yield
    except ImportError as error:
        raise PoolError(
            f"pool.source: {format_} tables need the {extra} extra ({error}); pip install 'prunefuse-ray[{extra}]'"
        ) from error
    except PoolError:
        raise
    except Exception as error:  # the libraries have no base class for theirs
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PoolError(
            f"{samples.field}: the {format_} table '{samples.paths}' cannot be opened{at} ({type(error).__name__}: "
            f"{said}); name a table that exists, and a version that it still has"
        ) from error


def store_options(place: Place) -> dict[str, str]:
    """How a place is reached, as the Rust crate object_store calls it, which Delta Lake's and Lance's libraries use."""
    options = s3_options(place.fs) or {}
    named = {"AWS_REGION": options.get("region")}
    if endpoint := options.get("endpoint_override"):
        scheme = options.get("scheme") or "https"
        named |= {"AWS_ENDPOINT_URL": f"{scheme}://{endpoint}", "AWS_ALLOW_HTTP": str(scheme == "http").lower()}
    return {key: value for key, value in named.items() if value}


def uri_of(path: str, place: Place) -> str:
    """A place as the same libraries name it."""
    scheme, mark, _ = path.partition("://")
    return f"{scheme}://{place.path}" if mark and scheme != "file" else place.path


def listed(found: Snapshot, query: str = "") -> Listing:
    """The files of a snapshot: below its location, and below their own directories where they lie elsewhere.

    A file's deleted rows count as bytes, so that whoever compares listings sees that there are more of them.
    """
    options = f"?{query}" if query else ""
    home = _plain(found.location).rstrip("/")
    below: dict[str, list[str]] = defaultdict(list)
    for file in found.files:
        plain = _plain(file)
        below[home if plain.startswith(f"{home}/") else posixpath.dirname(plain)].append(file)
    roots = {root: Place.at(root + options) for root in sorted(below, key=lambda r: (r != home, r))}
    first = next(iter(roots.values()))
    if elsewhere := [root for root, place in roots.items() if not place.fs.equals(first.fs)]:
        raise PoolError(f"'{found.location}' has files on several filesystems, such as '{elsewhere[0]}'; use one")
    rows = []
    for number, root in enumerate(roots):
        for file in below[root]:
            gone = np.unique(found.deleted.get(file, np.zeros(0, np.int64)))
            rows.append((number, _plain(file)[len(root) + 1 :], found.files[file] + len(gone), gone))
    rows.sort(key=lambda row: row[:2])
    places = list(roots.values())
    return Listing(
        roots=tuple(places),
        root_numbers=tuple(row[0] for row in rows),
        names=tuple(row[1] for row in rows),
        sizes=tuple(row[2] for row in rows),
        of_table=TableVersion(
            version=found.version,
            deleted={posixpath.join(places[n].path, name): gone for n, name, _, gone in rows if len(gone)},
            field_ids=found.field_ids,
        ),
        whole_paths=len(places) > 1,
    )


def _plain(uri: str) -> str:
    """A URI as `Place.at` takes it: Hadoop's names of S3 are S3, local files are paths."""
    for spelling, plain in (("s3a://", "s3://"), ("s3n://", "s3://"), ("file://", ""), ("file:", "")):
        if uri.startswith(spelling):
            return plain + uri.removeprefix(spelling)
    return uri


# --- Delta Lake -----------------------------------------------------------------------------------------------------

UNDERSTOOD = {
    "deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "typeWidening", "typeWidening-preview",
    "columnMapping",
}  # fmt: skip
"""Features of a Delta table that a reader has to know, and that are seen to here, or by its library."""


class DeltaTable(LakeTable):
    """Deletion vectors are respected; column mapping is refused."""

    name = "Delta"

    def snapshot(self, samples: SampleSet, path: str) -> Snapshot:
        version, place = samples.version, Place.at(path)
        if isinstance(version, str):
            raise PoolError(f"pool.{samples.version_setting} '{version}': a Delta table's versions are numbers, from 0")
        with opening(samples, self.name, "delta"):
            import deltalake

            table = deltalake.DeltaTable(uri_of(path, place), version=version, storage_options=store_options(place))
            mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
            unknown = sorted(set(table.protocol().reader_features or ()) - UNDERSTOOD)
            if mapping != "none" or unknown:
                what = f"the table feature{'s' * (len(unknown) > 1)} {', '.join(unknown)}" if unknown else (
                    f"column mapping (mode {mapping}), by which its files call columns otherwise"
                )  # fmt: skip
                raise PoolError(
                    f"{samples.field}: the Delta table '{path}' uses {what}, which is not read here; write what the "
                    "run needs to a table without, or to Parquet files"
                )
            actions = pa.table(table.get_add_actions(flatten=True))
            vectors = pa.table(table.deletion_vectors())
            pairs = zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True)
            files = {_absolute(name, path, place): size for name, size in pairs}
            # The library names these files below the table as it knows it: as a URI, links resolved.
            gone = {
                _absolute(file.as_py().removeprefix(table.table_uri), path, place): np.flatnonzero(
                    ~keep.values.to_numpy(zero_copy_only=False)  # as long as the file: no object for each row
                )
                for file, keep in zip(*(vectors[c] for c in vectors.column_names), strict=True)
            }
            if strangers := sorted(gone.keys() - files.keys()):
                raise PoolError(
                    f"{samples.field}: the Delta table '{path}' has deleted rows of '{strangers[0]}', which is none of "
                    "its files as they are known here; purge its deletion vectors (REORG TABLE ... APPLY (PURGE))"
                )
            return Snapshot(
                version=str(table.version()),
                location=place.path if place.local else _cut(path)[0],
                columns=[f.name for f in table.schema().fields],
                files=files,
                deleted=gone,
                partitions=table.metadata().partition_columns,
            )


def _absolute(name: str, path: str, place: Place) -> str:
    """The file of an add action, whose path is relative and percent-encoded (PROTOCOL.md, Add File)."""
    plain = unquote(name)
    if "://" in plain or plain.startswith(("/", "file:")):
        return _plain(plain)
    return f"{place.path if place.local else _cut(path)[0].rstrip('/')}/{plain}"


def _cut(path: str) -> tuple[str, str]:
    """A path or URI without its options, and these; a local path has none, whatever stands in its name."""
    plain, _, query = path.partition("?") if "://" in path else (path, "", "")
    return plain, query


# --- Apache Iceberg -------------------------------------------------------------------------------------------------


class IcebergTable(LakeTable):
    """Position deletes in Parquet files are respected; equality deletes and deletion vectors are refused."""

    name = "Iceberg"

    def snapshot(self, samples: SampleSet, path: str) -> Snapshot:
        with opening(samples, self.name, "iceberg"):
            table = _iceberg(path)
            version = samples.version
            pinned = table.snapshot_by_name(version) if isinstance(version, str) else (
                table.current_snapshot() if version is None else table.snapshot_by_id(version)
            )  # fmt: skip
            if pinned is None and version is not None:
                known = few([str(s.snapshot_id) for s in table.snapshots()] + list(table.metadata.refs), 10)
                raise PoolError(
                    f"pool.{samples.version_setting} {version}: the Iceberg table '{path}' has no such snapshot, "
                    f"branch or tag; it has {known or 'none'}"
                )
            schema = table.schema() if version is None or pinned is None or pinned.schema_id is None else (
                table.schemas()[pinned.schema_id]
            )  # fmt: skip
            files = [] if pinned is None else list(table.scan(snapshot_id=pinned.snapshot_id).plan_files())
            if odd := sorted({str(f.file.file_format) for f in files} - {"FileFormat.PARQUET", "PARQUET"}):
                raise PoolError(f"{samples.field}: the Iceberg table '{path}' has files that are {odd[0]}, no Parquet")
            return Snapshot(
                version="empty" if pinned is None else str(pinned.snapshot_id),
                location=table.location(),
                columns=[f.name for f in schema.fields],
                files={_plain(f.file.file_path): f.file.file_size_in_bytes for f in files},
                deleted=_position_deletes(files, samples, path),
                field_ids={f.name: f.field_id for f in schema.fields},
            )


def _iceberg(path: str) -> Any:
    """The table of a metadata file, of a directory with a version hint, or of a catalog that PyIceberg knows."""
    from pyiceberg.catalog import load_catalog
    from pyiceberg.table import StaticTable

    if "/" not in path and not path.endswith(".metadata.json") and not os.path.isdir(path):
        catalog, dot, identifier = path.partition(".")
        if not dot:
            raise PoolError(f"'{path}' is no Iceberg table: give catalog.namespace.table, or its newest .metadata.json")
        return load_catalog(catalog).load_table(identifier)
    place = Place.at(path)
    options = s3_options(place.fs) or {}
    endpoint = options.get("endpoint_override")
    properties = {
        **({"s3.endpoint": f"{options.get('scheme') or 'https'}://{endpoint}"} if endpoint else {}),
        **({"s3.region": options["region"]} if options.get("region") else {}),
    }
    if not _cut(path)[0].endswith(".metadata.json") and not (place / "metadata/version-hint.text").exists():
        raise PoolError(
            f"'{path}' names no version of an Iceberg table (no metadata/version-hint.text): give its newest "
            "metadata/*.metadata.json, or catalog.namespace.table"
        )
    return StaticTable.from_metadata(uri_of(path, place), properties)


def _position_deletes(tasks: Iterable[Any], samples: SampleSet, path: str) -> dict[str, np.ndarray]:
    """Data file -> the numbers of its rows that delete files name (spec, Position Delete Files).

    A task has the delete files that its data file's sequence number and partition let apply.
    """
    applying: dict[str, list[str]] = defaultdict(list)
    plain: dict[str, str] = {}
    for task in tasks:
        plain[task.file.file_path] = _plain(task.file.file_path)
        for delete in task.delete_files:
            kind = f"{delete.content.name} in {delete.file_format.name}"
            if kind != "POSITION_DELETES in PARQUET":
                raise PoolError(
                    f"{samples.field}: the Iceberg table '{path}' has rows deleted by {kind.replace('_', ' ').lower()} "
                    "files, which are not read here; rewrite its data files (rewrite_data_files with "
                    "delete-file-threshold 1)"
                )
            applying[delete.file_path].append(task.file.file_path)
    query = _cut(path)[1]
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for delete_file, data_files in applying.items():
        name = _plain(delete_file)
        name = name.replace("%", "%25") if "://" in name else name  # it is a name, and no encoding of one
        place = Place.at(name + (f"?{query}" if query else ""))
        table = pq.read_table(place.path, columns=["file_path", "pos"], filesystem=place.fs)
        for file in data_files:
            mine = table.filter(pc.equal(table["file_path"].cast(pa.string()), file))
            found[plain[file]].append(mine["pos"].to_numpy())
    return {file: np.concatenate(positions).astype(np.int64) for file, positions in found.items()}


DELTA = DeltaTable()
ICEBERG = IcebergTable()
