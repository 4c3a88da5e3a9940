"""`prunefuse list`: what can be named in a configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich import box
from rich.markup import escape
from rich.table import Column, Table

from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.commands.terminal import console
from prunefuse_ray.config.sources import PATHS, POOL_SOURCES
from prunefuse_ray.networks.backends import BACKENDS
from prunefuse_ray.networks.fusion import FUSION_RULES
from prunefuse_ray.registry import Registry
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tracking import TRACKERS

T = TypeVar("T")


def main(argv: Sequence[str]) -> int:
    """List what can be named in a configuration: entries of this package and of other installed ones."""
    parser = argparse.ArgumentParser(prog="prunefuse list", description=main.__doc__)
    parser.add_argument("kind", choices=KINDS)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table as Markdown, for documents")
    form.add_argument("--json", action="store_true", help="the table as JSON: a list of objects")
    args = parser.parse_args(list(argv))
    listed = KINDS[args.kind]()
    if args.markdown:
        print(listed.markdown())
    elif args.json:
        print(json.dumps(listed.objects()))
    else:
        console.print(listed.table())
    return 0


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The entries of one kind."""

    field: str
    """Where the configuration names one."""
    titles: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    """Name -> a cell for every title."""

    def table(self) -> Table:
        """For a terminal. Names stay whole, however narrow it is."""
        table = Table(Column(self.field, no_wrap=True), box=box.SIMPLE)
        for title in self.titles:
            table.add_column(title, overflow="fold")
        for name, cells in self.rows.items():
            table.add_row(*map(escape, (name, *cells)))
        return table

    def objects(self) -> list[dict[str, str]]:
        titles = ("name", *self.titles)
        return [dict(zip(titles, (name, *cells), strict=True)) for name, cells in self.rows.items()]

    def markdown(self) -> str:
        lines = [(f"`{self.field}`", *self.titles), ("---",) * (1 + len(self.titles))]
        lines += [(f"`{name}`", *cells) for name, cells in self.rows.items()]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def listed(field: str, titles: tuple[str, ...], registry: Registry[T], cells: Callable[[T], tuple[str, ...]]) -> Listed:
    """The entries of a registry; of another package's that cannot be loaded, why."""
    rows = {name: cells(entry) for name, entry in registry.loadable().items()}
    broken = {name: (why, *[""] * (len(titles) - 1)) for name, why in registry.broken().items()}
    return Listed(field=field, titles=titles, rows=rows | broken)


def strategies() -> Listed:
    def needs(members: bool, features: bool) -> str:
        return ", ".join(["a committee, or dropout masks"] * members + ["features"] * features)

    return listed(
        "selection.strategy",
        ("wants samples with", "needs", "paper"),
        STRATEGIES,
        lambda s: (s.wants, needs(s.members, s.select is not None), s.paper),
    )


def sources() -> Listed:
    return listed(
        "pool.source",
        ("pool.path names", "id of a sample", "label", "takes", "may grow"),
        POOL_SOURCES,
        lambda source: (
            source.help,
            source.ids,
            source.labels,
            ", ".join(field for field in source.fields if field not in PATHS),
            "yes" if source.may_grow else "no",
        ),
    )


def backends() -> Listed:
    """With what keeps each from running on this machine."""
    return listed(
        "scoring.backend", ("runs", "limits", "here"), BACKENDS, lambda b: (b.about, b.limits, b.lacks() or "yes")
    )


def fusion_rules() -> Listed:
    return listed(
        "fusion.rule",
        ("the other weights", "limits", "paper"),
        FUSION_RULES,
        lambda rule: (rule.about, rule.limits, rule.paper),
    )


def tasks() -> Listed:
    return listed("task", ("labels", "compared by"), TASKS, lambda task: (task.about, task.metric.inside))


def trackers() -> Listed:
    return listed(
        "run.trackers",
        ("where the figures go", "in sweeps"),
        TRACKERS,
        lambda t: (t.about, "yes" if t.callback else "no"),
    )


KINDS: dict[str, Callable[[], Listed]] = {
    "strategies": strategies,
    "sources": sources,
    "backends": backends,
    "fusion-rules": fusion_rules,
    "tasks": tasks,
    "trackers": trackers,
}
