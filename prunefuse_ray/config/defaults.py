"""Defaults that follow from what a configuration says: nothing is refused that nobody has written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from prunefuse_ray.config.sources import EXAMPLE, source_defaults

TEXTS = "textngrams"
"""The architecture of texts."""
VECTORS = "mlp"
"""The architecture of vectors."""
SHORT = 3
"""A training of no more epochs than this has no room for the warm-up of others."""

RECIPES = ("training", "finetuning")
LIGHT_RECIPE = {"augment": [], "epochs": 10, "warmup_epochs": 1.0, "weight_decay": 2e-3, "label_smoothing": 0.0}
"""Found on a validation split of IMDb (`networks/ngrams.py`)."""


def with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as people wrote it, not validated, with the defaults of other fields that follow from it:

    - texts, vectors: the architecture, its form of texts and its recipe; of an architecture of one's own no
      augmentation;
    - a short training: a short warm-up;
    - a selector that is no pruned proxy: a target from scratch.
    """
    found = dict(tree)
    for section in RECIPES:
        epochs: Any = _written(tree, section).get("epochs")
        if str(epochs).isdecimal() and 0 < int(epochs) <= SHORT:  # of the command line: text
            _lay(found, section, {"warmup_epochs": int(epochs) / 4})
    pool = _written(tree, "pool")
    pool = {**source_defaults(pool.get("source", EXAMPLE)), **pool}
    if pool.get("vector_column") is not None:
        _lay(found, "network", {"architecture": VECTORS})
        for section in RECIPES:
            _lay(found, section, LIGHT_RECIPE)
    if pool.get("text_column") is not None:
        _lay(found, "network", {"architecture": TEXTS})
        ngrams = _written(found, "network")["architecture"] == TEXTS
        _lay(found, "pool", {"text_form": "ngrams" if ngrams else "bytes"})
        for section in RECIPES:
            _lay(found, section, LIGHT_RECIPE if ngrams else {"augment": []})
    if _written(tree, "selection").get("selector", "proxy") != "proxy":
        _lay(found, "fusion", {"target": "scratch"})
    return found


def _written(tree: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """What was written of a section; nothing where it is none."""
    given = tree.get(section)
    if isinstance(given, BaseModel):
        return given.model_dump(exclude_unset=True)
    return given if isinstance(given, Mapping) else {}


def _lay(tree: dict[str, Any], section: str, defaults: Mapping[str, Any]) -> None:
    """Put defaults below what was written of a section."""
    if isinstance(tree.get(section, {}), Mapping | BaseModel):
        tree[section] = {**defaults, **_written(tree, section)}
