"""Texts to tensors, without a tokenizer that would have to be learned or downloaded: hashed n-grams of words, or the
bytes of the text; no Ray."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prunefuse_ray.errors import Rejected

if TYPE_CHECKING:
    from torch import Tensor


REPLACED = "\ufffd"
"""What stands in a text for bytes that are not UTF-8."""
WORDS = re.compile(r"[^\W_\u2e80-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]+(?:['’][^\W_]+)*|[^\W_]|[!?]+")
"""Runs of letters and digits, of scripts without spaces (Chinese, Japanese, Korean) single characters; exclamation and
question marks, which say much of an opinion."""
MOST = 255
"""An n-gram counts at most so often."""


@dataclass(frozen=True, kw_only=True)
class NgramForm:
    """What every text is brought to for `textngrams`: its words and pairs of words in lower case, each once, hashed to
    24 bits (fastText's trick: Bojanowski et al., arXiv 1607.04606) and counted; the first `length` of them, words
    before pairs. uint8 (length, 4): three bytes of hash, the lowest first, one of count; zeros where there are
    fewer."""

    length: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.length, 4)

    @property
    def network_shape(self) -> tuple[int, int]:
        return (self.length, 2)

    def decode(self, value: object) -> npt.NDArray[np.uint8]:
        """One text (a string or UTF-8 bytes) as uint8 (length, 4). Rejected where there is none."""
        return self.read(value)[0]

    def read(self, value: object) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
        """The same, and what was converted, by kind."""
        from sklearn.utils import murmurhash3_32  # a second of imports, which images do not need

        data, kinds = _text(value)
        words = WORDS.findall(data.decode(errors="replace").lower())
        counts = Counter(words)
        counts.update(map(" ".join, itertools.pairwise(words)))
        found = list(counts.items())[: self.length]
        if len(counts) > self.length:
            kinds.append("text cut")
        if not found:
            raise Rejected("no words")
        records = np.zeros(self.length, "<u4")
        records[: len(found)] = [
            (murmurhash3_32(ngram, positive=True) & 0xFFFFFF) | min(count, MOST) << 24 for ngram, count in found
        ]
        return records.view(np.uint8).reshape(self.shape), tuple(kinds)

    def inputs(self, records_NL4: Tensor) -> Tensor:
        """uint8 (N, L, 4) as the network's input: hash and count, int64 (N, L, 2)."""
        import torch

        b0, b1, b2, count_NL = records_NL4.long().unbind(-1)
        hash_NL = b0 + 2**8 * b1 + 2**16 * b2
        return torch.stack([hash_NL, count_NL], -1)


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
        data, kinds = _text(value)
        codes = np.zeros(self.length, dtype=np.uint8)
        codes[: len(data)] = np.frombuffer(data, dtype=np.uint8)[: self.length]
        return codes, (*(("text cut",) if len(data) > self.length else ()), *kinds)

    def inputs(self, codes_NL: Tensor) -> Tensor:
        """uint8 (N, L) as the network's input: int64 (N, L)."""
        return codes_NL.long()


def _text(value: object) -> tuple[bytes, list[str]]:
    """A text in UTF-8, and what was converted. Rejected where there is none."""
    if value is None:
        raise Rejected("no text (null)")
    if not isinstance(value, str | bytes):
        raise Rejected(f"{type(value).__name__}, expected text")
    data = value.encode(errors="replace") if isinstance(value, str) else value
    if not data.strip():
        raise Rejected("an empty text")
    replaced = isinstance(value, str) and REPLACED in value
    return data, ["bytes that are not UTF-8 replaced"] if replaced else []
