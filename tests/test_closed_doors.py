"""What a running command lets others of the machine and of the network reach, seen from outside of it."""

import itertools
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from prunefuse_ray.run.processes import descendants
from tests.support.disturbed import DIGITS, command_line, finish, start, victim

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

LISTENS = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def listening(pids) -> dict[str, set[str]]:
    """Address and port (as the kernel writes them) of each socket of these processes that others can connect to."""
    inodes = {}
    for pid in pids:
        with suppress(OSError):  # it may end meanwhile
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes[os.readlink(file)] = command_line(pid)
    found: dict[str, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = row.split()
            if columns[3] == LISTENS and (owner := inodes.get(f"socket:[{columns[9]}]")):
                found.setdefault(columns[1], set()).add(owner)
    return found


@pytest.fixture
def running(tmp_path):
    """A command in the middle of its work, with workers."""
    own = [word for word in DIGITS if not word.startswith("--finetuning.epochs")]
    # It trains until it is ended.
    process = start((*own, "--scoring.actors", "[1,2]", "--finetuning.epochs=2000"), tmp_path)
    assert victim(process, "scoring actor", time.monotonic() + 120) is not None, (tmp_path / "errors").read_text()
    yield process
    process.terminate()
    finish(process, tmp_path, time.monotonic())


def test_a_run_is_open_to_nobody_else(running):
    tree = [running.pid, *(p.pid for p in descendants(running.pid))]
    found = listening(tree)
    assert len(found) >= 5, "GCS, raylet, agents and workers listen somewhere"
    assert {address: who for address, who in found.items() if address.partition(":")[0] not in LOOPBACK} == {}

    # What others see of it: command lines, and the names of its files.
    lasting = next(pid for pid in tree if "gcs_server " in command_line(pid))
    token = dict(
        line.split("=", 1) for line in Path(f"/proc/{lasting}/environ").read_text().split("\0") if "=" in line
    )["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert not [pid for pid in tree if token in command_line(pid)]
    (gcs,) = {line for pid in tree if "gcs_server " in (line := command_line(pid))}
    session = Path(gcs.partition("--log_dir=")[2].split()[0])
    (private,) = [p for p in session.parents if p.name.startswith("prunefuse-")]
    assert (stat.S_IMODE(private.stat().st_mode), private.stat().st_uid) == (0o700, os.getuid())

    # Who has the token comes in, and nobody else.
    ports = [int(address.partition(":")[2], 16) for address, who in found.items() if gcs in who]
    since = time.monotonic()
    assert any(knock(port, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, seconds=60) for port in ports)
    seconds = 6 * (time.monotonic() - since)
    wrong = ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    with ThreadPoolExecutor() as threads:
        assert not any(threads.map(lambda one: knock(*one, seconds), itertools.product(ports, wrong)))
    right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    assert any(knock(port, right, seconds=60) for port in ports), "the run was over before strangers had knocked"


def knock(port: int, key: dict[str, str], seconds: float) -> bool:
    """Whether the cluster's table of nodes can be read with this key; Ray goes on trying where it cannot."""
    code = f"from ray._raylet import GcsClient; print(len(GcsClient(address='127.0.0.1:{port}').get_all_node_info()))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    try:
        said = subprocess.run(
            [sys.executable, "-c", code], env=clean | key, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return False
    return said.returncode == 0 and int(said.stdout) >= 1
