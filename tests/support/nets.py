"""A network of one's own for the tests: small enough that a whole run takes seconds."""

import os
import signal
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

OWN = (
    "tests.support.nets:tiny",
    "tests.support.nets:dropping",
    "tests.support.nets:tied",
    "tests.support.nets:fragile",
    "tests.support.nets:slow",
    "tests.support.nets:normed",
    "tests.support.nets:skipping",
    "tests.support.nets:shifted",
)
"""The names under which files that ask for these networks are trusted."""
STRUCK = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "struck"
"""Exists once a `fragile` network has ended its process; where the workers of these tests alone look."""


def tiny(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    channels = input_shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def dropping(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Draws random numbers of its own in training."""
    return tiny(num_classes=num_classes, input_shape=input_shape).insert(8, nn.Dropout(0.2))


def tied(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Two layers share their weights."""
    network = nn.Sequential(
        nn.Conv2d(input_shape[0], 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, num_classes),
    )  # fmt: skip
    network[5].weight = network[3].weight
    return network


def normed(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Batch norms that see one value a channel of every sample."""
    return tiny(num_classes=num_classes, input_shape=input_shape).insert(8, nn.BatchNorm1d(16))


class Fragile(nn.Sequential):
    """Ends its own process, once, in the middle of its second epoch of three batches."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls == 5 and not STRUCK.exists():
                STRUCK.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def fragile(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return Fragile(*tiny(num_classes=num_classes, input_shape=input_shape))


STEPS_LOG = Path(os.environ.get("PREEMPTION_STEPS_LOG", os.devnull))


class Slow(nn.Sequential):
    """Takes a while for a step of training, and notes the process that did it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not x.is_meta:
            time.sleep(0.05)
            with STEPS_LOG.open("a") as log:
                log.write(f"{os.getpid()}\n")
        return super().forward(x)


def slow(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return Slow(*tiny(num_classes=num_classes, input_shape=input_shape))


class Skipping(nn.Module):
    """Leaves out one of its layers in half of the steps, as networks with stochastic depth do."""

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        *body, head = tiny(num_classes=num_classes, input_shape=input_shape)
        self.body, self.sometimes, self.head = nn.Sequential(*body), nn.Linear(16, 16), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if not self.training or torch.rand(()) < 0.5:
            x = x + self.sometimes(x)
        return self.head(x)


def skipping(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return Skipping(num_classes, input_shape)


class Shifted(nn.Sequential):
    """Makes a tensor of its own, which is float32 whatever its weights are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - torch.full((1, x.shape[1], 1, 1), 0.5, device=x.device))


def shifted(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return Shifted(*tiny(num_classes=num_classes, input_shape=input_shape))


def convolutional(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Ends in a pooling, not in a linear classifier."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, num_classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def grouped(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Normalizes over groups of channels: what it computes changes with their number."""
    network = tiny(num_classes=num_classes, input_shape=input_shape)
    network[1] = nn.GroupNorm(2, 8)
    return network
