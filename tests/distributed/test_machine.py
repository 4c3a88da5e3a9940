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
