"""Defaults that follow from other fields: a configuration that changes one thing does not need a second one.

Only what was not given follows, and it is told once. What was given stays, and is refused where it contradicts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.errors import ConfigError

logger = logging.getLogger(__name__)

WARMUP = 3.0
"""`Recipe.warmup_epochs`, where a training is long enough for it."""
VALIDATION_SHARE = 0.1
_told: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A default that is another one here."""

    field: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{self.field} is {self.value}: {self.why}"


Given = Callable[[str], Any]
"""'section.field' -> its value as it was given; None where it was not."""


def _target(given: Given) -> Followed | None:
    selector = given("selection.selector")
    if not isinstance(selector, str) or selector == "proxy":
        return None
    return Followed(
        field="fusion.target", value="scratch", why=f"selection.selector '{selector}' leaves no proxy to fuse"
    )


def _committee(given: Given) -> Followed | None:
    name = given("selection.strategy")
    with suppress(ConfigError, TypeError):
        if name is not None and STRATEGIES[name].members:
            return Followed(
                field="pruning.committee",
                value=_members(given("pruning.ratio")),
                why=f"selection.strategy '{name}' asks the members of a committee",
            )
    return None


def _members(ratio: Any) -> int:
    """The size of a committee whose members have this ratio; 2 where there is none."""
    with suppress(TypeError, ValueError, ZeroDivisionError, OverflowError):
        members = round(1 / (1 - float(ratio)))
        if members > 1 and abs(1 - 1 / members - float(ratio)) < 1e-9:
            return members
    return 2


def _groups(given: Given) -> Followed | None:
    column = given("pool.group_column")
    if column is None:
        return None
    return Followed(field="selection.per_group", value="group", why=f"pool.group_column '{column}' names the groups")


def _network(given: Given) -> Followed | None:
    if given("pool.text_column") is None:
        return None
    return Followed(field="network.architecture", value="textcnn", why="the pool holds texts (pool.text_column)")


def _annotation(given: Given) -> Followed | None:
    if given("annotation.url") is None:
        return None
    return Followed(field="annotation.kind", value="label_studio", why="annotation.url names a server")


def _validation(given: Given) -> Followed | None:
    patient = [f"{s}.patience" for s in ("training", "finetuning") if given(f"{s}.patience") not in (None, 0, "0")]
    if not patient or given("pool.validation_path") is not None:
        return None
    return Followed(field="pool.validation_share", value=VALIDATION_SHARE, why=f"{patient[0]} needs a validation set")


def _warmup(section: str) -> Callable[[Given], Followed | None]:
    def rule(given: Given) -> Followed | None:
        with suppress(TypeError, ValueError, OverflowError):
            if 1 <= (epochs := int(given(f"{section}.epochs"))) <= WARMUP:
                value = round(epochs / 3, 2)
                return Followed(field=f"{section}.warmup_epochs", value=value, why=f"a third of {epochs} epochs")
        return None

    return rule


RULES: tuple[Callable[[Given], Followed | None], ...] = (
    _target,
    _committee,
    _groups,
    _network,
    _annotation,
    _validation,
    _warmup("training"),
    _warmup("finetuning"),
)


def following(tree: Mapping[str, Any]) -> list[Followed]:
    """The defaults that are others, from what the tree of a configuration (not yet validated) holds."""

    def given(name: str) -> Any:
        section, _, field = name.partition(".")
        fields = tree.get(section)
        if isinstance(fields, BaseModel):
            return getattr(fields, field) if field in fields.model_fields_set else None
        return fields.get(field) if isinstance(fields, Mapping) else None

    def open_(name: str) -> bool:
        section, _, field = name.partition(".")
        fields = tree.get(section, {})
        if isinstance(fields, BaseModel):
            return field not in fields.model_fields_set
        return isinstance(fields, Mapping) and field not in fields

    found = [followed for rule in RULES if (followed := rule(given)) is not None]
    return [followed for followed in found if open_(followed.field)]


def with_following(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the defaults that follow, each told once."""
    whole = dict(tree)
    for followed in following(tree):
        section, _, field = followed.field.partition(".")
        fields = whole.get(section, {})
        update = {field: followed.value}
        whole[section] = fields.model_copy(update=update) if isinstance(fields, BaseModel) else {**fields, **update}
        if str(followed) not in _told:
            _told.add(str(followed))
            logger.warning("%s", followed)
    return whole
