"""Defaults that follow from other fields: a configuration that changes one thing does not need a second one.

Only what was not given follows, and it is told once. What was given stays, and is refused where it contradicts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from prunefuse_ray.config.networks import encoder_folder
from prunefuse_ray.config.sources import EXAMPLE, source_defaults
from prunefuse_ray.config.training import RATES
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.networks.fusion import FUSION_RULES
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tasks.classification import CLASSIFICATION

logger = logging.getLogger(__name__)

WARMUP = 3.0
"""`Recipe.warmup_epochs`, where a training is long enough for it."""
VALIDATION_SHARE = 0.1
_told: set[str] = set()


TEXTS = "textngrams"
"""The architecture of texts."""
VECTORS = "mlp"
"""The architecture of vectors."""
LIGHT_RECIPE = {"augment": [], "epochs": 10, "warmup_epochs": 1.0, "weight_decay": 2e-3, "label_smoothing": 0.0}
"""Of networks of texts and vectors; found on a validation split of IMDb (`networks/ngrams.py`)."""
ENCODER_RECIPE = {
    "augment": [], "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.01, "epochs": 5, "warmup_epochs": 0.5,
    "batch_size": 16, "label_smoothing": 0.0,
}  # fmt: skip
"""Of encoders of transformers, as fine-tuning is usual (Devlin et al., arXiv 1810.04805, appendix A.3); the rate is
that of Clark et al., arXiv 2003.10555, for encoders of BERT's base size."""
TOKENS = 256
"""Of a text, by default."""
NUMBERS_RECIPE = {**LIGHT_RECIPE, "lr": 0.01, "weight_decay": 0.1}
"""Of vectors from which numbers are predicted: labels of that kind are noisy, and the other recipe learns the noise by
heart. Found on a validation split of scikit-learn's diabetes data and on its Friedman problem (docs: results)."""
RECIPES = ("training", "finetuning")


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Defaults of a section that are others here."""

    section: str
    values: Mapping[str, Any]
    why: str

    def __str__(self) -> str:
        return f"{', '.join(f'{self.section}.{field} is {value}' for field, value in self.values.items())}: {self.why}"


Given = Callable[[str], Any]
"""'section.field', or a field of the whole -> its value as it was given, or followed before; None where it was not."""


def _task(given: Given) -> Iterator[Followed]:
    """What a task has otherwise: a strategy that makes sense for it, say."""
    name = given("task")
    with suppress(ConfigError, TypeError):
        for section, values in TASKS[name].defaults.items():
            yield Followed(section=section, values=_without_committee(given, name, values), why=f"task '{name}'")


def _without_committee(given: Given, task: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The defaults of a task; where its strategy asks a committee, and what was given leaves none, with the first one
    that asks a network alone."""
    known = TASKS[task].strategies
    asks = "strategy" in values and known[values["strategy"]].members
    if not asks or _masked(given) or _takes_committee(given):
        return values
    return {**values, "strategy": next(n for n, s in known.items() if s.score is not None and not s.members)}


def _masked(given: Given) -> bool:
    """Whether dropout masks make a committee of one network."""
    return given("selection.dropout_masks") not in (None, 0, "0")


def _takes_committee(given: Given) -> bool:
    """Whether what was given may have a committee of proxies beside it."""
    rule, ratio = given("fusion.rule"), given("pruning.ratio")
    with suppress(ConfigError, TypeError, ValueError):
        return (
            given("selection.selector") in (None, "proxy")
            and str(given("pruning.committee")) != "1"
            and (ratio is None or _members(ratio, none=0) > 1)
            and str(given("pruning.steps") or 1) == "1"
            and given("pruning.round_to") is None
            and (rule is None or FUSION_RULES[rule].committees)
        )
    return True


def _target(given: Given) -> Iterator[Followed]:
    selector = given("selection.selector")
    if isinstance(selector, str) and selector != "proxy":
        yield Followed(
            section="fusion",
            values={"target": "scratch"},
            why=f"selection.selector '{selector}' leaves no proxy to fuse",
        )


def _committee(given: Given) -> Iterator[Followed]:
    name, task = given("selection.strategy"), given("task") or CLASSIFICATION.name
    if given("selection.selector") not in (None, "proxy"):
        return  # there are no proxies; validation says what else there is
    with suppress(ConfigError, TypeError, KeyError):
        if name is not None and TASKS[task].strategies[name].members and not _masked(given):
            yield Followed(
                section="pruning",
                values={"committee": _members(given("pruning.ratio"))},
                why=f"selection.strategy '{name}' asks the members of a committee",
            )


def _members(ratio: Any, none: int = 2) -> int:
    """The size of a committee whose members have this ratio; `none` where there is no such committee."""
    with suppress(TypeError, ValueError, ZeroDivisionError, OverflowError):
        members = round(1 / (1 - float(ratio)))
        if members > 1 and abs(1 - 1 / members - float(ratio)) < 1e-9:
            return members
    return none


def _groups(given: Given) -> Iterator[Followed]:
    if (column := given("pool.group_column")) is not None:
        yield Followed(
            section="selection", values={"per_group": "group"}, why=f"pool.group_column '{column}' names the groups"
        )


def _annotation(given: Given) -> Iterator[Followed]:
    if given("annotation.url") is not None:
        yield Followed(section="annotation", values={"kind": "label_studio"}, why="annotation.url names a server")


def _validation(given: Given) -> Iterator[Followed]:
    patient = [f"{s}.patience" for s in RECIPES if given(f"{s}.patience") not in (None, 0, "0")]
    if patient and given("pool.validation_path") is None:
        yield Followed(
            section="pool", values={"validation_share": VALIDATION_SHARE}, why=f"{patient[0]} needs a validation set"
        )


def _warmup(given: Given) -> Iterator[Followed]:
    if encoder_folder(given("network.architecture")) is not None:
        return  # warms up for less than an epoch
    for section in RECIPES:
        with suppress(TypeError, ValueError, OverflowError):
            if 1 <= (epochs := int(given(f"{section}.epochs"))) <= WARMUP:
                value = round(epochs / 3, 2)
                yield Followed(section=section, values={"warmup_epochs": value}, why=f"a third of {epochs} epochs")


def _optimizer(given: Given) -> Iterator[Followed]:
    if encoder_folder(given("network.architecture")) is not None:
        return  # has a recipe of its own
    for section in RECIPES:
        if given(f"{section}.optimizer") == "adamw":
            yield Followed(section=section, values={"lr": RATES["adamw"]}, why=f"{section}.optimizer is adamw")


def _kind_of_pool(given: Given) -> Iterator[Followed]:
    """Texts and vectors: the architecture, its form of texts and its recipe; of an architecture of one's own no
    augmentation."""
    of_source = source_defaults(given("pool.source") or EXAMPLE)
    column = {name: given(f"pool.{name}") or of_source.get(name) for name in ("vector_column", "text_column")}
    architecture = given("network.architecture")
    if column["vector_column"] is not None:
        why, usual = "the pool holds vectors (pool.vector_column)", VECTORS
    elif column["text_column"] is not None:
        why, usual = "the pool holds texts (pool.text_column)", TEXTS
        if (folder := encoder_folder(architecture)) is not None:
            yield from _encoder(folder)
            return
        form = "ngrams" if architecture in (None, TEXTS) else "bytes"
        yield Followed(section="pool", values={"text_form": form}, why=f"what {architecture or TEXTS} reads")
    else:
        return
    yield Followed(section="network", values={"architecture": usual}, why=why)
    usual_recipe = NUMBERS_RECIPE if usual == VECTORS and _of_numbers(given) else LIGHT_RECIPE
    light = usual_recipe if architecture in (None, usual) or usual == VECTORS else {"augment": []}
    for section in RECIPES:
        yield Followed(section=section, values=light, why=why)


def _encoder(folder: str) -> Iterator[Followed]:
    """What goes with an encoder of texts in a folder."""
    why = f"network.architecture is the encoder in '{folder}'"
    yield Followed(section="pool", values={"text_form": "tokens", "text_length": TOKENS, "tokenizer": folder}, why=why)
    yield Followed(section="network", values={"weights": folder}, why=f"{why}; null: random weights")
    for section in RECIPES:
        yield Followed(section=section, values=ENCODER_RECIPE, why=why)


def _of_numbers(given: Given) -> bool:
    with suppress(ConfigError, TypeError):
        return TASKS[given("task") or CLASSIFICATION.name].numbers
    return False


RULES = (_task, _target, _committee, _groups, _annotation, _validation, _warmup, _optimizer, _kind_of_pool)


def with_following(tree: Mapping[str, Any], only: Collection[str] | None = None) -> dict[str, Any]:
    """The tree of a configuration (not yet validated) with the defaults that follow, each told once; of `only` these
    sections where a command has no others."""
    whole = dict(tree)

    def given(name: str) -> Any:
        section, _, field = name.partition(".")
        fields = whole.get(section)
        if not field:
            return fields
        if isinstance(fields, BaseModel):
            return getattr(fields, field) if field in fields.model_fields_set else None
        return fields.get(field) if isinstance(fields, Mapping) else None

    for rule in RULES:
        for followed in list(rule(given)):
            if only is None or followed.section in only:
                _lay(whole, followed)
    return whole


def _lay(whole: dict[str, Any], followed: Followed) -> None:
    """Put what follows below what was given, and tell it."""
    fields = whole.get(followed.section, {})
    if isinstance(fields, BaseModel):
        new = {f: v for f, v in followed.values.items() if f not in fields.model_fields_set}
        whole[followed.section] = fields.model_copy(update=new)
    elif isinstance(fields, Mapping):
        new = {f: v for f, v in followed.values.items() if f not in fields}
        whole[followed.section] = {**fields, **new}
    else:  # validation refuses it
        return
    told = str(replace(followed, values=new))
    if new and told not in _told:
        _told.add(told)
        logger.warning("%s", told)
