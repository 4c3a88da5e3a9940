"""A finished network as a program of `torch.export`: one graph from samples to logits, read back and compared."""

from __future__ import annotations

import io
import json

import torch

from prunefuse_ray.errors import PlanError
from prunefuse_ray.inference.onnx import BATCHES, TOLERANCE, Graph, trial_samples
from prunefuse_ray.inference.predictor import Predictor
from prunefuse_ray.networks.specs import first_line

NAMES = "prunefuse_ray.json"
"""Of the file inside the program that names classes and form."""


def to_program(predictor: Predictor) -> bytes:
    """The network as `torch.export.load` reads it: input uint8 (N, height, width, channels), (N, length) bytes or (N,
    length, 4) n-grams, or float32 (N, length) of vectors; output logits, float32 (N, C). N is free. The extra file
    `prunefuse_ray.json` names classes and shape.

    Raises:
        PlanError: the network cannot be exported, or what is read back computes other logits.
    """
    graph, example = Graph(predictor).eval(), trial_samples(predictor, 2)
    try:
        dynamic = ({0: torch.export.Dim("N", min=1, max=65_535)},)
        program = torch.export.export(graph, (example,), dynamic_shapes=dynamic)
        written = io.BytesIO()
        told = json.dumps({"classes": predictor.classes, "shape": list(predictor.form.shape)})
        torch.export.save(program, written, extra_files={NAMES: told})
    except Exception as error:  # torch.export raises many errors of its own
        raise PlanError(f"--format torch: this network cannot be exported: {first_line(error)}") from error
    read = torch.export.load(io.BytesIO(written.getvalue())).module()
    for size in BATCHES:
        x = trial_samples(predictor, size)
        with torch.inference_mode():
            expected, found = graph(x.clone()), read(x.clone())  # it may work in place
        off = float((found - expected).abs().max())
        if not off <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise PlanError(f"--format torch: the program's logits are off by {off:.2g}; nothing was written")
    return written.getvalue()
