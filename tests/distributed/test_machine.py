"""What a machine says of itself."""

from pathlib import Path

import pytest

from prunefuse_ray.distributed import machine

INTEL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (INTEL, "Intel(R) Xeon(R)", {"fpu", "avx2", "amx_bf16"}),
        (ARM, None, {"fp", "asimd", "bf16"}),
        (None, None, set()),
    ],
)
def test_the_cpu_is_what_linux_says(monkeypatch, text, name, flags):
    def read(path):
        assert str(path) == "/proc/cpuinfo"
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read)
    found, sets = machine.cpu()
    assert found == name if name else found
    assert sets == flags


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/a.slice/b\n", "/sys/fs/cgroup/a.slice/cpu.max": "350000 100000\n"}, 3),
        (
            {
                "/proc/self/cgroup": "4:memory:/docker/0\n3:cpu,cpuacct:/docker/0\n1:name=systemd:/x:y\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "200000\n",
            },
            2,
        ),
        (
            {
                "/proc/self/cgroup": "1:cpu:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
    ids=["version 2", "half a core", "no limit", "of a group above", "version 1 in a container", "-1", "not Linux"],
)
def test_the_cores_of_a_container_are_those_of_its_quota(monkeypatch, files, quota):
    def read(path):
        if str(path) not in files:
            raise FileNotFoundError
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.cores() == (quota or 64)


@pytest.mark.parametrize(("limit", "bytes_"), [("1073741824\n", 2**30), ("max\n", None)])
def test_the_memory_of_a_container_is_that_of_its_limit(monkeypatch, limit, bytes_):
    files = {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": limit}

    def read(path):
        if str(path) not in files:
            raise FileNotFoundError
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 2**24)
    assert machine.memory() == (bytes_ or 2**36)
