"""What all sections of the configuration share: their base, and types of fields."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from prunefuse_ray.errors import has_credentials, without_secrets

logger = logging.getLogger(__name__)


Share = Annotated[float, Field(ge=0.0, lt=1.0)]


Positive = Annotated[int, Field(ge=1)]


STORE_OPTIONS = {"endpoint_override", "region", "scheme", "tls_ca_file_path"}
"""What may stand in the query of a URI. Signatures, keys and tokens may not."""


def no_credentials(value: str) -> str:
    """Paths are written to config.yaml, logs and reports; a secret in one would travel with them."""
    scheme, _, rest = value.partition("://")
    options = {part.partition("=")[0] for part in rest.partition("?")[2].split("&")} if "?" in rest else set()
    if has_credentials(scheme, rest) or (scheme != "file" and rest and options - STORE_OPTIONS):
        raise ValueError(
            "holds credentials, or an option that may be one; give credentials by the environment or the machine's "
            f"role, not in the path. Allowed after a question mark: {', '.join(sorted(STORE_OPTIONS))}; as a "
            "wildcard in a URI use * or [...]"
        )
    return value


def as_int(value: Any) -> Any:
    """The command line gives strings, and a literal of integers takes none."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


PathOrUri = Annotated[str, AfterValidator(no_credentials)]


def _no_secret(value: str) -> str:
    """Of an address that only browsers ask: its query may hold anything but a secret."""
    if without_secrets(value) != value:
        raise ValueError("holds credentials: it is written to config.yaml and into tasks; give an address without")
    return value


Address = Annotated[str, AfterValidator(_no_secret)]


def _each_without_credentials(value: str | list[str]) -> str | list[str]:
    """Checked after the choice between one and several: else the fault would be told with the value, twice."""
    paths = [value] if isinstance(value, str) else value
    for path in paths:
        no_credentials(path)
    if not paths or not all(paths):
        raise ValueError("is empty; name a file, a directory or a pattern")
    return value


Paths = Annotated[str | list[str], AfterValidator(_each_without_credentials)]


RECORDED = "recorded"
"""Context of validation: the tree is not a person's, but what a run or a sweep has recorded."""


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, and the docstrings under the fields are the command's help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Fields under the names that they had in earlier versions -> their names now."""

    @model_validator(mode="before")
    @classmethod
    def _words_are_no_numbers(cls, tree: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as true and false, which would count as 1 and 0."""
        if not isinstance(tree, Mapping) or info.context == RECORDED:
            return tree
        for name, value in tree.items():
            words = [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, bool)]
            field = cls.model_fields.get(name)
            if words and field is not None and field.annotation is not bool and "Any" not in str(field.annotation):
                said = str(words[0]).lower()
                raise ValueError(f"{name} is {said}, as yes, no, on and off are read, too: give a value")
        return tree

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, tree: Any, info: ValidationInfo) -> Any:
        """Earlier names are still read: with a note, but where they stand in what an earlier version recorded."""
        if not isinstance(tree, Mapping) or not (old := cls.renamed.keys() & tree.keys()):
            return tree
        for name in sorted(old if info.context != RECORDED else ()):
            logger.warning("%s: the field '%s' is now called '%s'", cls.__name__.lower(), name, cls.renamed[name])
        return {cls.renamed.get(name, name): value for name, value in tree.items()}


S = TypeVar("S", bound=Section)


def unread(section: S, info: ValidationInfo, field: str, fault: str) -> S:
    """A field was given that nothing here reads: ValueError. Where an earlier version took and recorded it, which read
    it no more, the section with its default."""
    if info.context == RECORDED:
        return section.model_copy(
            update={field: type(section).model_fields[field].get_default(call_default_factory=True)}
        )
    raise ValueError(fault)


def min_max(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise ValueError(f"{list(value)} has its minimum above its maximum: give [smallest, largest]")
    return value
