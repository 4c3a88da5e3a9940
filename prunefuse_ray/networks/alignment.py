"""The proof that a pruned network is the dense one without some of its channels, and that it runs at all.

torch-pruning follows channels through most operations, and through the others (a channel shuffle, heads cut out of
layers that nothing marks as an attention, padded shortcuts) it goes wrong without a word. So every pruning is tried
out: with random weights in every tensor, the pruned network has to compute what the dense one does when its added
channels lead nowhere.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from prunefuse_ray.networks.indices import KeptIndices, gather
from prunefuse_ray.networks.probe import in_highest_precision, probe_inputs
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, first_line, unsuited
from prunefuse_ray.networks.structure import damp_cross, damp_queries, query_rows, refill

FEW = 2
"""Channels of a layer: with so few a rectifier may let nothing pass."""


def check_alignment(dense: nn.Module, kept: KeptIndices, spec: NetworkSpec) -> None:
    """Raises NetworkError unless every kept channel meets the same channels in the proxy as in the dense network.

    Statistics over channels differ by nature between the two, so both run without them: normalizations apply their
    gains and offsets only.
    """
    pruned, masked, tolerance = _tried(dense, kept, spec)
    expected, found = pruned.logits, masked.logits
    size = expected.abs().max()
    if not expected.isfinite().all() or (expected[:1] - expected[1:]).abs().max() <= tolerance**2 * size:
        narrowest = min((len(index) for dims in kept.values() for index in dims if index is not None), default=FEW + 1)
        if narrowest <= FEW:
            raise NetworkError(
                f"pruning.ratio: leaves {narrowest} channel{'s' * (narrowest > 1)} of a layer of {spec.architecture}, "
                "whose outputs then hardly depend on its inputs; use a lower ratio"
            )
        raise NetworkError(
            f"network.architecture: {spec.architecture} cannot be pruned: with random weights its outputs do not "
            "depend on its inputs, so nothing shows whether its channels were followed rightly"
        )
    if not (expected - found).abs().max() <= tolerance * size:
        raise unsuited(
            _misled(pruned, masked, kept, tolerance) or spec.architecture,
            "it would read other channels than in the dense network; this architecture cannot be pruned, because its "
            "channels could not be followed through every operation (zero-padded shortcuts, reshapes, channel "
            "shuffles, attention in layers of one's own and statistics over channels are such operations)",
        )


@dataclass(frozen=True)
class _Ran:
    logits: Tensor
    outputs: dict[str, tuple[nn.Module, Tensor]]
    """Every convolution and linear layer that was called, in order, with its output; of the last call."""


def _tried(dense: nn.Module, kept: KeptIndices, spec: NetworkSpec) -> tuple[_Ran, _Ran, float]:
    """The pruned network, the dense one whose added channels lead nowhere, and how far their outputs may be apart."""
    try:
        (pruned, masked), tolerance = in_highest_precision(lambda dtype: _both(dense, kept, spec, dtype))
        return pruned, masked, tolerance
    except _CannotRun as failure:
        raise unsuited(
            failure.module,
            f"it cannot run after pruning ({first_line(failure.error)}), because its channels could not be followed "
            "through every operation; this architecture cannot be pruned",
        ) from failure.error


def _both(dense: nn.Module, kept: KeptIndices, spec: NetworkSpec, dtype: torch.dtype) -> tuple[_Ran, _Ran]:
    probe = copy.deepcopy(dense).cpu().to(dtype).eval()
    state = probe.state_dict()
    _randomize(state)
    pruned = copy.deepcopy(probe)
    refill(pruned, gather(state, kept))
    inputs = probe_inputs(spec, dtype, samples=2)
    with torch.no_grad(), _WithoutStatistics():
        expected = _run(pruned, inputs)
        # By all their names, as tensors are: a module without weights may stand in several places.
        modules, queries = dict(probe.named_modules(remove_duplicate=False)), dict(query_rows(probe))
        for name, tensor in state.items():
            damp_cross(modules, name, tensor, kept[name], 0.0)
            if name in queries:
                damp_queries(tensor, kept[name][0], queries[name], 0.0)
        return expected, _run(probe, inputs)


def _misled(pruned: _Ran, masked: _Ran, kept: KeptIndices, tolerance: float) -> str | None:
    """The first layer that computes something else than it does in the dense network."""
    for name, (module, output) in pruned.outputs.items():
        whole = masked.outputs[name][1]
        channels = kept[f"{name}.weight"][1 if getattr(module, "transposed", False) else 0]
        same = whole if channels is None else whole.index_select(-1 if isinstance(module, nn.Linear) else 1, channels)
        if same.shape != output.shape or (same - output).abs().max() > tolerance * output.abs().max():
            return name
    return None


def _randomize(state: dict[str, Tensor]) -> None:
    """Overwrites all floating-point tensors; zeros and equal values would hide what is out of place."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim > 1:
            tensor.normal_(generator=generator).div_(max(1, tensor[0].numel()) ** 0.5)
        else:
            center = 0.0 if name.endswith(("bias", "mean")) else 1.0
            tensor.uniform_(center - 0.5, center + 0.5, generator=generator)


class _CannotRun(Exception):
    def __init__(self, module: str, error: Exception) -> None:
        self.module, self.error = module, error


def _run(network: nn.Module, inputs: Tensor) -> _Ran:
    inside: list[str] = []  # the modules that are running, the innermost last; after an error, those it left behind
    outputs: dict[str, tuple[nn.Module, Tensor]] = {}
    handles = []
    for name, module in network.named_modules():

        def enter(*_: Any, name: str = name) -> None:
            inside.append(name)

        def leave(module: nn.Module, _: Any, output: Any) -> None:
            name = inside.pop()
            if isinstance(module, (nn.Linear, _ConvNd)):
                outputs[name] = module, output

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        return _Ran(network(inputs.clone()), outputs)  # it may work in place
    except Exception as error:
        raise _CannotRun(inside[-1] if inside else "", error) from error
    finally:
        for handle in handles:
            handle.remove()


def _along_last(x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any):
    if (last := tuple(x.shape[-len(shape) :])) != tuple(shape):
        raise RuntimeError(f"normalizes the shape {tuple(shape)}, not {last}")
    return _affine(x, weight, bias)


def _rms(x: Tensor, shape: Any, weight: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    return _along_last(x, shape, weight)


def _along_second(x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any):
    def shaped(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.view(-1, *[1] * (x.ndim - 2))

    if x.shape[1] % groups:
        raise RuntimeError(f"{x.shape[1]} channels are no multiple of {groups} groups")
    return _affine(x, shaped(weight), shaped(bias))


def _over_samples(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *more: Any,
    **named: Any,
) -> Tensor:
    if training:  # in evaluation mode: weight standardization, or a batch norm that keeps no statistics
        return _along_second(x, 1, weight, bias)
    return F.batch_norm(x, mean, variance, weight, bias, training, *more, **named)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _unchanged(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


_WITHOUT_STATISTICS: dict[Callable, Callable] = {
    F.layer_norm: _along_last,
    torch.layer_norm: _along_last,
    F.rms_norm: _rms,
    torch.rms_norm: _rms,
    F.group_norm: _along_second,
    torch.group_norm: _along_second,
    F.batch_norm: _over_samples,
    F.local_response_norm: _unchanged,
    F.normalize: _unchanged,
}


class _WithoutStatistics(TorchFunctionMode):
    """Normalizations over channels keep their gains and offsets only; whoever calls them, and under which name."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _WITHOUT_STATISTICS.get(func, func)(*args, **(kwargs or {}))
