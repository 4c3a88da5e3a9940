"""What a user can put right: every such error names the field, the value and the remedy, and ends with exit code 2."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal may obey. Names in a pool hold anything."""


class PruneFuseError(Exception):
    """A condition that the user can put right; the message is meant to be read as it stands."""

    exit_code = 2
    heading = "error"

    def __str__(self) -> str:
        return CONTROL.sub("\ufffd", without_secrets(shortened(super().__str__())))


class ConfigError(PruneFuseError):
    """A configuration that cannot describe a run."""


class PoolError(PruneFuseError):
    """A pool or test set that is not what the configuration says it is."""


class IdsError(PoolError):
    """Ids that do not tell samples apart."""


class PlanError(PruneFuseError):
    """A plan that cannot run on the resources at hand."""


class LedgerError(PruneFuseError):
    """A run directory that cannot be used: another configuration, another pool, a damaged file, a second driver."""


class TrainingError(PruneFuseError):
    """A training that came to nothing."""


class ScoreError(PruneFuseError):
    """Scores that cannot be selected from (non-finite, or too many rejected samples)."""


class LabelError(PruneFuseError):
    """Labels that cannot be taken as they are, or an annotation server that cannot be used. Nothing was taken."""


class LabelsWaiting(PruneFuseError):
    """No fault: samples wait for their labels. The same command goes on once they are there."""

    exit_code = 3
    heading = "waiting"


class Rejected(ValueError):
    """Why one sample of a pool cannot be used. Not an error of the run: it is recorded, and the run goes on."""


LONGEST_WORD = 4096
"""Characters of a message's longest word: a path fits. What is longer was no value, but something pasted."""


def shortened(text: str) -> str:
    """A message in which no value is too long to be read."""
    return re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda m: f"{m[0][:100]}... ({len(m[0]):,} characters)", text)


def is_container(scheme: str, before: str) -> bool:
    """Whether what stands before the @ of a URI is Azure's container, and neither a name nor a password:
    abfs://container@account.dfs.core.windows.net/path."""
    return scheme in ("abfs", "abfss") and ":" not in before


def has_credentials(scheme: str, rest: str) -> bool:
    """Whether what follows `scheme://` names a user or a password before its host; a password may hold slashes."""
    host = rest.partition("/")[0]
    before, at, _ = host.rpartition("@")
    if at:
        return not is_container(scheme, before)
    _, colon, port = host.rpartition(":")
    return bool(colon) and "@" in rest and not (port.isdecimal() or port.endswith("]"))


def without_secrets(text: str) -> str:
    """A message with the credentials taken out of its URIs: it goes into logs and reports, and values that people put
    into the wrong field are in it, too."""

    def masked(found: re.Match[str]) -> str:
        return found[0] if is_container(found[1], found[2]) else f"{found[1]}://...@"

    text = re.sub(r"(\w+)://([^/@\s'\"]*|[^/@\s'\":]+:(?!\d+[/\s'\"])[^@\s'\"]*)@", masked, text)
    return re.sub(r"(?i)([?&][\w-]*(?:key|token|secret|signature|password|sig)[\w-]*=)[^&\s'\"]+", r"\1...", text)


def excerpt(value: str, most: int = 200) -> str:
    """A value that stands in a message, as much of it as a person reads."""
    return value if len(value) <= most else f"{value[: most // 2]}... ({len(value):,} characters)"


def near(value: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """' (did you mean X?)' where something known resembles `value`, else nothing."""
    close = difflib.get_close_matches(value, list(known), n=1, cutoff=likeness)
    return f" (did you mean '{close[0]}'?)" if close else ""


def few(several: Sequence[object], most: int, between: str = ", ", more: str = " and {} more") -> str:
    """The first of many, as many as a person reads, and how many more there are."""
    rest = more.format(len(several) - most) if len(several) > most else ""
    return between.join(map(str, several[:most])) + rest


DISK_REMEDIES = {
    errno.ENOSPC: "free some space, or name another directory",
    errno.EDQUOT: "free some space, ask for a larger quota, or name another directory",
    errno.EFBIG: "the file is larger than is allowed there: raise the limit, or name another directory",
    errno.EROFS: "make it writable, or name another directory",
    errno.EACCES: "give yourself the right to read and write there, or name another directory",
    errno.EPERM: "give yourself the right to read and write there, or name another directory",
    errno.EISDIR: "it is a directory: name a file in it",
    errno.ENOTDIR: "a part of its path is a file: name another directory",
    errno.EIO: "the disk, or the machine that it belongs to, fails: see the system's log (dmesg)",
    errno.ESTALE: "the server of this file was restarted, or the file was replaced: mount the directory again",
}
"""Errors of disks that a user can put right."""


def disk_trouble(error: BaseException) -> str | None:
    """What to tell of an error that a full, read-only or forbidden disk caused, in whichever process; else None."""
    for one in causes(error):
        code = getattr(one, "errno", None) or _code_in(str(one))
        if (isinstance(one, OSError) and code in DISK_REMEDIES) or code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            path = getattr(one, "filename2", None) or getattr(one, "filename", None) or _path_in(str(one))
            notes = [note for cause in causes(error) for note in getattr(cause, "__notes__", ())]
            where = f"{path or notes[0]}: " if path or notes else ""
            return f"{where}{os.strerror(code)}: {DISK_REMEDIES[code]}; the same command resumes from what is recorded"
    return None


REFUSED = ("ACCESS_DENIED", "HTTP status 401", "HTTP status 403", "ExpiredToken", "INVALID_ACCESS_KEY_ID",
           "InvalidAccessKeyId", "EXPIRED_TOKEN", "SIGNATURE_DOES_NOT_MATCH", "REQUEST_EXPIRED")  # fmt: skip
"""What a store says of credentials that it does not take (any more)."""
BROKEN_OFF = "Failed to flush response stream"
"""What Arrow's client of S3 says of an answer whose connection died in its middle."""
STORE = re.compile(r"AWS Error|google::cloud::|GcsFileSystem|Azure|object store|Generic (S3|GCS) error|HTTP status")


def store_trouble(error: BaseException) -> str | None:
    """What to tell of an error of an object store, in whichever process; else None."""
    for one in causes(error):
        text = str(one).strip()
        if not isinstance(one, OSError) and not hasattr(one, "cause"):
            continue
        if not STORE.search(text):
            continue
        line = next(found for found in text.splitlines() if STORE.search(found)).strip()
        if any(word in line for word in REFUSED):
            remedy = "the credentials are not accepted, or no longer: renew them, or grant them access"
        elif BROKEN_OFF in line:
            remedy = "the connection broke in the middle of an answer"
        else:
            remedy = "it was retried for as long as run.store_patience allows: check that the store is available"
        return f"object store: {line}; {remedy}. Nothing that is recorded is lost; the same command resumes from there"
    return None


INSIDE = ("cause", "health_check_failure", "controller_failure")
"""Where Ray keeps what an error of another process came from; Ray Train that of a worker, and of its controller."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from; Ray keeps that in INSIDE, and Ray Train of several workers in
    `worker_failures`."""
    seen: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        one = todo.pop(0)
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            yield one
            todo += [*(getattr(one, name, None) for name in INSIDE), one.__cause__, one.__context__]
            todo += getattr(one, "worker_failures", {}).values()


def lost_by_ray(error: BaseException) -> BaseException | None:
    """What in an error says that Ray lost a process, a node or itself; None where our own code raised it."""
    ray = sys.modules.get("ray")
    if ray is None:
        return None
    plain = ray.exceptions.RayError  # itself it stands for an error of ours that could not be pickled
    lost = (e for e in causes(error) if isinstance(e, plain) and type(e) is not plain)
    ours = ray.exceptions.RayTaskError, ray.exceptions.UserCodeException  # what Ray Data wraps a function's error in
    return next((e for e in lost if not isinstance(e, ours)), None)


def _code_in(text: str) -> int | None:
    """Errors that crossed processes are text alone."""
    return next((code for code in DISK_REMEDIES if os.strerror(code) in text), None)


def _path_in(text: str) -> str | None:
    found = re.search(r"'(/[^']+)'", text)
    return found[1] if found else None
