"""What runs a network for scoring: torch as it is or folded, torch.compile, or OpenVINO."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from prunefuse_ray.networks.inference import inference_form
from prunefuse_ray.networks.specs import NetworkError

Runner = Callable[[Tensor], Tensor]


def has_openvino() -> bool:
    return find_spec("openvino") is not None


def runner(
    network: nn.Module, backend: str, precision: str, *, device: torch.device, example: Tensor, threads: int
) -> Runner:
    """A function from inputs (N, ...) on `device`, all of the shape of `example`, to logits (N, C).

    Args:
        backend: eager (the network as it is, in evaluation mode), torch (its `inference_form`), compile, openvino.
        threads: of OpenVINO; torch's are the process's.

    Raises:
        NetworkError: OpenVINO is not installed, or cannot follow the network.
    """
    match backend:
        case "eager":
            return network.eval().requires_grad_(False).to(device)
        case "torch":
            return inference_form(network, precision).to(device)
        case "compile":
            return torch.compile(inference_form(network, precision).to(device), dynamic=False)
        case "openvino":
            return _openvino(network, precision, example, threads)
    raise NetworkError(f"scoring.backend: unknown {backend!r}; use eager, torch, compile or openvino")


def _openvino(network: nn.Module, precision: str, example: Tensor, threads: int) -> Runner:
    try:
        import openvino
    except ImportError as error:
        raise NetworkError(
            f"scoring.backend: openvino is not installed ({error}); pip install 'prunefuse-ray[openvino]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its converter traces by torch.jit
            model = openvino.convert_model(inference_form(network), example_input=example, input=[tuple(example.shape)])
    except Exception as error:  # its converter raises errors of its own and those of torch's tracer
        raise NetworkError(
            f"scoring.backend: OpenVINO cannot convert this network ({error}); use backend torch"
        ) from error
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # It would pin the threads of every actor to the same first cores of the machine: two actors of one thread
            # on two cores then had the throughput of one.
            "ENABLE_CPU_PINNING": False,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()

    def run(x: Tensor) -> Tensor:
        # A copy: the next call writes into the same memory.
        return torch.from_numpy(request.infer([x.contiguous().numpy()])[0].copy())

    return run
