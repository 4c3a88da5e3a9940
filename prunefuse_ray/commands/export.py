"""`prunefuse export`: a finished network in another format, or what a run selected as a dataset."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from prunefuse_ray.commands.terminal import TRUSTED_HELP, console

if TYPE_CHECKING:
    from prunefuse_ray.storage import Place

FORMATS: Mapping[str, str] = {
    "onnx": "the network as ONNX (model.onnx)",
    "torch": "as a program of torch.export (model.pt2)",
    "huggingface": "as a folder for the Hugging Face Hub, with a model card (huggingface/)",
    "coco": "what the run selected, with labels and scores, as COCO JSON and images (coco/)",
    "fiftyone": "the same as FiftyOne imports it (fiftyone/)",
    "datasets": "the same as Parquet for Hugging Face datasets (datasets/)",
}


def main(argv: Sequence[str]) -> int:
    """Write a trained network in another format, checked against the network itself; or what a run selected."""
    parser = argparse.ArgumentParser(prog="prunefuse export", description=main.__doc__)
    parser.add_argument(
        "directory",
        help="a run's directory (a path or URI); for onnx, torch and huggingface of a finished run, or RUN/fused alone",
    )
    about = "; ".join(f"{name}: {words}" for name, words in FORMATS.items())
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help=f"{about} (default: onnx)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="where to write it (default: that name; of onnx and torch in the network's directory, else in the run)",
    )
    parser.add_argument("--trusted", metavar="NAME", action="append", default=[], help=TRUSTED_HELP)
    arguments = parser.parse_args(list(argv))
    from prunefuse_ray.storage import Place

    out = Place.at(arguments.out) if arguments.out else None
    write: Callable[..., str] = {"onnx": _onnx, "torch": _program, "huggingface": _hub}.get(
        arguments.format, partial(_selected, arguments.format)
    )
    if arguments.format in ("onnx", "torch", "huggingface"):
        _tell_of_earlier_end(arguments.directory)
    console.print(write(arguments.directory, out, arguments.trusted), markup=False)
    return 0


def _tell_of_earlier_end(directory: str) -> None:
    from prunefuse_ray.run.ledger import Ledger
    from prunefuse_ray.storage import Place

    if Ledger(Place.at(directory)).network_of_before:
        console.print("the run has not come to its end: this is the last network that it wrote")


def _onnx(directory: str, out: Place | None, trusted: Sequence[str]) -> str:
    from prunefuse_ray.inference.onnx import to_onnx
    from prunefuse_ray.inference.predictor import load

    return _graph(directory, out, "model.onnx", to_onnx(load(directory, trusted=trusted)))


def _program(directory: str, out: Place | None, trusted: Sequence[str]) -> str:
    from prunefuse_ray.inference.predictor import load
    from prunefuse_ray.inference.program import to_program

    return _graph(directory, out, "model.pt2", to_program(load(directory, trusted=trusted)))


def _graph(directory: str, out: Place | None, name: str, content: bytes) -> str:
    from prunefuse_ray.inference.saved_networks import network_place

    out = out or network_place(directory) / name
    out.write_bytes(content)
    return f"{out.uri}: {len(content):,} bytes, logits as the network's own"


def _hub(directory: str, out: Place | None, trusted: Sequence[str]) -> str:
    from prunefuse_ray.inference.hub import hub_folder
    from prunefuse_ray.inference.predictor import load
    from prunefuse_ray.inference.saved_networks import network_files, network_place
    from prunefuse_ray.storage import Place

    load(directory, trusted=trusted)  # says what is wrong with it
    place = network_place(directory)
    results = [where / "result.json" for where in (Place.at(directory), place.parent)]
    result = next((found.read_json() for found in results if place.name == "fused" and found.exists()), None)
    out = out or place.parent / "huggingface"
    files = hub_folder(network_files(place), result)
    for name, content in files.items():
        (out / name).write_bytes(content)
    card = "with the run's figures" if result else "without figures, since no result.json lies beside the network"
    upload = f"hf upload OWNER/NAME {shlex.quote(out.path)}"
    if not out.local:
        upload = "copy the folder to this machine and give hf upload OWNER/NAME FOLDER"
    return f"{out.uri}: {', '.join(files)}; card {card}. Add a license, then: {upload}"


def _selected(format_: str, directory: str, out: Place | None, trusted: Sequence[str]) -> str:
    from prunefuse_ray.registry import trust
    from prunefuse_ray.run.ledger import Ledger
    from prunefuse_ray.run.selections import WRITERS
    from prunefuse_ray.storage import Place

    trust(trusted)
    ledger = Ledger(Place.at(directory))
    config = ledger.read_config()
    out = out or ledger.root / format_
    return f"{out.uri}: {WRITERS[format_](config, ledger, out):,} selected images with labels, scores and rounds"
