"""The files that a setting names: by path, directory, pattern or a list of them, on any filesystem of pyarrow's.

What lies there is listed, never opened.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from prunefuse_ray.acquisition import hash_ids
from prunefuse_ray.errors import PoolError
from prunefuse_ray.schemas import POOL_FILES
from prunefuse_ray.storage import Place


class LeftOut(NamedTuple):
    """Something that lies in a pool and gives no sample."""

    name: str
    reason: str


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
    whole_paths: bool = False
    """Records call the files by their whole paths: names below several roots need not differ."""

    @property
    def fs(self) -> pafs.FileSystem:
        return self.roots[0].fs

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(posixpath.join(self.roots[r].path, n) for r, n in zip(self.root_numbers, self.names, strict=True))

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
        )


def listing_digest(names: Iterable[str], sizes: Iterable[int]) -> str:
    """Order-independent digest of file names and sizes: what a resumed run compares before anything else. Directories
    are left out, so that a pool may be moved."""
    keys = np.array([f"{posixpath.basename(n)}:{s}" for n, s in zip(names, sizes, strict=True)], dtype=object)
    return f"{int(hash_ids(keys).sum(dtype=np.uint64)):016x}"


def as_list(paths: str | Sequence[str] | None) -> list[str]:
    """A setting that takes one path or several, as a list."""
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def locate(paths: str | Sequence[str] | None, suffixes: tuple[str, ...], field: str) -> Listing:
    """The files with one of `suffixes` at `paths`: files, directories (with everything below) and patterns of * ? [].

    A file that two of the paths name counts once. Hidden files and directories do not count, nor does what ends
    otherwise: they are left out.

    Raises:
        PoolError: a path without such files, or paths on different filesystems.
    """
    roots: list[Place] = []
    numbers, names, sizes = [], [], []
    seen: set[str] = set()
    left_out: dict[str, LeftOut] = {}
    for number, path in enumerate(as_list(paths)):
        place = Place.at(path)
        if roots and not place.fs.equals(roots[0].fs):
            raise PoolError(f"{field}: '{path}' lies on another filesystem than '{roots[0].path}'; use one for all")
        root = root_of(place)
        roots.append(root)
        any_here = False
        for info in _matches(place, root):
            name = posixpath.relpath(info.path, root.path)
            if (reason := _unfit(name, suffixes)) is not None:
                left_out.setdefault(info.path, LeftOut(name, reason))
                continue
            any_here = True
            if info.path not in seen:
                seen.add(info.path)
                numbers.append(number)
                names.append(name)
                sizes.append(info.size)
        if not any_here:
            raise PoolError(
                f"{field}: '{path}' holds no files that end in {', '.join(suffixes)}; give a file, a directory or a "
                "pattern of them"
            )
    return Listing(
        roots=tuple(roots),
        root_numbers=tuple(numbers),
        names=tuple(names),
        sizes=tuple(sizes),
        left_out=tuple(out for path, out in left_out.items() if path not in seen),
    )


def check_names(listing: Listing, field: str) -> None:
    """PoolError where two files would give their samples the same ids."""
    if len(set(listing.names)) == len(listing.names):
        return
    seen: dict[str, str] = {}
    for name, path in zip(listing.names, listing.paths, strict=True):
        if name in seen:
            raise PoolError(
                f"{field}: the ids of '{seen[name]}' and '{path}' would both begin with '{name}'; give a directory "
                "above both, or rename one"
            )
        seen[name] = path


def root_of(place: Place) -> Place:
    """The directory that the names of the files at `place` are relative to: what stands before a pattern, the directory
    itself, or the one that a file lies in."""
    parts = place.path.split("/")
    pattern = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    if pattern is not None:
        return Place(place.fs, "/".join(parts[:pattern]))
    is_file = place.fs.get_file_info(place.path).type == pafs.FileType.File
    return Place(place.fs, posixpath.dirname(place.path)) if is_file else place


def _matches(place: Place, root: Place) -> list[pafs.FileInfo]:
    """All files at `place`, whatever they are called."""
    if set(place.path) & set("*?["):
        return [f for f in root.files(recursive=True) if fnmatch.fnmatchcase(f.path, place.path)]
    return place.files(recursive=True) if root == place else [place.fs.get_file_info(place.path)]


def _unfit(name: str, suffixes: tuple[str, ...]) -> str | None:
    """Why a file is left out; None where it is not."""
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden"
    return None if name.lower().endswith(suffixes) else f"its name does not end in {', '.join(suffixes)}"
