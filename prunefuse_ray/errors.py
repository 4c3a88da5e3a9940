"""What a user can put right: every such error names the field, the value and the remedy, and ends with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneFuseError(Exception):
    """A condition that the user can put right; the message is meant to be read as it stands."""

    exit_code = 2
    heading = "error"


class ConfigError(PruneFuseError):
    """A configuration that cannot describe a run."""


class PoolError(PruneFuseError):
    """A pool or test set that is not what the configuration says it is."""


class PlanError(PruneFuseError):
    """A plan that cannot run on the resources at hand."""


class LedgerError(PruneFuseError):
    """A run directory that cannot be used: another configuration, another pool, a damaged file, a second driver."""


class TrainingError(PruneFuseError):
    """A training that came to nothing."""


class ScoreError(PruneFuseError):
    """Scores that cannot be selected from (non-finite, or too many rejected samples)."""


class LabelError(PruneFuseError):
    """Labels that cannot be taken as they are, or an annotation server that cannot be used. Nothing was taken."""


class LabelsWaiting(PruneFuseError):
    """No fault: samples wait for their labels. The same command goes on once they are there."""

    exit_code = 3
    heading = "waiting"


class Rejected(ValueError):
    """Why one sample of a pool cannot be used. Not an error of the run: it is recorded, and the run goes on."""


def near(value: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' where something known resembles `value`, else nothing."""
    close = difflib.get_close_matches(value, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
