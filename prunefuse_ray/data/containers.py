"""What lies where inside files that hold many samples: WebDataset tars, and Arrow files of Hugging Face datasets.

Both are scanned once, before a run; from then on a sample is a range of bytes in a file.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prunefuse_ray.data.images import IMAGE_EXTENSIONS
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place

READ_AHEAD = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Range:
    """One sample: its id within its file, its bytes, and its label as it stands there."""

    key: str
    offset: int
    bytes: int
    label: Any = None


# --- WebDataset -----------------------------------------------------------------------------------------------------


def scan_tar(place: Place, label: str | None) -> Iterator[Range]:
    """The samples of a WebDataset shard: neighbouring members whose names agree up to the first dot.

    Args:
        label: extension of the member that holds the label (`cls`), or `json:FIELD`; None reads no labels.

    Raises:
        PoolError: not a tar file, a compressed one, or a key that comes twice.
    """
    extension, _, field = (label or "").partition(":")
    seen: set[str] = set()
    key, image, value = None, None, None
    for member, read in _members(place):
        matched = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name)
        if matched is None:
            continue
        if matched[1] != key:
            if key is not None:
                yield _range(key, image, value)
            key, image, value = matched[1], None, None
            if key in seen:
                raise PoolError(f"{place.path}: the key '{key}' comes twice; keep the members of a sample together")
            seen.add(key)
        kind = matched[2].lower()
        if image is None and kind.rpartition(".")[2] in IMAGE_EXTENSIONS:
            image = member
        elif label is not None and kind == extension:
            value = _label(read(), field)
    if key is not None:
        yield _range(key, image, value)


def _range(key: str, image: tarfile.TarInfo | None, label: Any) -> Range:
    # Without an image the sample is empty bytes, which decoding rejects with a reason.
    offset, size = (image.offset_data, image.size) if image is not None else (0, 0)
    return Range(key=key, offset=offset, bytes=size, label=label)


def _members(place: Place) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """The files in a tar, each with a function that reads it."""
    try:
        with (
            place.fs.open_input_file(place.path) as stream,
            io.BufferedReader(stream, READ_AHEAD) as ahead,
            tarfile.open(fileobj=ahead, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or the archive's whole listing would stay in memory
                if member.isreg():
                    at = member

                    def read(at: tarfile.TarInfo = at) -> bytes:
                        file = tar.extractfile(at)
                        return b"" if file is None else file.read()

                    yield member, read
    except (tarfile.TarError, EOFError) as error:
        raise PoolError(
            f"{place.path}: not an uncompressed tar file ({error}); unpack it, or leave it out of the pool"
        ) from error


def _label(content: bytes, field: str) -> Any:
    if not field:
        return content.decode(errors="replace").strip()
    try:
        return json.loads(content).get(field)
    except (ValueError, AttributeError):
        return None


def class_number(given: Any, classes: Sequence[str]) -> int | None:
    """A label as the number of its class: a class's name, or a number. A name goes before a number."""
    if given is None:
        return None
    text = str(given).strip()
    if text in classes and not isinstance(given, int):
        return list(classes).index(text)
    number = int(text) if text.isdecimal() else -1
    return number if 0 <= number < len(classes) else None


# --- Hugging Face ---------------------------------------------------------------------------------------------------


def arrow_files(place: Place, field: str) -> list[str]:
    """The Arrow files of a dataset that `save_to_disk` wrote at `place`, as its state.json lists them."""
    if (place / "dataset_dict.json").exists():
        splits = (place / "dataset_dict.json").read_json().get("splits", [])
        raise PoolError(f"{field}: '{place.path}' holds the splits {', '.join(splits)}; give one, as {place.path}/NAME")
    if not (place / "state.json").exists():
        raise PoolError(f"{field}: '{place.path}' has no state.json; give a directory that save_to_disk wrote")
    return [(place / str(f["filename"])).path for f in (place / "state.json").read_json().get("_data_files", [])]


def class_names(schema: pa.Schema, column: str | None) -> list[str] | None:
    """The names of a ClassLabel column, which Hugging Face keeps in the schema's metadata; None where it has none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(n) for n in names] if isinstance(names, list) else None


def arrow_schema(place: Place) -> pa.Schema:
    """The schema of an Arrow stream file."""
    with _open_arrow(place) as stream:
        return pa.ipc.read_schema(pa.ipc.read_message(stream))


def scan_arrow(place: Place, sample: str, label: str | None) -> Iterator[tuple[np.ndarray, np.ndarray, Sequence[Any]]]:
    """Per record batch: offsets (N,) and sizes (N,) of the samples' bytes in the file, and the labels as they are.

    A local file is memory-mapped: only its offsets are read.
    """
    with _open_arrow(place) as stream:
        schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
        while True:
            try:
                message = pa.ipc.read_message(stream)
            except EOFError:
                return
            body, end = message.body, stream.tell()
            batch = pa.ipc.read_record_batch(message, schema)
            starts, sizes = _ranges(batch.column(schema.get_field_index(sample)), body, place)
            labels = batch.column(schema.get_field_index(label)).to_pylist() if label else [None] * batch.num_rows
            yield starts + (end - body.size), sizes, labels


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
    return base + at[:-1], np.diff(at)
