"""Running a network: statistics after fusion, features for selection, the forms for training and for fast scoring."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from prunefuse_ray.networks.committee import Members
from prunefuse_ray.networks.encoders import Encoder
from prunefuse_ray.networks.mlp import MLP
from prunefuse_ray.networks.specs import NetworkError
from prunefuse_ray.networks.structure import replace_module


def recalibrate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of every batch norm, in place, by their averages over `batches`.

    batches: inputs (N, ...), moved to the network's device; each batch counts the same, whatever its size. Only the
    batch norms run in training mode. Raises NetworkError if there is no batch; a network without batch norms is left
    alone and no batch is read.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    device = next(network.parameters()).device
    modes = {module: module.training for module in network.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    count = 0
    try:
        network.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None  # torch's spelling of a cumulative average
        with torch.no_grad():
            for count, batch in enumerate(batches, start=1):
                if count == 1:
                    for norm in norms:
                        norm.reset_running_stats()
                with lone_samples(network):
                    network(batch.to(device))
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    if count == 0:
        raise NetworkError("batches: none given; batch-norm statistics need at least one")


@contextmanager
def lone_samples(network: nn.Module) -> Iterator[None]:
    """In this context a batch norm in training that sees one value a channel, or none, takes its running statistics:
    a variance needs two. So a batch of one sample can be trained on."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]

    def choose(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.training = inputs[0].numel() > inputs[0].shape[1]

    handles = [norm.register_forward_pre_hook(choose) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.training = True


class WithFeatures(nn.Module):
    """A network that also gives what its final linear classifier reads: (logits (N, C), features (N, D)); of a
    committee its members' logits (M, N, C), and their features side by side."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        """
        Args:
            network: in evaluation mode; its classifiers are taken out of it.
            example: an input.

        Raises:
            NetworkError: it does not end in an nn.Linear over flat features.
        """
        super().__init__()
        with torch.inference_mode():
            expected = network(example.clone())  # it may work in place
        self.committee = isinstance(network, Members)
        self.bodies = network.members if isinstance(network, Members) else nn.ModuleList([network])
        self.classifiers = nn.ModuleList([_classifier_out_of(body) for body in self.bodies])
        with torch.inference_mode():
            try:
                logits, features = self(example.clone())
                last = features.ndim == 2 and torch.allclose(logits, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
            except (RuntimeError, AttributeError, TypeError):  # it does more with its classifier than to call it
                last = False
        if not last:
            raise NetworkError(
                "network.architecture: features need a network whose last operation is an nn.Linear over (N, features)"
                "; use a strategy that works on scores alone, and no pretraining"
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = [body(x.clone() if self.committee else x) for body in self.bodies]  # one may work in place
        # In the precision of the classifier, which may be a higher one than the body's (`_Bfloat16`).
        logits = [read(own.to(read.weight.dtype)) for read, own in zip(self.classifiers, features, strict=True)]
        return torch.stack(logits) if self.committee else logits[0], torch.cat(features, 1)


def _classifier_out_of(network: nn.Module) -> nn.Linear:
    """The last nn.Linear of a network, in whose place it hands on what that would have read."""
    named = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(network, Encoder):  # some of which list their head first
        named = [(name, module) for name, module in named if not name.startswith(f"{network.base_model_prefix}.")]
    if not named or not named[-1][0]:
        raise NetworkError("network.architecture: features need a network that ends in an nn.Linear; this one has none")
    _, classifier = named[-1]
    replace_module(network, classifier, nn.Identity())
    return classifier


def features_and_logits(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits of inputs x (N, ...), by a copy of the network in evaluation mode; see `WithFeatures`."""
    logits, features = with_features(network, x)(x)
    return features, logits


def with_features(network: nn.Module, x: Tensor) -> nn.Module:
    """A network in evaluation mode that also gives its features, by a copy of it; see `WithFeatures`.

    Args:
        x: an input.
    """
    return WithFeatures(copy.deepcopy(network).eval(), x)


def scoring_form(network: nn.Module, precision: str, example: Tensor, *, features: bool) -> nn.Module:
    """The `inference_form` as it is run for scoring: x -> logits, or `WithFeatures`.

    Args:
        precision: fp32, or bf16 for weights and activations in bfloat16 (inputs of any precision are taken), all but
            the last layer.
        example: an input on the device.
    """
    form = inference_form(network).to(example.device)
    form = WithFeatures(form, example) if features else form
    if precision != "bf16":
        return form
    if not features:
        with suppress(NetworkError):  # of networks that do not end in a linear layer the logits are rounded, too
            form = WithFeatures(copy.deepcopy(form), example[:2])
    return _Bfloat16(form, features)


def inference_form(network: nn.Module) -> nn.Module:
    """An eval-mode copy for scoring: batch norms folded into the convolution right before them, channels last.

    Outputs equal the original's in eval mode up to rounding. Batch norms that read anything but one convolution (all
    but the inner ones of a pre-activation network) stay; so does everything where the network cannot be traced.
    """
    result = copy.deepcopy(network).eval().requires_grad_(False)
    for conv_name, norm_name in _foldable(result):
        # conv: the folding is the same for one, two and three dimensions
        conv, norm = cast(nn.Conv2d, result.get_submodule(conv_name)), result.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
        replace_module(result, norm, nn.Identity())
    if any(isinstance(module, nn.Conv2d) for module in result.modules()):
        result = _formatted(result)
    return result


def channels_last(network: nn.Module) -> nn.Module:
    """Put a network that is to be trained into channels-last format, in place; returns it. Inputs have to follow.

    On CPUs its 1 x 1 convolutions with a stride read every stride-th pixel of their input and step by one instead:
    the same numbers, but oneDNN's backward pass for the strided ones writes beyond its workspace in this format where
    they have fewer than 16 input channels, as pruned networks do (uxlfoundation/oneDNN issue 6035; torch 2.14).
    """
    network = _formatted(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.device.type == "cpu" and _strided_pointwise(module):
            module.register_forward_pre_hook(_Subsampled(*cast(tuple[int, int], module.stride)))
            module.stride = (1, 1)
    return network


def _formatted(network: nn.Module) -> nn.Module:
    """The network with its tensors of four axes in channels-last format, in place. `Module.to` would bring those of
    five into it, too, which have no such format: weights of 3-D convolutions, tables of positions."""
    # Not `contiguous`, which leaves weights of one input channel as they are: their gradients would have other strides.
    return network._apply(lambda t: t.to(t.dtype, memory_format=torch.channels_last) if t.ndim == 4 else t)


def _strided_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "valid") and conv.stride != (1, 1)


@dataclass(frozen=True)
class _Subsampled:
    """Forward pre-hook: every `rows`-th row and `columns`-th column of the input."""

    rows: int
    columns: int

    def __call__(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][..., :: self.rows, :: self.columns],)


class _Bfloat16(nn.Module):
    """A network in bfloat16, but for its classifier. In bfloat16, with its 8 bits, the two largest logits of a sample
    that the network is unsure of are often the same number; `margin` would then have nothing but ids to choose by."""

    def __init__(self, network: nn.Module, features: bool) -> None:
        super().__init__()
        modules = list(network.modules())
        vectors, encoder = (any(isinstance(module, kind) for module in modules) for kind in (MLP, Encoder))
        # Vectors are standardized in float32: rounded before that, 48.85 and 48.95 would be one number. An encoder's
        # positions are turned in it: by a rounded frequency every distance is another angle.
        exact = [
            (module, name, buffer)
            for module in modules
            for name, buffer in module.named_buffers(recurse=False)
            if isinstance(module, MLP) or (encoder and name.endswith("inv_freq"))
        ]
        # Not the classifiers: made float32 again, their weights would stay rounded.
        (network.bodies if isinstance(network, WithFeatures) else network).to(torch.bfloat16)
        self.network, self.features = network, features
        for module, name, buffer in exact:
            setattr(module, name, buffer)
        self.rounds = not vectors

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self.network(x.to(torch.bfloat16) if self.rounds and x.is_floating_point() else x)
        return found[0] if isinstance(found, tuple) and not self.features else found


def _foldable(network: nn.Module) -> list[tuple[str, str]]:
    """Pairs (convolution, batch norm) by name, where the norm is the only reader of the convolution's only output.

    Tracing patches Python's module calls for its duration: no other thread may run a network meanwhile.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # data-dependent control flow; tracing runs the network's own code, so anything may come
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    uses = Counter(node.target for node in calls)
    pairs = []
    for node in calls:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        conv_name, norm_name = str(source.target), str(node.target)
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        called_once = uses[source.target] == uses[node.target] == 1
        folds = isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and isinstance(norm, _BatchNorm)
        plain = "weight" in conv._parameters  # and not computed from others (a parametrization)
        if called_once and folds and plain and norm.running_mean is not None:
            pairs.append((conv_name, norm_name))
    return pairs
