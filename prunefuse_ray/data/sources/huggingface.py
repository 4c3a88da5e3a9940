"""Hugging Face datasets as `save_to_disk` writes them: Arrow stream files, and the list of them.

They are scanned once; from then on a sample is a range of bytes in a file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from prunefuse_ray.data.classes import check_order, contradiction, features_names
from prunefuse_ray.data.index import Found, Index, scanned
from prunefuse_ray.data.left_out import LeftOut
from prunefuse_ray.data.paths import Listing, as_list, check_names, locate
from prunefuse_ray.data.reading import refuse_pickles
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place, pointed

DESCRIPTIONS = ("state.json", "dataset_info.json", "dataset_dict.json")


class HuggingFace(SourceReader):
    """An id is FILE:ROW."""

    def listing(self, samples: SampleSet) -> Listing:
        """The files that a dataset's state.json lists; `datasets` leaves caches of its own beside them."""
        found = locate(samples.paths, (".arrow",), samples.field)
        found = replace(found, left_out=tuple(o for o in found.left_out if not o.name.endswith(DESCRIPTIONS)))
        named = [Place.at(path) for path in as_list(samples.paths)]
        datasets = {p.path for p in named if any((p / n).exists() for n in ("dataset_dict.json", "state.json"))}

        def inside(path: str) -> bool:
            return any(path.startswith(f"{one}/") for one in datasets)

        # Those that a pattern or the folder above them names have their lists, too.
        above = {posixpath.dirname(path) for path in found.paths if not inside(path)}
        datasets |= {one for one in above if (Place(found.fs, one) / "state.json").exists()}
        if not datasets:
            return found
        listed = {f for one in sorted(datasets) for f in arrow_files(Place(found.fs, one), samples.field)}
        there = set(found.paths)
        if missing := sorted(p for p in listed if p not in there and not Place(found.fs, p).exists()):
            raise PoolError(
                f"{samples.field}: {len(missing):,} of the {len(listed):,} files that state.json lists are not there, "
                f"such as '{missing[0]}'; copy the dataset again"
            )
        unlisted = [LeftOut(n, "not in state.json") for n, p in zip(found.names, found.paths, strict=True)
                    if p not in listed and inside(p)]  # fmt: skip
        kept = found.part([i for i, path in enumerate(found.paths) if path in listed or not inside(path)])
        return replace(kept, left_out=(*found.left_out, *unlisted))

    def class_names(self, samples: SampleSet, listing: Listing) -> list[str] | None:
        column = samples.pool.label_column
        named = features_names(_schema(listing), column) if isinstance(column, str) else None
        return None if samples.task.numbers else named

    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        check_names(listing, samples.field)
        schema, wanted = _schema(listing), (samples.sample_column, samples.label_column)
        for setting, column in zip((samples.sample_setting, "label_column"), wanted, strict=True):
            if column is not None and column not in schema.names:
                raise PoolError(
                    f"pool.{setting}: {samples.field} has no column '{column}'; it has {', '.join(schema.names)}"
                )
        check_order(samples, classes, self.class_names(samples, listing))
        return scanned(_scan, (*wanted, samples, classes), samples, listing, self.rows(samples), classes, new)


def _schema(listing: Listing) -> pa.Schema:
    return arrow_schema(Place(listing.fs, listing.paths[0]))


def _scan(
    place: Place, name: str, sample: str, label: str | None, samples: SampleSet, classes: Sequence[str]
) -> Iterator[Found]:
    named = None if label is None or samples.task.numbers else features_names(arrow_schema(place), label)
    if why := contradiction(samples, classes, named):  # several datasets may be one pool
        raise PoolError(f"{samples.field}: '{place.path}': {why}; fix it, or name the datasets that belong together")
    first = 0
    for offsets, sizes, labels in scan_arrow(place, sample, label):
        rows = range(first, first + len(sizes))
        columns = {"offset": offsets, "bytes": sizes}
        yield Found(ids=[f"{name}:{n}" for n in rows], labels=labels, columns=columns, untyped=named is None)
        first = rows.stop
    if not ends(place):
        yield Found(ids=[], labels=[], columns={"offset": [], "bytes": []}, left_out=[LeftOut(name, CUT)])


CUT = "Arrow stream without its end mark: more may have followed"
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def ends(place: Place) -> bool:
    """Whether an Arrow stream file ends as its writer ends it; else it may have been cut between two batches."""
    with place.fs.open_input_file(place.path) as stream:
        return stream.read_at(len(END), max(stream.size() - len(END), 0)) == END


def arrow_files(place: Place, field: str) -> list[str]:
    """The Arrow files of a dataset that `save_to_disk` wrote at `place`, as its state.json lists them."""
    if (place / "dataset_dict.json").exists():
        splits = (place / "dataset_dict.json").read_json().get("splits", [])
        raise PoolError(f"{field}: '{place.path}' holds the splits {', '.join(splits)}; give one, as {place.uri}/NAME")
    if not (place / "state.json").exists():
        raise PoolError(f"{field}: '{place.path}' has no state.json; give a directory that save_to_disk wrote")
    return [(place / str(f["filename"])).path for f in (place / "state.json").read_json().get("_data_files", [])]


def arrow_schema(place: Place) -> pa.Schema:
    """The schema of an Arrow stream file."""
    try:
        with _open_arrow(place) as stream:
            schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
        _ = schema.names  # they may not be UTF-8
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise PoolError(f"{place.path}: no Arrow stream file ({error}){pointed(place)}; copy it again") from error
    refuse_pickles(schema, place.path)
    return schema


def _number(schema: pa.Schema, column: str, place: Place) -> int:
    """The place of a column. Arrow has -1 for one that is missing or there twice, and takes that for the last one."""
    if (number := schema.get_field_index(column)) < 0:
        raise PoolError(
            f"'{place.path}' has no column '{column}', or several; it has {', '.join(schema.names)}; fix it, or name "
            "the datasets that belong together"
        )
    return number


def scan_arrow(place: Place, sample: str, label: str | None) -> Iterator[tuple[np.ndarray, np.ndarray, Sequence[Any]]]:
    """Per record batch: offsets (N,) and sizes (N,) of the samples' bytes in the file, and the labels as they are.

    A local file is memory-mapped: only its offsets are read.
    """
    with _open_arrow(place) as stream:
        schema = arrow_schema(place)
        number, labeled = _number(schema, sample, place), None if label is None else _number(schema, label, place)
        pa.ipc.read_message(stream)
        while True:
            try:
                message = pa.ipc.read_message(stream)
                batch = pa.ipc.read_record_batch(message, schema)
                batch.validate()
                labels = _labels(batch, labeled)
            except EOFError:
                return
            except (OSError, ValueError, pa.ArrowException) as error:
                raise PoolError(f"{place.path}: cut off, or damaged ({error}); copy it again") from error
            body, end = message.body, stream.tell()
            starts, sizes = _ranges(batch.column(number), body, place)
            yield starts + (end - body.size), sizes, labels


def _labels(batch: pa.RecordBatch, number: int | None) -> Sequence[Any]:
    if number is None:
        return [None] * batch.num_rows
    column = batch.column(number)
    column.validate(full=True)  # damaged offsets would be followed anywhere
    return column.to_pylist()


def _open_arrow(place: Place) -> pa.NativeFile:
    stream = pa.memory_map(place.path) if place.local else place.fs.open_input_file(place.path)
    if stream.read(6) == b"ARROW1":
        stream.close()
        raise PoolError(f"{place.path}: an Arrow file of the random-access form; give what save_to_disk writes")
    stream.seek(0)
    return stream


def _ranges(column: pa.Array, body: pa.Buffer, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Offsets from the start of `body`, and sizes; a null has size 0."""
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    kind = column.type
    wide = pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)
    if not (wide or pa.types.is_binary(kind) or pa.types.is_string(kind)):
        raise PoolError(f"{place.path}: a column of type {kind} holds neither encoded images nor texts")
    _, offsets, data = column.buffers()
    n = len(column)
    if data is None or offsets is None or not data.size:
        return np.zeros(n, np.int64), np.zeros(n, np.int64)
    at = np.frombuffer(offsets, np.int64 if wide else np.int32)[column.offset : column.offset + n + 1].astype(np.int64)
    base = data.address - body.address
    if not 0 <= base <= body.size:
        raise PoolError(f"{place.path}: compressed record batches; save the dataset without compression")
    if n and (at[0] < 0 or np.diff(at).min() < 0 or at[-1] > data.size):
        raise PoolError(f"{place.path}: damaged (samples reach beyond their record batch); copy it again")
    return base + at[:-1], np.diff(at)


HUGGINGFACE = HuggingFace()
