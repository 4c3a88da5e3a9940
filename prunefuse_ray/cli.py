"""The commands. `prunefuse run` is `python jobs/run.py`."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from prunefuse_ray.config import Config, load_config, preset_path
from prunefuse_ray.errors import ConfigError, PruneFuseError
from prunefuse_ray.plan import steps

console = Console(highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 something to put right (said in one message)."""
    commands = {"run": run_command, "report": report_command, "networks": networks_command}
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in commands:
        print(f"usage: prunefuse {{{','.join(commands)}}} ...", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except PruneFuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


# --- run ------------------------------------------------------------------------------------------------------------


def run_command(argv: Sequence[str]) -> int:
    """Carry out, or resume, one run."""
    config = parse_run(argv)
    _secure()
    _quiet()
    from prunefuse_ray.phases import summary
    from prunefuse_ray.rounds import run, run_place

    console.print(f"run {config.run.name} in {run_place(config).path}")
    started = time.perf_counter()
    progress = Progress(config)
    ledger = run(config, progress)
    if progress.steps_done:
        finished = f"finished in {time.perf_counter() - started:.0f} s"
    else:
        finished = "this run was complete already; --run.name OTHER starts another"
    result = summary(config, ledger)
    console.print(closing_table(result))
    console.print(phase_line(result))
    if result["rejected"]:
        console.print(f"{result['rejected']} samples could not be used: {ledger.root.path}/rejected.parquet")
    console.print(f"{finished}; report: {ledger.root.path}/report.html")
    return 0


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
    fields: dict[str, Any] = {name: (f.annotation, f) for name, f in Config.model_fields.items()}
    settings = create_model("Overrides", __base__=_Overrides, **fields)
    source: CliSettingsSource = CliSettingsSource(settings, root_parser=parser)
    arguments = parser.parse_args(list(argv))
    overrides = source(parsed_args=arguments)()
    path: str | Path | None = preset_path(arguments.preset) if arguments.preset else arguments.config
    return load_config(path, _nulls(overrides))


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


def _secure() -> None:
    """Give a Ray that this command starts itself a token of its own. Ray reads these when it is imported, and would
    otherwise leave a token file in the home directory."""
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _quiet() -> None:
    """Ray's libraries log to the console of a person who asked for a line per round; warnings stay."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Progress:
    """A line per round as it ends; on a terminal also the phase that is under way."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.steps_done = 0
        self._status = console.status("starting") if console.is_terminal else None
        if self._status:
            self._status.start()
        self._figures: dict[int, dict[str, Any]] = {}

    def __call__(self, event: str, step: Any, commit: Any) -> None:
        if event == "start":
            if self._status:
                self._status.update(f"{step} ...")
            return
        self.steps_done += 1
        if step.round < 0:
            if step.phase == "report" and self._status:
                self._status.stop()
            return
        figures = self._figures.setdefault(step.round, {"seconds": 0.0})
        figures[step.phase] = commit.metrics
        figures["seconds"] += commit.metrics["seconds"]
        if self._last(step):
            console.print(round_line(step.round, self.config.selection.budgets[step.round], figures))

    def _last(self, step: Any) -> bool:
        return [s for s in steps(self.config) if s.round == step.round][-1] == step


def round_line(round_: int, labels: int, figures: dict[str, Any]) -> str:
    """What one round came to, in a line."""
    parts = [f"round {round_}: {labels} labels"]
    if "train" in figures:
        parts.append(f"proxy {figures['train']['test_accuracy']:.1%}")
    if "score" in figures:
        parts.append(f"{figures['score']['samples']:,} scored")
    if "finetune" in figures:
        parts.append(f"fused {figures['finetune']['test_accuracy']:.1%}")
    return ", ".join([*parts, f"{figures['seconds']:.1f} s"])


def closing_table(result: dict[str, Any]) -> Table:
    """The run's table: a row per round, and the sums."""
    rounds = result["rounds"]
    table = Table(show_footer=True, box=box.SIMPLE)
    columns = {
        "labels": ([str(r["labels"]) for r in rounds], ""),
        "proxy": ([_percent(r["proxy_accuracy"]) for r in rounds], ""),
        "fused": ([_percent(r["fused_accuracy"]) for r in rounds], ""),
        "selection MACs": ([si(r["selection_macs"]) for r in rounds], si(result["selection_macs"])),
        "of dense": (
            [_share(r["selection_macs"], r["dense_selection_macs"]) for r in rounds],
            _share(result["selection_macs"], result["dense_selection_macs"]),
        ),
        "seconds": ([f"{sum(r['seconds'].values()):.1f}" for r in rounds], f"{result['seconds']:.1f}"),
    }
    for name, (_, foot) in columns.items():
        table.add_column(name, foot, justify="right")
    for row in zip(*(cells for cells, _ in columns.values()), strict=True):
        table.add_row(*row)
    return table


def phase_line(result: dict[str, Any]) -> str:
    """Seconds per phase, over all rounds."""
    sums: dict[str, float] = {}
    for r in result["rounds"]:
        for phase, seconds in r["seconds"].items():
            sums[phase] = sums.get(phase, 0.0) + seconds
    return "seconds per phase: " + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in sums.items())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""


def si(value: float) -> str:
    """A count with its SI prefix: 1.23 G."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:g}" if value else ""


# --- networks ---------------------------------------------------------------------------------------------------------


def networks_command(argv: Sequence[str]) -> int:
    """What pruning leaves of a network: parameters, MACs and kept channels at several pruning ratios."""
    parser = argparse.ArgumentParser(prog="prunefuse networks", description=networks_command.__doc__)
    parser.add_argument("architecture", help="a name as in network.architecture, e.g. resnet56 or torchvision:resnet50")
    parser.add_argument("--input", default="3,32,32", metavar="C,H,W", help="input shape; one number L for text")
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="number of classes (default: 10)")
    parser.add_argument("--ratios", default=".5,.6,.7,.8", metavar="P,...", help="pruning ratios")
    arguments = parser.parse_args(list(argv))
    from prunefuse_ray import networks

    try:
        shape = tuple(int(n) for n in arguments.input.split(","))
        ratios = [float(p) for p in arguments.ratios.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--input {arguments.input} --ratios {arguments.ratios}: {error}; give numbers, e.g. 3,32,32 and .5,.8"
        ) from error
    try:
        spec = networks.NetworkSpec(architecture=arguments.architecture, classes=arguments.classes, input_shape=shape)
        rows = networks.pruning_table(spec, ratios)
    except networks.NetworkError as error:
        raise ConfigError(str(error)) from error
    table = Table(
        title=f"{arguments.architecture}, input {arguments.input}, {arguments.classes} classes", box=box.SIMPLE
    )
    for name in ("pruning ratio", "parameters", "of dense", "MACs", "of dense"):
        table.add_column(name, justify="right")
    table.add_column("kept channels")
    for row in rows:
        table.add_row(
            f"{row.ratio:g}",
            si(row.parameters),
            f"{row.parameter_ratio:.1%}",
            si(row.macs),
            f"{row.mac_ratio:.1%}",
            str(row.kept),
        )
    console.print(table)
    return 0


# --- report ---------------------------------------------------------------------------------------------------------


def report_command(argv: Sequence[str]) -> int:
    """Make the report of a run again from its files."""
    parser = argparse.ArgumentParser(prog="prunefuse report", description=report_command.__doc__)
    parser.add_argument("directory", help="a run directory (a path or URI)")
    arguments = parser.parse_args(list(argv))
    from prunefuse_ray.ledger import Ledger
    from prunefuse_ray.report import render
    from prunefuse_ray.storage import Place
    from prunefuse_ray.views import view_run

    ledger = Ledger(Place.at(arguments.directory))
    console.print(ledger.write_text("report.html", render(view_run(ledger))).path)
    return 0
