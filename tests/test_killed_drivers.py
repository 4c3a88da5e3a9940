"""The driver dies, at random moments, again and again: nothing is lost, doubled or asked for twice.

KILLS=200: so many kills on a local folder, and as many on an object store.
"""

import json
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import suppress

import pyarrow.parquet as pq
import pytest

from prunefuse_ray.method.steps import LABEL, steps
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.leftovers import leftovers
from prunefuse_ray.run.processes import descendants
from prunefuse_ray.storage import Place
from tests.support.disturbed import DIGITS, KILLS, at, counted, finish, start
from tests.support.disturbed import undisturbed as of_nobody
from tests.support.s3 import runs_in

pytestmark = [pytest.mark.faults, pytest.mark.timeout(24 * 3600)]

AROUND = re.compile(
    r"(config\.yaml|pool\.json|pool/.*|scoring\.json|events\.jsonl|rejected\.parquet|result\.json|report\.html"
    r"|\.lock|\.drivers/.*|(rounds/\d+/)?commits/\w+\.json|rounds/\d+/metrics\.json)"
)
"""What a run directory has beside the files of its commits."""


MOMENTS = (0.5, 0.55)
"""In the short version, of an undisturbed run's time: two moments in the work of one run."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    where, seconds = of_nobody(tmp_path_factory)
    return Place.at(str(where)) / "digits", seconds


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def runs(request, tmp_path):
    with runs_in(request.param, tmp_path) as where:
        yield where


def labels(root: Place):
    return [
        pq.read_table(f.path, filesystem=root.fs).to_pylist()
        for f in root.files(recursive=True)
        if f.path.endswith("/labels.parquet")
    ]


LAST = re.compile(r"\.events\.jsonl\.[0-9a-f]+\.tmp")
"""Of a driver that was killed as its complete run wrote the last event: none comes after it."""


def chosen(root: Place):
    return pq.read_table((root / "selected.parquet").path, filesystem=root.fs).to_pylist()


def check(root: Place, undisturbed: Place) -> None:
    """The same samples, each label once, and no file that nobody owns."""
    assert chosen(root) == chosen(undisturbed)
    assert labels(root) == labels(undisturbed)
    ids = [row["id"] for table in labels(root) for row in table]
    assert len(ids) == len(set(ids))
    ledger = Ledger(root)
    commits = [c for step in steps(ledger.read_config()) if (c := ledger.committed(step))]
    owned = {path for commit in commits for path in commit.files}
    names = (f.path.removeprefix(root.path + "/") for f in root.files(recursive=True))
    files = [name for name in names if not LAST.fullmatch(name)]
    assert [f for f in files if f not in owned and not AROUND.fullmatch(f)] == []
    assert leftovers(files, commits) == []
    asked = Counter(
        (e["round"]) for e in map(json.loads, (root / "events.jsonl").read_bytes().decode().splitlines())
        if e["event"] == "phase_done" and e["phase"] == LABEL
    )  # fmt: skip
    assert max(asked.values()) == 1, "a label was recorded twice"


def test_a_driver_that_is_killed_again_and_again(undisturbed, runs, tmp_path, record_property):
    whole, seconds = undisturbed
    if not Place.at(runs).local:  # where a run takes longer, else most kills would come as it starts
        own = finish(start((*DIGITS, "--run.name", "n0"), tmp_path / "said", runs), tmp_path / "said", time.monotonic())
        assert own.code == 0, own.errors
        check(Place.at(runs) / "n0", whole)
        seconds = own.seconds
    rng, hit, done = random.Random(0), Counter(), 0
    kills = KILLS or len(MOMENTS)
    run = 0
    while done < kills or run == 0:
        run += 1
        root = Place.at(runs) / f"n{run}"
        code, errors = None, ""
        while code != 0:
            process = start((*DIGITS, "--run.name", root.name, "--run.retries", "0"), tmp_path / "said", runs)
            part = rng.random() if KILLS else MOMENTS[min(done, len(MOMENTS) - 1)]
            sooner = 1 if KILLS else 0.7 ** (run - 1)  # a run may be over before it is hit
            until = time.monotonic() + part * seconds * sooner
            while process.poll() is None and (done >= kills or time.monotonic() < until):
                time.sleep(0.02)
            driver = [p.pid for p in descendants(process.pid) if p.parent == process.pid]
            if process.poll() is None and driver:
                hit[at(root)] += 1
                done += 1
                with suppress(ProcessLookupError):
                    os.kill(driver[0], signal.SIGKILL)
            ended = finish(process, tmp_path / "said", time.monotonic())
            code, errors = ended.code, ended.errors
            assert code in (0, 1), errors
            assert "Traceback" not in errors
        check(root, whole)
        print(f"run {run}: {done} kills\n{counted(hit)}", flush=True)
    record_property("phases", counted(hit))
