"""Configurations as files and nested values: reading, overriding, validating, comparing."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from prunefuse_ray.config.networks import committee_ratio, encoder_folder
from prunefuse_ray.config.schema import Config
from prunefuse_ray.config.section import RECORDED
from prunefuse_ray.config.training import RATES
from prunefuse_ray.errors import ConfigError, few, near

Tree = TypeVar("Tree", bound=BaseModel)
SHOWN = 200
"""Characters of a value in an error."""
LISTED = 20
"""Faults in one error."""
PRESETS = Path(__file__).resolve().parent / "presets"


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file (or the defaults), lay nested `overrides` over it and validate the whole.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or impossible value; all of them in one message.
    """
    return config_from_tree(overlay(read_tree(path) if path is not None else {}, overrides or {}))


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one place, of which YAML would keep the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"'{key.value}' is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def read_tree(path: str | Path, such: str = "sections such as 'run:' and 'pool:'") -> dict[str, Any]:
    """The sections of a YAML file, not validated. ConfigError where it cannot be read or holds none."""
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader) or {}
        _check_size(tree)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error}); give a readable YAML file") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"--config {path}: holds {type(tree).__name__}; give {such}")
    return tree


def read_sections(path: str | Path, names: Iterable[str]) -> dict[str, Any]:
    """Those sections of a run's file that `names` has. ConfigError where the file has a section that no run has: a
    mistyped one would be left out without a word, and a sweep's file has none of a run's."""
    tree = read_tree(path)
    if "base" in tree:
        raise ConfigError(f"--config {path}: is the file of a sweep; give that of a run, such as a trial's config.yaml")
    if unknown := [str(name) for name in tree if name not in Config.model_fields]:
        known = ", ".join(Config.model_fields)
        raise ConfigError(
            f"--config {path}: unknown section '{unknown[0]}'{near(unknown[0], Config.model_fields)}; known: {known}"
        )
    return {name: tree[name] for name in names if name in tree}


MOST_VALUES = 100_000
"""Values in a configuration: a small file can refer to its own parts so often that they are billions, or for ever."""


def _check_size(tree: Any) -> None:
    """ValueError where a YAML file comes to more values than a configuration has."""
    todo, count = [tree], 0
    while todo:
        value = todo.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"its references (&, *) expand to more than {MOST_VALUES} values")
        if isinstance(value, str):
            value.encode()  # a half of a pair of code units alone, "\\ud800", is no text
        todo += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()


def presets() -> dict[str, str]:
    """Name -> the first line of the comment at the top of its file, of every preset that ships with the project."""
    files = sorted(PRESETS.glob("*.yaml"))
    return {p.stem: p.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for p in files}


def preset_path(name: str, given: str = "--preset") -> Path:
    """The YAML file of a preset that ships with the project; ConfigError lists the known ones.

    Args:
        given: the option or field that names it.
    """
    known = sorted(p.stem for p in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{given} {name}: no such preset{near(name, known)}; known: {', '.join(known)}")
    return PRESETS / f"{name}.yaml"


def config_from_tree(tree: Mapping[str, Any]) -> Config:
    """Validate a nested mapping; raises ConfigError with one line per fault."""
    return validated(Config, tree)


def validated(
    model: type[Tree], tree: Mapping[str, Any], over: Mapping[str, Any] | None = None, *, recorded: bool = False
) -> Tree:
    """A nested mapping, with `over` laid on it, as a model; raises ConfigError with one line per fault.

    Args:
        recorded: the mapping was written by a run, maybe of an earlier version, and not by a person, who would be told
            of fields that have another name by now.
    """
    try:
        return model.model_validate(merge(tree, over or {}), context=RECORDED if recorded else None)
    except ValidationError as error:
        raise ConfigError(explain(error, model)) from error
    except UnicodeEncodeError as error:  # of the command line: bytes that are no UTF-8
        given = flatten(merge(tree, over or {}))
        named = ", ".join(field for field, value in given.items() if value == error.object)
        raise ConfigError(f"{named}: {shown(error.object)} is not valid UTF-8") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, section by section; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on the tree of a configuration. The size of a committee settles its ratio, an encoder of texts brings
    its weights and its tokenizer, a schedule without steps has no milestones, and an optimizer has its learning rate:
    those below give way."""
    ratio = committee_ratio(_section(over, "pruning"))
    settled = merge(_of_encoder(base, over), {} if ratio is None else {"pruning": {"ratio": ratio}})
    for recipe in ("training", "finetuning"):
        if _section(over, recipe).get("schedule", "step") != "step" and "milestones" in _section(base, recipe):
            settled = merge(settled, {recipe: {"milestones": []}})
        before, now = _section(base, recipe), _section(over, recipe)
        old, new = (RATES.get(str(one.get("optimizer", "sgd"))) for one in (before, now))
        if "optimizer" in now and None not in (old, new) and before.get("lr") == old:
            settled = merge(settled, {recipe: {"lr": new}})
    return merge(merge(base, settled), over)


def _of_encoder(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """What the encoder that `over` names brings in place of what `base` has for the network that it names. Weights from
    elsewhere that `base` gives to an encoder stay."""
    network, now = _section(base, "network"), encoder_folder(_section(over, "network").get("architecture"))
    if now is None or "architecture" not in network:
        return {}
    before, found = encoder_folder(network["architecture"]), dict[str, Any]()
    if "weights" in network and before in (None, network["weights"]):
        found["network"] = {"weights": now}
    if before is not None and _section(base, "pool").get("tokenizer") == before:
        found["pool"] = {"tokenizer": now}
    return found


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    fields = tree.get(name)
    return fields if isinstance(fields, Mapping) else {}


def to_tree(config: BaseModel) -> dict[str, Any]:
    """A configuration, or a part of it, as nested plain values, every default spelled out: `config.yaml`'s form."""
    return config.model_dump(mode="json")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {'section.field': value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line 'field: old -> new' for every field in which two configuration trees differ."""
    a, b = flatten(old), flatten(new)
    missing = object()
    return [
        f"{key}: {a.get(key, '(not set)')!r} -> {b.get(key, '(not set)')!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, missing) != b.get(key, missing)
    ]


def explain(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """The faults of a tree of `model`, a line each."""
    return listed([_explain(e, model) for e in error.errors()])


def listed(faults: Sequence[str]) -> str:
    """A line each, as many as a person reads."""
    return few(faults, LISTED, "\n", "\nand {} more")


def _explain(error: Any, model: type[BaseModel]) -> str:
    """One fault of pydantic's as 'field: what is wrong; remedy'."""
    loc = [str(part) for part in error["loc"] if not str(part).startswith(("constrained-", "list[", "function-"))]
    field, value = ".".join(loc), error.get("input")
    match error["type"]:
        case "extra_forbidden":
            known = _fields_of(loc[:-1], model)
            return f"{field}: unknown key{near(loc[-1], known)}; known here: {', '.join(known)}"
        case "value_error":
            return ": ".join(p for p in (field, _middle_cut(str(error["ctx"]["error"]))) if p)
        case _:
            return f"{field}: {shown(value)} is not valid: {error['msg'][0].lower()}{error['msg'][1:]}"


def _middle_cut(message: str) -> str:
    """A message that quotes a value of any length: what is wrong stands at its beginning, the remedy at its end."""
    return message if len(message) <= 10 * SHOWN else f"{message[:SHOWN]} ... {message[-5 * SHOWN :]}"


def shown(value: Any) -> str:
    """A value that was given, cut to the length of a line: YAML's aliases can make one that has more parts than there
    are atoms."""
    brief = reprlib.Repr()
    brief.maxlevel = 3
    brief.maxstring = brief.maxother = brief.maxlong = SHOWN
    return str(value) if isinstance(value, float) and not math.isfinite(value) else brief.repr(value)[:SHOWN]


def _fields_of(path: Sequence[str], model: Any) -> list[str]:
    for part in path:
        # A mapping of sections (`space` of a sweep) has its keys' names in between.
        model = model.model_fields[part].annotation if hasattr(model, "model_fields") else get_args(model)[1]
    return list(model.model_fields)
