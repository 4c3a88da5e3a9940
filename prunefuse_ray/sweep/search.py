"""Draws by what came out of earlier ones: Optuna through Ray Tune, made durable by the sweep's directory.

A draw is a set of values for the fields of the space; its trials are its seeds. Every draw is written down before its
first trial starts (`draws/NNN.json`), so that a sweep that is taken up again has the same trials, and Optuna is told of
all that were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from prunefuse_ray.errors import PlanError
from prunefuse_ray.registry import installed
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import Axis, Sweep, Trial, trials
from prunefuse_ray.sweep.results import draw_of, read_draws

SEED = 20_260_000
"""Of Optuna's sampler; the draws that there are already are added, so that a later start does not draw them again."""


def check_search(sweep: Sweep) -> None:
    """PlanError where the search needs a package that is missing."""
    if sweep.search == "optuna" and (why := installed("optuna", "optuna")()):
        raise PlanError(f"search: {why}, or set search to random")


def domain(axis: Axis) -> Any:
    """The axis in Ray Tune's terms."""
    for name in ("choice", "uniform", "loguniform", "quniform", "randint", "lograndint"):
        if (value := getattr(axis, name)) is not None:
            return tune.choice(value) if name == "choice" else getattr(tune, name)(*value)
    raise AssertionError("validated by Sweep")


class Draws(Searcher):
    """Tune's side of the search: hands out trials, all seeds of a draw one after the other, and asks for the next draw
    when they are given out. With several trials at a time a draw is made before those under way have ended."""

    def __init__(
        self, sweep: Sweep, root: Place, measured: Callable[[Trial], float | None], todo: Sequence[Trial], search: Any
    ) -> None:
        """
        Args:
            measured: the metric of a trial that has ended, at the most labels at which it was measured.
            todo: trials of recorded draws that have not ended.
            search: Tune's searcher over `domain`s, asked for values and told what came out.
        """
        super().__init__()  # with a metric Tune would demand it of every round
        self.sweep, self.root, self.measured, self.search = sweep, root, measured, search
        self.drawn = read_draws(root)
        self.waiting = list(todo)
        self.given: dict[str, Trial] = {}
        self.asked: set[str] = set()
        """Points that the searcher has suggested itself, in this start."""
        self.left: dict[str, int] = {}
        """Point -> trials of it that have not ended."""
        for trial in todo:
            self.left[trial.point] = self.left.get(trial.point, 0) + 1
        self.members: dict[str, list[Trial]] = {}
        for trial in trials(sweep, self.drawn):
            self.members.setdefault(trial.point, []).append(trial)
        for point in [p for p in self.members if p not in self.left]:
            self._tell(point)

    def suggest(self, trial_id: str) -> Any:
        """The next trial as Tune's configuration, or that there is none."""
        if not self.waiting:
            if len(self.drawn) >= self.sweep.samples:
                return Searcher.FINISHED
            self._draw()
        trial = self.given[trial_id] = self.waiting.pop(0)
        return {"trial": point_of(trial)}

    def _draw(self) -> None:
        number = len(self.drawn)
        found = self.search.suggest(str(number))
        values = {field: axis.as_shown(found[field]) for field, axis in self.sweep.space.items()}
        self.drawn.append(values)
        new = trials(self.sweep, self.drawn, since=number)
        draw_place(self.root, number).write_json(values)
        self.waiting += new
        point = new[0].point
        self.asked.add(point)
        self.left[point], self.members[point] = len(new), new

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Only how a draw ends counts."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        point = self.given.pop(trial_id).point
        self.left[point] -= 1
        if not self.left[point]:
            self._tell(point)

    def _tell(self, point: str) -> None:
        """The searcher: the mean over the seeds. A draw of which none was measured is told as pruned, which is worse
        than all that were: as an error it would not count, and be tried again and again."""
        known = [value for trial in self.members[point] if (value := self.measured(trial)) is not None]
        value = sum(known) / len(known) if known else None
        number = draw_of(point)
        if point in self.asked:
            told = None if value is None else {self.sweep.metric: value}
            self.search.on_trial_complete(str(number), told)
        else:
            self.search.add_evaluated_point(self.drawn[number], value, pruned=value is None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's directory has it all."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a sweep is taken up again from its own directory")


def optuna(sweep: Sweep, drawn: int) -> Any:
    """Ray Tune's searcher over the space of a sweep with so many draws."""
    import optuna as library
    from ray.tune.search.optuna import OptunaSearch

    library.logging.set_verbosity(library.logging.WARNING)
    space = OptunaSearch.convert_search_space({field: domain(axis) for field, axis in sweep.draws.items()})
    return OptunaSearch(space, metric=sweep.metric, mode="max", seed=SEED + drawn)


def draw_place(root: Place, number: int) -> Place:
    return root / "draws" / f"{number:03d}.json"


def point_of(trial: Trial) -> Mapping[str, Any]:
    """What Tune and its loggers are told of a trial."""
    return {
        "name": trial.name, "seed": trial.config.run.seed, **({"arm": trial.arm} if trial.arm else {}), **trial.values
    }  # fmt: skip
