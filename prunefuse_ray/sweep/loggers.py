"""Where the trials of a sweep are logged: Ray Tune's own callbacks of the trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ray import tune

from prunefuse_ray.errors import PlanError, without_secrets
from prunefuse_ray.sweep.config import Sweep
from prunefuse_ray.tracking import TRACKERS

logger = logging.getLogger(__name__)


class Careful(tune.Callback):
    """A tracker's callback whose errors end no sweep: the first is told, and the tracker is left out from then on.

    Not tried again: Tune waits for each call, and a client that looks for a server that is away takes minutes of it.
    """

    def __init__(self, name: str, callback: tune.Callback) -> None:
        self._name, self._callback, self._left_out = name, callback, False
        self._told: dict[str, int] = {}
        """Trial -> rounds that were logged in this start: one that was lost and taken up again tells them again."""

    def _call(self, hook: str, *args: Any, **info: Any) -> None:
        if self._left_out or (hook == "on_trial_result" and self._again(**info)):
            return
        try:
            getattr(self._callback, hook)(*args, **info)
        except Exception as error:
            self._left_out = True
            logger.warning(
                "loggers: %s gets nothing more of this sweep until the command is given again, and then only of trials "
                "that are not complete: %s: %s",
                self._name,
                type(error).__name__,
                without_secrets(str(error)),
            )

    def _again(self, trial: Any, result: dict[str, Any], **_: Any) -> bool:
        name, passed = str(getattr(trial, "trial_id", trial)), result.get("budgets_passed", 0)
        before = self._told.get(name, 0)
        self._told[name] = max(passed, before)
        return bool(result.get("before")) and passed <= before


def _forwarded(hook: str) -> Callable[..., None]:
    def call(self: Careful, *args: Any, **info: Any) -> None:
        self._call(hook, *args, **info)

    return call


for _hook in vars(tune.Callback):
    if _hook == "setup" or _hook.startswith("on_"):
        setattr(Careful, _hook, _forwarded(_hook))


def loggers_of(sweep: Sweep, name: str) -> list[tune.Callback]:
    """The callbacks of the sweep's trackers. Where these log to, their environment variables say.

    Args:
        name: of the sweep.

    Raises:
        PlanError: a tracker that sweeps cannot use, or that is not installed.
    """
    found: list[tune.Callback] = []
    for each in sweep.loggers:
        tracker = TRACKERS[each]
        if tracker.callback is None:
            raise PlanError(f"loggers: {each} has no callback for Ray Tune, which logs the trials: leave it out")
        try:
            found.append(Careful(each, tracker.callback(name)))
        except (ImportError, RuntimeError, AssertionError) as error:  # how Ray says that a package is missing
            raise PlanError(f"loggers: {tracker.lacks() or error}, or leave it out") from error
    return found
