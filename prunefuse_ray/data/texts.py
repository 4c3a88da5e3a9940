"""Texts to tensors: hashed n-grams of words or the bytes of the text, for which no tokenizer has to be learned or
downloaded; or the tokens of an encoder's tokenizer. No Ray."""

from __future__ import annotations

import functools
import itertools
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunefuse_ray.errors import ConfigError, Rejected

if TYPE_CHECKING:
    from torch import Tensor


REPLACED = "\ufffd"
"""What stands in a text for bytes that are not UTF-8."""


def _marks() -> str:
    """Vowel signs and accents that stand alone, which `\\w` leaves out, for a class of characters."""
    runs: list[list[int]] = []
    for code in (code for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M"):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in runs)


MARKS = _marks()
ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
"""Scripts without spaces: Thai, Lao, Burmese, Khmer, Chinese, Japanese, Korean."""
WORDS = re.compile(rf"(?:[^\W_{ALONE}][{MARKS}]*)+(?:['’](?:[^\W_][{MARKS}]*)+)*|[^\W_][{MARKS}]*|[!?]+")
"""Runs of letters with their marks and digits, of scripts without spaces single characters; exclamation and question
marks, which say much of an opinion."""
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
        words = WORDS.findall(unicodedata.normalize("NFC", data.decode(errors="replace").lower()))
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


@dataclass(frozen=True, kw_only=True)
class TokenForm:
    """What every text is brought to for an encoder of the library transformers: its first `length` tokens, those that
    the tokenizer adds at begin and end among them. uint8 (length, 3): the number of the token + 1 in three bytes, the
    lowest first; zeros behind the end."""

    length: int
    tokenizer: str = field(repr=False)
    """The content of a `tokenizer.json`. It travels with the form, so that a saved network needs no folder."""

    @property
    def shape(self) -> tuple[int, int]:
        return (self.length, 3)

    @property
    def network_shape(self) -> tuple[int]:
        return (self.length,)

    @property
    def fewest(self) -> int:
        """Tokens that hold one of a text beside those that the tokenizer adds."""
        return int(_tokenizer(self.tokenizer, self.length).num_special_tokens_to_add(False)) + 1

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return _tokenizer(self.tokenizer, self.length).get_vocab_size()

    def decode(self, value: object) -> npt.NDArray[np.uint8]:
        """One text (a string or UTF-8 bytes) as uint8 (length, 3). Rejected where there is none."""
        return self.read(value)[0]

    def read(self, value: object) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
        """The same, and what was converted, by kind."""
        data, kinds = _text(value)
        found = _tokenizer(self.tokenizer, self.length).encode(data.decode(errors="replace"))
        if all(found.special_tokens_mask):
            raise Rejected("no tokens")
        if found.overflowing:
            kinds.append("text cut")
        return self.of_tokens(np.array([found.ids]))[0], tuple(kinds)

    def of_tokens(self, tokens_NT: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Numbers of T <= length tokens each as uint8 (N, length, 3)."""
        records_NL = np.zeros((len(tokens_NT), self.length), "<u4")
        records_NL[:, : tokens_NT.shape[1]] = tokens_NT + 1
        return np.ascontiguousarray(records_NL.view(np.uint8).reshape(len(tokens_NT), self.length, 4)[..., :3])

    def inputs(self, records_NL3: Tensor) -> Tensor:
        """uint8 (N, L, 3) as the network's input: the number of each token + 1, int64 (N, L)."""
        b0, b1, b2 = records_NL3.long().unbind(-1)
        return b0 + 2**8 * b1 + 2**16 * b2


def tokenizer_of(content: bytes, name: str) -> str:
    """The tokenizer in a file: a `tokenizer.json`, or what lies beside a trained network and holds one
    (`sample_format.PREPROCESSING_FILE`). ConfigError where it is none.

    Args:
        name: of the file, for messages.
    """
    try:
        text = content.decode()
        tree = json.loads(text)
        if isinstance(tree, dict) and tree.get("kind") == "tokens":
            text = tree["form"]["tokenizer"]
        _tokenizer(text, 1)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"pool.tokenizer: '{name}' is no tokenizer.json ({error}); where a folder has none, "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        ) from error
    return text


@functools.lru_cache(maxsize=4)
def _tokenizer(content: str, length: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            "pool.text_form: tokens needs the transformers extra; pip install 'prunefuse-ray[transformers]'"
        ) from error
    try:
        made = Tokenizer.from_str(content)
        made.no_padding()
        # Fewer than the tokens that it adds itself to every text it cannot cut to.
        made.enable_truncation(max(length, made.num_special_tokens_to_add(False) + 1))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(str(error)) from error
    return made


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
