"""Fields that name what people can add: an entry of a registry, checked with the configuration and listed by --help.

Checking an entry of this package imports none of what it runs on (torch, for one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from prunefuse_ray.errors import ConfigError
from prunefuse_ray.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Named:
    """For `Annotated[str, Named(...)]`: the name of an entry, `module:name`, or one of some words besides."""

    registry: Registry[Any]
    describe: Callable[[Any], str]
    """An entry's line of help."""
    besides: Mapping[str, str] = field(default_factory=dict)
    """Word -> its line of help."""
    fits: Callable[[Any], bool] = lambda entry: True
    """Which entries the field takes. The section that has it says why others do not fit."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        return self.registry.check(value, self.besides)

    def help(self) -> list[str]:
        """A line for every name, those of other installed packages included: this loads them all."""
        return [f"{name}: {line}" for name, line in self.lines().items()]

    def lines(self) -> dict[str, str]:
        """Name -> its line of help."""
        lines = dict(self.besides)
        for name in self.registry:
            try:
                if self.fits(entry := self.registry[name]):
                    lines[name] = self.describe(entry)
            except ConfigError as error:  # another package's; --help is where one would look for what is wrong with it
                lines[name] = f"cannot be used: {error}"
        return lines
