"""One driver per run directory, on storage without locks of its own: numbered claims, the highest of which counts.

`.drivers/000007.json` is the claim of the seventh driver. It is made by a write that fails where the file exists, so of
two that start at once one gets it; its owner keeps renewing it. After a kill nobody renews it, and the next driver
claims the next number once it has watched the claim stand still, or at once where it sees that the process lives no
more on this machine. No clocks are compared; only changes are watched.

A driver that stood still for long (SIGSTOP, a suspended machine) finds the next number taken and stops. What it was
about to write when it was stopped is refused by the store (`put`): every file is written on condition that nobody has
written it since it was looked at, before the look at the claims.

Where the storage has no conditional writes, the run says so (`guarantee`), and what is left is: the second of two
drivers finds the other's name in the claim, at its next look, and stops.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

from prunefuse_ray import progress
from prunefuse_ray.conditional import Changed, Conditional, Missing, conditional
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.run.processes import machine, started
from prunefuse_ray.storage import Place

logger = logging.getLogger(__name__)

RENEWED_EVERY = 10.0
"""Seconds between two renewals."""
PATIENCE = 45.0
"""Seconds without a renewal after which a lease belongs to nobody: some failed writes, each tried for half a minute."""
SETTLES_IN = 2.0
"""Seconds between a claim and reading it again, for two that claim at once, where no condition decides between them."""


class Lease:
    """The claim of this process on one run directory. Not reentrant."""

    def __init__(self, root: Place) -> None:
        self.root = root
        self.name = secrets.token_hex(8)
        self.number = 0
        self._since = datetime.now(UTC).isoformat("T", "seconds")
        self._store: Conditional | None = None
        self._lost = False
        self._renewals = 0
        self._end = threading.Event()
        self._renewing = threading.Lock()
        """Some stores show a file empty while it is replaced."""
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease. Waits up to PATIENCE where another process left one behind; LedgerError where it lives."""
        before = self._newest()
        if before:
            self._wait_until_free(before)
        self.number = before + 1
        try:
            self._store = conditional(self.root)
            self._claim()
        except (Missing, OSError) as error:  # OSError: the storage is reached otherwise, only not for such writes
            self._store = None
            logger.warning(self.guarantee(str(error).partition("\n")[0]))
            self._write()
            time.sleep(SETTLES_IN)
        self.check()
        for number in self._numbers():  # those that are there, and not every number that ever was
            if number <= before:
                self._place(number).delete()
        # Last: of a lease that was not taken after all nobody could end the renewals.
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another driver has taken over, as far as the last renewal has seen."""
        return self._lost

    def guarantee(self, why: str) -> str:
        """What is missing where the storage has no conditional writes."""
        return (
            f"run.directory: '{self.root.path}' has no conditional writes ({why}): two drivers of this "
            f"run that start within {SETTLES_IN:.0f} s of each other, or one that wakes up after it was suspended for "
            f"more than {PATIENCE:.0f} s, may write once more before they notice the other"
        )

    def release(self) -> None:
        """Give the lease back, if it is still ours. The claim stays: no number is used twice."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self._mine():
            self._write(released=True)

    def check(self) -> None:
        """LedgerError unless the lease is ours: to be asked before anything is recorded."""
        if self._lost or not self._mine():
            self._lost = True
            raise self.refusal()

    def put(self, place: Place, data: bytes) -> None:
        """Write a file whole. LedgerError where the lease is lost, or another driver has written the file since this
        began; then nothing was written."""
        if self._store is None:
            self.check()
            place.write_bytes(data)
            return
        expected = self._store.version(place)  # before the look at the claims: who has taken over may write after it
        self.check()
        try:
            self._store.put(place, data, expected)
        except Changed as error:
            self._lost = True
            raise self.refusal() from error

    # --- claims ---

    def _place(self, number: int) -> Place:
        return self.root / ".drivers" / f"{number:06d}.json"

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        names = [f.base_name.partition(".")[0] for f in (self.root / ".drivers").files()]
        return [int(n) for n in names if n.isdigit()]

    def _claim(self) -> None:
        """Make the claim; LedgerError where another process was quicker, Missing where it could be made twice."""
        assert self._store is not None
        place = self._place(self.number)
        try:
            self._store.put(place, self._content(), None)
            if (before := self._store.version(place)) is None:
                raise Changed(place.path)  # who came after, while this process slept, has removed it
            self._store.put(place, self._content(), before)
        except Changed as error:
            raise self.refusal() from error
        for outdated in (None, before):  # stores know both conditions, one, or none
            try:
                self._store.put(place, b"{}", outdated)
            except Changed:
                continue
            raise Missing("the store ignores the condition")

    def _mine(self) -> bool:
        with self._renewing:
            found = self._read(self.number)
        # The highest claim, not only whether the next one is there: who came after that has removed it.
        return found is not None and found.get("owner") == self.name and self._newest() == self.number

    def _wait_until_free(self, number: int) -> None:
        first, waited, said = self._read(number), 0.0, False
        if first is not None and _dead(first):
            return
        step = min(1.0, PATIENCE / 10)
        with progress.waiting():
            while first is not None and not first.get("released"):
                time.sleep(step)
                waited += step
                found = self._read(number)
                if found is not None and found.get("released") and found.get("owner") == first.get("owner"):
                    return  # it has ended meanwhile
                if found != first or self._newest() > number:
                    raise self.refusal()
                if waited > PATIENCE:
                    return
                if not said and waited > min(RENEWED_EVERY / 3, PATIENCE / 3):
                    said = True
                    logger.warning(
                        f"{self.root.path}: {_who(first)} began to drive this run at {first.get('since')} and has not "
                        f"been heard from since; this one takes over in {PATIENCE - waited:.0f} s unless it is"
                    )

    def _keep(self) -> None:
        while not self._end.wait(RENEWED_EVERY):
            try:
                if not self._mine():
                    self._lost = True
                    return
                self._write()
            except OSError:  # the store is away: the next renewal, or the next check, will tell
                continue

    def _content(self, *, released: bool = False) -> bytes:
        self._renewals += 1
        tree = {
            "owner": self.name,
            "host": socket.gethostname(),
            "machine": machine(),
            "process": os.getpid(),
            "started": started(os.getpid()),
            "since": self._since,
            "renewals": self._renewals,
            "released": released,
        }
        return (json.dumps(tree, indent=1) + "\n").encode()

    def _write(self, *, released: bool = False) -> None:
        with self._renewing:
            self._place(self.number).write_bytes(self._content(released=released))

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            found = json.loads(self._place(number).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def refusal(self) -> LedgerError:
        holder = self._read(self._newest()) or {}
        who = f" ({_who(holder)}, since {holder['since']})" if holder.get("since") else ""
        return LedgerError(
            f"{self.root.path}: another process is driving this run{who}; wait for it, or end it. Nothing of this "
            "run was changed by this one meanwhile"
        )


def _dead(claim: dict[str, Any]) -> bool:
    """Whether the owner of a claim was a process of this machine, and is no more. Of others nothing is known."""
    here = bool(machine()) and claim.get("machine") == machine()
    return here and started(claim["process"]) != claim["started"]


def _who(claim: dict[str, Any]) -> str:
    return f"process {claim.get('process')} on {claim.get('host')}"
