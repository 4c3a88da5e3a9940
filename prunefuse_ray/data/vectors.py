"""Vectors to tensors: embeddings that people have already, and other columns of numbers; no decoding, no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prunefuse_ray.errors import Rejected

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class VectorForm:
    """What every vector is brought to: `length` numbers, float32 as they lie in memory, uint8 (length, 4)."""

    length: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.length, 4)

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """A vector is to networks an image of one pixel."""
        return (self.length, 1, 1)

    def decode(self, value: object) -> npt.NDArray[np.uint8]:
        """One vector as uint8 (length, 4). Rejected where it is none, of another length, or not of finite numbers."""
        return self.read(value)[0]

    def read(self, value: object) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
        """The same, and what was converted: nothing that is counted; wider numbers become 32 bits wide."""
        numbers = vector(value)
        if len(numbers) != self.length:
            raise Rejected(f"{len(numbers)} numbers, expected {self.length}")
        if not np.isfinite(numbers).all():
            raise Rejected("NaN or infinite numbers")
        return np.ascontiguousarray(numbers, "<f4").view(np.uint8).reshape(self.shape), ()

    def inputs(self, values_ND4: Tensor) -> Tensor:
        """uint8 (N, D, 4) as the network's input: float32 (N, D, 1, 1)."""
        import torch

        return values_ND4.contiguous().view(torch.float32).reshape(len(values_ND4), self.length, 1, 1)

    def numbers(self, values_ND4: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 (N, D, 4) as float32 (N, D)."""
        return np.ascontiguousarray(values_ND4).view("<f4").reshape(len(values_ND4), self.length)


def vector(value: object) -> npt.NDArray[np.float32]:
    """A list or an array of numbers as float32 (D,). Rejected where it is none."""
    if value is None:
        raise Rejected("no vector (null)")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            numbers = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise Rejected(f"{type(value).__name__}, expected a list of numbers") from error
    if numbers.ndim != 1:
        raise Rejected(f"an array of shape {numbers.shape}, expected a list of numbers")
    return numbers


def shown(value: object) -> str:
    """A vector for people: its first few numbers, and how many there are."""
    numbers = vector(value)
    more = f", ... ({len(numbers)} numbers)" if len(numbers) > SHOWN else ""
    return ", ".join(f"{number:.4g}" for number in numbers[:SHOWN]) + more
