"""Errors of disks are told in one message, in whichever process they came up; other errors are not touched."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import ray

from prunefuse_ray import cli
from prunefuse_ray.errors import ConfigError, disk_trouble, few, without_secrets
from prunefuse_ray.storage import Place
from tests.support import ROOT


def test_a_full_disk_is_told_with_its_place():
    with pytest.raises(OSError, match="No space") as caught, open("/dev/full", "w") as file:
        file.write("x")
    caught.value.add_note("run directory runs/a")
    assert disk_trouble(caught.value).startswith("run directory runs/a: No space left on device: free some space")
    with (
        pytest.raises(OSError, match="No space") as caught,
        pafs.LocalFileSystem().open_output_stream("/dev/full") as stream,
    ):
        stream.write(b"x" * 10_000_000)
    assert "No space left on device" in disk_trouble(caught.value)


def test_a_value_of_any_length_is_told_in_a_line():
    said = str(ConfigError(f"base.preset {'a' * 100_000}: no such preset; known: digits"))
    assert said.startswith("base.preset aaa")
    assert said.endswith(" characters) no such preset; known: digits")
    assert len(said) < 300
    path = f"/{'p' * 254}" * 16  # as long as paths may be
    assert path in str(ConfigError(f"pool.path: {path} is not there"))


def test_other_errors_are_bugs():
    assert disk_trouble(ValueError("x")) is None
    assert disk_trouble(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert disk_trouble(ValueError("Permission denied")) is None
    error = ValueError()
    error.__cause__ = OSError(errno.EROFS, "Read-only file system", "/mnt/x")
    assert disk_trouble(error).startswith("/mnt/x: Read-only file system: make it writable")


def test_the_error_of_another_process_is_the_same(local_ray):
    @ray.remote
    def write():
        Path("/dev/full").write_text("x")

    with pytest.raises(OSError, match="No space") as caught:
        ray.get(write.remote())
    assert "No space left on device" in disk_trouble(caught.value)


def test_the_command_ends_with_code_2(monkeypatch, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("run: {}\n")

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "c.yaml"))

    monkeypatch.setattr("prunefuse_ray.config.files.load_config", refuse)
    monkeypatch.setattr("prunefuse_ray.commands.report.main", refuse)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "c.yaml: Permission denied: give yourself the right" in capsys.readouterr().err


def test_credentials_in_a_message_are_taken_out():
    said = str(ConfigError("pool.source: 's3://user:secret@b/x?region=eu&X-Amz-Signature=secret' is none"))
    assert said == "pool.source: 's3://...@b/x?region=eu&X-Amz-Signature=...' is none"


RUN = """
mount -t tmpfs -o size=$0 tmpfs /mnt
run="$1 -m prunefuse_ray run --run.directory /mnt/runs --selection.budgets [20,40] --training.epochs 4 \
    --finetuning.epochs 4 --training.min_steps 0 --finetuning.min_steps 0"
$run; echo "full: $?"
mount -o remount,ro /mnt; $run; echo "read-only: $?"
mount -o remount,rw,size=60m /mnt; $run; echo "larger: $?"
"""


def may_mount() -> bool:
    """Root in a container often may not."""
    tried = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True).returncode == 0


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0 or not may_mount(), reason="mounts a file system")
@pytest.mark.parametrize("size", ["2500k", *(pytest.param(s, marks=pytest.mark.slow) for s in ("300k", "4000k"))])
def test_a_run_on_a_full_or_read_only_disk_ends_in_a_message_and_goes_on(size):
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-m", "bash", "-c", RUN, size, sys.executable], capture_output=True, text=True,
                          env=env, cwd=ROOT)  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.startswith(("full:", "read-only:", "larger:"))] == [
        "full: 2", "read-only: 2", "larger: 0",
    ], done.stdout + done.stderr  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize(
    ("several", "text"),
    [([], ""), ([1], "1"), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b and 1 more"), (range(9), "0, 1 and 7 more")],
)
def test_of_many_the_first_few_and_the_number_of_the_rest(several, text):
    assert few(several, 2) == text


def test_a_directory_in_the_place_of_a_file_is_told(tmp_path):
    with pytest.raises(OSError, match="Is a directory") as caught:
        Place.at(str(tmp_path)).write_bytes(b"")
    assert disk_trouble(caught.value).startswith(f"{tmp_path}: Is a directory: it is a directory: name a file in it")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_told(code):
    said = disk_trouble(OSError(code, os.strerror(code), "/data/a.png"))
    assert said.startswith(f"/data/a.png: {os.strerror(code)}: ")
    assert said.endswith("the same command resumes from what is recorded")


def test_a_password_with_slashes_is_masked_and_a_port_is_none():
    assert "cdEF" not in without_secrets("'s3://AKIAX:ab/cdEF@bucket/x' is no place")
    assert without_secrets("http://h:8080/a@b") == "http://h:8080/a@b"
