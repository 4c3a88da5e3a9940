"""`prunefuse list`: what can be named in a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Column, Table

from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.commands.terminal import console
from prunefuse_ray.config.sources import PATHS, POOL_SOURCES
from prunefuse_ray.networks.backends import BACKENDS
from prunefuse_ray.networks.fusion import FUSION_RULES
from prunefuse_ray.tasks import TASKS


def main(argv: Sequence[str]) -> int:
    """List what can be named in a configuration: entries of this package and of other installed ones."""
    parser = argparse.ArgumentParser(prog="prunefuse list", description=main.__doc__)
    parser.add_argument("kind", choices=KINDS)
    console.print(KINDS[parser.parse_args(list(argv)).kind]())
    return 0


def _name(field: str) -> Column:
    """The column of what is written in the configuration, whole however narrow the terminal is."""
    return Column(field, no_wrap=True)


def strategies() -> Table:
    table = Table("selection.strategy", "wants samples with", "needs", "paper", box=box.SIMPLE)
    for name, strategy in STRATEGIES.items():
        needs = ["a committee"] * strategy.members + ["features"] * (strategy.select is not None)
        table.add_row(name, strategy.wants, ", ".join(needs), strategy.paper)
    return table


def sources() -> Table:
    table = Table(box=box.SIMPLE)
    for title in ("pool.source", "pool.path names", "id of a sample", "label", "takes", "may grow"):
        table.add_column(title, overflow="fold")
    for name, source in POOL_SOURCES.items():
        columns = [field for field in source.fields if field not in PATHS]
        told = (name, source.help, source.ids, source.labels, ", ".join(columns))
        table.add_row(*(escape(text) for text in told), "yes" if source.may_grow else "no")
    return table


def backends() -> Table:
    table = Table(_name("scoring.backend"), "runs", "limits", "here", box=box.SIMPLE)
    for name, backend in BACKENDS.items():
        told = (name, backend.about, backend.limits, backend.lacks() or "yes")
        table.add_row(*map(escape, told))
    return table


def fusion_rules() -> Table:
    table = Table(_name("fusion.rule"), "the other weights", "limits", "paper", box=box.SIMPLE)
    for name, rule in FUSION_RULES.items():
        table.add_row(*map(escape, (name, rule.about, rule.limits, rule.paper)))
    return table


def tasks() -> Table:
    table = Table("task", "labels", "compared by", box=box.SIMPLE)
    for name, task in TASKS.items():
        table.add_row(name, task.about, task.metric.title.lower())
    return table


KINDS = {
    "strategies": strategies,
    "sources": sources,
    "backends": backends,
    "fusion-rules": fusion_rules,
    "tasks": tasks,
}
