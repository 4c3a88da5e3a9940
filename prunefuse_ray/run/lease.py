"""One driver per run directory, on storage that has no locks: a small object that its owner keeps renewing.

What it protects from: the same run started twice, on one cluster or on two, by mistake or by a scheduler's retry. The
second driver sees the lease being renewed and refuses. After a kill nobody renews it, and the next driver takes over
once it has watched it stand still. No clocks are compared; only changes are watched.

What it does not: object stores behind pyarrow know no "write only if unchanged", so two drivers that start within the
same second may both write a lease. One of them finds the other's name in it, at its next look, and stops: before every
commit the lease is read again, so a driver that lost it records nothing more. A driver that stood still for longer
than PATIENCE (a suspended machine) loses its lease in the same way.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from prunefuse_ray.errors import LedgerError
from prunefuse_ray.storage import Place

RENEWED_EVERY = 10.0
"""Seconds between two renewals."""
PATIENCE = 45.0
"""Seconds without a renewal after which a lease belongs to nobody: some failed writes, each tried for half a minute."""
SETTLES_IN = 2.0
"""Seconds between taking a lease and reading it again, for two that take it at once."""


class Lease:
    """The claim of this process on one place. Not reentrant."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.name = secrets.token_hex(8)
        self._lost = False
        self._renewals = 0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease. Waits up to PATIENCE where another process left one behind; LedgerError where it lives."""
        self._wait_until_free()
        self._write()
        time.sleep(SETTLES_IN)
        self.check()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        found = self._read()
        if found is not None and found.get("owner") == self.name:
            self.place.delete()

    def check(self) -> None:
        """LedgerError unless the lease is ours: to be asked before anything is recorded."""
        found = self._read()
        if self._lost or found is None or found.get("owner") != self.name:
            self._lost = True
            raise self._refusal(found)

    def _wait_until_free(self) -> None:
        first = self._read()
        waited_since = time.monotonic()
        while first is not None:
            time.sleep(min(1.0, PATIENCE / 10))
            now = self._read()
            if now is None:
                return
            if now != first:
                raise self._refusal(now)
            if time.monotonic() - waited_since > PATIENCE:
                return

    def _keep(self) -> None:
        while not self._end.wait(RENEWED_EVERY):
            try:
                found = self._read()
                if found is None or found.get("owner") != self.name:
                    self._lost = True
                    return
                self._write()
            except OSError:  # the store is away: the next renewal, or the next check, will tell
                continue

    def _write(self) -> None:
        self._renewals += 1
        self.place.write_json(
            {"owner": self.name, "host": socket.gethostname(), "process": os.getpid(), "renewals": self._renewals}
        )

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.place.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def _refusal(self, found: dict[str, Any] | None) -> LedgerError:
        who = f" (process {found.get('process')} on {found.get('host')})" if found else ""
        return LedgerError(
            f"{self.place.path}: another process is driving this run{who}; wait for it, or end it. Nothing of this "
            "run was changed by this one"
        )
