"""The seam for experiment trackers: what a tracker is, and what it is told.

To add one: write it in a file of its own and name it in `tracking/__init__.py` (or register it from elsewhere, see
`prunefuse_ray/registry.py`). A configuration is checked by these entries without the tracker's own package, which is
imported when a session is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

LEARNING_CURVE = "learning_curve/"
"""Beginning of the names of figures that are shown over the number of labels."""
Status = Literal["done", "paused", "failed"]
"""How a driver's work on a run ended; `paused`: it waits for labels or was interrupted, and will go on."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one round."""

    round: int
    labels: int
    """Labels that the round's networks were trained on."""
    values: Mapping[str, float]

    def learning_curve(self, metric: str) -> dict[str, float]:
        """Name -> the task's metric, of the networks that were measured: a point at `labels`."""
        names = (f"{network}_{metric}" for network in ("proxy", "fused"))
        return {f"{LEARNING_CURVE}{n}": self.values[n] for n in names if n in self.values}


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run, as a tracker is told of it when its driver begins or takes it up again."""

    name: str
    id: str
    """The same when the run is taken up again; letters and digits."""
    metric: str
    """Name of the task's metric, in `proxy_NAME` and `fused_NAME`."""
    parameters: Mapping[str, Any]
    """The configuration: `section.field` -> value."""
    keep: Callable[[str, bytes], object]
    """Writes a file into the run directory, by its name in there."""
    before: Sequence[Figures]
    """The rounds that are done already, by an earlier driver. It may have been killed before it told of them, so they
    are logged, too: the tracker sees to it that nothing counts twice."""


class Session(Protocol):
    """An open run of a tracker. Any exception is told as a warning, and the run goes on."""

    def log(self, figures: Figures) -> None:
        """A round is done."""

    def close(self, status: Status) -> None:
        """The driver ends."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """Where the figures of runs are shown."""

    name: str
    about: str
    """Where they go, and by which environment variables: one line of help."""
    open: Callable[[TrackedRun], Session]
    """Begins or goes on with a run. Any exception is told to the user before the run's next phase begins."""
    callback: Callable[[str], Any] | None = None
    """Of a sweep, by its name: Ray Tune's own callback for this tracker. None: it cannot be used in sweeps."""
    lacks: Callable[[], str | None] = lambda: None
    """What it needs and this machine does not have, with the remedy; None where nothing is missing."""


def short(value: Any) -> bool | int | float | str:
    """A field's value as trackers take hyper-parameters: a number, a truth value or words."""
    return value if isinstance(value, bool | int | float | str) else str(value)
