"""What networks take from the unlabeled pool before they see a label: statistics of some of its samples, as tensors.

Which architectures do is known without torch: the steps of a run depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from prunefuse_ray.networks.specs import NetworkError
from prunefuse_ray.registry import load_object

if TYPE_CHECKING:
    from torch import Tensor, nn

STATISTICS = {
    "textngrams": "prunefuse_ray.networks.ngrams:statistics",
    "mlp": "prunefuse_ray.networks.mlp:statistics",
}
"""Architecture -> the function from inputs (N, ...) of the pool to what the network's `take` takes."""
SAMPLES = 20_000
"""Of a larger pool so many samples, drawn at random, are looked at."""


def statistics(architecture: str, inputs: Tensor) -> bytes:
    """What a network of this architecture takes from samples of the pool, as a safetensors file."""
    import safetensors.torch

    found: Callable[[Any], dict[str, Tensor]] = load_object(STATISTICS[architecture], architecture)
    return safetensors.torch.save(found(inputs))


def take(network: nn.Module, content: bytes) -> None:
    """Put what `statistics` found into a network of the architecture."""
    import safetensors.torch

    try:
        cast(Any, network).take(safetensors.torch.load(content))
    except (KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise NetworkError(f"statistics of the pool: are not those of this network ({error})") from error


def meet(network: nn.Module, labeled: Callable[[], Any]) -> None:
    """Before a training begins: show its samples, batches of inputs and of which classes each is (N, C), to the parts
    of a network that set themselves by them."""
    for module in network.modules():
        if hasattr(module, "meet"):
            cast(Any, module).meet(labeled())
