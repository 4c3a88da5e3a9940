"""`prunefuse export`: a finished network in another format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from prunefuse_ray.commands.terminal import TRUSTED_HELP, console


def main(argv: Sequence[str]) -> int:
    """Write a trained network as ONNX: uint8 samples in, logits out, checked against the network itself."""
    parser = argparse.ArgumentParser(prog="prunefuse export", description=main.__doc__)
    parser.add_argument("directory", help="a network's directory (RUN/fused) or a finished run's (a path or URI)")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="format (default: onnx)")
    parser.add_argument("--out", metavar="FILE", help="where to write it (default: model.onnx in the directory)")
    parser.add_argument("--trusted", metavar="NAME", help=TRUSTED_HELP)
    arguments = parser.parse_args(list(argv))
    from prunefuse_ray.inference.onnx import to_onnx
    from prunefuse_ray.inference.predictor import load
    from prunefuse_ray.inference.saved_networks import network_place
    from prunefuse_ray.storage import Place

    predictor = load(arguments.directory, trusted=arguments.trusted)
    out = Place.at(arguments.out) if arguments.out else network_place(arguments.directory) / "model.onnx"
    content = to_onnx(predictor)
    out.write_bytes(content)
    console.print(f"{out.path}: {len(content):,} bytes, logits as the network's own")
    return 0
