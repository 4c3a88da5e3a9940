"""Where samples come from: a Parquet pool or an image folder as one stream of (id, sample[, label]).

An image folder is listed once; the listing becomes a Parquet index in the run directory, from which the stream reads
the pictures. From then on both sources are the same thing: Parquet files with an id column.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray

from prunefuse_ray import config as cfg
from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.errors import PoolError
from prunefuse_ray.images import encode_png
from prunefuse_ray.storage import Place

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
INDEX_ROWS = 2_000  # rows of one index file: small enough that a few thousand pictures already feed several readers
LOADER_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Source:
    """Parquet files with an id column, and how to get from a row to its sample."""

    fs: pafs.FileSystem
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    id_column: str = "id"
    sample_column: str = "image"
    label_column: str = "label"
    image_root: Place | None = None
    """Where the pictures of an index lie; None where the samples stand in the files themselves."""


@dataclass(frozen=True, kw_only=True)
class PoolInfo:
    """What was found in a pool: its fingerprint, and the facts that the configuration left open. `pool.json`."""

    source: str
    path: str
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


def locate_parquet(place: Place, pool: cfg.Pool, field: str) -> Source:
    """The Parquet files at `place`: a file, a directory, or a pattern with * ? []. PoolError where there are none."""
    parts = place.path.split("/")
    pattern = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    if pattern is not None:
        above = Place(place.fs, "/".join(parts[:pattern]))
        found = [f for f in above.files(recursive=True) if fnmatch.fnmatchcase(f.path, place.path)]
    else:
        info = place.fs.get_file_info(place.path)
        found = [info] if info.type == pafs.FileType.File else place.files(recursive=True)
    found = [f for f in found if f.path.endswith((".parquet", ".pq"))]
    if not found:
        raise PoolError(
            f"{field}: '{place.path}' holds no Parquet files; give a file, a directory or a pattern of them"
        )
    return Source(
        fs=place.fs,
        files=tuple(f.path for f in found),
        sizes=tuple(f.size for f in found),
        id_column=pool.id_column,
        sample_column=pool.text_column or pool.image_column,
        label_column=pool.label_column,
    )


@dataclass(frozen=True, kw_only=True)
class Listing:
    """An image folder as found: one row a picture (id: path below the root, label, size in bytes)."""

    root: Place
    classes: list[str]
    table: pa.Table


def list_images(path: str, field: str, classes: Sequence[str] | None = None, *, labeled: bool = True) -> Listing:
    """List an image folder with one sub-folder per class, in the order of `classes` (default: sorted names); or, not
    `labeled`, a folder with pictures anywhere in it, whose labels are null."""
    root = Place.at(path)
    found = [f for f in root.files(recursive=True) if f.path.lower().endswith(PICTURES)]
    if not found:
        raise PoolError(f"{field}: '{path}' holds no pictures ({', '.join(PICTURES)}); give a folder of class folders")
    ids = [posixpath.relpath(f.path, root.path) for f in found]
    sizes = pa.array([f.size for f in found], pa.int64())
    if not labeled:
        unknown_N = pa.nulls(len(ids), pa.int64())
        table = pa.table({"id": pa.array(ids, pa.string()), "label": unknown_N, "bytes": sizes})
        return Listing(root=root, classes=list(classes or ()), table=table)
    folders = [i.split("/", 1)[0] if "/" in i else "" for i in ids]
    if "" in folders:
        raise PoolError(f"{field}: '{ids[folders.index('')]}' lies outside any class folder; move it into one")
    names = list(classes) if classes is not None else sorted(set(folders))
    if unknown := sorted(set(folders) - set(names)):
        raise PoolError(
            f"{field}: folder '{unknown[0]}' is not one of the classes {names}; mend pool.classes or move it"
        )
    if len(names) < 2:
        raise PoolError(f"{field}: '{path}' has one class folder ('{names[0]}'); at least two are needed")
    number = {name: n for n, name in enumerate(names)}
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "label": pa.array([number[f] for f in folders], pa.int64()),
            "bytes": sizes,
        }
    )
    return Listing(root=root, classes=names, table=table)


def write_index(listing: Listing, where: Place) -> None:
    """Write a listing as Parquet files below `where`."""
    for n, start in enumerate(range(0, listing.table.num_rows, INDEX_ROWS)):
        (where / f"index-{n:05d}.parquet").write_table(listing.table.slice(start, INDEX_ROWS))


def locate_index(where: Place, root: Place) -> Source:
    """The source of a written index."""
    found = where.files()
    return Source(fs=where.fs, files=tuple(f.path for f in found), sizes=tuple(f.size for f in found), image_root=root)


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


def groups(source: Source, count: int = 64) -> list[Source]:
    """The source cut into at most `count` groups of files of about equal size."""
    count = min(count, len(source.files))
    order = sorted(range(len(source.files)), key=lambda i: -source.sizes[i])
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in order:
        lightest = loads.index(min(loads))
        bins[lightest].append(i)
        loads[lightest] += source.sizes[i] + 1
    return [
        replace(
            source, files=tuple(source.files[i] for i in sorted(b)), sizes=tuple(source.sizes[i] for i in sorted(b))
        )
        for b in bins
    ]


def in_tasks(function: Any, source: Source, *args: Any) -> list[Any]:
    task = ray.remote(num_cpus=0.5)(function)
    return ray.get([task.remote(group, *args) for group in groups(source)])


def tables(source: Source, columns: Sequence[str], rows: int = 65_536) -> Iterator[pa.Table]:
    """The named columns, in batches of at most `rows` rows."""
    for file in source.files:
        with source.fs.open_input_file(file) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=rows, columns=list(columns)):
                table = pa.Table.from_batches([batch])
                refuse_pickles(table.schema, file)
                yield table


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
    columns = [
        source.id_column,
        *([] if source.image_root else [source.sample_column]),
        *([source.label_column] if label else []),
    ]
    dataset = ray.data.read_parquet(list(source.files), filesystem=source.fs, columns=columns, num_cpus=0.5)
    return dataset.map_batches(
        _Rows(
            source,
            ray.put(exclude) if exclude is not None else None,
            ray.put(only) if only is not None else None,
            label,
        ),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=0.5,
    )


class _Rows:
    """Canonical columns, unwanted rows dropped, pictures of an index opened."""

    def __init__(self, source: Source, exclude: Any, only: Any, label: bool) -> None:
        self.source, self.exclude, self.only, self.label = source, exclude, only, label

    def __call__(self, table: pa.Table) -> pa.Table:
        source = self.source
        refuse_pickles(table.schema, "pool.path")
        ids = table[source.id_column]
        ids = ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string())
        if self.only is not None:
            mask = pc.is_in(ids, value_set=ray.get(self.only))
        elif self.exclude is not None:
            mask = pc.invert(pc.is_in(ids, value_set=ray.get(self.exclude)))
        else:
            mask = None
        columns = {"id": ids}
        if source.image_root is None:
            columns["sample"] = table[source.sample_column]
        if self.label:
            columns["label"] = table[source.label_column].cast(pa.int64())
        rows = pa.table(columns)
        if mask is not None:
            rows = rows.filter(mask)
        return load_images(rows, source.image_root) if source.image_root is not None else rows


def load_images(rows: pa.Table, root: Place) -> pa.Table:
    """Rows with the column `sample` read from the files that their ids name; null where a file cannot be read."""

    def read(name: str) -> bytes | None:
        try:
            return (root / name).read_bytes()
        except OSError:
            return None

    with ThreadPoolExecutor(LOADER_THREADS) as threads:
        images = list(threads.map(read, rows["id"].to_pylist()))
    return rows.append_column("sample", pa.array(images, pa.binary()))


# --- choosing without looking ---------------------------------------------------------------------------------------


def random_choice(source: Source, k: int, seed: int, round_: int, exclude: pa.Array) -> pa.Table:
    """The k ids of highest random score that are not in `exclude`: (id, score), best first. Reads ids alone."""
    parts = in_tasks(_random_part, source, k, seed, round_, exclude)
    return best(pa.concat_tables(parts), k)


def _random_part(source: Source, k: int, seed: int, round_: int, exclude: pa.Array) -> pa.Table:
    kept = None
    for table in tables(source, [source.id_column]):
        ids = table[source.id_column]
        ids = ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string()).combine_chunks()
        scores = random_scores(ids_to_numpy(ids), seed, round_)
        rows = pa.table({"id": ids, "score": pa.array(scores, pa.float32())})
        rows = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=exclude)))
        kept = best(rows if kept is None else pa.concat_tables([kept, rows]), k)
    assert kept is not None
    return kept


def best(rows: pa.Table, k: int) -> pa.Table:
    """The k rows of highest score, ties by smaller id, in that order."""
    return rows.take(pc.sort_indices(rows, sort_keys=[("score", "descending"), ("id", "ascending")])[:k])
