"""WebDataset: uncompressed tar files, in which neighbouring members whose names agree up to the first dot are a sample.

They are scanned once; from then on a sample is a range of bytes in a file.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prunefuse_ray.data.images import IMAGE_EXTENSIONS
from prunefuse_ray.data.index import Found, Index, scanned
from prunefuse_ray.data.paths import LeftOut, Listing, check_names, locate
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place

READ_AHEAD = 1 << 20


class WebDataset(SourceReader):
    """An id is SHARD/KEY, as if the shard were a folder."""

    def listing(self, samples: SampleSet) -> Listing:
        return locate(samples.paths, (".tar",), samples.field)

    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        check_names(listing, samples.field)
        return scanned(_scan, (samples.label_column,), samples, listing, self.rows(samples), classes, new)


def _scan(place: Place, name: str, label: str | None) -> Iterator[Found]:
    found = list(scan_tar(place, label))
    samples = [item for item in found if isinstance(item, Sample)]
    yield Found(
        ids=[f"{name.removesuffix('.tar')}/{s.key}" for s in samples],
        labels=[s.label for s in samples],
        columns={"offset": [s.offset for s in samples], "bytes": [s.bytes for s in samples]},
        left_out=[LeftOut(f"{name}/{item.name}", item.reason) for item in found if isinstance(item, LeftOut)],
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample: its key, where its image's bytes lie in the file, and its label as it stands there."""

    key: str
    offset: int
    bytes: int
    label: Any = None


def scan_tar(place: Place, label: str | None) -> Iterator[Sample | LeftOut]:
    """The samples of a shard, and what in it belongs to none.

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
        if not member.isreg() or matched is None:
            yield LeftOut(member.name, "hidden, or without an extension" if member.isreg() else "a link")
            continue
        if matched[1] != key:
            if key is not None:
                yield _sample(key, image, value)
            key, image, value = matched[1], None, None
            if key in seen:
                raise PoolError(f"{place.path}: the key '{key}' comes twice; keep the members of a sample together")
            seen.add(key)
        kind = matched[2].lower()
        if kind.rpartition(".")[2] in IMAGE_EXTENSIONS:
            if image is not None:
                yield LeftOut(member.name, "a second image of its key")
            image = image or member
        elif label is not None and kind == extension:
            value = _label(read(), field)
    if key is not None:
        yield _sample(key, image, value)


def _sample(key: str, image: tarfile.TarInfo | None, label: Any) -> Sample:
    # Without an image the sample is empty bytes, which decoding rejects with a reason.
    offset, size = (image.offset_data, image.size) if image is not None else (0, 0)
    return Sample(key=key, offset=offset, bytes=size, label=label)


def _members(place: Place) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """What a tar holds but directories, each with a function that reads it."""
    try:
        with (
            place.fs.open_input_file(place.path) as stream,
            io.BufferedReader(stream, READ_AHEAD) as ahead,
            tarfile.open(fileobj=ahead, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or the archive's whole listing would stay in memory
                if not member.isdir():
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


WEBDATASET = WebDataset()
