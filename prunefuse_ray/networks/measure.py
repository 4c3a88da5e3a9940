"""What a network costs, and what pruning saves."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunefuse_ray.networks.architectures import example_input, on_shapes_or_values
from prunefuse_ray.networks.encoders import Encoder
from prunefuse_ray.networks.indices import Proxy
from prunefuse_ray.networks.pruning import prune
from prunefuse_ray.networks.specs import NetworkSpec, PruningSpec


def parameters(network: nn.Module) -> int:
    """Number of trainable and frozen parameters; buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates per sample of convolutions, linear layers and attention; nothing else counts.

    input_shape: without the batch dimension; (L,) stands for byte sequences. Shapes run through a copy without memory;
    only a network that needs values is given some.
    """
    inputs = example_input(NetworkSpec(architecture="any", classes=2, input_shape=input_shape))
    if isinstance(network, Encoder):
        inputs = inputs % network.config.vocab_size
    return on_shapes_or_values(lambda device: _counted(network, inputs, device))


def _counted(network: nn.Module, inputs: Tensor, device: str) -> int:
    # Requiring gradients keeps attention on its plain path: fused kernels are not counted.
    shadow = copy.deepcopy(network).to(device).eval().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        shadow(inputs.to(device))
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class Row:
    """One line of the pruning table."""

    pruning: PruningSpec
    proxy: Proxy
    parameters: int
    """Of the proxy."""
    macs: int
    """Of the proxy, per sample."""
    parameter_ratio: float
    """Proxy / dense."""
    mac_ratio: float
    """Proxy / dense."""
    kept: str
    """Kept channels of each distinct width, `16→8 32→16 64→32`."""


def pruning_table(
    dense: nn.Module, spec: NetworkSpec, ratios: Sequence[float] = (0.5, 0.6, 0.7, 0.8), round_to: int | None = None
) -> list[Row]:
    """What each pruning ratio leaves of a network. Raises NetworkError as prune does."""
    dense_parameters, dense_macs = parameters(dense), macs(dense, spec.input_shape)
    rows = []
    for ratio in ratios:
        pruning = PruningSpec(ratio=ratio, round_to=round_to)
        proxy = prune(dense, spec, pruning)
        count, cost = parameters(proxy.network), macs(proxy.network, spec.input_shape)
        widths = {
            (len(tensor), len(proxy.kept[name][0]))  # type: ignore[arg-type]
            for name, tensor in dense.state_dict().items()
            if tensor.ndim > 1 and proxy.kept[name][0] is not None
        }
        rows.append(
            Row(
                pruning=pruning,
                proxy=proxy,
                parameters=count,
                macs=cost,
                parameter_ratio=count / dense_parameters,
                mac_ratio=cost / dense_macs,
                kept=" ".join(f"{before}→{after}" for before, after in sorted(widths)),
            )
        )
    return rows
