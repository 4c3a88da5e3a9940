"""WebDataset: uncompressed tar files, in which neighboring members whose names agree up to the first dot are a sample.

They are scanned once; from then on a sample is a range of bytes in a file.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from prunefuse_ray import config as cfg
from prunefuse_ray.data.image_files import extensions
from prunefuse_ray.data.index import Found, Index, check_unique, scanned
from prunefuse_ray.data.left_out import LeftOut
from prunefuse_ray.data.paths import Listing, check_names, locate, normal
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place, pointed

READ_AHEAD = 1 << 20
PNG = b"\x89PNG"
ANY_IMAGE = cfg.Pool.model_fields["image_column"].default


class WebDataset(SourceReader):
    """An id is SHARD/KEY, as if the shard were a folder."""

    def listing(self, samples: SampleSet) -> Listing:
        return locate(samples.paths, (".tar",), samples.field)

    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        check_names(listing, samples.field)
        columns = (samples.label_column, samples.pool.image_column, samples.pool.sample_key)
        found = scanned(_scan, columns, samples, listing, self.rows(samples), classes, new)
        shards = {name.removesuffix(".tar") for name in listing.names}
        if any(str(folder) in shards for name in shards for folder in PurePosixPath(name).parents):
            check_unique(found, samples, None)  # a.tar may hold b/1, and a/b.tar 1
        return found


def _scan(place: Place, name: str, label: str | None, image: str, key_ends: str) -> Iterator[Found]:
    found = list(scan_tar(place, label, image, key_ends))
    samples = [item for item in found if isinstance(item, Sample)]
    yield Found(
        untyped=True,
        ids=[f"{name.removesuffix('.tar')}/{s.key}" for s in samples],
        labels=[s.label for s in samples],
        columns={"offset": [s.offset for s in samples], "bytes": [s.bytes for s in samples]},
        left_out=[
            LeftOut(f"{name}/{item.name}".rstrip("/"), item.reason) for item in found if isinstance(item, LeftOut)
        ],
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample: its key, where its image's bytes lie in the file, and its label as it stands there."""

    key: str
    offset: int
    bytes: int
    label: Any = None


KEYS = {
    "first_dot": re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)"),
    "last_dot": re.compile(r"((?:.*/)?[^./][^/]*)\.([^./]+)"),
}
"""`pool.sample_key` -> a member's name as key and extension."""


def scan_tar(
    place: Place, label: str | None, image: str = ANY_IMAGE, key_ends: str = "first_dot"
) -> Iterator[Sample | LeftOut]:
    """The samples of a shard, and what in it belongs to none.

    Args:
        label: extension of the member that holds the label (`cls`), or `json:FIELD`; None reads no labels.
        image: extension of the member that holds the image; ANY_IMAGE takes whichever is one.
        key_ends: `pool.sample_key`.

    Raises:
        PoolError: not a tar file, a compressed one, a key that comes twice, or several images of one key.
    """
    extension, _, field = (label or "").partition(":")
    seen: set[str] = set()
    loose: list[LeftOut] = []
    doubtful: dict[str, list[str]] = {}
    for key, members in itertools.groupby(_of_samples(place, key_ends, loose), key=lambda member: member.key):
        if normal(key) in seen:
            raise PoolError(
                f"{place.path}: the key '{key}' comes twice; keep the members of a sample together. Where dots belong "
                "to the names, set pool.sample_key to last_dot"
            )
        seen.add(normal(key))
        images, value = [], None
        for member in members:
            if label is not None and member.kind == extension:  # a mask is an image, too
                value = _label(member.read(), field)
            elif member.kind == image or (image == ANY_IMAGE and f".{member.kind}".endswith(extensions())):
                images.append(member)
        plain = [member for member in images if "." not in member.kind]  # a.png beside a.mask.png
        one = images if len(images) == 1 else plain
        if not images:
            yield LeftOut(key, f"sample without {'an image' if image == ANY_IMAGE else f'a .{image}'}")
        elif len(one) != 1:
            doubtful[key] = [member.name for member in images]
        else:
            if one[0].bytes:
                yield Sample(key=key, offset=one[0].offset, bytes=one[0].bytes, label=value)
            else:
                yield LeftOut(one[0].name, "empty")
            yield from (LeftOut(m.name, "another image of its sample") for m in images if m is not one[0])
    yield from loose
    if doubtful:
        key, names = next(iter(doubtful.items()))
        raise PoolError(
            f"{place.path}: {len(doubtful)} samples with {sum(map(len, doubtful.values()))} images together, such as "
            f"'{key}' with {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}; set pool.image_column to the "
            "extension of the one that counts, or, where the dots belong to the names, pool.sample_key to last_dot"
        )


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A file in a tar."""

    key: str
    kind: str
    """Its extension, in lower case."""
    name: str
    read: Callable[[], bytes]
    offset: int
    bytes: int


def _of_samples(place: Place, key_ends: str, loose: list[LeftOut]) -> Iterator[_Member]:
    """The members that belong to samples; the others are added to `loose`."""
    for member in _members(place, key_ends):
        if isinstance(member, _Member):
            yield member
        else:
            loose.append(member)


def _members(place: Place, key_ends: str) -> Iterator[_Member | LeftOut]:
    """What a tar holds but directories."""
    try:
        with (
            place.fs.open_input_file(place.path) as stream,
            io.BufferedReader(stream, READ_AHEAD) as ahead,
            tarfile.open(fileobj=ahead, mode="r:") as tar,
        ):
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or the archive's whole listing would stay in memory
                if not info.isdir():
                    yield _member(tar, info, key_ends, place.path)
            # Reading ends at the first block of zeros: another archive may follow in the same file.
            ahead.seek(tar.offset)
            if not (rest := ahead.read(READ_AHEAD)):
                yield LeftOut("", "tar without its end mark: more may have followed")
            elif any(rest):
                raise PoolError(
                    f"{place.path}: {stream.size() - tar.offset} bytes follow the end of the archive, another tar "
                    "perhaps, which would not be read; write one archive a file"
                )
    except (tarfile.TarError, EOFError) as error:
        raise PoolError(
            f"{place.path}: not an uncompressed tar file ({error}){pointed(place)}; unpack it, or leave it out of the "
            "pool"
        ) from error


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, key_ends: str, where: str) -> _Member | LeftOut:
    name = info.name.encode(errors="surrogateescape").decode(errors="replace")
    if not info.isreg() or info.issparse():
        return LeftOut(name, "link" if info.issym() or info.islnk() else "not a plain file")
    if name.rpartition("/")[2].startswith("."):
        return LeftOut(name, "hidden")
    if (matched := KEYS[key_ends].fullmatch(name)) is None:
        return LeftOut(name, "no extension")

    def read() -> bytes:
        try:
            file = tar.extractfile(info)
            return b"" if file is None else file.read()
        except tarfile.TarError as error:
            raise PoolError(f"{where}: not an uncompressed tar file ({error}); copy it again") from error

    return _Member(
        key=matched[1], kind=matched[2].lower(), name=name, offset=info.offset_data, bytes=info.size, read=read
    )


def _label(content: bytes, field: str) -> Any:
    if not field:
        return content if content.startswith(PNG) else content.decode(errors="replace").strip()
    try:
        return json.loads(content).get(field)
    except (ValueError, AttributeError, RecursionError):
        return None


WEBDATASET = WebDataset()
