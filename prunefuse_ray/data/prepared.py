"""The prepared pool: samples decoded once, and kept as uint8 of their form for every later pass that reads them.

A *chunk* is a fixed number of consecutive rows of one of a source's files. Who reads a chunk looks for its file first.
If the file is there and sound, the samples come from it; if not, the originals are decoded and the file is written. So
the first pass over a pool prepares it on its way, one that was killed goes on with what is there, and a file that was
deleted, evicted or damaged costs its decoding again and nothing else.

A chunk's file is named by a digest of the form, the decoder's version, the ids of its rows, and the place, size and
time of change of what they were decoded from. Runs, trials and rankings with the same pool and form share it, whichever
directory their index lies in.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from PIL import Image

from prunefuse_ray import config as cfg
from prunefuse_ray.data.ids import IdSet, id_hashes
from prunefuse_ray.data.image_files import PACKAGES
from prunefuse_ray.data.images import ImageForm, encode, plain_samples
from prunefuse_ray.data.paths import as_list
from prunefuse_ray.data.pool import Prepared, Source
from prunefuse_ray.data.reading import (
    PLACES,
    FileRows,
    canonical_columns,
    canonical_rows,
    live,
    opened,
)
from prunefuse_ray.data.sample_format import Decoded, Form, read_column
from prunefuse_ray.data.texts import TextForm
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.storage import Place

logger = logging.getLogger(__name__)

VERSION = 3
CHUNK_BYTES = 16 * 2**20
QUALITY = 95
"""Of the format `jpeg`, without subsampling of the colors. What it costs in accuracy has not been measured."""


def chunk_rows(form: Form) -> int:
    """Rows of a chunk: about CHUNK_BYTES of decoded samples."""
    return int(np.clip(CHUNK_BYTES // math.prod(form.shape), 16, 8192))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Decoded rows."""

    rows: pa.Table
    """(id[, group][, label])"""
    samples: Decoded

    def filter(self, wanted_N: npt.NDArray[np.bool_]) -> Chunk:
        if wanted_N.all():
            return self
        return Chunk(rows=self.rows.filter(pa.array(wanted_N)), samples=self.samples[wanted_N])


def decoded(
    source: Source,
    form: Form,
    *,
    label: bool = False,
    only: pa.Array | IdSet | None = None,
    exclude: pa.Array | IdSet | None = None,
) -> Iterator[Chunk]:
    """The rows of a source, decoded: from the prepared pool as far as it has them, else from the originals.

    Args:
        label: with the source's own labels.
        only: ids of the rows that are wanted; default: all.
        exclude: ids of rows that are not.
    """
    sets = [None if ids is None else IdSet.of(ids) for ids in (only, exclude)]
    for number in range(len(source.files)):
        yield from _decoded(source, number, form, label, *sets)


def readable(source: Source, form: Form, ids: pa.Array) -> tuple[pa.Array, npt.NDArray[np.uint8]]:
    """Those samples of a source that `ids` names and that can be read: their ids, and uint8 (N, *form.shape)."""
    found_ids, values = [ids[:0]], [np.zeros((0, *form.shape), np.uint8)]
    for chunk in decoded(source, form, only=ids):
        readable_N = np.array([why is None for why in chunk.samples.rejected], bool)
        found_ids.append(chunk.rows["id"].filter(pa.array(readable_N)).combine_chunks().cast(ids.type))
        values.append(chunk.samples.values_N[readable_N])
    return pa.concat_arrays(found_ids), np.concatenate(values)


def _decoded(
    source: Source, number: int, form: Form, label: bool, only: IdSet | None, exclude: IdSet | None
) -> Iterator[Chunk]:
    """The rows of one file."""
    size, columns = chunk_rows(form), canonical_columns(source, label=label, sample=False)
    with FileRows(source, number, columns) as known, FileRows(source, number, [source.sample_column]) as samples:
        first, end = (0, known.total) if source.spans is None else source.spans[number]
        for start in range(first, end, size):
            table = known.take(start, min(size, end - start))
            wanted_N = _wanted(table[source.id_column], only, exclude, source.without)
            wanted_N &= live(source, number, start, len(table))
            if not wanted_N.any():
                continue
            rows = canonical_rows(table, source, label=label, sample=False)
            file = None
            if source.prepared is not None:
                file = ChunkFile(prepared=source.prepared, form=form, key=_key(rows, source, number, start, form))
            found = None if file is None else file.read(len(rows))
            if found is None:
                # Whole, or the next pass would find a part of it; of a few rows that would be much for little.
                if file is not None and file.has_room and 2 * wanted_N.sum() >= len(rows):
                    found = _decode(table, source, form, samples, start, np.ones(len(rows), bool))
                    # A file that is closed, or away, may be there the next time.
                    away = bool(source.roots) and source.opener is None and None in found.digests
                    found = file.as_read(found) if away else file.write(found)
                else:
                    rows = rows.filter(pa.array(wanted_N))
                    found = _decode(table, source, form, samples, start, wanted_N)
                    found = found if file is None else file.as_read(found)
                    wanted_N = wanted_N[wanted_N]
            plain = rows.drop_columns([c for c in PLACES if c in rows.column_names])
            yield Chunk(rows=plain, samples=found).filter(wanted_N)


def _wanted(
    ids: pa.ChunkedArray, only: IdSet | None, exclude: IdSet | None, without: IdSet | None
) -> npt.NDArray[np.bool_]:
    wanted_N = np.ones(len(ids), bool)
    for listed, inside in ((only, True), (exclude, False), (without, False)):
        if listed is not None:
            wanted_N &= listed.holds(ids) == inside
    return wanted_N


def _decode(
    table: pa.Table, source: Source, form: Form, samples: FileRows, start: int, wanted_N: npt.NDArray[np.bool_]
) -> Decoded:
    """The samples of those of a chunk's rows that are wanted, of an index opened first. Some at a time: encoded they
    may take a hundred times as much memory.

    Args:
        samples: of the source's file, where they stand in it; the chunk's begin at row `start`.
    """
    if source.roots:
        columns = (p["sample"] for p in opened(canonical_rows(table.filter(pa.array(wanted_N)), source), source))
    else:
        few = samples.few
        pieces = ((n, wanted_N[n : n + few]) for n in range(0, len(wanted_N), few))
        columns = (
            plain_samples(samples.take(start + n, len(piece)).filter(pa.array(piece))[source.sample_column])
            for n, piece in pieces
            if piece.any()
        )
    return Decoded.joined([read_column(column, form) for column in columns], form.shape)


# --- the files of chunks ---


@cache
def _decoders(kind: str) -> tuple[str, ...]:
    """What decodes such a form beside Pillow, where it is there: with it other samples can be read."""
    packages = {"ImageForm": PACKAGES, "TokenForm": {"tokenizers": "tokenizers"}}.get(kind, {})
    found = tuple(f"{name} {version(name)}" for module, name in sorted(packages.items()) if find_spec(module))
    return (*found, unicodedata.unidata_version) if kind == "NgramForm" else found


def form_digest(form: Form) -> str:
    """A short name of what decoding gives: the form without what only the network sees, and the decoder's version."""
    tree = {k: v for k, v in asdict(form).items() if k not in ("mean", "std")}
    kind = type(form).__name__
    told = json.dumps([VERSION, kind, tree, PIL.__version__, *_decoders(kind)], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()


def _key(rows: pa.Table, source: Source, number: int, start: int, form: Form) -> str:
    """A chunk's name."""
    digest = hashlib.blake2b(form_digest(form).encode(), digest_size=16)
    digest.update(id_hashes(rows["id"]).tobytes())
    if source.opener is not None:
        digest.update(source.sample_column.encode())  # a row has several, at the same place
    if source.roots:
        digest.update("\n".join(root.path for root in source.roots).encode())
        digest.update(id_hashes(rows["file"]).tobytes())
        for column in ("root", "offset", "bytes"):
            digest.update(pc.fill_null(rows[column].cast(pa.int64()), -1).to_numpy().tobytes())
        places = rows.select(["root", "file"]).group_by(["root", "file"], use_threads=False).aggregate([]).to_pylist()
        files = [(source.roots[place["root"]] / place["file"]).path for place in places]
    elif source.copied:  # every run has such an index, with the same content
        content = _content(source.fs, source.files[number])
        digest.update(f"{content} {start} {source.sample_column}".encode())
        files = []
    else:
        digest.update(f"{source.files[number]} {source.sizes[number]} {start} {source.sample_column}".encode())
        files = [source.files[number]]
    digest.update(json.dumps(_changed(source.roots[0].fs if source.roots else source.fs, files)).encode())
    return digest.hexdigest()


_contents: dict[tuple[str, int | None], str] = {}


def _content(fs: pafs.FileSystem, file: str) -> str:
    """A file's digest; for all of its chunks it is read once."""
    key = file, fs.get_file_info(file).mtime_ns
    if key not in _contents:
        _contents[key] = Place(fs, file).digest()
    return _contents[key]


def _changed(fs: pafs.FileSystem, files: list[str]) -> list[int | None]:
    """When files were last changed, in ns: uncompressed images that were mended in place are as large as before. An
    object store is asked about a file of many samples, not about each of many files: that would cost more than what
    is saved."""
    if len(files) > 1 and not isinstance(fs, pafs.LocalFileSystem):
        return []
    return [info.mtime_ns for info in fs.get_file_info(files)]


def _directory(prepared: Prepared, form: Form) -> Place:
    return prepared.place / "-".join(filter(None, (form_digest(form), prepared.name, prepared.format)))


def pool_name(pool: cfg.Pool) -> str:
    """The name under which all runs on a pool find what is kept of it."""
    paths = [pool.source, *(Place.at(path).path for path in as_list(pool.path))]
    return _short("\n".join(paths))


def run_name(run: Place) -> str:
    """The name under which a run finds what is kept of the samples in its own directory."""
    return _short(run.path)


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=6).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ChunkFile:
    """Where a chunk is kept: an Arrow file and its CRC-32."""

    prepared: Prepared
    form: Form
    key: str

    @property
    def place(self) -> Place:
        return _directory(self.prepared, self.form) / f"{self.key}.chunk"

    @property
    def has_room(self) -> bool:
        """Whether there is room for it; the same answer everywhere."""
        return int(self.key[:8], 16) < self.prepared.share * 2**32

    def read(self, rows: int) -> Decoded | None:
        """The samples; None where there is no file, or none that can be used, which is said."""
        try:
            content = self.place.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("prepared pool: %s cannot be read (%s); it is decoded again", self.place.path, error)
            return None
        body, checksum = memoryview(content)[:-4], content[-4:]
        try:
            if zlib.crc32(body).to_bytes(4, "little") != checksum:
                raise ValueError("its checksum differs")
            table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(body))).read_all()
            if (table.schema.metadata or {}).get(b"chunk") != self.key.encode() or table.num_rows != rows:
                raise ValueError("it is the file of another chunk")
            return _from_table(table, self.prepared, self.form)
        except (OSError, ValueError, pa.ArrowException) as error:
            logger.warning("prepared pool: %s is damaged (%s); its samples are decoded again", self.place.path, error)
            return None

    def write(self, samples: Decoded) -> Decoded:
        """Keep the samples, where they came encoded; as they will be read."""
        if not samples.encoded:
            return samples
        table = _to_table(samples, self.prepared).replace_schema_metadata({"chunk": self.key})
        buffer = io.BytesIO()
        with pa.ipc.new_file(buffer, table.schema) as file:
            file.write_table(table)
        buffer.write(zlib.crc32(buffer.getbuffer()).to_bytes(4, "little"))
        try:
            self.place.write_bytes(buffer.getvalue(), durable=False)
        except OSError as error:
            where = self.prepared.place.path
            logger.warning("prepared pool: %s cannot be written (%s); it will be decoded again", where, error)
        return samples if self.prepared.format == "raw" else _from_table(table, self.prepared, self.form)

    def as_read(self, samples: Decoded) -> Decoded:
        """The samples as they would be read if they were kept: nobody's pixels depend on how much room there is."""
        if self.prepared.format == "raw" or not samples.encoded:
            return samples
        return _from_table(_to_table(samples, self.prepared), self.prepared, self.form)


def _to_table(samples: Decoded, prepared: Prepared) -> pa.Table:
    if prepared.format == "raw":
        values = fixed_column(samples.values_N)
    else:
        pairs = zip(samples.values_N, samples.rejected, strict=True)
        values = pa.array([None if why else _jpeg(value) for value, why in pairs], pa.binary())
    return pa.table(
        {
            "value": values,
            "rejected": pa.array(samples.rejected, pa.string()),
            "converted": pa.array(samples.converted, pa.string()),
            "digest": pa.array(samples.digests, pa.int64()),
        }
    )


def _from_table(table: pa.Table, prepared: Prepared, form: Form) -> Decoded:
    column: Any = table["value"].combine_chunks()
    if prepared.format == "raw":
        values_N = fixed_values(column, form)
    else:
        values_N = np.zeros((len(table), *form.shape), np.uint8)
        for i, value in enumerate(column.to_pylist()):
            if value is not None:
                with Image.open(io.BytesIO(value), formats=["JPEG"]) as image:
                    values_N[i] = np.asarray(image).reshape(form.shape)
    return Decoded(
        values_N=values_N,
        rejected=table["rejected"].to_pylist(),
        converted=table["converted"].to_pylist(),
        digests=table["digest"].to_pylist(),
        encoded=True,
    )


def fixed_column(values_N: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Values (N, ...) as a column of values of one size, without a copy."""
    flat = np.ascontiguousarray(values_N)
    return pa.Array.from_buffers(pa.binary(math.prod(flat.shape[1:])), len(flat), [None, pa.py_buffer(flat)])


def fixed_values(column: pa.FixedSizeBinaryArray, form: Form) -> npt.NDArray[np.uint8]:
    """A column of values of one size as uint8 (N, *form.shape), without a copy."""
    size = math.prod(form.shape)
    flat = np.frombuffer(column.buffers()[1], np.uint8, len(column) * size, column.offset * size)
    return flat.reshape(len(column), *form.shape)


def _jpeg(values_HWC: npt.NDArray[np.uint8]) -> bytes:
    return encode(values_HWC, format="JPEG", quality=QUALITY, subsampling=0)


# --- room ---


@dataclass(frozen=True, kw_only=True)
class Room:
    """What is kept of a pool, and what that takes."""

    format: Literal["raw", "jpeg"]
    share: float
    bytes: int
    """Of the whole pool in this format, about."""
    limit: int
    """Bytes of all prepared pools in one place."""


DIRECTORY = re.compile(r"[0-9a-f]{12}(-[0-9a-f]{12})?-(raw|jpeg)")
"""Of one form and pool, as `_directory` names it; nothing else is ever removed."""
USED = "used"
"""A file that is written anew whenever what lies beside it is asked for."""
JPEG_SHARE = 0.2
"""Of the bytes of a decoded photograph, at QUALITY, about."""
WORTH = 32 * 2**20
"""Fewer bytes of decoded samples than this are decoded in seconds."""
DEFAULT_GB = 100.0
SLACK = 1.25
"""Times its limit that the pool of today may take: which chunks are kept is drawn, and JPEG_SHARE is a guess."""


def room(
    settings: cfg.Prepared, form: Form, *, samples: int, free_bytes: int | None, also: Collection[Form] = ()
) -> Room | None:
    """What to keep of so many samples; None: nothing.

    Args:
        also: other forms in which they are kept beside that.
        free_bytes: on the disk; None for an object store.
    """
    size = samples * sum(math.prod(one.shape) for one in (form, *also))
    if (
        settings.format == "none"
        or isinstance(form, TextForm | VectorForm)
        or (settings.format == "auto" and size < WORTH)
    ):
        return None
    jpeg = settings.format == "jpeg" and isinstance(form, ImageForm)
    if jpeg:
        size = int(size * JPEG_SHARE)
    limit = int((settings.max_gb or DEFAULT_GB) * 2**30)
    if settings.max_gb is None and free_bytes is not None:
        limit = min(limit, free_bytes // 2)
    return Room(
        format="jpeg" if jpeg else "raw",
        share=min(1.0, limit / max(size, 1)),
        bytes=size,
        limit=limit,
    )


def open_prepared(
    settings: cfg.Prepared,
    runs: Place,
    form: Form,
    samples: int,
    tell: Callable[[list[str]], None] = lambda _: None,
    *,
    name: str,
    own: str | None = None,
    also: Collection[Form] = (),
) -> Prepared | None:
    """The place where decoded samples of a run are kept; None where they are not.

    Args:
        runs: the directory that holds the run's.
        samples: of the pool, and those that the run keeps under a name of its own.
        tell: is told, in lines, where the prepared pool lies, what it takes, and what was removed for it.
        name: of the pool (`pool_name`).
        own: of the run (`run_name`), where it has samples in its own directory.
        also: other forms in which the run reads the pool.
    """
    forms = (form, *also)
    place = runs / ".prepared" if settings.directory is None else Place.at(settings.directory)
    names = [one for one in (name, own) if one is not None]
    free, there = None, 0
    if place.local:
        kinds: tuple[Literal["raw", "jpeg"], ...] = ("raw", "jpeg")
        kept = [
            _directory(Prepared(place=place, name=one, format=kind), each)
            for each in forms
            for one in names
            for kind in kinds
        ]
        there = sum(file.size for one in kept for file in _files(one))
        free = _free(place) + there  # what is kept needs no more room
    found = room(settings, form, samples=samples, free_bytes=free, also=also)
    if found is None:
        return None
    prepared = Prepared(place=place, name=name, format=found.format, share=found.share)
    mine, *_ = spared = [_directory(replace(prepared, name=one), each) for each in forms for one in names]
    before = _directory(Prepared(place=place, format=found.format), form)  # as earlier versions named it
    if place.local:
        with suppress(OSError):  # it is not there, or not alone
            os.rename(before.path, mine.path)
    removed = evict(place, [one.path for one in spared], found.limit - min(found.bytes, found.limit))
    most = SLACK * found.limit / (JPEG_SHARE if found.format == "jpeg" else 1)
    if there > most and sum(file.size for one in spared for file in _files(one)) > most:
        # They hold what the pool was before it changed, too; which chunks those are nobody knows.
        for one in filter(_files, spared):
            with suppress(OSError):
                one.delete()
                removed.append(one.path)
    with suppress(OSError):  # what cannot be written there is said of every chunk
        (mine / USED).write_bytes(b"", durable=False)
    told = [f"prepared pool: {found.format}, {found.bytes / 2**30:.1f} GiB in {place.uri}"]
    if found.share < 1:
        told.append(
            f"  there is room for {found.share:.0%} of it; the rest is decoded in every pass (prepared.max_gb, "
            "prepared.format jpeg)"
        )
    tell(told + [f"  removed to make room: {name}" for name in removed])
    return prepared


def evict(place: Place, spared: Collection[str], limit: int) -> list[str]:
    """Remove the prepared pools in `place` but the `spared` ones that were used longest ago, until the others take no
    more than `limit` bytes; their paths. A run that reads one decodes again. What cannot be removed is left."""
    sizes: dict[str, int] = {}
    used: dict[str, float] = {}
    for path in _directories(place):
        if path not in spared and (files := _files(Place(place.fs, path))):
            sizes[path] = sum(file.size for file in files)
            used[path] = max(file.mtime_ns or 0.0 for file in files)
    removed, left = [], sum(sizes.values())
    for path in sorted(sizes, key=lambda path: (used[path], path)):
        if left <= limit:
            break
        try:
            Place(place.fs, path).delete()
        except FileNotFoundError:  # another run removes it at this moment
            left -= sizes[path]
        except OSError as error:
            logger.warning("prepared pool: %s cannot be removed to make room (%s)", path, error)
        else:
            left -= sizes[path]
            removed.append(path)
    return removed


def usage(prepared: Prepared, form: Form) -> dict[str, Any]:
    """What is kept of the pool in one form: format, files, bytes."""
    files = [file for file in _files(_directory(prepared, form)) if file.base_name.endswith(".chunk")]
    return {"format": prepared.format, "files": len(files), "bytes": sum(file.size for file in files)}


def _directories(place: Place) -> list[str]:
    """The paths of all that is kept of forms and pools in a place."""
    try:
        found = place.fs.get_file_info(pafs.FileSelector(place.path, allow_not_found=True))
    except OSError as error:
        logger.warning("prepared pool: %s cannot be listed (%s)", place.path, error)
        return []
    return [i.path for i in found if i.type == pafs.FileType.Directory and DIRECTORY.fullmatch(i.base_name)]


def _files(directory: Place) -> list[pafs.FileInfo]:
    """What is kept in a directory, as far as it can be read."""
    try:
        return [file for file in directory.files() if file.base_name.endswith(".chunk") or file.base_name == USED]
    except OSError as error:
        logger.warning("prepared pool: %s cannot be listed (%s)", directory.path, error)
        return []


def _free(place: Place) -> int:
    directory = Path(place.path)
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
