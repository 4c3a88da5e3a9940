"""Where samples come from: every pool as one stream of (id, sample[, label]).

Parquet files are read as they are. Of all else an index is made first (`indexes.py`), which is Parquet files too.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from prunefuse_ray import config as cfg
from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.errors import PoolError
from prunefuse_ray.images import encode_png, plain_samples
from prunefuse_ray.locating import check_names, locate
from prunefuse_ray.spread import GROUPS, over
from prunefuse_ray.storage import Place

BATCH_ROWS = 65_536
BATCH_BYTES = 4 * 2**20  # of samples that are read at once
LOADED_ROWS = 128  # samples of an index that are opened before they are handed on
LOADER_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Source:
    """Parquet files with an id column, and how to get from a row to its sample."""

    fs: pafs.FileSystem
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...] | None = None
    """Per file, what its rows' ids begin with; None where a column holds the ids."""
    id_column: str = "id"
    sample_column: str = "image"
    label_column: str | None = "label"
    """None where the samples have no labels."""
    group_column: str | None = None
    """Handed on as the column `group`, of strings."""
    roots: tuple[Place, ...] = ()
    """Where the files of an index lie; empty where the samples stand in the files themselves."""
    text: bool = False
    """Whether an index's samples are texts."""


@dataclass(frozen=True, kw_only=True)
class PoolInfo:
    """What was found in a pool: its fingerprint, and the facts that the configuration left open. `pool.json`."""

    source: str
    path: str
    """as configured; several with commas between"""
    rows: int
    bytes: int
    files: int
    listing_digest: str
    id_digest: str
    id_type: str
    classes: list[str]
    sample_size: tuple[int, ...]
    """(height, width) of pictures, (length,) of texts in bytes"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> PoolInfo:
        return cls(**{**tree, "sample_size": tuple(tree["sample_size"])})


# --- locating -------------------------------------------------------------------------------------------------------


def locate_parquet(paths: Any, pool: cfg.Pool, field: str, *, labeled: bool = True) -> Source:
    """The Parquet files at `paths`: files, directories, or patterns with * ? []. PoolError where there are none."""
    located = locate(paths, (".parquet", ".pq"), field)
    if pool.id_column is None:
        check_names(located, field)
    return Source(
        fs=located.fs,
        files=located.paths,
        sizes=located.sizes,
        names=located.names if pool.id_column is None else None,
        id_column=pool.id_column or "id",
        sample_column=pool.text_column or pool.image_column,
        label_column=pool.label_column if labeled else None,
    )


def with_groups(source: Source, pool: cfg.Pool) -> Source:
    """The source with the column by which a choice is shared out, where the configuration names one."""
    return replace(source, group_column=pool.group_column)


def digits_tables() -> tuple[pa.Table, pa.Table]:
    """scikit-learn's digits as (pool, test): 1,797 grey 8 x 8 pictures, every fifth of a fixed shuffle held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(order)) % 5 == 0

    def table(rows: np.ndarray) -> pa.Table:
        return pa.table(
            {
                "id": pa.array([f"digit-{i:04d}" for i in rows], pa.string()),
                "image": pa.array([encode_png(pixels[i]) for i in rows], pa.binary()),
                "label": pa.array(digits.target[rows], pa.int64()),
            }
        )

    return table(order[~held_out]), table(order[held_out])


def write_digits(where: Place) -> None:
    """Write the embedded example as a Parquet pool of four files and a test set of one."""
    pool, test = digits_tables()
    quarter = -(-pool.num_rows // 4)
    for n in range(4):
        (where / "pool" / f"digits-{n}.parquet").write_table(pool.slice(n * quarter, quarter))
    (where / "test" / "digits.parquet").write_table(test)


# --- reading in tasks ------------------------------------------------------------------------------------------------


def groups(source: Source, count: int = GROUPS) -> list[Source]:
    """The source cut into at most `count` groups of files of about equal size."""
    count = min(count, len(source.files))
    order = sorted(range(len(source.files)), key=lambda i: -source.sizes[i])
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in order:
        lightest = loads.index(min(loads))
        bins[lightest].append(i)
        loads[lightest] += source.sizes[i] + 1
    return [part(source, sorted(b)) for b in bins]


def part(source: Source, numbers: Sequence[int]) -> Source:
    """The source with some of its files."""
    return replace(
        source,
        files=tuple(source.files[i] for i in numbers),
        sizes=tuple(source.sizes[i] for i in numbers),
        names=None if source.names is None else tuple(source.names[i] for i in numbers),
    )


def in_tasks(function: Any, source: Source, *args: Any) -> list[Any]:
    """function(part of the source, *args) of every part, in tasks where the source is large."""
    return list(over(function, groups(source), *args, size=sum(source.sizes)))


def tables(source: Source, columns: Sequence[str], rows: int | None = None) -> Iterator[pa.Table]:
    """The named columns, in batches of at most `rows` rows (default: of some megabytes).

    The ids of a source without an id column are made here: FILE:ROW.
    """
    derived = source.names is not None and source.id_column in columns
    wanted = [c for c in columns if not (derived and c == source.id_column)]
    for number, file in enumerate(source.files):
        first = 0
        with source.fs.open_input_file(file) as stream:
            parquet = pq.ParquetFile(stream)
            for batch in parquet.iter_batches(batch_size=rows or _batch_rows(parquet, wanted), columns=wanted):
                table = pa.Table.from_batches([batch])
                if derived:
                    assert source.names is not None
                    ids = [f"{source.names[number]}:{row}" for row in range(first, first + batch.num_rows)]
                    table = table.append_column(source.id_column, pa.array(ids, pa.string()))
                first += batch.num_rows
                refuse_pickles(table.schema, file)
                yield table


def _batch_rows(parquet: pq.ParquetFile, columns: Sequence[str]) -> int:
    """How many rows of these columns make about BATCH_BYTES, by the sizes of the first row group."""
    if not parquet.metadata.num_row_groups:
        return BATCH_ROWS
    group = parquet.metadata.row_group(0)
    held = [group.column(i) for i in range(group.num_columns)]
    size = sum(c.total_uncompressed_size for c in held if c.path_in_schema.split(".")[0] in columns)
    return int(np.clip(BATCH_BYTES * group.num_rows // max(size, 1), 1, BATCH_ROWS))


def canonical(source: Source, *, label: bool = False) -> Iterator[pa.Table]:
    """The rows as (id, sample[, group][, label]); of an index, with its PLACES instead of the sample."""
    columns = [source.id_column, *(PLACES if source.roots else [source.sample_column])]
    if label:
        assert source.label_column is not None
        columns.append(source.label_column)
    if source.group_column is not None:
        columns.append(source.group_column)
    for table in tables(source, list(dict.fromkeys(columns))):
        ids = table[source.id_column]
        rows = {"id": ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string())}
        if source.roots:
            rows |= {name: table[name] for name in PLACES}
        else:
            rows["sample"] = plain_samples(table[source.sample_column])
        if source.group_column is not None:
            rows["group"] = pc.fill_null(table[source.group_column].cast(pa.string()), "")
        if label:
            rows["label"] = table[source.label_column].cast(pa.int64())
        yield pa.table(rows)


PLACES = ("root", "file", "offset", "bytes")


PICKLED = "ray.data.arrow_pickled_object"
"""Ray's extension type for columns of Python objects: to read a value of it is to run what it says."""


def refuse_pickles(schema: pa.Schema, file: str) -> None:
    """PoolError where a column holds pickled Python objects. A pool comes from elsewhere and must not run code."""
    for field in schema:
        # Where nothing has imported Ray Data the type is not known, and only the field says what its bytes are.
        if _is_pickled(field.type) or (field.metadata or {}).get(b"ARROW:extension:name") == PICKLED.encode():
            raise PoolError(
                f"{file}: column '{field.name}' holds pickled Python objects, which can run code when they are read: "
                "write it as bytes, strings, numbers or tensors"
            )


def _is_pickled(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name == PICKLED or _is_pickled(kind.storage_type)
    return any(_is_pickled(kind.field(i).type) for i in range(kind.num_fields))


def ids_to_numpy(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Ids as int64 or as an array of Python strings: the one form whose hashes are compared."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy().astype(np.int64)
    return np.array(ids.to_pylist(), dtype=object)


# --- streaming ------------------------------------------------------------------------------------------------------


def stream(
    source: Source, *, exclude: pa.Array | None = None, only: pa.Array | None = None, label: bool = False
) -> ray.data.Dataset:
    """The source as a Dataset of (id, sample[, label]); rows of `exclude`, or all but `only`, dropped before pictures
    are opened. Reading takes half a CPU a task, so that it always fits beside 1-CPU actors."""
    dataset = ray.data.read_datasource(_Files(source, label), num_cpus=0.5)
    return dataset.map_batches(
        _Rows(source, ray.put(exclude) if exclude is not None else None, ray.put(only) if only is not None else None),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=0.5,
    )


class _Files(Datasource):
    """The files of a source, read under their canonical names from the first step on.

    Ray's own Parquet reader gives no row numbers to make ids of, and its row checkpoints look for the id column right
    behind the reader, where it would still have the name that the user gave it.
    """

    def __init__(self, source: Source, label: bool) -> None:
        super().__init__()
        self.source, self.label = source, label

    def get_name(self) -> str:
        return "Pool"

    def estimate_inmemory_data_size(self) -> int:
        return sum(self.source.sizes)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_read, group, self.label),
                BlockMetadata(num_rows=None, size_bytes=sum(group.sizes), input_files=group.files, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for group in groups(self.source, max(parallelism, 1))
        ]


def _read(source: Source, label: bool) -> Iterable[pa.Table]:
    return canonical(source, label=label)


class _Rows:
    """Unwanted rows dropped, samples of an index opened."""

    def __init__(self, source: Source, exclude: Any, only: Any) -> None:
        self.source, self.exclude, self.only = source, exclude, only

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        if self.only is not None:
            rows = rows.filter(pc.is_in(rows["id"], value_set=ray.get(self.only)))
        elif self.exclude is not None:
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=ray.get(self.exclude))))
        yield from opened(rows, self.source)


def head(source: Source, rows: int) -> pa.Table:
    """The first rows (id, sample), at most so many; the samples of an index opened."""
    parts: list[pa.Table] = []
    for table in canonical(source):
        parts += opened(table.slice(0, rows - sum(p.num_rows for p in parts)), source)
        if sum(p.num_rows for p in parts) >= rows:
            break
    return pa.concat_tables(parts, promote_options="permissive")


def opened(rows: pa.Table, source: Source) -> Iterator[pa.Table]:
    """Canonical rows with their samples, a few at a time where they have to be opened; null for an unreadable one."""
    if not source.roots:
        yield rows
        return
    for start in range(0, max(rows.num_rows, 1), LOADED_ROWS):
        part = rows.slice(start, LOADED_ROWS)
        samples = pa.array(_load(part, source.roots), pa.binary())
        if source.text:
            samples = pa.array([None if s is None else s.decode(errors="replace") for s in samples.to_pylist()])
        yield part.drop_columns(list(PLACES)).append_column("sample", samples)


def _load(rows: pa.Table, roots: tuple[Place, ...]) -> list[bytes | None]:
    """The samples of index rows: whole files, or ranges of files that are opened once."""
    places = rows.select(PLACES).to_pylist()
    paths = [posixpath.join(roots[p["root"]].path, p["file"]) for p in places]
    fs = roots[0].fs

    def read(path: str) -> bytes | None:
        try:
            return Place(fs, path).read_bytes()
        except OSError:
            return None

    def read_range(file: pa.NativeFile | None, at: dict[str, int]) -> bytes | None:
        try:
            return None if file is None else file.read_at(at["bytes"], at["offset"])
        except OSError:
            return None

    with ThreadPoolExecutor(LOADER_THREADS) as threads:
        if all(p["offset"] is None for p in places):
            return list(threads.map(read, paths))
        files = {path: _open(fs, path) for path in dict.fromkeys(paths)}
        try:
            return list(threads.map(read_range, [files[path] for path in paths], places))
        finally:
            for file in files.values():
                if file is not None:
                    file.close()


def _open(fs: pafs.FileSystem, path: str) -> pa.NativeFile | None:
    try:
        return fs.open_input_file(path)
    except OSError:
        return None


# --- choosing without looking ---------------------------------------------------------------------------------------


def random_choice(source: Source, k: int, seed: int, round_: int, exclude: pa.Array) -> pa.Table:
    """The k ids of highest random score that are not in `exclude`: (id, score), best first. Reads ids alone."""
    parts = in_tasks(_random_part, source, k, seed, round_, exclude)
    return best(pa.concat_tables(parts), k)


def _random_part(source: Source, k: int, seed: int, round_: int, exclude: pa.Array) -> pa.Table:
    kept = None  # where all files of this part are empty, as distributed writers leave them
    for table in tables(source, [source.id_column]):
        ids = table[source.id_column]
        ids = ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string()).combine_chunks()
        scores = random_scores(ids_to_numpy(ids), seed, round_)
        rows = pa.table({"id": ids, "score": pa.array(scores, pa.float32())})
        rows = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=exclude)))
        kept = best(rows if kept is None else pa.concat_tables([kept, rows]), k)
    return pa.table({"id": exclude[:0], "score": pa.array([], pa.float32())}) if kept is None else kept


def best(rows: pa.Table, k: int) -> pa.Table:
    """The k rows of highest score, ties by smaller id, in that order."""
    return rows.take(pc.sort_indices(rows, sort_keys=[("score", "descending"), ("id", "ascending")])[:k])
