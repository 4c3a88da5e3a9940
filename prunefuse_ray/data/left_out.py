"""What lies in a pool and gives no sample: by name and reason, counted, with a few examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

REASONS = 12
"""That are told, the most frequent ones."""
NAMED = 3
"""Names shown of each reason; the whole list is `left_out.parquet`."""

NAMES = pa.schema([("name", pa.string()), ("reason", pa.string())])


class LeftOut(NamedTuple):
    """Something that lies in a pool and gives no sample."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LeftOuts:
    """Many of them. A scan of a large pool finds them in tasks: their names never pass the driver."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """By reason, the most frequent first."""
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason -> the first few names."""
    parts: Sequence[Any] = ()
    """Tables (name, reason), or references to such in Ray's object store."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def gathered(found: Iterable[LeftOut]) -> LeftOuts:
    """These, with their names."""
    rows = list(found)
    counts = Counter(out.reason for out in rows)
    examples: dict[str, list[str]] = {}
    for out in rows:
        if len(shown := examples.setdefault(out.reason, [])) < NAMED:
            shown.append(out.name)
    table = pa.table({"name": [o.name for o in rows], "reason": [o.reason for o in rows]}, schema=NAMES)
    return joined([LeftOuts(counts=counts, examples=_tuples(examples), parts=[table] if rows else [])])


def joined(several: Iterable[LeftOuts]) -> LeftOuts:
    """All of them together."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    parts: list[Any] = []
    for one in several:
        counts.update(one.counts)
        for reason, names in one.examples.items():
            examples.setdefault(reason, []).extend(names)
        parts += one.parts
    return LeftOuts(
        counts=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        examples={reason: tuple(names[:NAMED]) for reason, names in examples.items()},
        parts=parts,
    )


def told(found: LeftOuts) -> str:
    return in_words(found.counts, found.examples)


def in_words(counts: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> str:
    """The most frequent reasons with their counts and first names."""
    words = []
    for reason, count in list(counts.items())[:REASONS]:
        names = examples.get(reason, ())
        words.append(f"{count:,} {reason} ({', '.join(names)}{', ...' if count > len(names) else ''})")
    if rest := list(counts.values())[REASONS:]:
        words.append(f"{sum(rest):,} for {len(rest):,} other reasons")
    return "; ".join(words)


def _tuples(examples: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {reason: tuple(names) for reason, names in examples.items()}
