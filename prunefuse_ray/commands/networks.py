"""`prunefuse networks`: what pruning leaves of a network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich import box
from rich.table import Table

from prunefuse_ray.commands.terminal import console, si
from prunefuse_ray.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """What pruning leaves of a network: parameters, MACs and kept channels at several pruning ratios."""
    parser = argparse.ArgumentParser(prog="prunefuse networks", description=main.__doc__)
    parser.add_argument("architecture", help="a name as in network.architecture, e.g. resnet56 or torchvision:resnet50")
    parser.add_argument(
        "--input",
        default="3,32,32",
        metavar="C,H,W",
        help="input shape; L,2 for n-grams, L for bytes of text, D,1,1 for vectors",
    )
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
    spec = networks.NetworkSpec(architecture=arguments.architecture, classes=arguments.classes, input_shape=shape)
    rows = networks.pruning_table(spec, ratios)
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
