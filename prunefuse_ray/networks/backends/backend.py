"""The seam for scoring backends: what a backend is, and what it can be asked for.

To add one: write it in a file of its own and name it in `backends/__init__.py` (or register it from elsewhere, see
`prunefuse_ray/registry.py`). Validation, help, `auto` and error texts follow from the entry. A configuration is checked
by these entries without torch: what a backend runs on is imported in its `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from prunefuse_ray.networks.specs import NetworkError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Runner = Callable[["Tensor"], "Tensor | tuple[Tensor, Tensor]"]
"""Inputs (N, ...) on the device, all of one shape, to logits (N, C), of a committee's `Members` to (M, N, C); where
features are asked for, to (logits, features (N, D)), see `inference.WithFeatures`."""

DEVICES = {"cpu": "CPUs", "cuda": "GPUs"}
"""Types of torch devices that score, and their names in messages."""


class Build(Protocol):
    def __call__(
        self,
        network: nn.Module,
        *,
        precision: str,
        device: torch.device,
        example: Tensor,
        threads: int,
        features: bool,
    ) -> Runner:
        """The network, which the backend may keep or change, ready to run in evaluation mode.

        Args:
            precision: one of the backend's `precisions`.
            device: of one of the backend's `devices`.
            example: an input; all others have its shape, type and device.
            threads: for what has threads of its own; torch's are the process's.
            features: also give what the classifier reads.

        Raises:
            NetworkError: the backend cannot follow this network.
            PrecisionError: only not in this precision.
        """


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What runs a network for scoring."""

    name: str
    about: str
    """What it runs, and how: one line of help."""
    build: Build
    devices: tuple[str, ...] = ("cpu", "cuda")
    precisions: tuple[str, ...] = ("fp32", "bf16")
    """The first is the one for a pass in which nothing speaks for another."""
    features: bool = True
    """Whether it can also give what the network's classifier reads."""
    concurrent: bool = False
    """Its runner may be called by several threads at once. `build` then takes their number, too: `callers`; each has
    `threads` threads of its own."""
    portable: bool = False
    """In float32 on CPUs its kernels are those of the plain network, so that its distance from it is the same, up to
    rounding, on any machine."""
    auto: Mapping[str, float] = field(default_factory=dict)
    """Where `scoring.backend: auto` tries it: type of device -> multiply-accumulates of a pass from which on that is
    worth its time."""
    lacks: Callable[[], str | None] = lambda: None
    """What it needs and this machine does not have, with the remedy; None where nothing is missing."""

    def refusal(self, *, device: str, precision: str | None = None, features: bool = False) -> str | None:
        """Why it cannot be used like that, with the remedy, or None where it can.

        Args:
            device: type of the device.
            precision: None where it is the backend's choice.
            features: the penultimate features are needed, too.
        """
        if device not in self.devices:
            gpus = "above 0" if device == "cpu" else "to 0"
            return f"{self.name} runs on {self.runs_on} alone: set scoring.gpus {gpus}, or scoring.backend to auto"
        if precision is not None and precision not in self.precisions:
            return (
                f"{self.name} computes in {' and '.join(self.precisions)} alone, not in {precision}: set "
                "scoring.precision or scoring.backend to auto"
            )
        if features and not self.features:
            return (
                f"{self.name} gives no features, which scoring.features or the selection asks for: set scoring.backend "
                "to auto"
            )
        return None

    def runner(
        self,
        network: nn.Module,
        *,
        precision: str,
        device: torch.device,
        example: Tensor,
        threads: int,
        features: bool = False,
        callers: int = 1,
    ) -> Runner:
        """What `build` makes, for one thread or, of a `concurrent` backend, for several.

        Raises:
            NetworkError: it cannot be made of this network, or not here.
        """
        if why := self.refusal(device=device.type, precision=precision, features=features) or self.lacks():
            raise NetworkError(f"scoring.backend: {why}")
        more = {"callers": callers} if self.concurrent else {}
        return self.build(
            network, precision=precision, device=device, example=example, threads=threads, features=features, **more
        )

    @property
    def limits(self) -> str:
        """What it does not do, in words."""
        limits = [f"{self.runs_on} only"] if len(self.devices) < len(DEVICES) else []
        limits += [f"{self.precisions[0]} only"] if len(self.precisions) == 1 else []
        limits += [] if self.features else ["no features"]
        return ", ".join(limits)

    @property
    def help(self) -> str:
        """Its line of help, with what it is limited to."""
        return f"{self.about} ({self.limits})" if self.limits else self.about

    @property
    def runs_on(self) -> str:
        """Its devices in words."""
        return " and ".join(DEVICES.get(device, device) for device in self.devices)
