"""The durable state of a run: the only writer of the run directory.

A phase hands over what it produced; the ledger writes it and then, last, one small commit file that lists every file
with its size and digest. A phase without its commit does not exist: its leftovers are removed (or, where a phase can
go on from them, continued) when it runs again, and nothing reads a file that no commit names.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import shlex
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml

from prunefuse_ray import progress
from prunefuse_ray.acquisition import AUTO
from prunefuse_ray.conditional import network_file_system
from prunefuse_ray.config import Config
from prunefuse_ray.config.files import differences, to_tree
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.method.steps import (
    BASELINE,
    FINETUNE,
    FUSE,
    GROW,
    INIT,
    LABEL,
    PRETRAIN,
    REPORT,
    SCORE,
    SYNC,
    Step,
    steps,
)
from prunefuse_ray.run.lease import Lease
from prunefuse_ray.run.recorded import read_recorded
from prunefuse_ray.schemas import CLASS, REJECTED, labels_schema
from prunefuse_ray.storage import Place, below, json_bytes, sealed, synchronize, table_bytes

EXECUTION_FIELDS = (
    "run.directory",
    "run.name",
    "run.retries",
    "run.store_patience",
    "run.trackers",
    "workers.",
    "scoring.actors",
    "prepared.directory",
    "prepared.max_gb",
    "report.",
    "pool.max_rejected",
    "pool.max_overlap",
    "annotation.accept_partial",
    "annotation.wait",
    "annotation.url",
    "annotation.image_",
)
"""What may differ when a run is resumed: it says where, how fast and how patiently, and what is shown beside, not
what."""
OF_MACHINES = ("workers.count",)
"""Of these what the outcome depends on all the same, since machines come and go: over how many workers a batch is
spread, and with it what each batch norm sees. Two runs that differ in it are not the same."""


def decides(field: str) -> bool:
    """Whether the outcome of a run depends on a field."""
    return field in OF_MACHINES or not field.startswith(EXECUTION_FIELDS)


HASHED_HERE = 16 * 2**20
"""Bytes of files that the driver hashes itself."""
LOOKED_AT_ONCE = 24
"""Files that a store is asked for side by side: it answers late, and the scores of ten rounds are thousands."""

Output: TypeAlias = bytes | pa.Table | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The record that a phase is done."""

    step: Step
    files: dict[str, dict[str, Any]]
    """Path below the run directory -> {"size": bytes[, "sha256": hex]}"""
    metrics: dict[str, Any]
    finished: str


KNOWN_SAMPLES = "known/samples"
"""Of `init`: the samples of the labels that were known beforehand."""


class Ledger:
    """A run directory, open for one driver."""

    def __init__(self, root: Place) -> None:
        self.root = root
        self._commits: dict[Step, Commit | None] = {}
        self._lock: IO[str] | None = None
        self._lease: Lease | None = None
        self._checked: set[str] = set()
        """Committed files whose content is known to be what was recorded."""
        self._found: frozenset[str] = frozenset()
        """Paths of the commits (among others) that were there when this process became the driver."""

    # --- opening ---

    @property
    def exists(self) -> bool:
        return (self.root / "config.yaml").exists()

    def create(self, config: Mapping[str, Any], pool: Mapping[str, Any]) -> None:
        """Start a run directory; `config.yaml` is its last file, so a half-made directory is no run."""
        self._put(self.root / "pool.json", json_bytes(pool))
        self._put(self.root / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())

    def read_config(self) -> Config:
        """What the run is, in the terms of this version."""
        return read_recorded(self.root / "config.yaml", Config)

    def budgets_change(self, config: Config) -> bool:
        """Whether a configuration that `check_config` let pass has other label budgets than the run."""
        return self.read_config().selection.budgets != config.selection.budgets

    def complete(self, config: Config) -> bool:
        """Whether the run has come to its end, by a configuration that `check_config` let pass."""
        return self.committed(Step(-1, REPORT)) is not None and not self.budgets_change(config)

    def take_budgets(self, config: Config) -> None:
        """Record the label budgets of a configuration that `check_config` let pass. What the run came to with fewer is
        not its end any more."""
        if self.budgets_change(config):
            old, budgets = self.read_config(), config.selection.budgets
            for end in (Step(-1, REPORT), Step(-1, BASELINE)):
                self.uncommit(end)
            if old.selection.strategy == AUTO and not old.selection.weighs:  # it asks how many labels come next
                for r in range(len(budgets) - 1):
                    asked = old.selection.budgets[r + 1 : r + 2] != budgets[r + 1 : r + 2]
                    if asked and self.committed(Step(r, SCORE)) and not self.committed(Step(r + 1, "select")):
                        self.uncommit(Step(r, SCORE))
            selection = old.selection.model_copy(update={"budgets": budgets})
            tree = to_tree(old.model_copy(update={"selection": selection}))
            self._put(self.root / "config.yaml", yaml.safe_dump(tree, sort_keys=False).encode())

    def read_pool(self) -> dict[str, Any]:
        return (self.root / "pool.json").read_json()

    def check_config(self, config: Config) -> None:
        """Refuse to go on under another configuration, with the difference. Only the rounds that have chosen nothing
        yet may have other label budgets, be fewer (enough is learned) or more."""
        old = self.read_config()
        changed = [d for d in differences(to_tree(old), to_tree(config)) if not d.startswith(EXECUTION_FIELDS)]
        if config.pool.version is not None and str(config.pool.version) == self.read_pool().get("version"):
            changed = [d for d in changed if not d.startswith("pool.version:")]  # what the run has read all along
        for part in ("test", "validation"):  # `growth.check_unchanged` holds the files of that version against these
            if (self.root / "pool" / f"{part}-files.parquet").exists():
                changed = [d for d in changed if not d.startswith(f"pool.{part}_version: None -> ")]
        before, now = old.selection.budgets, config.selection.budgets
        begun = sum(self.committed(Step(r, "select")) is not None for r in range(len(before)))
        if config.pretraining.method == "auto" and self.committed(Step(-1, PRETRAIN)) is not None:
            begun = max(begun, 1)  # the first budget decided by what was pre-trained
        if before[:begun] == now[:begun]:
            changed = [d for d in changed if not d.startswith("selection.budgets:")]
        if changed:
            lines = "\n  ".join(changed)
            raise LedgerError(
                f"{self.root.path} was started with another configuration:\n  {lines}\n"
                "Give the same fields to resume it (where and how fast it runs may change, and the budgets of rounds "
                f"that have selected nothing yet), or another --run.name to start afresh{self._with_labels(config)}"
            )

    def _with_labels(self, config: Config) -> str:
        """How to begin another run with the labels that this one has."""
        if not (self.root / "labels.csv").exists():
            return ""
        labels = below(below(config.run.directory, config.run.name), "labels.csv")
        return f", with the labels of this one: --pool.known_labels {shlex.quote(labels)}"

    def lock(self) -> None:
        """Make this process the only driver of the run directory: by a lock of the filesystem, which a kill releases,
        or on an object store by a lease, which a kill lets run out."""
        if self.root.local:
            self._flock()
        if not self.root.local or network_file_system(self.root.path):
            lease = Lease(self.root)
            lease.acquire()
            self._lease = lease
            files = [*(self.root / "commits").files(), *(self.root / "rounds").files(recursive=True)]
            self._found = frozenset(f.path for f in files)
        self._commits.clear()  # who drove the run until now may have taken back what was looked at before

    def _flock(self) -> None:
        self.root.fs.create_dir(self.root.path, recursive=True)
        self._lock = open(os.path.join(self.root.path, ".lock"), "a+")  # noqa: SIM115 (held while the run lasts)
        try:
            _exclusive(self._lock)
        except BlockingIOError as error:
            self._lock.seek(0)
            who = self._lock.read().strip()
            raise LedgerError(
                f"{self.root.path}: another process is driving this run{f' ({who})' if who else ''}; wait for it, or "
                "end it"
            ) from error
        except OSError as error:
            if network_file_system(self.root.path):
                return  # the lease decides
            raise LedgerError(
                f"run.directory: '{self.root.path}' takes no locks ({error.strerror}), which keep a second driver out; "
                "name a directory on another file system"
            ) from error
        self._lock.truncate(0)
        now = datetime.now(UTC).isoformat("T", "seconds")
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
        self._lock.flush()

    @property
    def driven(self) -> bool:
        """Whether another process drives the run, as far as the lock of a local filesystem tells."""
        if not self.root.local or not (self.root / ".lock").exists():
            return False
        with open(os.path.join(self.root.path, ".lock")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:  # no locks here: nothing is told
                return False
        return False

    def unlock(self) -> None:
        lease, lock, self._lease, self._lock = self._lease, self._lock, None, None
        if lease is not None:
            with suppress(OSError):  # the store is away: the claim runs out, and what ended the run is to be said
                lease.release()
        if lock is not None:
            lock.close()

    @property
    def taken_over(self) -> bool:
        """Whether another driver has taken over, as far as is known here; the store is not asked."""
        return self._lease is not None and self._lease.lost

    def check_lease(self) -> None:
        """LedgerError where this process was the driver and, suspended for long, is so no more: it must neither write
        nor remove anything."""
        if self._lease is not None:
            self._lease.check()

    def _put(self, place: Place, data: bytes) -> None:
        """Write a file of the record; LedgerError where another driver has taken over, however late that is noticed."""
        if self._lease is not None:
            self._lease.put(place, data)
        else:
            place.write_bytes(data)

    # --- steps ---

    def _commit_place(self, step: Step) -> Place:
        return self.root / step.directory / "commits" / f"{step.phase}.json"

    def committed(self, step: Step) -> Commit | None:
        """The step's commit, or None where it has not been done."""
        if self._commits.get(step) is None:
            place = self._commit_place(step)
            if not place.exists():
                return None
            if self._lease is not None and place.path not in self._found:
                # Of a driver that was taken over and had this write under way: its files may be cleared by now. Or of
                # one that has taken over from this one.
                self.check_lease()
                place.delete()
                return None
            self._commits[step] = _read_commit(step, place)
        return self._commits[step]

    def round_done(self, config: Config, round_: int) -> bool:
        """Whether all steps of a round are committed. Where label budgets were added, the one that comes last in the
        plan may have been done before others."""
        return all(self.committed(step) for step in steps(config) if step.round == round_)

    @property
    def network_of_before(self) -> bool:
        """Whether the network that lies here is not the one that the run will come to: it has been given more label
        budgets since, or was ended early."""
        return self.exists and (self.root / "fused").exists() and not self.committed(Step(-1, REPORT))

    def place(self, step: Step, name: str) -> Place:
        """Where a phase may let others write (scores, samples, checkpoints)."""
        return self.root / step.directory / name

    def commit(
        self,
        step: Step,
        outputs: Mapping[str, Output],
        metrics: Mapping[str, Any],
        written: Iterable[pafs.FileInfo] = (),
    ) -> Commit:
        """Write a phase's outputs, then its commit.

        Args:
            outputs: name below the step's directory -> bytes, table or JSON tree.
            written: files that others have written below `place` already.
        """
        self.check_lease()
        files: dict[str, dict[str, Any]] = {}
        for name, output in outputs.items():
            place = self.place(step, name)
            data = to_bytes(output)
            self._put(place, data)
            files[self._below(place.path)] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        found = list(written)
        digests = self._digests([f.path for f in found], sum(f.size for f in found))
        files |= {self._below(f.path): {"size": f.size, "sha256": d} for f, d in zip(found, digests, strict=True)}
        synchronize(Place(self.root.fs, f.path) for f in found)  # or the commit may outlast what it lists
        commit = Commit(
            step=step, files=files, metrics=dict(metrics), finished=datetime.now(UTC).isoformat("T", "seconds")
        )
        self._write(commit)
        return commit

    def adopt(self, step: Step, other: Ledger, name: str) -> Commit:
        """Take over a step that another run has committed, with `shared_from: name` among its figures.

        What the other run has found to be unusable samples of the pool is taken over as well: the step knew of them.
        """
        self.check_lease()
        theirs = other.require(step)
        for path, recorded in theirs.files.items():
            source, target = other.root / path, self.root / path
            target.fs.create_dir(posixpath.dirname(target.path), recursive=True)
            target.fs.copy_file(source.path, target.path)
            if fault := _fault(target, recorded):
                target.delete()
                raise LedgerError(f"{source.path}: is not what {step} recorded ({fault}); restore it")
        synchronize(self.root / path for path in theirs.files)
        self.record_rejected(other.rejected())
        metrics = {"shared_from": name, **theirs.metrics}  # where it was taken over already, its origin stays
        commit = replace(theirs, metrics=metrics)
        self._write(commit)
        return commit

    def _write(self, commit: Commit) -> None:
        tree = {"files": commit.files, "metrics": commit.metrics, "finished": commit.finished}
        self._put(self._commit_place(commit.step), sealed(tree))
        self._checked |= commit.files.keys()
        progress.saved()
        self._commits[commit.step] = commit

    def _below(self, path: str) -> str:
        return path.removeprefix(self.root.path + "/")

    # --- reading what was committed ---

    def require(self, step: Step) -> Commit:
        """The step's commit; LedgerError where it has none."""
        commit = self.committed(step)
        if commit is None:
            raise LedgerError(f"{self.root.path}: {step} has not been committed")
        return commit

    def read_bytes(self, step: Step, name: str) -> bytes:
        """A committed file, checked against its digest."""
        path = self._below(self.place(step, name).path)
        recorded = self.require(step).files.get(path)
        if recorded is None:
            raise LedgerError(f"{self.root.path}: {step} recorded no file '{path}'")
        try:
            data = (self.root / path).read_bytes()
        except OSError as error:
            raise LedgerError(
                f"{self.root.path}: '{path}' of {step} is gone ({error}); restore it from a copy"
            ) from error
        if hashlib.sha256(data).hexdigest() != recorded["sha256"]:
            raise self.damaged(step, path, "its digest differs")
        return data

    def read_table(self, step: Step, name: str, schema: pa.Schema) -> pa.Table:
        table = pq.read_table(pa.BufferReader(self.read_bytes(step, name)))
        if not table.schema.equals(schema):
            raise LedgerError(f"{self.root.path}: '{name}' of {step} has schema {table.schema}, expected {schema}")
        return table

    def tables(self, steps: Iterable[Step], name: str, schema: pa.Schema) -> pa.Table:
        """The tables of this name, as one, of those of the steps that have committed one."""
        commits = [(step, self.committed(step)) for step in steps]
        found = [s for s, c in commits if c is not None and self._below(self.place(s, name).path) in c.files]
        return pa.concat_tables([schema.empty_table(), *(self.read_table(step, name, schema) for step in found)])

    def read_network(self, step: Step, name: str) -> dict[str, bytes]:
        """The files of a network (weights.safetensors, network.json) committed below `name`."""
        prefix = self._below(self.place(step, name).path) + "/"
        names = [p.removeprefix(prefix) for p in self.require(step).files if p.startswith(prefix)]
        return {n: self.read_bytes(step, f"{name}/{n}") for n in names}

    def files(self, step: Step, name: str) -> tuple[list[str], list[int]]:
        """Paths and sizes of the files that `step` committed below `name`."""
        prefix = self._below(self.place(step, name).path) + "/"
        found = {p: f for p, f in self.require(step).files.items() if p.startswith(prefix)}
        if self._lock or self._lease:
            self._check(step, {p: f for p, f in found.items() if p not in self._checked})
        return [(self.root / p).path for p in found], [f["size"] for f in found.values()]

    def _check(self, step: Step, files: Mapping[str, Mapping[str, Any]]) -> None:
        """LedgerError where one of the files is no more what `step` recorded. Once a process: it wrote the others."""
        for path, fault in _faults(self.root, {p: {"size": r["size"]} for p, r in files.items()}).items():
            raise self.damaged(step, path, fault)
        known = {path: recorded for path, recorded in files.items() if "sha256" in recorded}  # 0.1 recorded none
        digests = self._digests([(self.root / p).path for p in known], sum(f["size"] for f in known.values()))
        for (path, recorded), digest in zip(known.items(), digests, strict=True):
            if digest != recorded["sha256"]:
                raise self.damaged(step, path, "its digest differs")
        self._checked |= files.keys()

    def damaged(self, step: Step, path: str, fault: str) -> LedgerError:
        """The refusal to go on with a file that is not what was recorded."""
        return LedgerError(
            f"{self.root.path}: '{path}' is not what {step} recorded ({fault}); restore it from a copy, or start under "
            "another --run.name"
        )

    def _digests(self, paths: list[str], size: int) -> list[str]:
        """Of files that others have written; in tasks where they are large."""
        if size <= HASHED_HERE:
            return _digests_of(paths, self.root)
        from prunefuse_ray.distributed.remote import over_files  # readers of a run need no Ray

        return [d for some in over_files(_digests_of, paths, self.root) for d in some]

    def damages(self, step: Step, *, hashed: int = 0) -> dict[str, str]:
        """Path -> what is wrong with it, of the files that `step` committed.

        Args:
            hashed: bytes of a file up to which its content is compared, not only its size.
        """
        recorded = self.require(step).files
        return _faults(self.root, {p: r if r["size"] <= hashed else {"size": r["size"]} for p, r in recorded.items()})

    def uncommit(self, step: Step) -> None:
        """Take back a commit, so that its step is done again."""
        self.check_lease()
        self._commit_place(step).delete()
        self._commits.pop(step, None)

    def labels(self, steps: Sequence[Step], id_type: str, label_type: pa.DataType = CLASS) -> pa.Table:
        """All labels recorded so far: (id, label, source)."""
        schema = labels_schema(id_type, label_type)
        tables = [self.read_table(s, "labels.parquet", schema) for s in steps if self.committed(s)]
        return pa.concat_tables([schema.empty_table(), *tables])

    # --- rejected samples ---

    def rejected(self) -> pa.Table:
        """Samples found unusable so far: (id, reason)."""
        place = self.root / "rejected.parquet"
        return place.read_table(REJECTED) if place.exists() else REJECTED.empty_table()

    def rejected_with(self, found: pa.Table) -> pa.Table:
        """Those and the ones that were found (known ids stay as they are), by id."""
        known = self.rejected()
        new = found.filter(pc.invert(pc.is_in(found["id"], value_set=known["id"].combine_chunks())))
        return pa.concat_tables([known, new.cast(REJECTED)]).sort_by("id") if new.num_rows else known

    def record_rejected(self, found: pa.Table) -> int:
        """Add rejected samples; returns how many there are now."""
        self.check_lease()
        known, both = self.rejected(), self.rejected_with(found)
        if both.num_rows > known.num_rows:
            self._put(self.root / "rejected.parquet", table_bytes(both))
        return both.num_rows

    # --- plain files of the run ---

    def write_json(self, name: str, tree: Mapping[str, Any]) -> None:
        self.write_file(name, json_bytes(tree))

    def write_text(self, name: str, text: str) -> Place:
        return self.write_file(name, text.encode())

    def write_file(self, name: str, data: bytes) -> Place:
        """A file that no commit names: for those who watch the run."""
        place = self.root / name
        self._put(place, data)
        return place

    def append_line(self, name: str, line: str) -> None:
        """Add a line to a small text file. The file is written anew: object stores cannot append."""
        place = self.root / name
        before = place.read_bytes() if place.exists() else b""
        self.write_file(name, before + line.encode() + b"\n")

    def clear(self, step: Step, *names: str) -> None:
        """Remove leftovers of a phase that has no commit, or that its commit no longer needs."""
        self.check_lease()
        for name in names:
            self.place(step, name).delete()


def _exclusive(file: IO[str], tries: int = 5) -> None:
    """Lock a file; tried again for a moment, since `driven` looks by a shared lock."""
    for left in reversed(range(tries)):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.05)


def _read_commit(step: Step, place: Place) -> Commit:
    tree = place.read_sealed()
    try:
        return Commit(step=step, files=tree["files"], metrics=tree["metrics"], finished=tree["finished"])
    except KeyError as error:
        raise LedgerError(
            f"{place.path}: is not a commit ({error} is missing); restore it or start under another --run.name"
        ) from error


def _fault(place: Place, recorded: Mapping[str, Any]) -> str:
    """What is wrong with a file; '' where it is as recorded."""
    info = place.fs.get_file_info(place.path)
    if info.type != pafs.FileType.File:
        return "it is gone"
    if info.size != recorded["size"]:
        return f"it has {info.size} bytes in place of {recorded['size']}"
    if "sha256" in recorded and place.digest() != recorded["sha256"]:
        return "its digest differs"
    return ""


def _faults(root: Place, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Path below the root -> what is wrong with it, of those that are not as recorded."""
    with ThreadPoolExecutor(LOOKED_AT_ONCE) as threads:
        faults = threads.map(lambda path: _fault(root / path, files[path]), files)
        return {path: fault for path, fault in zip(files, faults, strict=True) if fault}


def _digests_of(paths: list[str], where: Place) -> list[str]:
    return [Place(where.fs, path).digest() for path in paths]


def to_bytes(output: Output) -> bytes:
    match output:
        case bytes():
            return output
        case pa.Table():
            return table_bytes(output)
        case _:
            return json_bytes(output)


def phases_of(config: Config, ledger: Ledger, round_: int) -> list[Step]:
    """The phases of a round: those that are planned, and those that it has done under other label budgets."""
    planned = [step for step in steps(config) if step.round == round_]
    others = (Step(round_, phase) for phase in (GROW, SCORE, FUSE, FINETUNE, SYNC))
    return planned + [step for step in others if step not in planned and ledger.committed(step)]


def label_count(config: Config, ledger: Ledger, round_: int) -> int:
    """Labels after a round: as recorded, or as planned where it is not labeled yet."""
    commit = ledger.committed(Step(round_, "label"))
    return (commit.metrics if commit else {}).get("labels", config.selection.budgets[round_])


def labels_so_far(config: Config, ledger: Ledger, round_: int) -> int:
    """Labels that are recorded up to a round; before it is labeled itself those of the rounds before it."""
    for r in range(round_, -1, -1):
        if ledger.committed(Step(r, LABEL)):
            return label_count(config, ledger, r)
    begun = ledger.committed(Step(-1, INIT))
    known = begun.metrics.get("inputs", {}).get("pool.known_labels") if begun else None
    return (known or {}).get("labels", 0)
