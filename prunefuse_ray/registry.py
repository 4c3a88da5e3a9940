"""What people add: named objects of one kind, from this package, from other installed packages, or `module:name`.

Every seam of the package (strategies, sources of samples, scoring backends, fusion rules, tasks, trackers) is one
`Registry`. Validation, help, error texts and the documents' tables are made from it, so an entry is added in one place:

- here: one line in the registry's `entries`;
- in a package of one's own: an entry point of the registry's group, `my_name = "my_package.my_module:MY_OBJECT"`;
- without a package: its reference in the configuration, `my_module:MY_OBJECT`.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from prunefuse_ray.errors import ConfigError, near

T = TypeVar("T")

UNTRUSTED = "is imported only where you say so: --trusted"
"""In the refusal of code that only a file names."""
_trusted: set[str] = set()
_reading: ContextVar[bool] = ContextVar("reading", default=False)


def named(trusted: str | Collection[str] | None) -> tuple[str, ...]:
    """One name, several or none, as callers may give them."""
    return () if trusted is None else (trusted,) if isinstance(trusted, str) else tuple(trusted)


def trust(names: str | Collection[str]) -> None:
    """Let files name these `module:name` from now on."""
    _trusted.update(named(names))


def check_trusted(name: str, what: str) -> None:
    """ConfigError for `module:name` that nobody but a file names."""
    if name not in _trusted:
        raise ConfigError(f"{what}: names code of its own, '{name}', which {UNTRUSTED} {name}")


@contextmanager
def reading_files() -> Iterator[None]:
    """Inside, what is read was written by somebody, somewhere: of the code that it names, only what is trusted, or has
    been imported for the user's own configuration, is taken."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


def _path() -> list[tuple[str, int]]:
    """The folders that Python imports from, and when each has changed."""
    found = []
    for folder in sys.path:
        with suppress(OSError):
            found.append((folder, os.stat(folder or ".").st_mtime_ns))
    return found


class Registry(Mapping[str, T], Generic[T]):
    """Name -> object of one kind."""

    def __init__(self, kind: str, type_: str, group: str, entries: Mapping[str, str]) -> None:
        """
        Args:
            kind: what an entry is, in words, for messages: "fusion rule".
            type_: reference of the entries' class.
            group: entry point group in which other packages register theirs.
            entries: name -> reference `module:NAME` of the entries in this package.
        """
        self.kind, self.group = kind, group
        self._type = type_
        self._own = dict(entries)
        self._loaded: dict[str, T] = {}
        self._seen: list[tuple[str, int]] | None = None
        self._others: dict[str, EntryPoint] = {}

    def __getitem__(self, name: str) -> T:
        """The entry. ConfigError, with the known names, where there is none or it is something else."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._own or name in self._installed())

    def __iter__(self) -> Iterator[str]:
        """The names: this package's in their order, then those of other packages."""
        yield from self._own
        yield from sorted(self._installed().keys() - self._own.keys())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def broken(self) -> dict[str, str]:
        """Why entries cannot be loaded, by their names: of other packages, which may not fit this version."""
        why = {}
        for name in self:
            try:
                self[name]
            except ConfigError as error:
                why[name] = str(error)
        return why

    def loadable(self) -> dict[str, T]:
        """The entries but those that are `broken`."""
        found = {}
        for name in self:
            with suppress(ConfigError):
                found[name] = self[name]
        return found

    def check(self, name: str, besides: Collection[str] = ()) -> str:
        """`name`, if there is such an entry, or if it is one of the words that a field takes besides; ValueError, for
        validators, where it is neither."""
        try:
            if name in besides:
                return name
            if name not in self and ":" not in name:
                raise self._unknown(name, besides)
            self[name]
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return name

    def _installed(self) -> dict[str, EntryPoint]:
        """Looked for anew where a folder of the path has changed: the metadata of all packages are read for it."""
        if self._seen != (now := _path()):
            self._others = {point.name: point for point in entry_points(group=self.group)}
            self._seen = now
        return self._others

    def _load(self, name: str) -> T:
        reference = self._own.get(name)
        if reference is None and ":" in name:
            reference = name
            if _reading.get():
                check_trusted(name, self.kind)
        theirs = False
        if reference is None and (point := self._installed().get(name)) is not None:
            reference, theirs = point.value, True
        if reference is None:
            raise self._unknown(name)
        try:
            found = load_object(reference, f"{self.kind} '{name}'")
        except ConfigError:
            raise
        except Exception as error:  # of another package, in whose code anything may fail
            if not theirs:
                raise
            raise ConfigError(
                f"{self.kind} '{name}': {reference} cannot be imported ({type(error).__name__}: {error}); mend or "
                "remove the package that registers it"
            ) from error
        if not isinstance(found, load_object(self._type, self.kind)):
            raise ConfigError(
                f"{self.kind} '{name}': {reference} is a {type(found).__name__}, not a {self._type.rpartition(':')[2]}"
            )
        return found

    def _unknown(self, name: str, besides: Collection[str] = ()) -> ConfigError:
        known = [*besides, *self]
        return ConfigError(
            f"unknown {self.kind} '{name}'{near(name, known)}; known: {', '.join(known)}, or module:name for one of "
            "your own"
        )


def load_object(reference: str, what: str) -> Any:
    """The object that `package.module:name` names. ConfigError where it cannot be imported.

    Importing runs the module: call this only for what the user's own configuration names.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{what}: cannot import '{reference}' ({error}); write it as package.module:name, of a module that Python "
            "finds from the working directory or among the installed packages"
        ) from error


def installed(module: str, extra: str) -> Callable[[], str | None]:
    """For an entry's `lacks`: whether `module` can be imported, which comes with an extra of this package."""

    def lacks() -> str | None:
        if importlib.util.find_spec(module) is not None:
            return None
        return f"{module} is not installed: pip install 'prunefuse-ray[{extra}]'"

    return lacks
