"""Networks by name, built afresh from a seed."""

import copy
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunefuse_ray.networks import encoders
from prunefuse_ray.networks.mlp import MLP
from prunefuse_ray.networks.ngrams import TextNgrams
from prunefuse_ray.networks.plain import VGG16, TextCNN
from prunefuse_ray.networks.resnets import PreActivationResNet
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, first_line, unsuited


def _small_fcn(**options: Any) -> nn.Module:
    from prunefuse_ray.networks.segmentation import SmallFCN  # which imports torchvision's models: seconds

    return SmallFCN(**options)


def _cifar_resnet(name: str, *, classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """torchvision's ResNet of 64 to 512 channels as it is usual on images of 32 pixels: a 3x3 convolution of stride 1
    reads them, and no pooling follows, so that the first stage has all of their pixels."""
    from torchvision import models

    network = models.get_model(name, weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as the others
    network.maxpool = nn.Identity()
    return network


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    **{
        f"resnet{depth}": partial(PreActivationResNet, blocks=(depth - 2) // 6)
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    "resnet164": partial(PreActivationResNet, blocks=(164 - 2) // 9, bottleneck=True),
    **{
        f"wrn{d}_{width}": partial(PreActivationResNet, blocks=(d - 4) // 6, width=width)
        for d, width in ((16, 8), (28, 10))
    },
    **{f"cifar_resnet{depth}": partial(_cifar_resnet, f"resnet{depth}") for depth in (18, 34)},
    "vgg16_bn": VGG16,
    "textngrams": TextNgrams,
    "mlp": MLP,
    "textcnn": TextCNN,
    **{f"fcn_resnet{depth}": partial(_small_fcn, blocks=(depth - 2) // 6) for depth in (8, 14, 20, 32, 44, 56)},
}

T = TypeVar("T")

LIBRARIES = ("torchvision", "timm", encoders.LIBRARY)
_SMALLEST_SIDE = {"vgg16_bn": 32, "textcnn": 8, "textngrams": 1, "mlp": 1}
_SHAPES = {"textcnn": "(length,)", "textngrams": "(length, 2)"}
"""What others than images are to the networks that read them."""
_SMALLEST_RESNET_SIDE = 4


def build(spec: NetworkSpec, *, seed: int) -> nn.Module:
    """A freshly initialized network on the CPU, in training mode.

    The same seed gives the same weights; torch's global random state stays as it was. Raises NetworkError for an
    unknown architecture, or an input shape that it cannot take.
    """
    network = construct(spec, seed=seed)
    _check(network, spec)
    return network


def construct(spec: NetworkSpec, *, seed: int) -> nn.Module:
    """`build` without the check that the network takes its input; for weights that are to be replaced anyway."""
    with isolated_seed(seed), torch.device("cpu"):
        network = _constructed(spec)
        _materialize(network, spec)
    return network


def example_input(spec: NetworkSpec, *, samples: int = 1, seed: int = 0) -> Tensor:
    """Random samples of the shape that `spec` names: floats, such as (N, C, H, W), (N, L) int64 bytes or tokens, of
    which the last quarter is behind the end of the text, or (N, L, 2) int64 hashes and counts."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, *spec.input_shape)
    if spec.config is not None:
        tokens = torch.randint(1, encoders.vocabulary(spec) + 1, shape, generator=generator)
        tokens[:, shape[1] - shape[1] // 4 :] = 0
        return tokens
    if len(spec.input_shape) == 1 and not spec.real:
        return torch.randint(spec.values, shape, generator=generator)
    if len(spec.input_shape) == 2 and not spec.real:
        return torch.stack([torch.randint(top, shape[:2], generator=generator) for top in (2**24, 4)], -1)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def is_custom(architecture: str) -> bool:
    """Whether the name stands for code of the user's, `package.module:function`, which building it imports."""
    library, mark, _ = architecture.partition(":")
    return bool(mark) and library not in LIBRARIES


@contextmanager
def isolated_seed(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch's CPU generator, and that of a GPU that is named, and puts their states back afterwards.

    `torch.manual_seed` also seeds the generators of all other kinds of devices; for those that are not there it notes
    the stack of the call each time, which takes longer than a small layer.
    """
    generators = [torch.random.default_generator]
    if device is not None and device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def on_shapes_or_values(work: Callable[[str], T]) -> T:
    """The result of `work` on the meta device, where only shapes are worked out; or, for networks that need values
    (tensors of their own, decisions on what they see), on the CPU."""
    try:
        return work("meta")
    except Exception:  # of whatever kind: if it is the network's fault it comes again
        return work("cpu")


@torch.no_grad()
def _outputs(network: nn.Module, inputs: Tensor, device: str, *, training: bool = False) -> Any:
    return copy.deepcopy(network).to(device).train(training)(inputs.to(device))


def _check(network: nn.Module, spec: NetworkSpec) -> None:
    """Raises NetworkError unless the network is in float32, takes inputs of that shape and returns logits (N, classes),
    or of every pixel."""
    try:
        copied = copy.deepcopy(network)
    except Exception as error:
        raise NetworkError(
            f"network.architecture: {spec.architecture} cannot be copied ({first_line(error)})"
        ) from error
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise NetworkError(
                f"network.architecture: {spec.architecture}: {name} is a {type(tensor).__name__}, and networks are "
                "kept as tensors: leave get_extra_state out"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:  # which files of networks do not hold
            raise NetworkError(
                f"network.architecture: {spec.architecture}: {name} is {tensor.dtype}, and networks are kept in "
                "float32: make it so where it is made (.float())"
            )
    found: dict[str, Any] = {}
    try:
        found[""] = outputs = on_shapes_or_values(lambda device: _outputs(copied, example_input(spec), device))
        if is_custom(spec.architecture):  # in training some have auxiliary outputs
            with isolated_seed(0):
                found[" in training"] = on_shapes_or_values(
                    lambda device: _outputs(copied, example_input(spec, samples=2), device, training=True)
                )
    except Exception as error:
        raise _cannot_take(network, spec, error) from error
    for when, given in found.items():
        if not isinstance(given, Tensor):
            raise NetworkError(
                f"network.architecture: {spec.architecture} returns a {type(given).__name__}{when}; make it return "
                "the logits alone, or wrap it in a module that does"
            )
    if tuple(outputs.shape) not in ((1, spec.classes), (1, spec.classes, *spec.input_shape[1:])):
        raise NetworkError(
            f"network.architecture: {spec.architecture} returns {tuple(outputs.shape)} for one sample instead of "
            f"logits (1, {spec.classes}), or (1, {spec.classes}, height, width) for every pixel; only classifiers can "
            "be used"
        )
    if is_custom(spec.architecture) and are_probabilities(_outputs(copied, example_input(spec, samples=8), "cpu")):
        raise NetworkError(
            f"network.architecture: {spec.architecture} returns probabilities; logits are needed: leave its softmax out"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise NetworkError(
            f"network.architecture: {spec.architecture} has no weights to train: none has requires_grad set; free "
            "those that are to learn"
        )


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (N, C), or (N, C, H, W), have been through a softmax: logits of several samples or pixels hardly
    ever all sum to 1. Of fewer than four different ones nothing is said."""
    if outputs.ndim not in (2, 4) or outputs.shape[1] < 2:
        return False
    whole = bool((outputs >= 0).all()) and bool(((outputs.float().sum(1) - 1).abs() < 1e-3).all())
    return whole and len(outputs.movedim(1, -1).flatten(0, -2).unique(dim=0)) >= 4


def says_pixels(network: nn.Module, spec: NetworkSpec) -> bool:
    """Whether a network gives a class for every pixel (N, C, H, W), and not one for the whole (N, C)."""
    outputs = on_shapes_or_values(lambda device: _outputs(network, example_input(spec), device))
    return outputs.ndim == 4


def _cannot_take(network: nn.Module, spec: NetworkSpec, error: Exception) -> NetworkError:
    given = inspect.signature(network.forward).parameters.values()
    needed = [p.name for p in given if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1:
        return NetworkError(
            f"network.architecture: {spec.architecture} takes {len(needed)} inputs ({', '.join(needed)}); only "
            "networks of one input can be used"
        )
    return NetworkError(f"input_shape: {spec.architecture} cannot take {spec.input_shape}: {first_line(error)}")


def _materialize(network: nn.Module, spec: NetworkSpec) -> None:
    """Lets lazy layers learn their widths from a sample. Their weights come from the seed, as those of others do."""
    if not _lazy_modules(network):
        return
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(example_input(spec))
    except Exception as error:
        raise _cannot_take(network, spec, error) from error
    for module, training in modes.items():
        module.training = training
    if left := _lazy_modules(network):
        raise unsuited(left[0], "a lazy layer that no sample reaches cannot learn its width; leave it out")


def _lazy_modules(network: nn.Module) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if any(is_lazy(tensor) for tensor in [*module._parameters.values(), *module._buffers.values()])
    ]


def _constructed(spec: NetworkSpec) -> nn.Module:
    if spec.config is not None or spec.architecture.partition(":")[0] == encoders.LIBRARY:
        return encoders.construct(spec)
    # Split as `is_custom` does: else a file could have code imported that this takes for a library's network.
    library, mark, name = spec.architecture.partition(":")
    if not mark or not library:
        return _construct_own(spec)
    if library == "torchvision":
        return _construct_torchvision(name, spec)
    if library == "timm":
        return _construct_timm(name, spec)
    return _construct_custom(library, name, spec)


def _construct_own(spec: NetworkSpec) -> nn.Module:
    name = spec.architecture
    if name not in ARCHITECTURES:
        raise NetworkError(
            f"network.architecture: unknown {name!r}{_near(name, ARCHITECTURES)}; use one of "
            f"{', '.join(ARCHITECTURES)}, torchvision:NAME, timm:NAME, transformers:FOLDER or package.module:function"
        )
    wanted = _SHAPES.get(name, "(channels, height, width)")
    if len(spec.input_shape) != {"(length,)": 1, "(length, 2)": 2}.get(wanted, 3):
        raise NetworkError(f"input_shape: {name} takes {wanted}, not {spec.input_shape}")
    smallest = _SMALLEST_SIDE.get(name, _SMALLEST_RESNET_SIDE)
    if min(spec.input_shape[-2:]) < smallest:
        raise NetworkError(
            f"input_shape: {spec.input_shape} is too small for {name}; its sides need at least {smallest}"
        )
    return ARCHITECTURES[name](classes=spec.classes, input_shape=spec.input_shape)


def _construct_torchvision(name: str, spec: NetworkSpec) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models)
    pixelwise = models.list_models(module=models.segmentation)
    if name in models.list_models(module=models.detection):
        raise NetworkError(
            f"network.architecture: torchvision:{name} finds boxes, and there is no task for them; name a network of "
            f"classes, or with task segmentation one of {', '.join(pixelwise)}"
        )
    if name not in (*names, *pixelwise):
        raise NetworkError(f"network.architecture: torchvision has no classifier {name!r}{_near(name, names)}")
    if len(spec.input_shape) != 3 or spec.input_shape[0] != 3:
        raise NetworkError(
            f"input_shape: torchvision:{name} takes (3, height, width), not {spec.input_shape}; "
            "convert the images to three channels"
        )
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        if spec.input_shape[1] != spec.input_shape[2]:
            raise NetworkError(f"input_shape: torchvision:{name} takes square images, not {spec.input_shape}")
        options["image_size"] = spec.input_shape[1]
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        if name in pixelwise:
            from prunefuse_ray.networks.segmentation import Pixelwise

            return Pixelwise(models.get_model(name, weights=None, weights_backbone=None, num_classes=spec.classes))
        return models.get_model(name, weights=None, num_classes=spec.classes, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise NetworkError(f"network.architecture: torchvision cannot build {name!r}: {first_line(error)}") from error


def _construct_timm(name: str, spec: NetworkSpec) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise NetworkError(
            f"network.architecture: timm:{name} needs the timm extra; pip install 'prunefuse-ray[timm]'"
        ) from error
    if not timm.is_model(name):
        raise NetworkError(f"network.architecture: timm has no network {name!r}{_near(name, timm.list_models())}")
    if len(spec.input_shape) != 3:
        raise NetworkError(f"input_shape: timm:{name} takes (channels, height, width), not {spec.input_shape}")
    options: dict[str, Any] = {"num_classes": spec.classes, "in_chans": spec.input_shape[0]}
    try:
        try:
            # Transformers fix their input size at construction; convolutional networks do not know the argument.
            return timm.create_model(name, pretrained=False, img_size=tuple(spec.input_shape[1:]), **options)
        except TypeError:
            return timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # a tag that there is not; of the networks' own code anything may come
        raise NetworkError(
            f"network.architecture: timm cannot build {name!r} for {spec.input_shape}: {first_line(error)}"
        ) from error


def _construct_custom(module_name: str, function_name: str, spec: NetworkSpec) -> nn.Module:
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise NetworkError(
            f"network.architecture: cannot import {spec.architecture!r}: {error}; name a function of a module that "
            "Python finds from the working directory or among the installed packages"
        ) from error
    try:
        network = function(num_classes=spec.classes, input_shape=spec.input_shape)
    except Exception as error:
        raise NetworkError(f"network.architecture: {spec.architecture} failed: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(
            f"network.architecture: {spec.architecture} returned {type(network).__name__}, not an nn.Module"
        )
    return network


def _near(name: str, names: object) -> str:
    matches = difflib.get_close_matches(name, list(names), n=3)  # type: ignore[call-overload]
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
