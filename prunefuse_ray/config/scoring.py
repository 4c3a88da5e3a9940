"""The sections `scoring` and `prepared`: how the pool is scored, and what is kept of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from prunefuse_ray.config.names import Named
from prunefuse_ray.config.section import PathOrUri, Positive, Section, min_max
from prunefuse_ray.networks.backends import AUTO, BACKENDS

BackendName = Annotated[
    str,
    Named(
        registry=BACKENDS,
        describe=lambda backend: backend.help,
        besides={AUTO: "the fastest one for a large pool, torch for a small one"},
    ),
]


class Scoring(Section):
    """How the pool is scored."""

    actors: tuple[Positive, Positive] | None = None
    """Smallest and largest number of scoring actors. Default: one, and as many as the cluster's CPUs (GPUs) can hold,
    including those that its autoscaler could add."""
    cpus: Positive = 1
    """CPUs, and threads, of one scoring actor. It fixes the arithmetic: change it and last bits of scores change."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one scoring actor; with a GPU, images are decoded by separate CPU tasks."""
    batch_size: Positive | None = None
    """Samples per forward pass; the last one is padded, so every pass has the same shape. Default: measured once for
    a large pool, 64 for a small one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of scoring (training has its own). auto: bf16 for a large pool where the device has it in hardware."""
    backend: BackendName = AUTO
    """What runs the network."""
    features: bool = False
    """Also write each sample's penultimate features (float32)."""

    @field_validator("actors")
    @classmethod
    def _ordered(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        return None if value is None else min_max(value)

    @field_validator("gpus")
    @classmethod
    def _of_one_or_whole(cls, value: float) -> float:
        if value > 1 and value % 1:
            raise ValueError(f"{value:g} is neither a share of one GPU nor a whole number of GPUs: give e.g. 0.5 or 2")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Scoring:
        self.check_backend(features=self.features)
        return self

    def check_backend(self, *, features: bool) -> None:
        """ValueError where the backend that was asked for cannot do what else is asked for."""
        if self.backend == AUTO:
            return
        device, precision = "cuda" if self.gpus else "cpu", None if self.precision == "auto" else self.precision
        if why := BACKENDS[self.backend].refusal(device=device, precision=precision, features=features):
            raise ValueError(f"scoring.backend: {why}")


class Prepared(Section):
    """The prepared pool: samples as they were decoded, kept for later passes, trials and trainings."""

    format: Literal["auto", "raw", "jpeg", "none"] = "auto"
    """raw (decoded bytes, exact), jpeg (photographs in about a fifth of the room; quality 95, which changes pixels a
    little), none (decode in every pass). auto: raw for images that are worth it."""
    directory: PathOrUri | None = None
    """Where it lies: a local path (each node then has its own), or a URI. Default: .prepared in run.directory, shared
    by all runs there."""
    max_gb: Annotated[float, Field(gt=0)] | None = None
    """GiB that all prepared pools there may take. What does not fit is decoded in every pass; the least recently used
    pools are removed. Default: 100, and no more than half of what is free on a local disk."""
