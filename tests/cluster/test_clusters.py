"""Clusters of several hosts, each with its own network address and /tmp: `make test-multinode`, as root on Linux.

The hosts are namespaces of this machine (tests/support/hosts.py); no other Ray is seen, or ended, from inside them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.hosts import NAMESPACES, ROOT, environment

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module", autouse=True)
def namespaces():
    try:
        subprocess.run([*NAMESPACES, "ip", "link", "set", "lo", "up"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"namespaces cannot be had here (root and iproute2 are needed): {error}")


def saw(scenario: str, shared: Path) -> dict:
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.support.hosts", scenario, str(shared)],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    return json.loads((shared / "seen.json").read_text())


def chosen(run: Path) -> list[list[str]]:
    return [pq.read_table(f)["id"].to_pylist() for f in sorted(run.glob("rounds/*/selected.parquet"))]


def test_two_hosts_run_a_submitted_job_that_is_stopped_and_resumed(tmp_path):
    seen = saw("two_hosts", tmp_path)
    code, output = seen["no token"]
    assert code != 0
    assert "Authentication failed" in output
    code, output = seen["own disk"]
    assert code != 0
    assert "run.directory: '/tmp/runs/digits' is on this machine's disk only: 10.77.0.2" in output
    assert seen["nothing left"]
    assert "was stopped" in seen["stopped"]
    code, output = seen["resumed"]
    assert code == 0, output
    assert "finished; " in output
    assert "succeeded" in output
    assert seen["trained once"]
    assert [len(ids) for ids in chosen(tmp_path / "runs" / "first")] == [40, 20]
    events = [json.loads(line) for line in (tmp_path / "runs/first/events.jsonl").read_text().splitlines()]
    assert len({e["job"] for e in events}) == 2
    assert [e["event"] for e in events][-2:] == ["phase_done", "run_done"]


def test_the_autoscaler_brings_machines_for_scoring_and_takes_them_back(tmp_path):
    seen = saw("autoscaling", tmp_path)
    code, output = seen["job"]
    assert code == 0, output
    assert "do not fit 0 CPUs and 0 GPUs" in output
    assert "waiting for the autoscaler" in output
    scoring = [n["scoring"] for n in seen["nodes"]]
    assert (scoring[0], max(scoring), scoring[-1]) == (0, 2, 0)
    assert seen["nodes"][-1]["training"] == 0
    assert [len(ids) for ids in chosen(tmp_path / "runs" / "grown")] == [40, 20]


@pytest.mark.faults
def test_machines_lost_in_training_and_in_scoring_change_no_choice(tmp_path):
    seen = saw("lost", tmp_path)
    assert seen["whole"][0] == 0, seen["whole"][1]
    assert seen["lost in training"]
    assert seen["lost in scoring"]
    assert "succeeded" in seen["struck"]
    assert chosen(tmp_path / "runs" / "struck") == chosen(tmp_path / "runs" / "whole")
