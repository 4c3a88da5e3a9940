"""`prunefuse doctor`: what this machine or cluster can do, what a run would choose here, and what would make it faster.

What is found (`look`) and what follows from it (`advice`) are apart; nothing is changed anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from prunefuse_ray.commands.terminal import console, quiet
from prunefuse_ray.distributed.security import secure
from prunefuse_ray.networks.backends import BACKENDS
from prunefuse_ray.storage import Place

GIB = 2**30
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""Sets that decide how fast networks run on CPUs."""
TRIAL_BYTES = 64 * 2**20
SLOW_DISK = 200.0
"""MiB/s below which reading a prepared pool may take longer than a proxy takes to score it."""
LITTLE_SHARED = 0.25
"""Share of the memory that Ray's object store wants of shared memory; with less of it, it goes to disk."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found."""

    python: str
    ray: str
    torch: str
    cpu: str
    cores: int
    instructions: tuple[str, ...]
    fast_bf16: bool
    """Whether bfloat16 runs in hardware: of the GPUs if there are any, else of the CPU."""
    memory_gib: float
    shared_memory_gib: float | None
    """Of /dev/shm; None where there is none."""
    gpus: tuple[str, ...]
    backends: dict[str, str]
    """Name -> what it lacks here; '' where nothing."""
    decode_ms: float
    """Of a JPEG of 500 x 375 pixels to 224, one core."""
    directory: str
    write_mib: float
    read_mib: float
    """Per second, of one file of 64 MiB in that directory; reading may come from the machine's memory."""
    cluster: dict[str, float] | None
    """nodes, CPUs, GPUs of the Ray cluster that RAY_ADDRESS names."""


def main(argv: Sequence[str]) -> int:
    """What this machine, or the cluster that RAY_ADDRESS names, can do; what a run would choose here; what would make
    it faster."""
    parser = argparse.ArgumentParser(prog="prunefuse doctor", description=main.__doc__)
    parser.add_argument("--directory", default="runs", help="where runs would lie: a path or URI, whose speed is tried")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    arguments = parser.parse_args(list(argv))
    secure()
    quiet()
    facts = look(arguments.directory)
    advised = advice(facts)
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(facts), "advice": advised}, sort_keys=True))
        return 0
    table = Table(box=box.SIMPLE, show_header=False)
    for pair in rows(facts):
        table.add_row(*map(escape, pair))
    console.print(table)
    for line in advised or ["nothing to improve was found"]:
        console.print(f"- {line}", markup=False)
    return 0


def advice(facts: Facts) -> list[str]:
    """What would make runs faster here, or keep them from failing."""
    told = []
    if facts.gpus:
        told.append("a run uses no GPU by itself: set workers.gpu: true to train on it, scoring.gpus: 1 to score on it")
    if not facts.gpus and facts.fast_bf16 and (lack := facts.backends.get("openvino")):
        told.append(f"this CPU computes bfloat16 in hardware, and OpenVINO scores fastest on it: {lack}")
    if not facts.gpus and not facts.fast_bf16:
        told.append("scoring and training run in float32: this CPU has no bfloat16 in hardware")
    shared = facts.shared_memory_gib
    if shared is not None and shared < LITTLE_SHARED * facts.memory_gib:
        told.append(
            f"/dev/shm has {shared:.1f} of {facts.memory_gib:.0f} GiB: Ray would keep objects on disk; in a container "
            f"give --shm-size={facts.memory_gib * 0.3:.0f}g"
        )
    if facts.read_mib < SLOW_DISK:
        told.append(
            f"{facts.directory} reads {facts.read_mib:.0f} MiB/s: set prepared.directory to a faster disk, or "
            "prepared.format to jpeg"
        )
    if facts.decode_ms > 2.0:
        told.append(
            f"a photograph takes {facts.decode_ms:.1f} ms to decode, once: leave room for the prepared pool "
            "(prepared.max_gb)"
        )
    if facts.cluster is not None and facts.cluster["cpus"] < 3:
        told.append("the cluster has fewer than 3 CPUs: a scoring actor and the tasks that feed it would not fit")
    return told


def rows(facts: Facts) -> list[tuple[str, str]]:
    """The facts in words."""
    precision = "bfloat16" if facts.fast_bf16 else "float32"
    found = [
        ("Python, Ray, torch", f"{facts.python}, {facts.ray}, {facts.torch}"),
        ("CPU", f"{facts.cores} cores of {facts.cpu} ({', '.join(facts.instructions) or 'none of the known sets'})"),
        ("memory", f"{facts.memory_gib:.0f} GiB"),
        ("GPUs", ", ".join(facts.gpus) or "none"),
        ("large pools are scored in", precision),
        *((f"backend {name}", lack or "yes") for name, lack in facts.backends.items()),
        ("decoding, JPEG 500 x 375 to 224", f"{facts.decode_ms:.1f} ms on one core"),
        (facts.directory, f"writes {facts.write_mib:,.0f} MiB/s, reads {facts.read_mib:,.0f} MiB/s"),
    ]
    if facts.shared_memory_gib is not None:
        found.insert(3, ("shared memory", f"{facts.shared_memory_gib:.1f} GiB"))
    if facts.cluster is not None:
        told = ", ".join(f"{value:g} {name}" for name, value in facts.cluster.items())
        found.append(("cluster", told))
    return found


def look(directory: str) -> Facts:
    """Find out. Takes some seconds, writes one file of 64 MiB into `directory` and removes it."""
    import torch

    from prunefuse_ray.distributed.machine import cores, cpu, memory
    from prunefuse_ray.networks.precision import fast_bf16

    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    write, read = _speed(Place.at(directory))
    shm = Path("/dev/shm")
    name, flags = cpu()
    return Facts(
        python=platform.python_version(),
        ray=version("ray"),
        torch=torch.__version__,
        cpu=name,
        cores=cores(),
        instructions=tuple(known for known in INSTRUCTIONS if known in flags),
        fast_bf16=fast_bf16(torch.device("cuda" if gpus else "cpu")),
        memory_gib=memory() / GIB,
        shared_memory_gib=shutil.disk_usage(shm).total / GIB if shm.is_dir() else None,
        gpus=gpus,
        backends={n: backend.lacks() or "" for n, backend in BACKENDS.loadable().items()} | BACKENDS.broken(),
        decode_ms=_decode_ms(),
        directory=directory,
        write_mib=write,
        read_mib=read,
        cluster=_cluster(),
    )


def _decode_ms() -> float:
    from PIL import Image

    from prunefuse_ray.data.images import ImageForm

    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (25, 33, 3), np.uint8))
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=90)
    form, data = ImageForm(height=224, width=224, channels=3, crop_ratio=0.875), buffer.getvalue()
    return 1_000 * min(_seconds(lambda: form.decode(data)) for _ in range(10))


def _speed(place: Place) -> tuple[float, float]:
    """MiB per second, (written, read), of one file in a directory, which need not exist."""
    made, parent = [], place
    while "/" in parent.path and not parent.exists():
        made.append(parent)
        parent = parent.parent
    file = place / f".doctor-{os.getpid()}"
    data = np.random.default_rng(0).bytes(TRIAL_BYTES)
    try:
        seconds = _seconds(lambda: file.write_bytes(data)), _seconds(file.read_bytes)
    finally:
        file.delete()
        for directory in made:  # only what is empty: a run may have begun there meanwhile
            if directory.local:
                with suppress(OSError):
                    os.rmdir(directory.path)
            elif not directory.files(recursive=True):
                directory.delete()
    write, read = (TRIAL_BYTES / 2**20 / s for s in seconds)
    return write, read


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _cluster() -> dict[str, float] | None:
    if not os.environ.get("RAY_ADDRESS"):
        return None
    from prunefuse_ray.distributed.resources import observe, start_ray

    start_ray()
    return observe().to_json()
