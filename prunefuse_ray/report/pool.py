"""The report's account of the pool: what lay there, what became of it, and what scoring found beyond that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunefuse_ray.report import html
from prunefuse_ray.report.html import Child, Html, count, counted, join, tag
from prunefuse_ray.report.view import RunView

SETS = {"path": "Pool", "test_path": "Test set", "test_samples": "Test set", "validation_path": "Validation set"}
CLASSES = 100  # named with their counts
REASONS = 30


def section(run: RunView) -> Html | None:
    """None of runs that have no account: those of earlier versions."""
    account = run.inventory
    if account is None:
        return None
    blocks = [
        tag("div", tag("h3", SETS.get(setting, setting)), html.facts(_facts(one, account["classes"])))
        for setting, one in account["sets"].items()
    ]
    if account.get("drawn"):
        blocks.append(tag("div", tag("h3", SETS["test_path"]), html.facts(_drawn(account, run))))
    more = list(_of_both(account, run))
    known = account["known_labels"]
    if known:
        told = count(account.get("known", sum(known.values()))) if run.numbers else _classes(known, account["classes"])
        more.append(("Known labels", (told, "; ".join(account.get("known_notes", [])))))
    return html.section("pool", "The pool", *blocks, html.facts(more) if more else None)


def _facts(one: Mapping[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, Child]]:
    looked = f" of {count(one['looked'])} looked at" if one["looked"] < one["samples"] else ""
    yield "Samples", f"{count(one['samples'])} in {counted(one['files'], 'file')}, {html.quantity(one['bytes'], 'B')}"
    if one["sizes"]:
        smallest, median, largest = (" x ".join(map(str, one["sizes"][k])) for k in ("smallest", "median", "largest"))
        same = smallest == largest
        yield "Size", smallest if same else f"{smallest} to {largest}, median {median} (height x width{looked})"
    if one["left_out"]:
        yield "Left out", (_counted(one["left_out"], one["examples"]), "All of them: left_out.parquet.")
    for title, key in (("Converted", "conversions"), ("Unreadable", "unreadable")):
        if one[key]:
            yield title, (_counted(one[key], one["examples"]), f"Of {looked.removeprefix(' of ')}." if looked else None)
    if one["repeated"]:
        shown = ", ".join(one["examples"]["repeated"])
        yield (
            "Same content",
            (f"{counted(one['repeated'], 'sample')} as another one: ", tag("span", shown, class_="id")),
        )
    if one["labels"]:
        yield "By class", _classes(one["labels"], classes)


def _drawn(account: Mapping[str, Any], run: RunView) -> Iterator[tuple[str, Child]]:
    """The test set that was drawn from the pool."""
    drawn, twins = account["drawn"], account["twins"]
    words = f"{counted(drawn, 'sample')} of the pool's {count(account['sets']['path']['samples'])}, by a hash of their "
    words += "ids; never scored, selected or learned from."
    if twins:
        words += f" {counted(twins, 'more sample')} with the content of one of them: left out of the pool, too."
    yield "Drawn", words
    labeled: Mapping[str, Any] = next(
        (view.metrics.get("phases", {}).get("label", {}) for view in run.rounds if view.round == 0), {}
    )
    if "test_samples" not in labeled:
        yield "Labeled", "Not yet: together with the initial set."
        return
    usable, missing = labeled["test_samples"], labeled["test_unlabeled"]
    lacking = [(drawn - usable - missing, "cannot be read"), (missing, "without a label")]
    yield (
        "Labeled",
        "; ".join([f"{count(usable)} of {count(drawn)}", *(f"{count(n)} {why}" for n, why in lacking if n)]),
    )
    if (counts := labeled.get("test_counts")) and not run.numbers:
        yield "By class", _classes(dict(zip(account["classes"], counts, strict=True)), account["classes"])


def _of_both(account: Mapping[str, Any], run: RunView) -> Iterator[tuple[str, Child]]:
    """What the sets have in common, and what the pass over the pool found."""
    scored = [view.metrics.get("phases", {}).get("score", {}) for view in run.rounds]
    for setting in dict.fromkeys([*account["overlaps"], *(name for s in scored for name in s.get("overlaps", {}))]):
        name, before = SETS.get(setting, setting).lower(), account["overlaps"].get(setting)
        # The last pass that compared: where a pool grows, each compares all of it.
        found = next((s["overlaps"][setting] for s in reversed(scored) if setting in s.get("overlaps", {})), before)
        compared = run.pool.get("rows") if found is not before else account["compared"]
        pairs = ", ".join(f"{mine} = {theirs}" for mine, theirs in found["examples"])
        words = f"{count(found['samples'])} of {count(compared)} samples compared have the content of one of the {name}"
        yield "Overlap", (words, ": " if pairs else ".", tag("span", pairs, class_="id"))
    conversions = next((s["conversions"] for s in scored if s.get("conversions")), None)
    if conversions:
        words = "; ".join(f"{count(n)} {kind}" for kind, n in conversions.items())
        yield "When scored", f"Converted, of all that were scored first: {words}."


def _counted(counts: Mapping[str, int], examples: Mapping[str, list[str]]) -> Html:
    rows = []
    ordered = sorted(counts.items(), key=lambda one: -one[1])  # a JSON file keeps no order
    for reason, number in ordered[:REASONS]:
        names = examples.get(reason, [])
        more = ", …" if number > len(names) else ""
        rows.append(tag("div", f"{count(number)} {reason}: ", tag("span", ", ".join(names), class_="id"), more))
    if rest := [number for _, number in ordered[REASONS:]]:
        rows.append(tag("div", f"{count(sum(rest))} for {count(len(rest))} other reasons"))
    return join(rows)


def _classes(counts: Mapping[str, int], classes: Sequence[str]) -> str:
    """Every class with its count, in the order of their numbers, which a JSON file does not keep."""
    shown = [
        (name if name == str(n) else f"{n} {name}") + f": {count(counts[name])}"
        for n, name in enumerate(classes)
        if name in counts
    ]
    return ", ".join(shown[:CLASSES]) + (", …" if len(shown) > CLASSES else "")
