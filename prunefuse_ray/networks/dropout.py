"""Monte Carlo dropout: one network under several dropout masks, as the members of a committee."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunefuse_ray.networks.committee import Members
from prunefuse_ray.networks.inference import inference_form
from prunefuse_ray.networks.specs import NetworkError
from prunefuse_ray.networks.structure import replace_module

_OF_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Mask(nn.Module):
    """What a dropout layer does to every sample alike."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept


def under_masks(network: nn.Module, masks: int, seed: int, example: Tensor) -> Members:
    """The network under so many dropout masks, each drawn once and applied to every sample: inputs (N, ...) to logits
    (masks, N, C). The members share their weights.

    A mask that is drawn anew for every sample, as in training, makes a sample's score depend on its place in the pass;
    with the same masks for all, the members are samples of the network's posterior, as members of a committee are.

    Args:
        example: an input (1 or more, ...) on the network's device.

    Raises:
        NetworkError: it has no dropout layer that drops anything, or one whose values do not begin with the samples.

    Gal and Ghahramani, "Dropout as a Bayesian Approximation", 2016 (arXiv 1506.02142); the same masks for all samples:
    Kirsch, van Amersfoort and Gal, "BatchBALD", 2019 (arXiv 1906.08158), section 3.
    """
    form = inference_form(network)
    shapes = _shapes(form, example[:1])
    generator = torch.Generator().manual_seed(seed)
    shared: dict[int, Tensor] = {id(t): t for t in itertools.chain(form.parameters(), form.buffers())}
    members = []
    for _ in range(masks):
        member = copy.deepcopy(form, dict(shared))
        for name, shape in shapes.items():
            layer = form.get_submodule(name)
            kept = torch.rand(shape, generator=generator) >= layer.p  # type: ignore[operator]
            mask = Mask((kept / (1 - layer.p)).to(example.device))  # type: ignore[operator]
            replace_module(member, member.get_submodule(name), mask)
        for module in member.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0  # torch's fused path would leave the masks out
        members.append(member)
    return Members(members).eval()


def _shapes(network: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Dropout layer by name -> the shape of its mask, (1, ...)."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Dropout, *_OF_CHANNELS)) and 0 < m.p < 1}
    with torch.inference_mode(), _seen(layers) as one:
        network(example.clone())  # it may work in place
    with torch.inference_mode(), _seen(layers) as two:
        network(torch.cat([example, example]))
    shapes = {}
    for name in one:
        (shape, *others), (double, *_) = one[name], two[name]
        if others or shape[0] != 1 or double != (2, *shape[1:]):
            raise NetworkError(
                f"selection.dropout_masks: module {name} is called several times, or its values do not begin with the "
                "samples, so that no mask fits all of them; use pruning.committee instead"
            )
        of_channels = isinstance(layers[name], _OF_CHANNELS)
        shapes[name] = (1, shape[1], *[1] * (len(shape) - 2)) if of_channels else shape
    if not shapes:
        raise NetworkError(
            "selection.dropout_masks: this network has no dropout layer (nn.Dropout and its kin, with p above 0) that "
            "samples reach; use pruning.committee instead"
        )
    return shapes


@contextmanager
def _seen(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """Inside, the different shapes that each layer reads."""
    seen: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str, x: Tensor) -> None:
        if (shape := tuple(x.shape)) not in seen.setdefault(name, []):
            seen[name].append(shape)

    hooks = [m.register_forward_pre_hook(lambda _, xs, name=n: note(name, xs[0])) for n, m in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
