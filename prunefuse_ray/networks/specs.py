"""What a network is and how it is pruned: two small validated values that survive a JSON file."""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, Self

from prunefuse_ray.errors import PruneFuseError, near
from prunefuse_ray.networks.importance import IMPORTANCES

VALUES = 256
"""How many different bytes there are."""


class NetworkError(PruneFuseError):
    """A network cannot be built, pruned, fused or read. Where a field of the configuration decides, it is named."""


class PrecisionError(NetworkError):
    """A network does not run in a precision; in float32 it does."""


def unsuited(module: str, why: str) -> NetworkError:
    """The error for an architecture that cannot be used because of one of its modules."""
    return NetworkError(f"network.architecture: module {module or '(the network itself)'}: {why}")


def plain(error: BaseException) -> str:
    """What an error of another library says, without the colors that some put in for terminals."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).strip() or type(error).__name__


def first_line(error: BaseException) -> str:
    return plain(error).splitlines()[0]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fields_from_json(kind: type, data: object) -> dict[str, Any]:
    """The keyword arguments of the dataclass `kind` in `data`; unknown and missing keys raise NetworkError."""
    if not isinstance(data, dict):
        raise NetworkError(f"{kind.__name__}: expected a JSON object, found {type(data).__name__}")
    known = {field.name for field in fields(kind)}
    if set(data) != known:
        raise NetworkError(
            f"{kind.__name__}: unknown keys {sorted(set(data) - known)}, missing keys {sorted(known - set(data))}"
        )
    return dict(data)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network by name, for a number of classes and one shape of input."""

    architecture: str
    """`resnet56`, `wrn28_10`, `vgg16_bn`, `textngrams`, ...; `torchvision:NAME`, `timm:NAME`;
    `package.module:function`, called as `function(num_classes=..., input_shape=...)`; `transformers:KIND`, with its
    `config`."""
    classes: int
    """Number of classes, at least 2."""
    input_shape: tuple[int, ...]
    """(C, H, W) of an image, (L,) of a sequence of bytes or tokens, (L, 2) of L n-grams with their counts, any shape of
    real numbers; without the batch dimension."""
    config: str | None = None
    """Of an encoder of the library transformers its configuration, JSON with sorted keys (`encoders.encoder_spec`)."""
    real: bool = False
    """Whether these are real numbers where they might be others; images always are."""
    values: int = VALUES
    """Where (L,) are whole numbers, they are below this."""

    def __post_init__(self) -> None:
        if not isinstance(self.architecture, str) or not self.architecture:
            raise NetworkError(f"architecture: {self.architecture!r} is not a name")
        if not _is_int(self.classes) or self.classes < 1:
            raise NetworkError(f"classes: {self.classes!r} is not an integer of at least 1")
        shape = self.input_shape
        known = isinstance(shape, tuple) and (
            len(shape) in (1, 3) or (len(shape) == 2 and shape[1] == 2) or (self.real and len(shape) > 0)
        )
        if not known or not all(_is_int(n) and n > 0 for n in shape):
            raise NetworkError(
                f"input_shape: {shape!r} is none of (channels, height, width), (length,) and (length, 2) in positive "
                "integers"
            )
        if not _is_int(self.values) or self.values < 1:
            raise NetworkError(f"values: {self.values!r} is not an integer of at least 1")

    def to_json(self) -> dict[str, Any]:
        tree = asdict(self) | {"input_shape": list(self.input_shape)}
        if not self.real:
            del tree["real"]
        if self.values == VALUES:
            del tree["values"]
        if self.config is None:
            del tree["config"]
        else:
            tree["config"] = json.loads(self.config)
        return tree

    @classmethod
    def from_json(cls, data: object) -> Self:
        later = {"config": None, "real": False, "values": VALUES}
        values = _fields_from_json(cls, {**later, **data} if isinstance(data, dict) else data)
        if values["config"] is not None:
            values["config"] = json.dumps(values["config"], sort_keys=True)
        if isinstance(values["input_shape"], list):
            values["input_shape"] = tuple(values["input_shape"])
        return cls(**values)


def unknown_importance(name: object) -> str:
    return f"unknown importance '{name}'{near(str(name), IMPORTANCES)}; known: {', '.join(IMPORTANCES)}"


@dataclass(frozen=True, kw_only=True)
class PruningSpec:
    """How a dense network is pruned: every prunable group of channels loses the same share."""

    ratio: float
    """Share of the channels removed, 0 <= ratio < 1. About (1 - ratio)^2 of the parameters and MACs remain."""
    importance: str = "magnitude"
    """One of IMPORTANCES; the least important channels go. `magnitude` is the L2 norm."""
    steps: int = 1
    """Prune in this many equal steps; later steps see importances of the already smaller network."""
    round_to: int | None = None
    """Keep the nearest multiple of this many channels, of layers that have more than so many."""
    seed: int = 0
    """Seeds the `random` importance."""

    def __post_init__(self) -> None:
        if not isinstance(self.ratio, (int, float)) or isinstance(self.ratio, bool) or not 0 <= self.ratio < 1:
            raise NetworkError(f"ratio: {self.ratio!r} is not a share of channels; use 0 <= ratio < 1")
        if self.importance not in IMPORTANCES:
            raise NetworkError(f"importance: {unknown_importance(self.importance)}")
        if not _is_int(self.steps) or self.steps < 1:
            raise NetworkError(f"steps: {self.steps!r} is not an integer of at least 1")
        if self.round_to is not None and (not _is_int(self.round_to) or self.round_to < 1):
            raise NetworkError(f"round_to: {self.round_to!r} is neither null nor an integer of at least 1")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**63:
            raise NetworkError(f"seed: {self.seed!r} is not an integer in [0, 2^63)")

    def kept(self, channels: int, step: int | None = None) -> int:
        """How many of `channels` remain after `step` (default: the last one), at least one.

        Exact: floor(channels * (1 - ratio)) in rational arithmetic on the decimal that the user wrote, because in
        floating point 160 * (1 - .8) is 31.99... With `round_to` the nearest multiple of it below `channels`; a layer
        that holds no such multiple keeps the exact number.
        """
        if self.ratio == 0:
            return channels
        share = Fraction(repr(float(self.ratio))) * Fraction(step or self.steps, self.steps)
        kept = max(1, math.floor(channels * (1 - share)))
        if self.round_to is None or (most := (channels - 1) // self.round_to * self.round_to) == 0:
            return kept
        return min(most, max(1, (2 * kept + self.round_to) // (2 * self.round_to)) * self.round_to)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        return cls(**_fields_from_json(cls, data))
