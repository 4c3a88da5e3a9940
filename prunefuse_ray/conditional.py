"""Writes that are refused where somebody else has written meanwhile: S3, GCS and Azure by conditions on the request,
network file systems by links. What keeps a driver that lost its run from recording anything more.
"""

from __future__ import annotations

import configparser
import json
import os
import posixpath
import secrets
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pyarrow.fs as pafs

from prunefuse_ray import progress
from prunefuse_ray.storage import Place, s3_options

NETWORK_FILE_SYSTEMS = (
    "nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "gluster", "wekafs", "9p", "virtiofs", "vboxsf", "afs",
    "fuse",
)  # fmt: skip
"""Beginnings of the names that Linux has for file systems on which a lock of one machine may be unseen by others."""


class Changed(Exception):
    """Somebody else has written the file meanwhile; nothing was written."""


class Missing(Exception):
    """No conditional writes here; says why."""


class Conditional(Protocol):
    def version(self, place: Place) -> str | None:
        """What tells this content of the file from any other; None where there is no file."""

    def put(self, place: Place, data: bytes, expected: str | None) -> None:
        """Write the file whole. Raises Changed where its version is another than `expected`."""


LARGE = 2**20
"""Bytes of a file from which on its request may take as long as a slow line needs."""
SLOW = "15min"
"""For such a request. The client's own limit of 30 s, for the whole request, ends the upload of 100 MB on every line
below 27 Mbit/s, and does so again each time that the run is taken up."""


class Requests:
    """An object store. Every content has an entity tag or a version, and a request may name the one that it is to
    replace: S3 and Azure take the tag, GCS the version (its generation). One request writes a file whole."""

    def __init__(self, store: Any, slow: Any = None) -> None:
        """`slow`: the same store by a client that is patient with large files; None: there is none."""
        self._store, self._slow = store, store if slow is None else slow

    def version(self, place: Place) -> str | None:
        import obstore

        try:
            found = obstore.head(self._store, _key(place))
            return json.dumps({name: found[name] for name in ("e_tag", "version") if found[name]})
        except FileNotFoundError:
            return None
        except obstore.exceptions.BaseError as error:
            raise _trouble(place, error) from error

    def put(self, place: Place, data: bytes, expected: str | None) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        mode: Any = "create" if expected is None else json.loads(expected)
        large = len(data) >= LARGE
        try:
            with progress.waiting() if large else nullcontext():  # for a supervisor nothing moves meanwhile
                store = self._slow if large else self._store
                obstore.put(store, _key(place), data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
            if not place.exists() or place.read_bytes() != data:  # else an answer was lost, and the request repeated
                raise Changed(place.path) from error
        except BaseError as error:
            raise _trouble(place, error) from error


class Links:
    """A network file system: a link is made only where its name is free. Contents are replaced without a condition."""

    def version(self, place: Place) -> str | None:
        try:
            found = os.stat(place.path)
        except FileNotFoundError:
            return None
        return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"

    def put(self, place: Place, data: bytes, expected: str | None) -> None:
        if expected is not None:
            if self.version(place) != expected:
                raise Changed(place.path)
            place.write_bytes(data)
            return
        temporary = place.parent / f".{place.name}.{secrets.token_hex(8)}.tmp"
        temporary.write_bytes(data)
        try:
            os.link(temporary.path, place.path)
        except FileExistsError as error:
            if os.stat(temporary.path).st_nlink == 1:  # else it was made, and NFS asked twice: open(2), O_EXCL
                raise Changed(place.path) from error
        except OSError as error:
            raise Missing(f"no links: {error.strerror}") from error
        finally:
            os.unlink(temporary.path)


def conditional(place: Place) -> Conditional:
    """The conditional writes of the storage where a place is; Missing where it is known to have none."""
    bucket = place.path.partition("/")[0]
    if place.local:
        return Links()
    with suppress(ImportError):
        from obstore.store import AzureStore, GCSStore, S3Store

        if isinstance(place.fs, pafs.S3FileSystem) and (options := s3_options(place.fs)) is not None:
            endpoint = options.get("endpoint_override")
            address = {"endpoint": f"{options.get('scheme') or 'https'}://{endpoint}"} if endpoint else {}
            client: dict[str, Any] = {"allow_http": True}
            if authority := options.get("tls_ca_file_path"):  # what Arrow trusts this client has to trust, too
                client["root_certificate"] = Path(authority).read_bytes()
            return _requests(
                S3Store,
                bucket,
                client,
                credential_provider=_profile(),
                region=options.get("region") or "us-east-1",
                # Amazon's certificate names no bucket with dots as a host; Arrow's client asks by the path then, too.
                virtual_hosted_style_request=not endpoint and "." not in bucket,
                retry_config={"max_retries": 1000, "retry_timeout": timedelta(seconds=place.fs.patience)},
                **address,
            )
        if isinstance(place.fs, pafs.GcsFileSystem):
            limit = place.fs.__reduce__()[1][0]["retry_time_limit"]
            return _requests(GCSStore, bucket, {}, retry_config={"max_retries": 1000, "retry_timeout": limit})
        if place.fs.type_name == "abfs":
            told = place.fs.__reduce__()[1][0]
            given = {name: told[name] for name in AZURE_KEYS if told[name]}
            where = _azure_address(told)
            client = where.pop("client_options", {})
            return _requests(AzureStore, bucket, client, account_name=told["account_name"], **where, **given)
    raise Missing(f"{place.fs.type_name} storage")


def _requests(kind: Any, bucket: str, client: Mapping[str, Any], **options: Any) -> Requests:
    """Conditional writes of a bucket: by a client with its own limits, and by one that is patient with large files."""
    store, slow = (kind(bucket, client_options={**client, **more}, **options) for more in ({}, {"timeout": SLOW}))
    return Requests(store, slow)


AZURE_KEYS = ("account_key", "client_id", "client_secret", "tenant_id")


def _azure_address(told: Mapping[str, Any]) -> dict[str, Any]:
    """Where an account is reached, by what Arrow knows of it; nothing where it is Microsoft's own address."""
    scheme, authority, account = told["blob_storage_scheme"], told["blob_storage_authority"], told["account_name"]
    if authority == ".blob.core.windows.net":
        return {}
    host = f"{account}{authority}" if authority.startswith(".") else f"{authority}/{account}"
    return {"endpoint": f"{scheme}://{host}", "client_options": {"allow_http": scheme == "http"}}


RENEWED = timedelta(minutes=5)


def profile_keys() -> dict[str, str]:
    """The keys of the profile in AWS's shared file of credentials, which obstore does not read, and Arrow does; none
    where the environment has others."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return {}
    files = configparser.ConfigParser(interpolation=None, strict=False)
    with suppress(configparser.Error, UnicodeDecodeError, OSError):  # then others say what is missing
        files.read(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials"))
    name = os.environ.get("AWS_PROFILE") or "default"
    found = files[name] if files.has_section(name) else {}
    keys = {
        "access_key_id": "aws_access_key_id",
        "secret_access_key": "aws_secret_access_key",
        "token": "aws_session_token",
    }
    given = {ours: found[theirs] for ours, theirs in keys.items() if theirs in found}
    return given if given.keys() >= {"access_key_id", "secret_access_key"} else {}


def _profile() -> Any:
    """What obstore asks for a profile's keys, every few minutes: whoever writes temporary ones into the file has newer
    ones by then. None where there is no such profile."""
    if not profile_keys():
        return None

    def keys() -> dict[str, Any]:
        return {**profile_keys(), "expires_at": datetime.now(UTC) + RENEWED}

    return keys


def _trouble(place: Place, error: Exception) -> OSError:
    return OSError(f"object store: {place.path}: " + str(error).partition("\n")[0])


def _key(place: Place) -> str:
    return place.path.partition("/")[2]


def network_file_system(path: str) -> str | None:
    """The name of the network file system that a local path lies on; None where it lies on a disk of this machine."""
    path = os.path.realpath(path)
    found = ("", "")
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            point, kind = before.split()[4].replace("\\040", " "), after.split()[0]
            if posixpath.commonpath([path, point]) == point and len(point) >= len(found[0]):
                found = point, kind
    return found[1] if found[1].startswith(NETWORK_FILE_SYSTEMS) else None
