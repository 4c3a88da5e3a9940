"""Files by path, directory, pattern or a list of them, on any filesystem that pyarrow speaks."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place


@dataclass(frozen=True, kw_only=True)
class Located:
    """The files that a setting names, in the order of their paths below each root."""

    roots: tuple[Place, ...]
    """Directories that the names are relative to: one for every path or pattern given."""
    root_numbers: tuple[int, ...]
    names: tuple[str, ...]
    """Path of each file below its root: what ids are made of, so that a pool may be moved."""
    sizes: tuple[int, ...]

    @property
    def fs(self) -> pafs.FileSystem:
        return self.roots[0].fs

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(posixpath.join(self.roots[r].path, n) for r, n in zip(self.root_numbers, self.names, strict=True))


def as_list(paths: str | Sequence[str] | None) -> list[str]:
    """A setting that takes one path or several, as a list."""
    assert paths is not None, "validated by config.Pool"
    return [paths] if isinstance(paths, str) else list(paths)


def locate(paths: str | Sequence[str] | None, suffixes: tuple[str, ...], field: str) -> Located:
    """The files with one of `suffixes` at `paths`: files, directories (with everything below) and patterns of * ? [].

    A file that two of the paths name counts once; hidden files and directories do not count.

    Raises:
        PoolError: a path without such files, or paths on different filesystems.
    """
    roots: list[Place] = []
    numbers, names, sizes = [], [], []
    seen: set[str] = set()
    for number, path in enumerate(as_list(paths)):
        place = Place.at(path)
        if roots and not place.fs.equals(roots[0].fs):
            raise PoolError(f"{field}: '{path}' lies on another filesystem than '{roots[0].path}'; use one for all")
        root, found = _matches(place, suffixes)
        if not found:
            raise PoolError(
                f"{field}: '{path}' holds no files that end in {', '.join(suffixes)}; give a file, a directory or a "
                "pattern of them"
            )
        roots.append(root)
        for info in found:
            if info.path not in seen:
                seen.add(info.path)
                numbers.append(number)
                names.append(posixpath.relpath(info.path, root.path))
                sizes.append(info.size)
    return Located(roots=tuple(roots), root_numbers=tuple(numbers), names=tuple(names), sizes=tuple(sizes))


def check_names(located: Located, field: str) -> None:
    """PoolError where two files would give their samples the same ids."""
    if len(set(located.names)) == len(located.names):
        return
    seen: dict[str, str] = {}
    for name, path in zip(located.names, located.paths, strict=True):
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


def _matches(place: Place, suffixes: tuple[str, ...]) -> tuple[Place, list[pafs.FileInfo]]:
    root = root_of(place)
    if set(place.path) & set("*?["):
        found = [f for f in root.files(recursive=True) if fnmatch.fnmatchcase(f.path, place.path)]
    elif root == place:
        found = place.files(recursive=True)
    else:
        found = [place.fs.get_file_info(place.path)]
    return root, [f for f in found if f.path.lower().endswith(suffixes) and not _hidden(f.path, root.path)]


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in posixpath.relpath(path, root).split("/"))
