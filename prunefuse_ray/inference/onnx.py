"""A finished network as ONNX: one graph from samples to logits, checked against the network itself."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.errors import PlanError
from prunefuse_ray.inference.predictor import Predictor

OPSET = 20
BATCHES = (1, 3)  # sizes that the exported graph is tried with
TOLERANCE = 1e-4  # of the largest logit; other kernels sum in another order


class _Graph(nn.Module):
    """uint8 samples (N, *form.shape), or vectors (N, D), to logits (N, C): scaling and normalisation travel with the
    network."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network, self.form = predictor.network, predictor.form

    def forward(self, samples: Tensor) -> Tensor:
        if isinstance(self.form, VectorForm):
            return self.network(samples[:, :, None, None])
        return self.network(self.form.inputs(samples))


def to_onnx(predictor: Predictor) -> bytes:
    """The network as an ONNX model: input `samples`, uint8 (N, height, width, channels), (N, length) bytes or (N,
    length, 4) n-grams (`NgramForm`), or float32 (N, length) of vectors; output
    `logits`, float32 (N, C). N is free. The metadata names classes and form.

    Raises:
        PlanError: the extra is not installed, the network cannot be exported, or ONNX Runtime computes other logits.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise PlanError(f"--format onnx needs the onnx extra ({error}); pip install 'prunefuse-ray[onnx]'") from error
    graph = _Graph(predictor).eval()
    model = _exported(graph, predictor)
    onnx.helper.set_model_props(
        model, {"classes": json.dumps(predictor.classes), "shape": json.dumps(list(predictor.form.shape))}
    )
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for size in BATCHES:
        samples = _samples(predictor, size)
        with torch.inference_mode():
            expected = graph(torch.from_numpy(samples)).numpy()
        found = session.run(["logits"], {"samples": samples})[0]
        off = float(np.abs(found - expected).max())
        if not off <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise PlanError(f"--format onnx: ONNX Runtime's logits are off by {off:.2g}; nothing was written")
    return content


def _exported(graph: nn.Module, predictor: Predictor) -> Any:
    example = torch.from_numpy(_samples(predictor, 2))
    shapes: Any = {"samples": {0: torch.export.Dim("N", min=1, max=65_535)}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (example,),
                input_names=["samples"],
                output_names=["logits"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            return program.model_proto
    except Exception as error:  # torch.onnx raises errors of its own, of torch.export and of onnxscript
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PlanError(f"--format onnx: this network cannot be exported: {lines[0]}") from error


def _samples(predictor: Predictor, count: int) -> np.ndarray:
    if isinstance(predictor.form, VectorForm):
        return np.random.default_rng(count).normal(size=(count, predictor.form.length)).astype(np.float32)
    return np.random.default_rng(count).integers(0, 256, (count, *predictor.form.shape), dtype=np.uint8)
