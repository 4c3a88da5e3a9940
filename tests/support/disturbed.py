"""A command line in a process of its own, and something done to one of its processes at a moment of choice."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from prunefuse_ray.run.processes import descendants
from prunefuse_ray.storage import Place
from tests.support import ROOT

KILLS = int(os.environ.get("KILLS", "0"))
"""How many moments of each kind are tried; 0: the few for which a run of the tests has the time."""

DIGITS = (
    "run", "--selection.budgets", "[50,100,150]", *(() if KILLS else ("--report.baseline", "false")),
    *(f"--{part}.{field}={value}" for part in ("training", "finetuning")
      for field, value in (("epochs", 4), ("min_steps", 0), ("warmup_epochs", 1))),
)  # fmt: skip
"""The embedded run, with trainings of seconds."""

ROLES = {
    "starting worker": "default_worker.py",
    "idle worker": "ray::IDLE",
    "raylet": "raylet/raylet",
    "GCS": "gcs/gcs_server",
    "dashboard agent": "ray::DashboardAgent",
    "runtime environment agent": "ray::RuntimeEnvAgent",
    "log monitor": "log_monitor.py",
    "dashboard": "dashboard/dashboard.py",
    "autoscaler's monitor": "_private/monitor.py",
    "scoring actor": "ray::MapWorker",
    "train worker": "ray::RayTrainWorker",
    "train controller": "ray::TrainController",
    "trial": "ray::drive",
}
"""What stands in the command line of such a process."""


@dataclass(frozen=True)
class Outcome:
    """How a disturbed command ended."""

    code: int
    seconds: float
    """From the disturbance to the end."""
    errors: str


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def start(arguments, directory: Path, runs: str | None = None) -> subprocess.Popen:
    """The command line as a person gives it; its messages in a file `errors` of the directory, where its runs go, too,
    unless `runs` says otherwise."""
    directory.mkdir(parents=True, exist_ok=True)
    without = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_TMPDIR"}
    variables = {k: v for k, v in os.environ.items() if k not in without}
    with open(directory / "errors", "w") as errors, open(directory / "output", "w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "prunefuse_ray", *arguments, "--run.directory", runs or str(directory)],
            env={**variables, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=output, stderr=errors,
        )  # fmt: skip


def victim(process: subprocess.Popen, role: str, until: float) -> int | None:
    """A process of a running command's that has the role and is not stopped, as soon as there is one."""
    while process.poll() is None and time.monotonic() < until:
        found = [p.pid for p in descendants(process.pid) if p.state not in "ZT" and ROLES[role] in command_line(p.pid)]
        if found:
            return random.choice(found)
        time.sleep(0.05)
    return None


def finish(process: subprocess.Popen, directory: Path, since: float, timeout: float = 300) -> Outcome:
    try:
        code = process.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()  # its driver is ended by that, and Ray with it
        process.wait()
        code = HUNG
    return Outcome(code, time.monotonic() - since, (directory / "errors").read_text())


HUNG = 999
RAYS_LIMIT = "Ray failed (Exception: The current node timed out"
"""Ray gives a start up after 30 seconds, which beside other work it may need; a command tries again, and says so."""


def messages(outcome: Outcome) -> list[str]:
    """The lines of a command's messages but those of a machine that has too much to do."""
    return [line for line in outcome.errors.splitlines() if RAYS_LIMIT not in line]


def undisturbed(factory) -> tuple[Path, float]:
    """(directory, seconds) of a run that nothing happens to; of all workers of pytest one carries it out."""
    base = factory.getbasetemp()
    where = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed-digits"
    where.mkdir(exist_ok=True)
    with open(where / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (where / "seconds").exists():
            shutil.rmtree(where / "run", ignore_errors=True)  # of a worker that did not like it
            done = finish(start(DIGITS, where / "run"), where / "run", time.monotonic())
            assert done.code == 0, done.errors
            assert messages(done) == [], "a run that nothing happens to says nothing there"
            (where / "seconds").write_text(str(done.seconds))
    return where / "run", float((where / "seconds").read_text())


def phase(directory: Path) -> str:
    """What the run in the directory is at, by its events."""
    for events in directory.glob("*/events.jsonl"):
        last = events.read_text().strip().rpartition("\n")[2]
        if '"phase_started"' in last:
            return last.partition('"phase": "')[2].partition('"')[0]
        return "between phases"
    return "before the first phase"


def at(root: Place) -> str:
    """What the run is at, by the last of its events; a kill may come before the first."""
    try:
        last = json.loads((root / "events.jsonl").read_bytes().decode().splitlines()[-1])
    except OSError:
        return "start"
    return last["phase"] if last["event"] == "phase_started" else "between phases"


def round_of(directory: Path) -> int:
    """The round that the run in the directory is in; -1 before the first."""
    return max((int(p.name) for p in directory.glob("*/rounds/*")), default=-1)


def selected(directory: Path) -> list[dict]:
    """All that the run in the directory selected."""
    (found,) = directory.glob("*/selected.parquet")
    return pq.read_table(found).to_pylist()


def counted(outcomes: Counter) -> str:
    return "\n".join(f"{count:5d}  {what}" for what, count in sorted(outcomes.items(), key=str))


INTERRUPTS = {signal.SIGINT: 130, signal.SIGTERM: 143}
