"""Where the trials of a sweep meet, in an actor. It imports neither torch nor a run, so that it is there at once."""

from __future__ import annotations

from typing import Any


class Desk:
    """Knows which trial has done, or is doing, which step, by the step's inputs key; carries rounds from the task that
    drives a trial to the actor that reports them. It can be lost without harm: then work may be done twice."""

    def __init__(self, done: dict[str, str]) -> None:
        self.done, self.held = done, dict[str, str]()
        self.posted: dict[str, list[dict[str, Any]]] = {}
        self.ended = set[str]()

    def claim(self, key: str, trial: str) -> tuple[str, str]:
        """("take", the trial that has done it), ("wait", the one at work on it) or ("work", the claimant)."""
        if key in self.done:
            return "take", self.done[key]
        if trial in self.ended:  # its process takes a moment to die: nobody would release what it claims now
            return "work", trial
        holder = self.held.setdefault(key, trial)
        return ("work" if holder == trial else "wait"), holder

    def finish(self, key: str, trial: str) -> None:
        self.done.setdefault(key, trial)
        self.held.pop(key, None)

    def release(self, trial: str) -> None:
        """A try of a trial has ended, somehow: what it has not finished is free."""
        self.held = {key: holder for key, holder in self.held.items() if holder != trial}

    def end(self, trial: str) -> None:
        """A trial has ended for good."""
        self.ended.add(trial)
        self.release(trial)

    def post(self, trial: str, row: dict[str, Any]) -> None:
        self.posted.setdefault(trial, []).append(row)

    def rows(self, trial: str) -> list[dict[str, Any]]:
        return self.posted.pop(trial, [])
