"""The account of a pool (`inventory.json`) in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunefuse_ray.data.left_out import in_words

LEFT_OUT_FILE = "left_out.parquet"
NAMES = {"path": "pool", "test_path": "test set", "validation_path": "validation set"}
MANY = 12
"""Classes that are named."""


def lines(account: Mapping[str, Any], where: str | None = None) -> list[str]:
    """The account (`inventory.json`) in a few lines.

    Args:
        where: the directory that holds the full lists.
    """
    told = []
    for setting, one in account["sets"].items():
        told += _set_lines(NAMES[setting], one, where)
    told += _drawn_lines(account)
    if account["classes"]:
        numbers, names = account.get("numbers", False), account["classes"]
        told.append(f"targets: {', '.join(names)}" if numbers else f"classes: {_numbered(names)}")
    if known := account.get("known", sum(account["known_labels"].values())):
        told.append(f"known labels: {known:,}: {_classes(account['known_labels'])}")
    told += [f"  {note}" for note in account.get("known_notes", [])]
    return told + _overlap_lines(account)


def _drawn_lines(account: Mapping[str, Any]) -> list[str]:
    """The test set that was drawn from the pool; none of runs with one of their own, and of earlier versions."""
    if not (drawn := account.get("drawn", 0)):
        return []
    twins = account["twins"]
    also = f"; {twins:,} more have the content of one of them and are left out, too" if twins else ""
    return [f"test set: {drawn:,} of these samples, drawn by a hash of their ids; never selected{also}"]


def _numbered(classes: Sequence[str]) -> str:
    """The names of the classes with their numbers."""
    if list(classes) == [str(n) for n in range(len(classes))]:
        return f"{len(classes):,}, called by their numbers"
    more = f", ... ({len(classes):,} in all)" if len(classes) > MANY else ""
    return ", ".join(f"{n} {name}" for n, name in enumerate(classes[:MANY])) + more


def _set_lines(name: str, one: Mapping[str, Any], where: str | None) -> list[str]:
    sizes = {key: " x ".join(map(str, size)) for key, size in one["sizes"].items()}
    size = f", {sizes['smallest']}" if sizes else ""
    if sizes and sizes["smallest"] != sizes["largest"]:
        size = f", {sizes['smallest']} to {sizes['largest']} pixels (median {sizes['median']})"
    told = [f"{name}: {one['samples']:,} samples in {one['files']:,} files{size}"]
    of = f" (of {one['looked']:,} looked at)" if one["looked"] < one["samples"] else ""
    if one["left_out"]:
        full = f"; all of them: {where}/{LEFT_OUT_FILE}" if where else ""
        told.append(f"  left out: {in_words(one['left_out'], one['examples'])}{full}")
    if one["conversions"]:
        told.append(f"  converted{of}: {in_words(one['conversions'], one['examples'])}")
    if one["unreadable"]:
        told.append(f"  unreadable{of}: {in_words(one['unreadable'], one['examples'])}")
    if one["repeated"]:
        told.append(f"  {one['repeated']:,} have the content of another one ({', '.join(one['examples']['repeated'])})")
    if one["labels"]:
        told.append(f"  by class: {_classes(one['labels'])}")
    return told


def _classes(counts: Mapping[str, int]) -> str:
    """Each class with its number of samples; of many classes the range, and those that have none."""
    if len(counts) <= MANY:
        return ", ".join(f"{name} {count:,}" for name, count in counts.items())
    none = [name for name, count in counts.items() if not count]
    lacking = f"; none of {', '.join(none[:MANY])}{', ...' if len(none) > MANY else ''}" if none else ""
    return f"{min(counts.values()):,} to {max(counts.values()):,} in each of {len(counts):,} classes{lacking}"


def _overlap_lines(account: Mapping[str, Any]) -> list[str]:
    held_out = " and ".join(NAMES[setting] for setting in account["sets"] if setting != "path")
    if not held_out:
        return []
    some = account["compared"] < account["sets"]["path"]["samples"]
    told = [
        f"{one['samples']:,} samples of the pool have the content of {one['held_out']:,} of the {NAMES[setting]} "
        f"({pairs(one['examples'])})"
        for setting, one in account["overlaps"].items()
        if one["samples"]
    ] or [f"pool and {held_out} share no file and no content"]
    if some:
        told[-1] += (
            f", as far as {account['compared']:,} samples of the pool tell; the others are compared when they are "
            "first scored (all at once: prunefuse inspect --thorough)"
        )
    return told


def pairs(examples: Iterable[tuple[str, str]]) -> str:
    """Some samples of the pool with those of a held-out set that are the same."""
    return ", ".join(f"{mine} = {theirs}" for mine, theirs in examples)
