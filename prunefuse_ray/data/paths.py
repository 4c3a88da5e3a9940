"""The files that a setting names: by path, directory, pattern or a list of them, on any filesystem of pyarrow's.

What lies there is listed, never opened.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from prunefuse_ray.acquisition import hash_ids
from prunefuse_ray.data.folders import Lying, Walk, hidden, of_system, root_of
from prunefuse_ray.data.left_out import LeftOut, gathered, told
from prunefuse_ray.errors import PoolError
from prunefuse_ray.schemas import POOL_FILES
from prunefuse_ray.storage import Place

SUFFIXES_NAMED = 8
HASHED_AT_ONCE = 65_536


@dataclass(frozen=True, kw_only=True)
class TableVersion:
    """What a data lake's table says about the files that it has at one version."""

    version: str
    """As the configuration may name it: the number of a version, the id of a snapshot."""
    deleted: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Path of a file -> the numbers of its rows that the table has deleted, ascending."""
    field_ids: Mapping[str, int] = field(default_factory=dict)
    """Column -> the number by which its files know it, whatever it was called when they were written."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files that a setting names, in the order of their paths below each root."""

    roots: tuple[Place, ...]
    """Directories that the names are relative to: one for every path or pattern given."""
    root_numbers: tuple[int, ...]
    names: tuple[str, ...]
    """Path of each file below its root: what ids are made of, so that a pool may be moved."""
    sizes: tuple[int, ...]
    left_out: tuple[LeftOut, ...] = ()
    linked: Mapping[int, str] = field(default_factory=dict)
    """Number of a file that a link leads to -> its real path."""
    of_table: TableVersion | None = None
    """Where the files are those of a table."""
    whole_paths: bool = False
    """Records call the files by their whole paths: names below several roots need not differ."""

    @property
    def fs(self) -> pafs.FileSystem:
        return self.roots[0].fs

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(posixpath.join(self.roots[r].path, n) for r, n in zip(self.root_numbers, self.names, strict=True))

    def real_paths(self) -> Iterator[str]:
        """The same for a file and for all links to it."""
        roots = [_real(root) for root in self.roots]
        pairs = zip(self.root_numbers, self.names, strict=True)
        return (self.linked.get(i) or posixpath.join(roots[r], n) for i, (r, n) in enumerate(pairs))

    @property
    def recorded(self) -> tuple[str, ...]:
        """What the files are called in the records of a run."""
        return self.paths if self.whole_paths else self.names

    @property
    def table(self) -> pa.Table:
        """The files as `POOL_FILES`."""
        return pa.table({"file": self.recorded, "bytes": self.sizes}, schema=POOL_FILES)

    @property
    def digest(self) -> str:
        return listing_digest(self.names, self.sizes)

    def only(self, recorded: Collection[str]) -> Listing:
        """Those of the files that are called so in the records of a run."""
        wanted = set(recorded)
        return self.part([i for i, name in enumerate(self.recorded) if name in wanted])

    def part(self, numbers: Sequence[int]) -> Listing:
        """Some of the files."""
        return replace(
            self,
            root_numbers=tuple(self.root_numbers[i] for i in numbers),
            names=tuple(self.names[i] for i in numbers),
            sizes=tuple(self.sizes[i] for i in numbers),
            linked={new: self.linked[old] for new, old in enumerate(numbers) if old in self.linked},
        )


def listing_digest(names: Iterable[str], sizes: Iterable[int]) -> str:
    """Order-independent digest of file names and sizes: what a resumed run compares before anything else. Directories
    are left out, so that a pool may be moved."""
    keys = (f"{posixpath.basename(n)}:{s}" for n, s in zip(names, sizes, strict=True))
    total = 0
    while some := list(itertools.islice(keys, HASHED_AT_ONCE)):
        total += int(hash_ids(np.array(some, dtype=object)).sum(dtype=np.uint64))
    return f"{total % 2**64:016x}"


def as_list(paths: str | Sequence[str] | None) -> list[str]:
    """A setting that takes one path or several, as a list."""
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def locate(
    paths: str | Sequence[str] | None,
    suffixes: tuple[str, ...],
    field: str,
    *,
    empty: bool = True,
    hints: Mapping[str, str] | None = None,
) -> Listing:
    """The files with one of `suffixes` at `paths`: files, folders (with everything below) and patterns (`patterns.py`).

    Each real file counts once, whatever paths and links lead to it. Hidden files and what ends otherwise are left out,
    with their reasons.

    Args:
        empty: whether files without a byte count. Where a file holds many samples it had better be opened, and refused.
        hints: extension -> what would have to be installed to read such files.

    Raises:
        PoolError: a path without such files, or paths on different filesystems.
    """
    roots: list[Place] = []
    files = _Files(roots)
    left_out: dict[str, tuple[Lying, LeftOut]] = {}
    walk = Walk()
    for number, path in enumerate(as_list(paths)):
        place = Place.at(path)
        if roots and not place.fs.equals(roots[0].fs):
            raise PoolError(f"{field}: '{path}' lies on another filesystem than '{roots[0].path}'; use one for all")
        roots.append(root := root_of(place))
        any_here, problems = False, list[LeftOut]()
        for lying in walk.at(place):
            reason = lying.problem or _unfit(lying, suffixes, empty, hints or {})
            if reason is None:
                any_here = True
                if not files.add(number, lying) and lying.linked:
                    reason = "link to a file that is there already"
            if reason is not None:
                problems.append(LeftOut(os.fsencode(lying.name).decode(errors="replace"), reason))
                left_out.setdefault(posixpath.join(root.path, lying.name), (lying, problems[-1]))
        if not any_here:
            raise PoolError(f"{field}: {_nothing(path, suffixes, problems)}")
    # What is hidden below one path may be named by another one: then it is not left out.
    names_too = len(roots) > 1
    outs = tuple(out for lying, out in left_out.values() if lying.linked or not (names_too and files.named(lying)))
    return files.listing(outs)


class _Files:
    """The files that were found, each real one once: there may be millions, of which links and several paths are what
    can bring one again. So real paths are kept only where there are such."""

    def __init__(self, roots: list[Place]) -> None:
        self._roots = roots
        """Of the paths so far."""
        self._found = list[tuple[int, str, int]]()
        """Number of the root, name below it, size."""
        self._linked = dict[str, tuple[int, str]]()
        """Real paths that a link led to, and what they are called."""

    def add(self, number: int, lying: Lying) -> bool:
        """Whether the file was not there yet."""
        if number or lying.linked:
            if lying.real in self._reals:
                return False
            self._reals.add(lying.real)
        if lying.linked:
            self._linked[lying.real] = number, lying.name
        self._found.append((number, lying.name, lying.size))
        return True

    @cached_property
    def _reals(self) -> set[str]:
        """Asked for before the first one that can be there twice is added: none so far is linked."""
        roots = [_real(root) for root in self._roots]
        return {posixpath.join(roots[number], name) for number, name, _ in self._found}

    def named(self, lying: Lying) -> bool:
        """Whether a file is there as itself, and not only by a link."""
        return lying.real in self._reals and lying.real not in self._linked

    def listing(self, left_out: tuple[LeftOut, ...]) -> Listing:
        self._found.sort()
        numbers, names, sizes = zip(*self._found, strict=True) if self._found else ((), (), ())
        reals = {place: real for real, place in self._linked.items()}
        places = enumerate(zip(numbers, names, strict=True)) if reals else ()
        linked = {i: reals[place] for i, place in places if place in reals}
        return Listing(
            roots=tuple(self._roots), root_numbers=numbers, names=names, sizes=sizes, left_out=left_out, linked=linked
        )


def _real(root: Place) -> str:
    return os.path.realpath(root.path) if root.local else root.path


def _nothing(path: str, suffixes: tuple[str, ...], problems: Sequence[LeftOut]) -> str:
    """Why a path gives no files, with the remedy."""
    ends = ", ".join(suffixes[:SUFFIXES_NAMED]) + (", ..." if len(suffixes) > SUFFIXES_NAMED else "")
    braces = "; {a,b} is no pattern here: give a list" if "{" in path else ""
    there = f"; there are {told(gathered(problems))}" if problems else ""
    return (
        f"'{path}' holds no files that end in {ends}{there}; give a file, a directory or a pattern of them (`*` within "
        f"a folder, `**` across){braces}"
    )


def _unfit(lying: Lying, suffixes: tuple[str, ...], empty: bool, hints: Mapping[str, str]) -> str | None:
    """Why a file is left out; None where it is not."""
    if hidden(lying.name):
        return "hidden"
    if of_system(lying.name):
        return "in a folder of the system (thumbnails, recycle bin, unfinished output)"
    if not lying.name.lower().endswith(suffixes):
        extension = posixpath.splitext(lying.name)[1].lower()
        hint = f": needs {hints[extension]}, which is not installed" if extension in hints else ""
        return f"extension {extension}{hint}" if extension else "no extension"
    return None if lying.size or empty else "empty"


def check_names(listing: Listing, field: str) -> None:
    """PoolError where two files would give their samples the same ids, or ids that look the same."""
    names = [normal(name) for name in listing.names]
    if len(set(names)) == len(names):
        return
    seen: dict[str, str] = {}
    for name, path in zip(names, listing.paths, strict=True):
        if name in seen:
            forms = (
                " (in another Unicode form, NFC or NFD)"
                if seen[name] != path and normal(path) == normal(seen[name])
                else ""
            )
            raise PoolError(
                f"{field}: the ids of '{seen[name]}' and '{path}'{forms} would both begin with '{name}'; give a "
                "directory above both, or rename one"
            )
        seen[name] = path


def normal(name: str) -> str:
    """A name in the form in which names are compared: macOS spells an accented letter in two characters (NFD), most
    others in one (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
