"""A finished network as ONNX: one graph from samples to logits, checked against the network itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunefuse_ray.data.sample_format import random_samples
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.errors import PlanError
from prunefuse_ray.inference.predictor import Predictor
from prunefuse_ray.networks.specs import first_line

OPSET = 20
BATCHES = (1, 3)  # sizes that the exported graph is tried with
TOLERANCE = 1e-4  # of the largest logit; other kernels sum in another order


class Graph(nn.Module):
    """uint8 samples (N, *form.shape), or vectors (N, D), to logits (N, C), or to numbers in the user's units: scaling
    and normalization travel with the network."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network, self.form, self.task = predictor.network, predictor.form, predictor.task

    def forward(self, samples: Tensor) -> Tensor:
        vectors = isinstance(self.form, VectorForm)
        outputs = self.network(samples[:, :, None, None] if vectors else self.form.inputs(samples))
        return self.task.exported(self.task.consensus(outputs))


def to_onnx(predictor: Predictor) -> bytes:
    """The network as an ONNX model: input `samples`, uint8 (N, height, width, channels), (N, length) bytes, (N,
    length, 4) n-grams (`NgramForm`) or (N, length, 3) tokens (`TokenForm`), or float32 (N, length) of vectors; output
    `logits`, float32 (N, C). N is free. The metadata names classes and form.

    Raises:
        PlanError: the extra is not installed, the network cannot be exported, or ONNX Runtime computes other logits.
    """
    properties = {"classes": predictor.classes, "shape": list(predictor.form.shape)}
    return _checked(Graph(predictor).eval(), lambda size: trial_samples(predictor, size), "samples", properties)


def checked_onnx(network: nn.Module, example: Tensor, properties: Mapping[str, Any]) -> bytes:
    """Any network in evaluation mode as an ONNX model: input `input` (N, ...), output `logits` (N, C). N is free.

    Args:
        example: inputs on the CPU, with which it is tried.
        properties: for the metadata, as JSON.

    Raises:
        PlanError: as `to_onnx` does.
    """

    def inputs(size: int) -> Tensor:
        return example[torch.arange(size) % len(example)]

    return _checked(network, inputs, "input", properties)


def _checked(graph: nn.Module, inputs: Callable[[int], Tensor], name: str, properties: Mapping[str, Any]) -> bytes:
    """The graph as ONNX, once ONNX Runtime has computed its logits for `inputs(N)`."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise PlanError(f"--format onnx needs the onnx extra ({error}); pip install 'prunefuse-ray[onnx]'") from error
    model = _exported(graph, inputs(2), name)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in properties.items()})
    try:
        content: bytes = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        compared = [_both(graph, session, name, inputs(size)) for size in BATCHES]
    except Exception as error:  # of protobuf above 2 GB, of a type that ONNX Runtime or numpy does not have
        raise PlanError(
            f"--format onnx: ONNX Runtime cannot run this network ({first_line(error)}); nothing was written"
        ) from error
    for expected, found in compared:
        off = float(np.abs(found - expected).max())
        if not off <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise PlanError(f"--format onnx: ONNX Runtime's logits are off by {off:.2g}; nothing was written")
    return content


def _both(graph: nn.Module, session: Any, name: str, x: Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The logits of the network and of its graph."""
    with torch.inference_mode():
        expected = graph(x.clone()).numpy()  # it may work in place
    return expected, session.run(["logits"], {name: x.numpy()})[0]


def _exported(graph: nn.Module, example: Tensor, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (example,),
                input_names=[name],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N", min=1, max=65_535)},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            return program.model_proto
    except Exception as error:  # torch.onnx raises errors of its own, of torch.export and of onnxscript
        cause = error.__cause__ or error  # torch.onnx's own first line says only which of its steps failed
        raise PlanError(f"onnx: this network cannot be exported: {first_line(cause)}") from error


def trial_samples(predictor: Predictor, count: int) -> Tensor:
    if isinstance(predictor.form, VectorForm):
        vectors = np.random.default_rng(count).normal(size=(count, predictor.form.length))
        return torch.from_numpy(vectors.astype(np.float32))
    return torch.from_numpy(random_samples(predictor.form, count, count))
