"""Whole runs from Python, and what they came to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from prunefuse_ray.config import Config
from prunefuse_ray.config.files import config_from_tree, load_config, overlay
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.method.steps import BASELINE, LABEL, SELECT, Step, steps
from prunefuse_ray.registry import named, trust
from prunefuse_ray.report import html
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.result import result_of
from prunefuse_ray.run.rounds import RoundLines
from prunefuse_ray.schemas import selected_schema
from prunefuse_ray.storage import Place, below, parted
from prunefuse_ray.tasks import TASKS

if TYPE_CHECKING:
    from prunefuse_ray.inference.predictor import Predictor

logger = logging.getLogger(__name__)

HEIGHT = 720
"""Pixels of a report inside a notebook."""


@dataclass(frozen=True)
class Report:
    """A page, for a notebook to show."""

    page: str
    path: str
    """Where it lies as a file."""

    def _repr_html_(self) -> str:
        # No script runs in it, and it reaches nothing: sandbox, and the page's own policy.
        return html.tag(
            "iframe", srcdoc=self.page, sandbox="", width="100%", height=HEIGHT, style="border:0", title="report"
        )


class Run:
    """A run directory: finished, or as far as it has come."""

    def __init__(self, directory: str | os.PathLike[str], *, trusted: str | Collection[str] = ()) -> None:
        """
        Args:
            directory: of the run, a path or URI.
            trusted: code of your own (`module:name`) that the directory names and that may be imported.

        Raises:
            LedgerError: no run there.
        """
        trust(trusted)
        self._trusted = named(trusted)
        given = os.fspath(directory)
        self._ledger = Ledger(Place.at(given))
        self._directory = self._ledger.root.path if self._ledger.root.local else given
        if not self._ledger.exists:
            raise LedgerError(f"{self._ledger.root.path}: is no run directory (it has no config.yaml)")
        config, (parent, name) = self._ledger.read_config(), parted(self._directory)
        run = config.run.model_copy(update={"directory": parent, "name": name})  # wherever it lies by now
        self.config: Config = config.model_copy(update={"run": run})

    @property
    def directory(self) -> str:
        """A path, or the URI that was given."""
        return self._directory

    @property
    def finished(self) -> bool:
        # A run may have ended without a baseline, whatever it was begun with.
        return all(self._ledger.committed(step) for step in steps(self.config) if step.phase != BASELINE)

    @property
    def result(self) -> dict[str, Any]:
        """The figures of `result.json`: accuracies, MACs, seconds, and a dict for every round in `rounds`."""
        return result_of(self.config, self._ledger)

    @property
    def selected(self) -> pa.Table:
        """(id, score, rank, round) of all samples selected so far."""
        tables = []
        id_type = self._ledger.read_pool()["id_type"]
        for step in (s for s in steps(self.config) if s.phase == SELECT and self._ledger.committed(s)):
            table = self._ledger.read_table(step, "selected.parquet", selected_schema(id_type))
            tables.append(table.append_column("round", pa.array([step.round] * table.num_rows, pa.int64())))
        schema = selected_schema(id_type).append(pa.field("round", pa.int64()))
        return pa.concat_tables([schema.empty_table(), *tables])

    def network(self, *, trusted: str | Collection[str] | None = None) -> Predictor:
        """The fused network, ready to predict; see `prunefuse_ray.load`. What the run was opened with is trusted."""
        from prunefuse_ray.inference.predictor import load

        if self._ledger.network_of_before:
            logger.warning("%s: has not come to its end: this is the last network that it wrote", self.directory)
        return load(self.directory, trusted=(*self._trusted, *named(trusted)))

    def report(self) -> Report:
        """The report, made anew from the files; a notebook shows it."""
        from prunefuse_ray.report.page import render
        from prunefuse_ray.run.view import view_run

        page = render(view_run(self._ledger))
        return Report(page, self._ledger.write_text("report.html", page).uri)

    def __repr__(self) -> str:
        done = "finished" if self.finished else "not finished"
        return f"Run({self.directory!r}): " + "; ".join([done, *self._lines()])

    def _labeled(self) -> list[dict[str, Any]]:
        """The rounds that have their labels: those of the others are planned."""
        return [one for one in self.result["rounds"] if self._ledger.committed(Step(one["round"], LABEL))]

    def _lines(self) -> list[str]:
        metric = TASKS[self.config.task].metric
        lines = []
        for one in self._labeled():
            parts = [f"{one['labels']} labels"]
            parts += [
                f"{n} {metric.text(v)}" for n in ("proxy", "fused") if (v := one[f"{n}_{metric.name}"]) is not None
            ]
            lines.append(", ".join(parts))
        return lines

    def _repr_html_(self) -> str:
        metric = TASKS[self.config.task].metric
        rows = [
            [one["labels"], *(_shown(metric, one[f"{n}_{metric.name}"]) for n in ("proxy", "fused")),
             html.quantity(one["selection_macs"]), html.duration(sum(one["seconds"].values()))]
            for one in self._labeled()
        ]  # fmt: skip
        state = "finished" if self.finished else "not finished"
        head = html.tag("p", html.tag("b", self.config.run.name), f" {state}, ", html.tag("code", self.directory))
        return head + html.table(["labels", "proxy", "fused", "selection MACs", "time"], rows, left=0)


def _shown(metric: Any, value: float | None) -> str:
    return html.DASH if value is None else metric.text(value)


def execute(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None,
    *,
    tell: Callable[[str], None] | None = print,
    **sections: Mapping[str, Any],
) -> Run:
    """Carry out a run, or what is missing of it: `prunefuse run` from Python.

    Args:
        config: a YAML file, sections as nested mappings, or a Config; default: the digits example.
        tell: called with the inventory of the pool and a line for every round; None: silent. A notebook also shows
            the phase that is under way, how far it has come, and what is left.
        sections: laid over it, e.g. `selection={"budgets": [50, 100]}`.

    Raises:
        LabelsWaiting: people's labels are missing; call it again when they are there.
        PruneFuseError: something that can be put right; nothing is lost.
    """
    from prunefuse_ray.distributed.security import secure

    secure()
    if isinstance(config, Config):
        found = config if not sections else config_from_tree(overlay(config.model_dump(mode="json"), sections))
    elif isinstance(config, Mapping):
        found = config_from_tree(overlay(config, sections))
    else:
        found = load_config(None if config is None else os.fspath(config), sections)
    import torch

    from prunefuse_ray.api.notebook import display
    from prunefuse_ray.distributed.resources import settings_kept
    from prunefuse_ray.method.selector import trusted
    from prunefuse_ray.run import loop

    say = tell or (lambda _: None)

    def account(lines: Sequence[str]) -> None:
        for line in lines:
            say(line)

    place = loop.run_place(found)
    # A training in this process takes as many threads as pay for it, and arithmetic by its recipe.
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    try:
        with settings_kept(), nullcontext() if tell is None else display(place):
            ledger = loop.run(found, RoundLines(found, place, say), tell=account)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32
    where = ledger.root.path if ledger.root.local else below(found.run.directory, found.run.name)
    return Run(where, trusted=[name for name in (*trusted(found), found.task) if ":" in name])
