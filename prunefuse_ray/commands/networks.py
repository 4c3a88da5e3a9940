"""`prunefuse networks`: what pruning leaves of a network, and how fast that is on this machine."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from prunefuse_ray.commands.terminal import console, si
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.report.html import rate as in_words

if TYPE_CHECKING:
    from prunefuse_ray.networks import NetworkSpec, Row, Selector

MULTIPLES = (None, 8, 16)
"""Widths that are tried with --measure: exact shares, and the multiples that vector units of GPUs and CPUs like."""
SPEEDUP_RATIOS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.875, 0.9, 0.95)


def main(argv: Sequence[str]) -> int:
    """What pruning leaves of a network: parameters, MACs and kept channels at several pruning ratios; with --measure or
    --speedup also how many samples a second it scores on this machine."""
    parser = argparse.ArgumentParser(prog="prunefuse networks", description=main.__doc__)
    parser.add_argument("architecture", help="a name as in network.architecture, e.g. resnet56 or torchvision:resnet50")
    parser.add_argument(
        "--input",
        default="3,32,32",
        metavar="C,H,W",
        help="input shape; L,2 for n-grams, L for bytes or tokens of text, D,1,1 for vectors",
    )
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="number of classes (default: 10)")
    parser.add_argument("--ratios", metavar="P,...", help="pruning ratios (default: .5,.6,.7,.8)")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="samples per second of one core (or GPU), by the backend that a run would use; a few seconds a line",
    )
    parser.add_argument(
        "--speedup",
        type=float,
        metavar="X",
        help="measure, and name the largest proxy that scores X times as fast as the dense network",
    )
    arguments = parser.parse_args(list(argv))
    from prunefuse_ray import networks
    from prunefuse_ray.method.selector import spec_of

    measured = arguments.measure or arguments.speedup is not None
    default = SPEEDUP_RATIOS if arguments.speedup is not None else (0.5, 0.6, 0.7, 0.8)
    try:
        shape = tuple(int(n) for n in arguments.input.split(","))
        ratios = [float(p) for p in arguments.ratios.split(",")] if arguments.ratios else list(default)
    except ValueError as error:
        raise ConfigError(
            f"--input {arguments.input} --ratios {arguments.ratios}: {error}; give numbers, e.g. 3,32,32 and .5,.8"
        ) from error
    if measured and (len(shape) != 3 or shape[1:] == (1, 1)):
        raise ConfigError(f"--input {arguments.input}: only networks of images (C,H,W) are measured")
    spec = spec_of(arguments.architecture, arguments.classes, shape)
    dense = networks.build(spec, seed=0)
    rows = [
        row
        for multiple in (MULTIPLES if measured else (None,))
        for row in networks.pruning_table(dense, spec, ratios, multiple)
    ]
    # Multiples that change nothing are no other network.
    rows = [
        next(same) for _, same in itertools.groupby(sorted(rows, key=_order), key=lambda r: (r.pruning.ratio, r.kept))
    ]
    rates, dense_rate = [math.nan] * len(rows), math.nan
    if measured:
        dense_rate = _rate(networks.Dense(network=dense, spec=spec), spec)
        rates = [_rate(row.proxy, spec) for row in rows]
    _print(arguments, rows, rates, dense_rate)
    if arguments.speedup is not None:
        _name(arguments.speedup, rows, rates, dense_rate)
    return 0


def _order(row: Row) -> tuple[float, str, int]:
    return row.pruning.ratio, row.kept, row.pruning.round_to or 0


def _rate(network: Selector, spec: NetworkSpec) -> float:
    import torch

    from prunefuse_ray import config as cfg
    from prunefuse_ray import networks
    from prunefuse_ray.data.images import ImageForm
    from prunefuse_ray.scoring.backend_choice import MACS_WORTH_MEASURING, rate_here
    from prunefuse_ray.scoring.scorer import ScoringJob
    from prunefuse_ray.tasks.classification import CLASSIFICATION
    from prunefuse_ray.tasks.segmentation import SEGMENTATION

    channels, height, width = spec.input_shape
    gray = (0.5,) * channels
    form = ImageForm(height=height, width=width, channels=channels, mean=gray, std=gray)
    job = ScoringJob(
        strategy="margin",
        task=(SEGMENTATION if networks.says_pixels(network.network, spec) else CLASSIFICATION).name,
        form=form,
        batch_size=1,
        features=False,
        threads=1,
        gpu=torch.cuda.is_available(),
        trusted=(spec.architecture,),
    )
    with console.status(f"measuring {spec.architecture}"):
        return rate_here(cfg.Scoring(), network, job, MACS_WORTH_MEASURING, rows=0)


def _print(arguments: argparse.Namespace, rows: Sequence[Row], rates: Sequence[float], dense_rate: float) -> None:
    table = Table(
        title=f"{arguments.architecture}, input {arguments.input}, {arguments.classes} classes", box=box.SIMPLE
    )
    columns = ["pruning\nratio", "para-\nmeters", "of\ndense", "MACs", "of\ndense"]  # whole on 80 columns
    if measured := not math.isnan(dense_rate):
        columns[1:1] = ["round_to"]
        columns += ["samples/s", "over\ndense"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kept\nchannels")
    for row, rate in zip(rows, rates, strict=True):
        table.add_row(
            f"{row.pruning.ratio:g}",
            *([str(row.pruning.round_to or "")] if measured else []),
            si(row.parameters),
            f"{row.parameter_ratio:.1%}",
            si(row.macs),
            f"{row.mac_ratio:.1%}",
            *([in_words(rate), f"{rate / dense_rate:.1f}"] if measured else []),
            row.kept,
        )
    console.print(table)
    if measured:
        console.print(f"dense: {in_words(dense_rate)} samples a second")


def _name(wanted: float, rows: Sequence[Row], rates: Sequence[float], dense_rate: float) -> None:
    enough = [row for row, rate in zip(rows, rates, strict=True) if rate >= wanted * dense_rate]
    if not enough:
        best = max(rates) / dense_rate
        raise ConfigError(
            f"--speedup {wanted:g}: none of these proxies reaches it on this machine (the fastest {best:.1f}); give "
            "larger --ratios, or ask for less"
        )
    pruning = max(enough, key=lambda row: row.macs).pruning
    multiple = "" if pruning.round_to is None else f", round_to: {pruning.round_to}"
    console.print(f"pruning: {{ratio: {pruning.ratio:g}{multiple}}}", markup=False)
