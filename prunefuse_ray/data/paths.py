"""The files that a setting names: by path, directory, pattern or a list of them, on any filesystem of pyarrow's.

What lies there is listed, never opened.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    whole_paths: bool = False
    """Records call the files by their whole paths: names below several roots need not differ."""

    @property
    def fs(self) -> pafs.FileSystem:
        return self.roots[0].fs

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(posixpath.join(self.roots[r].path, n) for r, n in zip(self.root_numbers, self.names, strict=True))

    @property
    def real_paths(self) -> tuple[str, ...]:
        """The same for a file and for all links to it."""
        roots = [os.path.realpath(root.path) if root.local else root.path for root in self.roots]
        pairs = zip(self.root_numbers, self.names, strict=True)
        return tuple(self.linked.get(i) or posixpath.join(roots[r], n) for i, (r, n) in enumerate(pairs))

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
    keys = np.array([f"{posixpath.basename(n)}:{s}" for n, s in zip(names, sizes, strict=True)], dtype=object)
    return f"{int(hash_ids(keys).sum(dtype=np.uint64)):016x}"


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
    files: dict[str, tuple[int, Lying]] = {}
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
            if reason is None and lying.real in files:
                any_here = True
                reason = "link to a file that is there already" if lying.linked else None
            elif reason is None:
                any_here = True
                files[lying.real] = number, lying
            if reason is not None:
                problems.append(LeftOut(os.fsencode(lying.name).decode(errors="replace"), reason))
                left_out.setdefault(posixpath.join(root.path, lying.name), (lying, problems[-1]))
        if not any_here:
            raise PoolError(f"{field}: {_nothing(path, suffixes, problems)}")
    found = sorted(files.items(), key=lambda item: (item[1][0], item[1][1].name))
    return Listing(
        roots=tuple(roots),
        root_numbers=tuple(number for _, (number, _) in found),
        names=tuple(lying.name for _, (_, lying) in found),
        sizes=tuple(lying.size for _, (_, lying) in found),
        # What is hidden below one path may be named by another one: then it is not left out.
        left_out=tuple(out for lying, out in left_out.values() if lying.linked or not _named(lying, files)),
        linked={i: real for i, (real, (_, lying)) in enumerate(found) if lying.linked},
    )


def _named(lying: Lying, files: Mapping[str, tuple[int, Lying]]) -> bool:
    """Whether a file is there as itself, and not only by a link."""
    return lying.real in files and not files[lying.real][1].linked


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
        return "in a folder of the system (thumbnails, recycle bin)"
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
