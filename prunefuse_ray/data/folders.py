"""What lies at a path, on any filesystem of pyarrow's: a file, a folder with everything below, or what a pattern fits.

Links are followed, and what they lead back to is said: real files come first, then those behind links. Nothing is
opened.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow.fs as pafs

from prunefuse_ray.data.patterns import ANY_DEPTH, is_pattern, is_wild, matches, matches_any_depth, may_hold, split
from prunefuse_ray.storage import Place


class Lying(NamedTuple):
    """Something that lies there."""

    name: str
    """Its path below the root."""
    size: int
    real: str
    """Its real path, the same for a file and all links to it."""
    linked: bool = False
    """Whether a link led to it."""
    problem: str | None = None
    """Why it is no file that can be read."""


def root_of(place: Place) -> Place:
    """The folder that names at `place` are relative to: what stands before a pattern, the folder itself, or the one
    that a file lies in."""
    if is_pattern(place):
        return split(place)[0]
    is_file = place.fs.get_file_info(place.path).type == pafs.FileType.File
    return Place(place.fs, posixpath.dirname(place.path)) if is_file else place


class Walk:
    """Walks to one path after the other, and knows where it has been."""

    def __init__(self) -> None:
        self.folders: set[str] = set()
        """Real paths of the folders that it has been to, hidden ones aside: what a link may lead back to."""

    def at(self, place: Place) -> Iterator[Lying]:
        """What lies at `place`, with names below `root_of(place)`. Real files come before those behind links."""
        root = root_of(place)
        if not is_pattern(place):
            # A link that the configuration names is followed wherever it leads.
            path = os.path.realpath(place.path) if place.local else place.path
            link = place.local and os.path.islink(place.path) and os.path.isfile(path)
            yield from self._below(root, [_Step(path, _below(place.path, root.path), linked=link)])
            return
        before, segments = split(place)
        deep = segments.index(ANY_DEPTH) if ANY_DEPTH in segments else len(segments)
        steps = _fitting(before, segments[:deep])
        if deep == len(segments):
            yield from self._below(root, steps)
            return

        # In one walk: what a link in one folder leads to may lie in the next one.
        def inside(name: str) -> list[str]:
            return [part for part in name.split("/") if part][deep:]

        for lying in self._below(root, steps, lambda name: may_hold(inside(name), segments[deep:])):
            if matches_any_depth(inside(lying.name) or [""], segments[deep:]):
                yield lying

    def _below(
        self, root: Place, steps: Sequence[_Step], wanted: Callable[[str], bool] = lambda _: True
    ) -> Iterator[Lying]:
        """The files that steps are, and all that lies below the folders among them.

        Args:
            wanted: whether what lies in the folder of this name is; to one that is not, links lead all the same.
        """
        if root.local:
            yield from self._below_local(os.path.realpath(root.path), steps, wanted)
            return
        for step in steps:
            info = root.fs.get_file_info(step.path)
            here = [info]
            if info.type == pafs.FileType.Directory:
                here = Place(root.fs, step.path).files(recursive=True)
            for file in (f for f in here if f.type == pafs.FileType.File):
                yield Lying(_below(file.path, root.path), file.size, file.path)

    def _below_local(self, root: str, steps: Sequence[_Step], wanted: Callable[[str], bool]) -> Iterator[Lying]:
        ahead, links = deque([iter(steps)]), deque[_Step]()
        while ahead or links:
            step = next(ahead[0], None) if ahead else links.popleft()
            if step is None:
                ahead.popleft()
                continue
            try:
                info = os.lstat(step.path)
            except OSError:  # a path that the configuration names and that is not there
                continue
            if stat.S_ISLNK(info.st_mode) and not step.followed:
                links.append(step._replace(followed=True))
            elif stat.S_ISLNK(info.st_mode):
                target = self._through(step)
                if isinstance(target, _Step):
                    ahead.append(iter([target]))
                else:
                    yield target
            elif stat.S_ISDIR(info.st_mode):
                yield from self._folder(step, ahead, wanted)
            else:
                real = step.path if step.linked else os.path.join(root, step.name)
                yield _file(step, info, real)

    def _through(self, link: _Step) -> _Step | Lying:
        """What a link leads to."""
        target = os.path.realpath(link.path)

        def problem(reason: str) -> Lying:
            return Lying(link.name, 0, link.path, True, reason)

        if not os.path.exists(target):
            return problem("dangling link")
        if os.path.isdir(target):
            home = os.path.realpath(os.path.dirname(link.path))
            if os.path.commonpath([target, home]) == target:
                return problem("link to a folder that it lies in")
            if target in self.folders:
                return problem("link to a folder that is there already")
        return _Step(target, link.name, linked=True)

    def _folder(self, step: _Step, ahead: deque[Iterator[_Step]], wanted: Callable[[str], bool]) -> Iterator[Lying]:
        """Look into a folder: what lies in it is ahead then."""
        real = os.path.realpath(step.path)
        if step.linked and real in self.folders:  # within a folder that a link led to
            yield Lying(f"{step.name}/", 0, real, True, "a folder that is there already, behind a link")
            return
        if not hidden(step.name) and (step.linked or wanted(step.name)):
            self.folders.add(real)
        try:
            with os.scandir(step.path) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            yield Lying(f"{step.name}/", 0, real, step.linked, f"folder that cannot be read: {error.strerror}")
            return
        if not names and step.name:
            yield Lying(f"{step.name}/", 0, real, step.linked, "empty folder")
        # Made as they are looked at: a folder may hold millions.
        ahead.append(
            _Step(os.path.join(real if step.linked else step.path, n), posixpath.join(step.name, n), linked=step.linked)
            for n in names
        )


class _Step(NamedTuple):
    """Something to look at: where it is, and its name below the root."""

    path: str
    name: str
    linked: bool = False
    followed: bool = False
    """A link whose turn has come."""


SYSTEM_FOLDERS = frozenset({"@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found",
                           "system volume information", "_temporary"})  # fmt: skip
"""Folders in which network disks and operating systems keep thumbnails, versions and what was thrown away, and Spark
and Hadoop what was never finished; in lower case."""


def of_system(name: str) -> bool:
    """Whether a path below a root leads through a folder of the system."""
    return any(part.lower() in SYSTEM_FOLDERS for part in name.split("/")[:-1])


def hidden(name: str) -> bool:
    """Whether a path below a root is that of a hidden file, or leads through a hidden folder."""
    return any(part.startswith(".") for part in name.split("/"))


def _file(step: _Step, info: os.stat_result, real: str) -> Lying:
    if not stat.S_ISREG(info.st_mode):
        return Lying(step.name, 0, real, step.linked, "neither file nor folder")
    try:
        step.name.encode()
    except UnicodeEncodeError:
        return Lying(step.name, 0, real, step.linked, "name that is not UTF-8: rename it")
    return Lying(step.name, info.st_size, real, step.linked)


def _below(path: str, folder: str) -> str:
    return path.removeprefix(folder).lstrip("/")


def _fitting(before: Place, segments: Sequence[str]) -> list[_Step]:
    """What fits the segments of a pattern, below the folder before them; what no link leads to comes first."""
    steps = [_Step(before.path, "")]
    for segment in segments:
        found = []
        for step in steps:
            if before.local and step.name and os.path.islink(step.path):
                step = step._replace(path=os.path.realpath(step.path), linked=True)
            here = Place(before.fs, step.path)
            literal = not is_wild(segment) or _there(here / segment)
            for name in [segment] if literal else _names(here):
                if matches(name, segment):
                    found.append(step._replace(path=posixpath.join(step.path, name),
                                               name=posixpath.join(step.name, name)))  # fmt: skip
        steps = sorted(found, key=lambda step: step.linked)
    return steps


def _there(place: Place) -> bool:
    """Whether a path exists; locally also one whose bytes are not UTF-8, which pyarrow does not take."""
    return os.path.lexists(place.path) if place.local else place.exists()


def _names(folder: Place) -> list[str]:
    """The names in a folder, sorted; none where it is no folder."""
    if folder.local:
        try:
            return sorted(os.listdir(folder.path))
        except OSError:
            return []
    found = folder.fs.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True))
    return sorted(posixpath.basename(info.path) for info in found)
