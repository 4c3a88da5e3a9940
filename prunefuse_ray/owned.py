"""Temporary folders that a killed process leaves, and the next one removes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

OWNED = "owned"
"""In a folder, unless it is kept on purpose; locked for as long as its process, or one that inherited it, lives."""


LONGEST_BASE = 20
"""Bytes of the path of the folder for temporary files. Ray's sockets lie up to 87 bytes below it
(prunefuse-XXXXXXXX/ray/session_TIME_PID/sockets/plasma_store), and the path of a socket has 107 at most."""


def short_base() -> str:
    """Where a folder for Ray's sessions can lie."""
    base = tempfile.gettempdir()
    return base if len(os.fsencode(base)) <= LONGEST_BASE else "/tmp"


def make(base: str, prefix: str = "") -> tuple[Path, IO[str]]:
    """A folder of this user's alone below `base`, and the file whose being open keeps it. Those of this user's commands
    that live no more are removed."""
    _remove_ownerless(Path(base))
    path = Path(tempfile.mkdtemp(prefix=f"prunefuse-{prefix}", dir=base))
    lock = (path / "being-made").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(lock.name, path / OWNED)
    return path, lock


def _remove_ownerless(base: Path) -> None:
    for folder in base.glob("prunefuse-*"):
        with suppress(OSError):  # it is somebody's, or somebody else removes it
            if folder.lstat().st_uid == os.getuid() and (folder / OWNED).exists():
                with (folder / OWNED).open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
