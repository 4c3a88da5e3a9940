"""Small files on any filesystem that pyarrow speaks, each written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import posixpath
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from prunefuse_ray.errors import BROKEN_OFF, STORE, ConfigError, LedgerError, has_credentials

PATIENCE = 60.0
"""Seconds for which a request to an object store is tried again, with growing pauses: one that throttles or is away for
a while delays a run, and does not end it. Of S3 Arrow gives up after two seconds. `be_patient` changes it."""


class _Patience:
    seconds = PATIENCE


def be_patient(seconds: float) -> None:
    """How long requests of the places that are made from now on are tried again."""
    _Patience.seconds = seconds


def repetitions(seconds: float) -> int:
    """How often a request has to be repeated so that its pauses take about so long: none before the first repetition,
    50 ms before the second, each twice as long as the one before."""
    return round(math.log2(seconds / 0.025 + 2))


SCHEMES = {"s3": "s3", "gcs": "gs", "abfs": "abfs"}
"""Arrow's name of a filesystem -> that of its URIs."""
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.tmp")
"""Names of files that are being written: `Place.write_bytes`, `conditional.Links`."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_REMEDY = "a Git LFS pointer in place of the file; fetch the file itself with git lfs pull"


@dataclass(frozen=True)
class Place:
    """A directory: a pyarrow filesystem and a path in it. Children by `/`."""

    fs: pafs.FileSystem
    path: str

    @classmethod
    def at(cls, where: str) -> Place:
        """The place of a local path or a URI (s3://, gs://, file://); ConfigError where it is neither."""
        if "://" in where:
            fs, path = _from_uri(where)
        else:
            fs, path = pafs.LocalFileSystem(), os.path.abspath(where)
            if where.startswith("~") and not os.path.lexists(path):
                path = os.path.abspath(os.path.expanduser(where))  # as the shell would have done
            if path.startswith("//"):  # of "$HOME/runs" where HOME is /; Ray Data takes what follows for a host
                path = path[1:]
        return cls(fs, path.rstrip("/"))

    def __truediv__(self, name: str) -> Place:
        return Place(self.fs, posixpath.join(self.path, name))

    @property
    def local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def uri(self) -> str:
        """As people name it: the path, on an object store with its scheme and without its options."""
        scheme = SCHEMES.get(self.fs.type_name)
        return self.path if scheme is None else f"{scheme}://{self.path}"

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Place:
        return Place(self.fs, posixpath.dirname(self.path))

    def exists(self) -> bool:
        return self.fs.get_file_info(self.path).type != pafs.FileType.NotFound

    @property
    def is_directory(self) -> bool:
        return self.fs.get_file_info(self.path).type == pafs.FileType.Directory

    def files(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """The files below this directory in the order of their paths; none where it does not exist."""
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        return sorted(
            (i for i in self.fs.get_file_info(selector) if i.type == pafs.FileType.File), key=lambda i: i.path
        )

    def written(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """`files` but those that are still being written, or were when their writer was killed."""
        return [i for i in self.files(recursive=recursive) if not TEMPORARY.fullmatch(i.base_name)]

    def size_of(self, files: list[str]) -> int:
        """Bytes of files, given by their paths on this storage, together."""
        return sum(info.size for info in self.fs.get_file_info(files))

    def digest(self) -> str:
        """SHA-256 of the file's content, read a piece at a time."""
        sha256 = hashlib.sha256()
        with self.fs.open_input_stream(self.path) as stream:
            while piece := stream.read(8 * 2**20):
                sha256.update(piece)
        return sha256.hexdigest()

    def read_bytes(self) -> bytes:
        """The file's content. An answer that broke off in its middle, as that of a machine that slept meanwhile, is
        asked for again: the store's client repeats requests, but not those."""
        broken = 0
        while True:
            try:
                with self.fs.open_input_file(self.path) as file:  # of a stream a store would be asked for each 256 KiB
                    return file.readall()
            except OSError as error:
                broken += 1
                if broken > 2 or BROKEN_OFF not in str(error):
                    raise

    def write_bytes(self, data: bytes, *, durable: bool = True) -> None:
        """Write the file whole: on a local disk under another name, synchronized, then renamed; an object store's
        upload becomes visible only when it is complete.

        Args:
            durable: wait until the disk has it. Not for what can be made again, and is checked when it is read.
        """
        parent = posixpath.dirname(self.path)
        if self.fs.type_name not in STORES_WITHOUT_DIRECTORIES:
            self.fs.create_dir(parent, recursive=True)
        if not self.local:
            if threading.current_thread() is not threading.main_thread():
                return self._upload(data)
            # In a thread of its own: an interrupt between its opening and its writing would close the stream, and
            # Arrow completes an upload that is closed with what it has, nothing.
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(self._upload, data).result()
        # Not the number of the process: containers that share the directory count theirs alike.
        aside = posixpath.join(parent, f".{self.name}.{secrets.token_hex(8)}.tmp")
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(aside, self.path)
            if durable:
                _synchronize_directory(parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise

    def _upload(self, data: bytes) -> None:
        with self.fs.open_output_stream(self.path) as stream:
            stream.write(data)

    def delete(self) -> None:
        """Remove the file or the directory with everything in it; nothing happens where there is none."""
        info = self.fs.get_file_info(self.path)
        if info.type == pafs.FileType.Directory:
            self.fs.delete_dir(self.path)
        elif info.type == pafs.FileType.File:
            self.fs.delete_file(self.path)

    def read_json(self) -> Any:
        try:
            return json.loads(self.read_bytes())
        except ValueError as error:
            raise LedgerError(
                f"{self.path}: not valid JSON ({error}); restore the file or start under another --run.name"
            ) from error

    def read_sealed(self) -> dict[str, Any]:
        """What `sealed` made of a tree. LedgerError where it is something else now."""
        try:
            return unsealed(self.read_json())
        except ValueError as error:
            raise LedgerError(
                f"{self.path}: is not what was recorded ({error}); restore it from a copy, or start under another "
                "--run.name"
            ) from error

    def write_json(self, value: Any) -> None:
        self.write_bytes(json_bytes(value))

    def read_table(self, schema: pa.Schema) -> pa.Table:
        """A Parquet file with exactly this schema; LedgerError otherwise."""
        try:
            data = self.read_bytes()
        except FileNotFoundError as error:
            raise LedgerError(f"{self.path}: is gone; restore it or start under another --run.name") from error
        try:
            table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise LedgerError(
                f"{self.path}: not a readable Parquet file ({error}); restore it or start under another --run.name"
            ) from error
        if not table.schema.equals(schema):
            raise LedgerError(
                f"{self.path}: has columns {table.schema.names} of types "
                f"{[str(t) for t in table.schema.types]}, expected {schema.names} of "
                f"{[str(t) for t in schema.types]}"
            )
        return table

    def write_table(self, table: pa.Table) -> None:
        self.write_bytes(table_bytes(table))


def below(directory: str, name: str) -> str:
    """A directory's child, as a path or URI; the options of a store stay at the URI's end."""
    path, mark, options = directory.partition("?") if "://" in directory else (directory, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def synchronize(places: Iterable[Place]) -> None:
    """Wait until the disk has files and their names, which a machine that loses its power does not wait for."""
    paths = [place.path for place in places if place.local]
    with ThreadPoolExecutor(SYNCHRONIZED_AT_ONCE) as threads:
        list(threads.map(_synchronize, paths))
    for directory in {posixpath.dirname(path) for path in paths}:
        _synchronize_directory(directory)


SYNCHRONIZED_AT_ONCE = 8


def _synchronize(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synchronize_directory(path: str) -> None:
    with suppress(OSError):  # not every file system does that for a directory
        _synchronize(path)


STORES_WITHOUT_DIRECTORIES = ("s3", "gcs")
"""To make them would take a request for each part of a path."""


def parted(directory: str) -> tuple[str, str]:
    """(the directory that a path or URI lies in, its name): what `below` puts together."""
    path, mark, options = directory.partition("?") if "://" in directory else (directory, "", "")
    parent, _, name = path.rstrip("/").rpartition("/")
    return f"{parent or ('/' if path.startswith('/') else '.')}{mark}{options}", name


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def sealed(tree: Mapping[str, Any]) -> bytes:
    """A tree as JSON with its own digest."""
    return json_bytes({**tree, "sha256": _digest(tree)})


def unsealed(tree: Any) -> dict[str, Any]:
    """The tree of which `sealed` made a file. ValueError where it is something else now."""
    recorded = tree.pop("sha256", None) if isinstance(tree, dict) else ""  # an earlier version recorded none
    if recorded is not None and recorded != _digest(tree):
        raise ValueError("its digest differs")
    return tree


def _digest(tree: Any) -> str:
    return hashlib.sha256(json_bytes(json.loads(json_bytes(tree)))).hexdigest()


def table_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def pointed(place: Place) -> str:
    """`: a Git LFS pointer ...` where a file that cannot be read is one; else nothing."""
    try:
        with place.fs.open_input_stream(place.path) as stream:
            return f": {LFS_REMEDY}" if stream.read(len(LFS_POINTER)) == LFS_POINTER else ""
    except OSError:
        return ""


class _PatientS3(pafs.S3FileSystem):
    """Amazon's or another S3 store; Arrow's own class forgets its retry strategy when it travels.

    The strategy that AWS calls standard has random pauses of 20 seconds at most, but 100 repetitions for all requests
    of a client together: Arrow never tells it of those that went well, and after them nothing is repeated any more.
    """

    def __init__(self, patience: float | None = None, **options: Any) -> None:
        self.patience = _Patience.seconds if patience is None else patience
        strategy = pafs.AwsDefaultS3RetryStrategy(max_attempts=repetitions(self.patience))
        super().__init__(retry_strategy=strategy, **options)
        self._options = options

    def __reduce__(self) -> Any:
        return _rebuild_s3, (self.patience, self._options)


def s3_options(fs: pafs.FileSystem) -> dict[str, Any] | None:
    """How a store that `Place.at` opened is reached: endpoint_override, scheme, region."""
    return fs._options if isinstance(fs, _PatientS3) else None


def _rebuild_s3(patience: float, options: dict[str, Any]) -> _PatientS3:
    return _PatientS3(patience, **options)


def _from_uri(where: str) -> tuple[pafs.FileSystem, str]:
    """The store and the path of a URI. What may not stand in a URI as it is (blanks, umlauts, brackets) is encoded."""
    scheme, _, rest = where.partition("://")
    if has_credentials(scheme, rest):
        raise ConfigError(f"{scheme}://...: holds credentials; give them by the environment or the machine's role")
    path, mark, query = rest.partition("?")
    path = re.sub("(?<=[^/])/{2,}", "/", path)  # of "$BUCKET/runs" where BUCKET ends in one; Arrow has no such names
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in query:  # else Arrow tries for a quarter of an hour
        mark, query = "?", "&".join(filter(None, (query, f"retry_limit_seconds={_Patience.seconds:g}")))
    uri = f"{scheme}://{quote(path, safe=':/%*@')}{mark}{query}"
    try:
        return _s3(uri) if scheme == "s3" else pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        raise ConfigError(
            f"'{where}' is no place that can be used ({error}); give a path, s3://, gs://, file://"
        ) from error
    except OSError as error:  # Amazon is asked here where a bucket lies; for Hadoop a library is loaded
        if STORE.search(str(error)):  # it does not answer, or refuses
            raise
        raise ConfigError(
            f"'{where}' is not there ({error}); name a bucket that exists, and a store that this machine can use: "
            "s3://, gs://, abfs://, file://"
        ) from error


def _s3(uri: str) -> tuple[pafs.FileSystem, str]:
    """The store of an s3:// URI. Options stand in its query; the endpoint may also come from the environment, where it
    is read here, so that the nodes need not have it. Credentials are each node's own: environment, profile or role."""
    parts = urlsplit(uri, allow_fragments=False)
    query = dict(parse_qsl(parts.query))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in query:
        scheme, _, host = endpoint.rpartition("://")
        query |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    if "endpoint_override" in query:
        query.setdefault("region", os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1")
    plain, path = pafs.FileSystem.from_uri(parts._replace(query=urlencode(query)).geturl())
    options = plain.__reduce__()[1][0]
    return _PatientS3(**{k: v for k, v in options.items() if v not in (None, "", -1.0)}), path


def read_input(field_: str, path: str, inside: str | None = None) -> bytes:
    """A file that the configuration names, or one `inside` a folder that it names. ConfigError where it cannot be
    read."""
    try:
        place = Place.at(path)
        return (place if inside is None else place / inside).read_bytes()
    except (OSError, pa.ArrowInvalid) as error:
        wanted = "a file that exists" if inside is None else f"a folder that holds {inside}"
        raise ConfigError(f"{field_}: '{path}' cannot be read ({error}); give {wanted}") from error
