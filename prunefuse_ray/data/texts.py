"""Texts to tensors: the bytes of the text, so that no tokenizer is needed; no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prunefuse_ray.errors import Rejected

if TYPE_CHECKING:
    from torch import Tensor


REPLACED = "\ufffd"
"""What stands in a text for bytes that are not UTF-8."""


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """What every text is brought to: its first `length` bytes in UTF-8, uint8 (length,), filled up with zeros."""

    length: int

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    @property
    def network_shape(self) -> tuple[int]:
        return (self.length,)

    def decode(self, value: object) -> npt.NDArray[np.uint8]:
        """One text (a string or UTF-8 bytes) as uint8 (length,). Rejected where there is none."""
        return self.read(value)[0]

    def read(self, value: object) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
        """The same, and what was converted, by kind."""
        if value is None:
            raise Rejected("no text (null)")
        if not isinstance(value, str | bytes):
            raise Rejected(f"{type(value).__name__}, expected text")
        data = value.encode(errors="replace") if isinstance(value, str) else value
        if not data.strip():
            raise Rejected("an empty text")
        codes = np.zeros(self.length, dtype=np.uint8)
        codes[: len(data)] = np.frombuffer(data, dtype=np.uint8)[: self.length]
        kinds = ["text cut"] if len(data) > self.length else []
        if isinstance(value, str) and REPLACED in value:
            kinds.append("bytes that are not UTF-8 replaced")
        return codes, tuple(kinds)

    def inputs(self, codes_NL: Tensor) -> Tensor:
        """uint8 (N, L) as the network's input: int64 (N, L)."""
        return codes_NL.long()
