"""The backend of OpenVINO, which is the fastest on CPUs that have matrix units or bfloat16."""

from __future__ import annotations

import sys
import threading
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prunefuse_ray.networks.backends.backend import Backend, Runner
from prunefuse_ray.networks.specs import NetworkError, plain
from prunefuse_ray.registry import installed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def _build(
    network: nn.Module,
    *,
    precision: str,
    device: torch.device,
    example: Tensor,
    threads: int,
    features: bool,
    callers: int = 1,
) -> Runner:
    import torch

    try:
        openvino = _imported()
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    except (ImportError, OSError) as error:
        raise NetworkError(
            f"scoring.backend: OpenVINO is installed, but cannot be imported ({plain(error)}): pip install --upgrade "
            "'prunefuse-ray[openvino]', or use torch"
        ) from error

    from prunefuse_ray.networks.inference import scoring_form

    form = scoring_form(network, "fp32", example, features=features)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and warns of Python values in the network
            # Its own tracing would run the network three times more, to check the trace; every pass is checked against
            # the plain network anyway (`backend_choice.check`).
            traced = torch.jit.trace(form, example, check_trace=False)
            # `openvino.convert_model` calls this, and takes three times as long for preparations of no use here.
            converter = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(traced)  # held until the end: the converter does not
            model = converter.convert(converter.load(decoder))
            model.reshape({model.inputs[0]: openvino.PartialShape(list(example.shape))})
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
                # A stream for each caller: every one computes with the same kernels, to the same bits.
                "INFERENCE_NUM_THREADS": threads * callers,
                "NUM_STREAMS": callers,
                # It would pin the threads of every actor to the same first cores of the machine: two actors of one
                # thread on two cores then had the throughput of one.
                "ENABLE_CPU_PINNING": False,
                "PERFORMANCE_HINT": "LATENCY" if callers == 1 else "THROUGHPUT",
            },
        )
    except Exception as error:  # its converter and compiler raise errors of their own and those of torch's tracer
        raise NetworkError(
            f"scoring.backend: OpenVINO cannot convert this network ({plain(error)}); use torch, or auto"
        ) from error
    mine = threading.local()

    def run(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not hasattr(mine, "request"):
            mine.request = compiled.create_infer_request()
        found = mine.request.infer([x.contiguous().numpy()])
        # Copies: the next call writes into the same memory.
        logits, *rest = (torch.from_numpy(found[i].copy()) for i in range(len(found)))
        return (logits, rest[0]) if features else logits

    return run


def _imported() -> ModuleType:
    """The package, without the one by which it would report every import and conversion to its maker's server; it has a
    stub for machines that lack that."""
    reporting = "openvino_telemetry"
    modules: dict[str, Any] = sys.modules
    absent = reporting not in modules
    if absent:
        modules[reporting] = None
    try:
        import openvino
    finally:
        if absent:
            del modules[reporting]
    return openvino


OPENVINO = Backend(
    name="openvino",
    about="the folded network by OpenVINO (the extra openvino)",
    build=_build,
    devices=("cpu",),
    concurrent=True,
    auto={"cpu": 0},
    lacks=installed("openvino", "openvino"),
)
