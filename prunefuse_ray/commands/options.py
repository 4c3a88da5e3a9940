"""The configuration as command-line options: a file or a preset, and an option for every field."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from prunefuse_ray.config.files import load_config, preset_path, shown
from prunefuse_ray.config.names import Named
from prunefuse_ray.config.schema import Config
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.registry import trust
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import Sweep, load_sweep
from prunefuse_ray.sweep.results import recorded_sweep


def parse_run(argv: Sequence[str]) -> Config:
    """The configuration that the arguments of `run` describe. Raises ConfigError; exits on --help and unknown flags."""
    parser = argparse.ArgumentParser(
        prog="prunefuse run",
        allow_abbrev=False,  # an abbreviation that is unique today may name two fields tomorrow
        formatter_class=_Help,
        description="Select samples with a pruned proxy, label them, fuse the proxy into the dense network.\n"
        "The same command again resumes. Every field can stand in the YAML file or on the command line.",
    )
    path, overrides, _ = _parse(parser, argv, "a YAML file with the fields below as sections")
    return load_config(path, overrides)


def parse_sweep(argv: Sequence[str]) -> Sweep:
    """The sweep that the arguments of `sweep` describe. Raises ConfigError; exits on --help and unknown flags."""
    parser = argparse.ArgumentParser(
        prog="prunefuse sweep",
        allow_abbrev=False,
        formatter_class=_Help,
        description="Run a sweep: a YAML file of a base configuration, arms, a search space and seeds.\n"
        "The same command resumes it, and so does --resume SWEEP. The fields of a run below override the\n"
        "sweep's base; --run.directory and --run.name are the sweep's own.",
    )
    parser.add_argument("--concurrency", type=int, metavar="N", help="trials at a time; bounded by the cluster")
    parser.add_argument("--arms", metavar="NAME,...", help="only these of the file's arms")
    parser.add_argument("--seeds", metavar="N,...", help="instead of the file's seeds")
    parser.add_argument("--loggers", metavar="NAME,...", help="trackers that log all trials; empty for none")
    parser.add_argument(
        "--trusted", metavar="NAME,...", help="code of your own (module:name) that the sweep's directory may name"
    )
    resume = "go on with the sweep in this directory (a path or URI), by what it has recorded of itself"
    path, overrides, arguments = _parse(parser, argv, "a YAML file with base, arms, space, seeds, ...", resume)
    settings: dict[str, Any] = {}
    if arguments.concurrency is not None:
        settings["concurrency"] = arguments.concurrency
    if arguments.seeds is not None:
        settings["seeds"] = arguments.seeds.split(",")
    if arguments.loggers is not None:
        settings["loggers"] = [name for name in arguments.loggers.split(",") if name]
    trust((arguments.trusted or "").split(","))
    if arguments.resume is not None:
        if arguments.arms is not None:
            raise ConfigError("--arms: a sweep that goes on has the arms it has recorded: leave the option out")
        return recorded_sweep(Place.at(arguments.resume), arguments.resume, overrides, settings)
    return load_sweep(path, overrides, settings, None if arguments.arms is None else arguments.arms.split(","))


def _parse(
    parser: argparse.ArgumentParser, argv: Sequence[str], file: str, resume: str | None = None
) -> tuple[str | Path | None, dict[str, Any], argparse.Namespace]:
    """(file, overrides of a run's fields, all arguments)"""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", help=file)
    where.add_argument("--preset", metavar="NAME", help="a configuration that comes with the package, by name")
    if resume is not None:
        where.add_argument("--resume", metavar="SWEEP", help=resume)
    parser.add_argument(
        "--accept-partial",
        dest="annotation.accept_partial",
        action="store_const",
        const="true",
        default=argparse.SUPPRESS,
        help="short for --annotation.accept_partial true",
    )
    arguments, overrides = given_options(parser, argv, Config)
    path: str | Path | None = arguments.config if arguments.preset is None else preset_path(arguments.preset)
    return path, overrides, arguments


def given_options(
    parser: argparse.ArgumentParser, argv: Sequence[str], model: type[BaseModel]
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Add an option for every field of `model` to the parser; what it parsed, and the fields given as a tree."""
    fields: dict[str, Any] = {name: (f.annotation, f) for name, f in model.model_fields.items()}
    settings = create_model("Overrides", __base__=_Overrides, **fields)
    # An error begins with the usage: that of a hundred fields would push it off the screen.
    places = [(str(a.metavar or a.dest).upper(), a.nargs == "?") for a in parser._get_positional_actions()]
    files = " ".join(f"[{name}]" if optional else name for name, optional in places)
    parser.usage = f"%(prog)s [options] [--SECTION.FIELD VALUE ...] {files}".rstrip()
    source: CliSettingsSource = CliSettingsSource(settings, root_parser=parser)
    arguments = parser.parse_args(list(argv))
    given = {name: value for name, value in vars(arguments).items() if value is not None}  # before it is taken apart
    try:
        return arguments, _nulls(source(parsed_args=arguments)())
    except SettingsError as error:
        named = [n for n in given if n in str(error)]  # or only its section is
        named = named or [n for n in given if f'"{n.partition(".")[0]}"' in str(error)]
        said = ", ".join(f"--{n} {shown(given[n])}" for n in named)
        raise ConfigError(f"{said}: cannot be read; give lists as [1,2] and words in quotes inside them") from error


class _Overrides(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid", cli_avoid_json=True, cli_hide_none_type=True, cli_parse_none_str="null"
    )

    @classmethod
    def settings_customise_sources(cls, *_: Any, **__: Any) -> tuple:
        return ()


class _Help(argparse.RawDescriptionHelpFormatter):
    """Lists, under a field that names what people can add, what there is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = super()._get_help_string(action)
        named = _named().get(action.dest)
        return text if named is None else f"{text} {'; '.join(named.help()).replace('%', '%%')}"


def _named() -> dict[str, Named]:
    """'section.field' (or 'field') -> what it names."""
    fields = dict(Config.model_fields)
    for section, outer in Config.model_fields.items():
        inner = getattr(outer.annotation, "model_fields", {})
        fields |= {f"{section}.{name}": field for name, field in inner.items()}
    return {name: found for name, field in fields.items() for found in field.metadata if isinstance(found, Named)}


def _nulls(tree: Any) -> Any:
    """The word null, as YAML has it, means None on the command line too."""
    if isinstance(tree, dict):
        return {k: _nulls(v) for k, v in tree.items()}
    return None if tree in ("null", [None]) else tree
