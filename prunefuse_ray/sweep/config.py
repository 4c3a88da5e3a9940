"""What a sweep is: a base configuration, named arms, a search space, seeds; and the trials that follow from them.

A sweep is the product of its arms (named sets of overrides, for comparisons whose sides differ in several fields at
once), the grids of its space, its draws from the distributions of the space, and its seeds. All trials are known
before the first one starts: each has a name, and is a whole configuration of the main job.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from prunefuse_ray.acquisition import AUTO
from prunefuse_ray.config.files import (
    config_from_tree,
    explain,
    flatten,
    listed,
    merge,
    overlay,
    preset_path,
    read_tree,
    to_tree,
)
from prunefuse_ray.config.schema import Config, TrackerName
from prunefuse_ray.config.section import RECORDED, Positive, Section
from prunefuse_ray.errors import ConfigError, near
from prunefuse_ray.run.ledger import decides
from prunefuse_ray.storage import below
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

Seed = Annotated[int, Field(ge=0, lt=2**31)]
ARM_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
LONGEST_NAME = 150
GRACE = 2
"""Rounds that every trial may pass."""
NO_MATTER = "says where and how fast a run works, not what comes out"


def _network(value: Any, info: ValidationInfo) -> Any:
    """Earlier versions named the networks together with the only metric there was."""
    if value not in ("fused_accuracy", "proxy_accuracy"):
        return value
    now = value.removesuffix("_accuracy")
    if info.context != RECORDED:
        logger.warning("metric: '%s' is now written '%s'", value, now)
    return now


class Axis(Section):
    """What one field is tried with: exactly one of these."""

    grid: Annotated[list[Any], Field(min_length=1)] | None = None
    """Every one of these values."""
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """Draw one of these values."""
    uniform: tuple[float, float] | None = None
    """Draw between these two."""
    loguniform: tuple[float, float] | None = None
    """Draw between these two, evenly over their logarithm."""
    quniform: tuple[float, float, Annotated[float, Field(gt=0)]] | None = None
    """Draw between the first two, in multiples of the third."""
    randint: tuple[int, int] | None = None
    """Draw an integer from the first one up to, but not including, the second."""
    lograndint: tuple[Positive, int] | None = None
    """The same, evenly over the logarithm."""

    @model_validator(mode="before")
    @classmethod
    def _said_how(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping | Axis):
            values = json.dumps(tree if isinstance(tree, list) else [tree], default=str)
            raise ValueError(f"does not say how its values are tried: write {{grid: {values}}}")
        return tree

    @model_validator(mode="after")
    def _one(self) -> Axis:
        given = {k: v for k, v in self.model_dump().items() if v is not None}
        if len(given) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise ValueError(f"give exactly one of {kinds}, not {list(given) or 'none'}")
        kind, value = next(iter(given.items()))
        if kind not in ("grid", "choice") and value[0] >= value[1]:
            raise ValueError(f"{kind} {list(value)} is empty: give [smallest, largest]")
        if kind == "loguniform" and value[0] <= 0:
            raise ValueError(f"loguniform {list(value)} reaches zero: its smallest value must be positive")
        return self

    def ends(self) -> list[Any]:
        """The smallest and the largest value; of a choice all."""
        if self.choice is not None:
            return self.choice
        for bounds, last in ((self.randint, 1), (self.lograndint, 1), (self.uniform, 0), (self.loguniform, 0)):
            if bounds is not None:
                return [bounds[0], bounds[1] - last]
        assert self.quniform is not None
        return list(self.quniform[:2])

    def as_shown(self, value: Any) -> Any:
        """A drawn number to four digits, inside the bounds; of a grid as it is, since Optuna takes no other back."""
        if self.quniform is not None:
            return float(f"{value:.12g}")
        bounds = self.uniform or self.loguniform
        return value if bounds is None else float(np.clip(rounded(value), *bounds))

    def draw(self, rng: np.random.Generator) -> Any:
        if self.choice is not None:
            return self.choice[int(rng.integers(len(self.choice)))]
        if self.uniform is not None:
            return self.as_shown(rng.uniform(*self.uniform))
        if self.loguniform is not None:
            low, high = np.log(self.loguniform)
            return self.as_shown(float(np.exp(rng.uniform(low, high))))
        if self.quniform is not None:
            low, high, step = self.quniform
            return self.as_shown(float(np.clip(np.round(rng.uniform(low, high) / step) * step, low, high)))
        if self.randint is not None:
            return int(rng.integers(*self.randint))
        assert self.lograndint is not None
        low, high = self.lograndint
        return min(high - 1, int(np.exp(rng.uniform(np.log(low), np.log(high)))))


def rounded(value: float) -> float:
    """To four digits: names and files show the very value that was tried."""
    return float(f"{value:.4g}")


class PerTrial(Section):
    """What a trial at least has of the cluster."""

    cpus: Annotated[float, Field(ge=1)] = 1.0
    """Ray's CPUs."""
    gpus: Annotated[float, Field(ge=0)] = 0.0


class Sweep(Section):
    """A whole sweep."""

    base: Config = Config()
    """What all trials have in common. In a file: the name of a preset, or a configuration that may begin with
    `preset: NAME`. Its run.directory and run.name are the sweep's own: SWEEP = DIRECTORY/NAME."""
    space: dict[str, Axis] = Field({})
    """Field (as `section.field`) -> how it is tried, in the terms of Ray Tune: {grid: [...]}, {choice: [...]},
    {uniform: [low, high]}, {loguniform: ...}, {quniform: [low, high, step]}, {randint: [low, high]} or
    {lograndint: ...}."""
    arms: dict[str, dict[str, Any]] = Field({})
    """Name -> overrides of the base, nested as in a configuration. Every arm is combined with the whole space."""
    seeds: list[Seed] = Field([0, 1, 2], min_length=1)
    """Seeds (run.seed) of every combination; figures are means and standard deviations over them."""
    samples: Positive = 16
    """Number of draws from the distributions in `space`; has no effect without distributions."""
    search: Literal["random", "optuna"] = "random"
    """How values are drawn: at random, or by Optuna (extra `optuna`, its tree-structured Parzen estimator), which uses
    the results of earlier draws (the mean of `metric` over the seeds). Optuna needs a space of distributions only,
    without arms."""
    reference: str | None = None
    """The arm that costs are given relative to; default: the dense network's costs, computed."""
    metric: Annotated[Literal["fused", "proxy"], BeforeValidator(_network)] = "fused"
    """The network whose metric is compared, at the last label budget (where budgets differ: the largest at which all
    trials measure it); the best combination goes to best.yaml."""
    scheduler: Literal["auto", "asha", "median", "none"] = "auto"
    """asha: after the second, fourth, eighth, ... round trials whose metric is below the median there are stopped.
    median: after every round from the second on, trials whose best metric is below the median of the others' means so
    far. Both need the metric after every round (fused: fusion.evaluate every) and the same budgets in all trials, three
    or more. auto: asha where the space has distributions and these conditions hold."""
    concurrency: Positive | None = None
    """Trials at a time. Default, and upper bound: what the cluster can run."""
    resources: PerTrial | None = None
    """The least that each trial needs, as {cpus: 8, gpus: 1}: limits how many run at a time. Default: what
    its actors and workers need (scoring.actors, workers.count)."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a trial is restarted after its process or node was lost. Its own errors are not retried."""
    loggers: list[TrackerName] = Field(["tensorboard"])
    """Where Ray Tune logs every round of every trial: trackers (`prunefuse list trackers`), configured by their
    environment."""

    @property
    def draws(self) -> dict[str, Axis]:
        return {field: axis for field, axis in self.space.items() if axis.grid is None}

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError(f"{value} names a seed twice, which would repeat the same run: name each one once")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        known = flatten(to_tree(self.base))
        if why := _unsuited(self.base):
            raise ValueError(f"base.{why}")
        for field in self.space:
            if field not in known:
                raise ValueError(f"space: unknown field '{field}'{near(field, known)}; write it as section.field")
            if field.startswith("run."):
                raise ValueError(f"space: '{field}' is the sweep's own; for seeds there is `seeds`")
            if not decides(field):
                raise ValueError(f"space: '{field}' {NO_MATTER}, so there is nothing to compare: set it in the base")
        told: dict[str, str] = {}
        for arm, overrides in self.arms.items():
            if not ARM_NAME.match(arm):
                raise ValueError(
                    f"arms: '{arm}' is no name: letters, digits, '.', '_' and '-', a letter or digit first"
                )
            if "run" in overrides:
                raise ValueError(f"arms.{arm}: 'run' is the sweep's own; for seeds there is `seeds`")
            if both := sorted(flatten(overrides).keys() & self.space.keys()):
                raise ValueError(f"arms.{arm}: '{both[0]}' stands in `space` too, which would win: name it once")
            matters = sorted((f, v) for f, v in flatten(overrides).items() if decides(f))
            if (twin := told.setdefault(repr(matters), arm)) != arm:
                idle = sorted(f for a in (twin, arm) for f in flatten(self.arms[a]) if not decides(f))
                why = f"'{idle[0]}' {NO_MATTER}" if idle else "both override the same"
                raise ValueError(f"arms.{arm}: would be arms.{twin} again ({why}): leave one of them out")
        if self.search != "random":
            grids = [field for field, axis in self.space.items() if axis.grid is not None]
            why = f"arms ({next(iter(self.arms))})" if self.arms else f"a grid ({grids[0]})" if grids else ""
            if not self.draws:
                raise ValueError(f"search: {self.search} needs distributions in `space`, such as {{uniform: [0, 1]}}")
            if why:
                raise ValueError(
                    f"search: {self.search} draws every field by what came out, which leaves no room for {why}: make "
                    "it a choice in `space`, or set search to random"
                )
            for field, axis in self.draws.items():
                if axis.quniform is None:
                    continue
                *ends, step = axis.quniform
                if any(not math.isclose(end / step, round(end / step)) for end in ends):
                    raise ValueError(
                        f"space: {field}: quniform {[*ends, step]}: {self.search} takes only bounds that are "
                        "multiples of the step"
                    )
            if pools := [field for field in self.space if field.startswith("pool.")]:
                raise ValueError(
                    f"search: '{pools[0]}' makes pools of its own, each of which is looked through before the first "
                    "trial: set search to random"
                )
        if self.reference is not None and self.reference not in self.arms:
            raise ValueError(f"reference: no arm '{self.reference}'{near(self.reference, self.arms)}")
        return self


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    name: str
    point: str
    """The combination without its seed: trials of one point are repetitions of each other."""
    arm: str
    values: dict[str, Any]
    """What the space gave: field -> value, as `config` has it."""
    config: Config


def load_sweep(
    path: str | Path | None,
    overrides: Mapping[str, Any],
    settings: Mapping[str, Any],
    only: Sequence[str] | None = None,
) -> Sweep:
    """Read a sweep file, lay `overrides` over its base and `settings` over its own fields, keep of its arms `only`
    those, and validate the whole.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or impossible value; all of them in one message.
    """
    tree: Any = {}
    if path is not None:
        tree = read_tree(path, "fields such as 'base:' and 'space:'")
        if not tree.keys() & {"base", "space", "arms"} and tree.keys() & Config.model_fields.keys():
            raise ConfigError(f"--config {path}: is the configuration of a run; a sweep names it under `base:`")
    if only is not None and isinstance(arms := tree.get("arms", {}), Mapping):
        if unknown := [name for name in only if name not in arms]:
            raise ConfigError(f"--arms: no arm '{unknown[0]}' in the sweep's file{near(unknown[0], arms)}")
        if isinstance(reference := tree.get("reference"), str) and reference in arms and reference not in only:
            raise ConfigError(f"--arms: the file's reference is '{reference}': name it, too")
        tree = {**tree, "arms": {name: arm for name, arm in arms.items() if name in only}}
    if "seed" in overrides.get("run", {}):
        raise ConfigError("--run.seed: a sweep has several; set `seeds` in its file")
    base = _base(tree.get("base", {}))
    own = base.get("run", {})
    if path is not None and isinstance(own, Mapping) and "name" not in own:
        base = merge(base, {"run": {"name": Path(path).stem}})
    sweep = sweep_from_tree({**tree, "base": overlay(base, overrides), **settings})
    if sweep.base.run.seed != Config().run.seed:  # the default stands in every configuration that was written out
        raise ConfigError(f"base.run.seed {sweep.base.run.seed}: a sweep has several; set `seeds`")
    given = [flatten(one) for one in (base, overrides)]
    if not any("fusion.target" in one for one in given) and (where := _unfused(sweep)):
        remedy = "make it an arm that names" if where[0].startswith("space") else "name there, too,"
        raise ConfigError(
            f"{where[0]}: a proxy selects, and nothing is fused, since the base's selector "
            f"'{sweep.base.selection.selector}' has nothing to fuse: {remedy} fusion.target fused; or, if training "
            "from scratch is meant, set base.fusion.target to scratch"
        )
    if not any("pruning.committee" in one for one in given):
        for place in _with_committee(sweep):
            logger.warning(
                "%s: a strategy that asks no committee has that of the base (pruning.committee %d), which followed "
                "from the base's strategy: make it an arm that names pruning.committee, 1 for a single proxy",
                place, sweep.base.pruning.committee,
            )  # fmt: skip
    return sweep


def _with_committee(sweep: Sweep) -> list[str]:
    """Where a strategy has a committee that it does not ask."""
    known = TASKS[sweep.base.task].strategies
    if sweep.base.pruning.committee == 1:
        return []

    def asks_none(name: Any) -> bool:
        return name == AUTO or (name in known and not known[name].members)

    return _where(sweep, "selection.strategy", asks_none, unless="pruning.committee")


def _unfused(sweep: Sweep) -> list[str]:
    """Where a proxy selects though the base has none. What followed in the base counts as given in its arms, so that
    they would fuse nothing without a word."""
    if sweep.base.selection.selector == "proxy":
        return []
    return _where(sweep, "selection.selector", lambda name: name == "proxy", unless="fusion.target")


def _where(sweep: Sweep, field: str, meant: Callable[[Any], bool], *, unless: str) -> list[str]:
    """The space, and the arms, that give `field` a value that is meant and leave `unless` as the base has it."""
    if unless in sweep.space:
        return []
    axis = sweep.space.get(field)
    tried = [] if axis is None else axis.grid or axis.choice or []
    arms = {f"arms.{name}": flatten(over) for name, over in sweep.arms.items()}
    return [f"space: {field}"] * any(map(meant, tried)) + [
        arm for arm, over in arms.items() if unless not in over and meant(over.get(field))
    ]


def _base(given: Any) -> dict[str, Any]:
    """The base of a sweep file as a tree: a preset by name, or a tree that may build on one."""
    if isinstance(given, str):
        given = {"preset": given}
    if not isinstance(given, Mapping):
        raise ConfigError(f"base: {given!r} is neither the name of a preset nor a configuration")
    rest = {k: v for k, v in given.items() if k != "preset"}
    if "preset" not in given:
        return rest
    preset = read_tree(preset_path(str(given["preset"]), "base.preset"))
    if "base" in preset:
        raise ConfigError(f"base: preset '{given['preset']}' is a sweep itself; name the configuration of a run")
    return overlay({k: v for k, v in preset.items() if k != "run"}, rest)  # the sweep has a name of its own


def sweep_from_tree(tree: Mapping[str, Any]) -> Sweep:
    """Validate a nested mapping; raises ConfigError with one line per fault."""
    try:
        return Sweep.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, Sweep)) from error


def _unsuited(config: Config) -> str | None:
    """Why no trial can have this configuration; None where one can."""
    if config.annotation.kind != "oracle":
        return (
            f"annotation.kind '{config.annotation.kind}' would ask people once per trial: a sweep needs labels that "
            "are there; use oracle"
        )
    if config.run.trackers:
        return "run.trackers: a sweep says by its own `loggers` where all trials are logged: name them there"
    if config.pool.allow_growth:
        return "pool.allow_growth: a sweep compares runs on one pool; set it to false"
    return None


def trials(sweep: Sweep, drawn: Sequence[Mapping[str, Any]] | None = None, since: int = 0) -> list[Trial]:
    """Every trial of a sweep, in a fixed order, each validated.

    Args:
        drawn: the values that a search has drawn so far. Where it draws by what came out, there are no others.
        since: leave out the draws before this one.

    Raises:
        ConfigError: trials that are no configuration, with the fields that made them so, in one message.
    """
    found: list[Trial] = []
    faults: list[str] = []
    for arm, values, prefix in _points(sweep, drawn or [], since):
        point = "_".join([*prefix, *([arm] if arm else []), *_written(values)]) or "base"
        told = f"trial '{point if len(point) <= LONGEST_NAME else f'{point[:60]}…'}'"
        over = sweep.arms.get(arm, {})
        for field, value in values.items():
            nested: Any = value
            for part in reversed(field.split(".")):  # training.unlabeled.threshold is two sections deep
                nested = {part: nested}
            over = merge(over, nested)
        tree = overlay(to_tree(sweep.base), over)
        for seed in sweep.seeds:
            name = f"{point}_seed-{seed}"
            own = {"directory": below(sweep_path(sweep), "trials"), "name": name, "seed": seed}
            try:
                config = config_from_tree(merge(tree, {"run": own}))
            except ConfigError as error:
                faults += [f"{told}: {line}" for line in str(error).splitlines()]
                break
            if why := _unsuited(config):
                faults.append(f"{told}: {why}")
                break
            if config.task != sweep.base.task:
                faults.append(
                    f"{told}: task '{config.task}' has other figures than the base's "
                    f"'{sweep.base.task}': give each task a sweep of its own"
                )
                break
            valid = flatten(to_tree(config))
            found.append(Trial(name=name, point=point, arm=arm, values={f: valid[f] for f in values}, config=config))
    faults += _faulty_names(found)
    if faults:
        raise ConfigError(listed(faults))
    return found


def stops_early(sweep: Sweep, found: Sequence[Trial]) -> bool:
    """Whether trials are stopped on the way. Raises ConfigError where that is asked for but they cannot be compared."""
    why, asked = incomparable(sweep, found), sweep.scheduler in ("asha", "median")
    if asked and why:
        raise ConfigError(f"scheduler: {sweep.scheduler} {why}, or set scheduler to none")
    return (asked or (sweep.scheduler == "auto" and bool(sweep.draws))) and not why


def incomparable(sweep: Sweep, found: Sequence[Trial]) -> str | None:
    """Why a scheduler cannot compare these trials on the way, and what would change that; None where it can."""
    configs = [trial.config for trial in found]
    budgets = configs[0].selection.budgets
    if sweep.metric == "fused" and any(c.fusion.evaluate != "every" for c in configs):
        return (
            "compares fused networks, which trials with fusion.evaluate 'last' have after their last round alone: set "
            "it to every, or metric to proxy"
        )
    if any(c.selection.budgets != budgets for c in configs):
        return "compares trials round by round, but their selection.budgets differ: give all trials the same"
    if len(budgets) <= GRACE:
        return (
            f"first compares after round {GRACE}, since the first labels are chosen at random, by all alike, and "
            f"selection.budgets has {len(budgets)}: nothing is left to stop; give {GRACE + 1} or more"
        )
    return None


def sweep_path(sweep: Sweep) -> str:
    return below(sweep.base.run.directory, sweep.base.run.name)


def ends(sweep: Sweep, together: int = 2) -> list[dict[str, Any]]:
    """Values from the ends of the space, every choice among them, and those of so many fields in every combination:
    where these are configurations, what lies between them is taken to be."""
    sides = {field: axis.ends() for field, axis in sweep.draws.items()}
    found = list[dict[str, Any]]()
    for others in (0, -1):
        for some in itertools.combinations(sides, min(together, len(sides))):
            for values in itertools.product(*(sides[field] for field in some)):
                point = {field: side[others] for field, side in sides.items()} | dict(zip(some, values, strict=True))
                if point not in found:
                    found.append(point)
    return found


def _points(sweep: Sweep, told: Sequence[Mapping[str, Any]], since: int) -> list[tuple[str, dict[str, Any], list[str]]]:
    """(arm, values, first part of the name) of every combination. Draws depend on their place in the order alone."""
    grids = {field: axis.grid for field, axis in sweep.space.items() if axis.grid is not None}
    products = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    drawn: list[dict[str, Any]] = [{}]
    if sweep.search != "random":
        drawn = [{field: values[field] for field in sweep.space} for values in told]
    elif sweep.draws:
        rng = np.random.default_rng(0)
        drawn = [{field: axis.draw(rng) for field, axis in sweep.draws.items()} for _ in range(sweep.samples)]
    return [
        (arm, {**grid, **values}, [f"{n:03d}"] if sweep.draws else [])
        for arm in (sweep.arms or {"": {}})
        for n, values in list(enumerate(drawn))[since:]
        for grid in products
    ]


def _written(values: Mapping[str, Any]) -> list[str]:
    """'ratio-0.5', or 'training.lr-0.1' where two sections have a field of that name."""
    leaves = [field.partition(".")[2] for field in values]
    return [
        f"{leaf if leaves.count(leaf) == 1 else field}-{_slug(value)}"
        for leaf, (field, value) in zip(leaves, values.items(), strict=True)
    ]


def _slug(value: Any) -> str:
    shown = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^A-Za-z0-9._]+", "-", shown).strip("-.") or "none"


def _faulty_names(found: list[Trial]) -> list[str]:
    names = [t.name for t in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    faults = [f"trial '{n}' is there twice: the space or the arms name the same combination again" for n in twice]
    return faults + [f"trial '{n[:60]}…': its name is too long" for n in names if len(n) > LONGEST_NAME]
