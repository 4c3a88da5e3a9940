"""Path patterns as the shell has them: `*`, `?` and `[...]` stay inside one segment of a path, `**` crosses them.

Path in, answer out; nothing is listed here.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from prunefuse_ray.storage import Place

WILD = frozenset("*?[")
ANY_DEPTH = "**"


def is_pattern(place: Place) -> bool:
    """Whether a path is a pattern. A file or folder that is called just so (`photos [v2]`) is meant itself."""
    return bool(split(place)[1])


def split(place: Place) -> tuple[Place, tuple[str, ...]]:
    """A path as the folder before a pattern, and the pattern's segments; none of those of a path that is none."""
    parts = place.path.split("/")
    for i, part in enumerate(parts):
        if is_wild(part) and not Place(place.fs, "/".join(parts[: i + 1])).exists():
            return Place(place.fs, "/".join(parts[:i])), tuple(parts[i:])
    return place, ()


def is_wild(segment: str) -> bool:
    """Whether a segment of a path has a wildcard in it."""
    return not WILD.isdisjoint(segment)


def matches(name: str, segment: str) -> bool:
    """Whether one segment of a path fits one of a pattern; `[^a]` means `[!a]`, as in every shell."""
    return name == segment or fnmatch.fnmatchcase(name, segment.replace("[^", "[!"))


def matches_any_depth(parts: Sequence[str], segments: Sequence[str]) -> bool:
    """Whether a path, or a folder that it lies in, fits a pattern that may hold `**`."""
    return any(_fits(parts[:n], segments) for n in range(1, len(parts) + 1))


def may_hold(parts: Sequence[str], segments: Sequence[str]) -> bool:
    """Whether what lies in a folder may fit a pattern that may hold `**`."""
    return _fits(parts, segments[:-1]) or matches_any_depth(parts, segments)


def may_reach(parts: Sequence[str], segments: Sequence[str]) -> bool:
    """Whether something below a folder of this path, at any depth, may fit a pattern."""
    if not segments or not parts or segments[0] == ANY_DEPTH:  # of a folder that fits all that lies in it counts
        return True
    return matches(parts[0], segments[0]) and may_reach(parts[1:], segments[1:])


def _fits(parts: Sequence[str], segments: Sequence[str]) -> bool:
    if not segments:
        return not parts
    if segments[0] == ANY_DEPTH:
        return any(_fits(parts[n:], segments[1:]) for n in range(len(parts) + 1))
    return bool(parts) and matches(parts[0], segments[0]) and _fits(parts[1:], segments[1:])
