"""What a sweep came to, from Python."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from prunefuse_ray.api.runs import Report, Run
from prunefuse_ray.config import Config
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.registry import named, trust
from prunefuse_ray.storage import Place, below
from prunefuse_ray.sweep.analysis import COSTS, best_config, compared_at, measured_network, pareto, points
from prunefuse_ray.sweep.results import column, read_sweep, table

if TYPE_CHECKING:
    import pandas as pd


class SweepResults:
    """A sweep as it stands in its directory: finished, or as far as it has come."""

    def __init__(self, directory: str, root: Place, trusted: tuple[str, ...] = ()) -> None:
        self.directory, self._trusted = directory, trusted
        self._root, self._result = root, read_sweep(root)

    @property
    def rounds(self) -> pd.DataFrame:
        """A row for each trial and round: trial, point, arm, seed, status, the fields that were tried, and the figures
        of `sweep.csv` (labels, metric of the networks, costs so far). Trials that were stopped early have the rounds
        that they passed."""
        return table(self._result).to_pandas()

    @property
    def combinations(self) -> pd.DataFrame:
        """A row for each combination, over its seeds: the fields that were tried, how many seeds, and `NAME_mean` and
        `NAME_std` of the metric of each network and of the costs, at the labels where combinations are compared
        (`compared`)."""
        rows = []
        for point in points(self._result):
            row: dict[str, Any] = {"point": point.name, "arm": point.arm or None, "seeds": point.seeds}
            row |= point.values | {"labels": point.labels}
            found = {column(n, self._result.metric): point.final(n) for n in ("proxy", "fused", "baseline")}
            for name, value in {**found, **{cost: point.costs.get(cost) for cost in COSTS}}.items():
                row |= {f"{name}_mean": value.mean if value else None, f"{name}_std": value.std if value else None}
            rows.append(row)
        import pandas as pd

        return pd.DataFrame(rows)

    def front(self, cost: str = "selection_macs") -> pd.DataFrame:
        """The Pareto front, by rising cost: the rows of `combinations` (of those with the most seeds) for which no
        other row is both cheaper and better.

        Args:
            cost: selection_macs, selection_training_macs, dense_selection_macs, total_macs, selection_seconds, seconds.

        Raises:
            ValueError: no such cost.
        """
        if cost not in COSTS:
            raise ValueError(f"cost: '{cost}' is none of {', '.join(COSTS)}")
        found = points(self._result)
        names = [p.name for p in pareto(found, cost, measured_network(found, self._result.sweep))]
        if not names:  # nothing is drawn yet
            return self.combinations.head(0)
        return self.combinations.set_index("point", drop=False).loc[names].reset_index(drop=True)

    @property
    def compared(self) -> str:
        """At how many labels combinations are compared, in words."""
        return compared_at(self._result)

    @property
    def best(self) -> Config | None:
        """The configuration of the best combination, for a run of its own; None before a round is done."""
        import yaml

        text = best_config(self._result)
        tree: Mapping[str, Any] | None = None if text is None else yaml.safe_load(text)
        return None if tree is None else config_from_tree(tree)

    def run(self, trial: str) -> Run:
        """A trial's own run directory. One that was stopped early is a run like any other: `execute(run.config)` goes
        on with it, and no label is paid for twice."""
        return Run(below(self.directory, f"trials/{trial}"), trusted=self._trusted)

    def report(self) -> Report:
        """The sweep's page, made anew from the files; a notebook shows it."""
        from prunefuse_ray.sweep.page import render_sweep

        page = render_sweep(self._result)
        (self._root / "report.html").write_bytes(page.encode())
        return Report(page, (self._root / "report.html").uri)

    def __repr__(self) -> str:
        states = [r.outcome.status for r in self._result.trials]
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"SweepResults({self.directory!r}): {len(states)} trials: {told}"


def load_sweep(directory: str | os.PathLike[str], *, trusted: str | Collection[str] = ()) -> SweepResults:
    """The results of a sweep as pandas DataFrames.

    Args:
        directory: of the sweep, a path or URI.
        trusted: code of your own (`module:name`) that the directory names and that may be imported.

    Raises:
        LedgerError: no sweep there, or a damaged one.
    """
    trust(trusted)
    return SweepResults(os.fspath(directory), Place.at(os.fspath(directory)), named(trusted))
