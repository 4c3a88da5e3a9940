"""The configuration as command-line options: a file or a preset, and an option for every field."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from prunefuse_ray.config import Config
from prunefuse_ray.config_files import load_config, preset_path


def parse_run(argv: Sequence[str]) -> Config:
    """The configuration that the arguments of `run` describe. Raises ConfigError; exits on --help and unknown flags."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        allow_abbrev=False,  # an abbreviation that is unique today may name two fields tomorrow
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Select samples with a pruned proxy, label them, fuse the proxy into the dense network.\n"
        "The same command again resumes. Every field can stand in the YAML file or on the command line.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", help="a YAML file with the fields below as sections")
    where.add_argument("--preset", metavar="NAME", help="a configuration of jobs/presets, by name")
    arguments, overrides = given_options(parser, argv, Config)
    path: str | Path | None = preset_path(arguments.preset) if arguments.preset else arguments.config
    return load_config(path, overrides)


def given_options(
    parser: argparse.ArgumentParser, argv: Sequence[str], model: type[BaseModel]
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Add an option for every field of `model` to the parser; what it parsed, and the fields given as a tree."""
    fields: dict[str, Any] = {name: (f.annotation, f) for name, f in model.model_fields.items()}
    settings = create_model("Overrides", __base__=_Overrides, **fields)
    source: CliSettingsSource = CliSettingsSource(settings, root_parser=parser)
    arguments = parser.parse_args(list(argv))
    return arguments, _nulls(source(parsed_args=arguments)())


class _Overrides(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid", cli_avoid_json=True, cli_hide_none_type=True, cli_parse_none_str="null"
    )

    @classmethod
    def settings_customise_sources(cls, *_: Any, **__: Any) -> tuple:
        return ()


def _nulls(tree: Any) -> Any:
    """The word null, as YAML has it, means None on the command line too."""
    if isinstance(tree, dict):
        return {k: _nulls(v) for k, v in tree.items()}
    return None if tree in ("null", [None]) else tree
