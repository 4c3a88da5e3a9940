"""Every architecture through every stage: build, prune, save, load, fuse, train, fuse again."""

import math
import random
from fractions import Fraction

import numpy
import pytest
import torch
from torch import nn

from prunefuse_ray.networks import (
    NetworkError,
    NetworkSpec,
    Proxy,
    PruningSpec,
    build,
    example_input,
    features_and_logits,
    from_files,
    fuse,
    gather,
    inference_form,
    prune,
    to_files,
)
from prunefuse_ray.networks.architectures import isolated_seed
from prunefuse_ray.networks.indices import grid
from prunefuse_ray.networks.measure import macs

RATIOS = (0.5, 0.6, 0.7, 0.8)
HEADS = 3


def small_vit(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=input_shape[1],
        patch_size=8,
        num_layers=2,
        num_heads=HEADS,
        hidden_dim=48,
        mlp_dim=96,
        num_classes=num_classes,
    )


def small_timm_vit(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=num_classes, img_size=input_shape[1], patch_size=8, depth=2
    )


def small_densenet(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=num_classes)


def returns_a_list(num_classes: int, input_shape: tuple[int, ...]) -> list:
    return []


# name, input shape, whether function-preserving fusion is exact
SMALL = [
    ("resnet20", (1, 8, 8), True),
    ("resnet32", (3, 8, 8), True),
    ("textcnn", (40,), True),
    (f"{__name__}:small_densenet", (3, 16, 16), True),
    (f"{__name__}:small_vit", (3, 16, 16), True),
]
MEDIUM = [
    ("torchvision:mobilenet_v3_small", (3, 32, 32), True),
]
LARGE = [
    ("torchvision:resnet18", (3, 32, 32), True),
    ("cifar_resnet18", (1, 8, 8), True),
    ("resnet56", (3, 8, 8), True),
    ("torchvision:mobilenet_v2", (3, 32, 32), True),
    ("torchvision:efficientnet_b0", (3, 32, 32), True),
    ("resnet164", (3, 8, 8), True),
    ("wrn16_8", (3, 8, 8), True),
    ("vgg16_bn", (3, 32, 32), True),
]
# Deeper or wider than others of their family, which stand above.
LARGEST = [
    ("torchvision:resnet50", (3, 32, 32), True),
    ("torchvision:convnext_tiny", (3, 32, 32), False),
    ("resnet44", (3, 8, 8), True),
    ("resnet110", (3, 8, 8), True),
    ("wrn28_10", (3, 8, 8), True),
    ("torchvision:densenet121", (3, 32, 32), True),
    ("torchvision:vit_b_16", (3, 32, 32), True),
]


def at(cases, ratios, marks=()):
    return [pytest.param(*case, ratio, marks=marks) for case in cases for ratio in ratios]


CASES = [
    *at(SMALL, [0.5, 0.7]),
    *at(SMALL, [0.6, 0.8], pytest.mark.slow),
    *at(MEDIUM, [0.5]),
    *at(MEDIUM, [0.6, 0.7, 0.8], pytest.mark.slow),
    *at(LARGE, RATIOS, pytest.mark.slow),
    *at(LARGEST, RATIOS, pytest.mark.slow),
]


def train_a_little(network: nn.Module, spec: NetworkSpec, steps: int = 3) -> None:
    """A few steps large enough to move every weight and batch-norm statistic."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    labels = torch.arange(8) % spec.classes
    network.train()
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(example_input(spec, samples=8, seed=step)), labels).backward()
        optimizer.step()
    network.eval()


@pytest.mark.parametrize(("name", "shape", "exact", "ratio"), CASES)
def test_every_stage(name, shape, exact, ratio):
    spec = NetworkSpec(architecture=name, classes=7, input_shape=shape)
    dense = build(spec, seed=3)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    proxy = prune(dense, spec, PruningSpec(ratio=ratio))

    # Kept positions: at initialization the proxy is exactly the dense network's selected weights.
    expected = gather(before, proxy.kept)
    for key, value in proxy.network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    _check_widths(name, dense, proxy, ratio)

    # What the fusion rules promise, at initialization and after training has moved weights and statistics.
    x = example_input(spec, samples=4, seed=9)
    with torch.no_grad():  # a head of zeros, with which vision transformers begin, would make all logits equal
        for network in (dense, proxy.network):
            head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
            head.weight.normal_(std=0.1)
    _check_fusion(dense, proxy, x, exact)
    train_a_little(proxy.network, spec)
    _check_fusion(dense, proxy, x, exact)

    # Files: bit-equal logits; and the scoring form computes the same.
    loaded = from_files(to_files(proxy), (name,))
    assert isinstance(loaded, Proxy)
    assert (loaded.spec, loaded.pruning) == (proxy.spec, proxy.pruning)
    with torch.no_grad():
        logits = proxy.network.eval()(x)
        assert torch.equal(loaded.network.eval()(x), logits)
        torch.testing.assert_close(inference_form(loaded.network)(x), logits, atol=1e-4, rtol=1e-4)
        features, same = features_and_logits(proxy.network, x)
    classifier = [module for module in proxy.network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(classifier(features), same)
    assert torch.equal(same, logits)


def _check_widths(name: str, dense: nn.Module, proxy: Proxy, ratio: float) -> None:
    modules = [
        (key, module) for key, module in dense.named_modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear))
    ]
    first, last = modules[0], modules[-1]
    assert proxy.kept[f"{last[0]}.weight"][0] is None, "class outputs are never pruned"
    if first[1].weight.shape[1] == 3:
        assert proxy.kept[f"{first[0]}.weight"][1] is None, "input channels are never pruned"
    for key, module in modules[:-1]:
        size = module.weight.shape[0]
        blocks = 1
        if "vit_b_16" in name and size == 768:
            blocks = 12
        elif "small_vit" in name and size == 48:
            blocks = HEADS
        kept = max(1, int(size // blocks * (1 - Fraction(str(ratio))))) * blocks
        assert proxy.network.get_submodule(key).weight.shape[0] == kept, key


def _check_fusion(dense: nn.Module, proxy: Proxy, x: torch.Tensor, exact: bool) -> None:
    state, small = fuse(dense, proxy, "keep").state_dict(), proxy.network.state_dict()
    for name, before in dense.state_dict().items():
        kept = torch.zeros(before.shape, dtype=torch.bool)
        kept[grid(before.shape, proxy.kept[name])] = True
        assert torch.equal(state[name][kept], small[name].flatten()), name
        assert torch.equal(state[name][~kept], before[~kept]), name
    if not exact:
        with pytest.raises(NetworkError, match="function-preserving"):
            fuse(dense, proxy, "function_preserving")
        return
    fused = fuse(dense, proxy, "function_preserving")
    with torch.no_grad():
        expected = proxy.network.eval()(x)
        torch.testing.assert_close(fused.eval()(x), expected, atol=1e-4, rtol=1e-4)
    proxy.network.train()


def test_a_timm_transformer_through_every_stage():
    pytest.importorskip("timm")
    spec = NetworkSpec(architecture=f"{__name__}:small_timm_vit", classes=7, input_shape=(3, 16, 16))
    dense = build(spec, seed=0)
    proxy = prune(dense, spec, PruningSpec(ratio=0.7))
    assert proxy.network.blocks[0].attn.head_dim == 19  # int(64 * .3), with as many heads as before
    assert proxy.network.blocks[0].attn.num_heads == 3
    train_a_little(proxy.network, spec)
    _check_fusion(dense, proxy, example_input(spec, samples=4), exact=True)
    loaded = from_files(to_files(proxy), (spec.architecture,)).network.eval()
    x = example_input(spec)
    assert torch.equal(loaded(x), proxy.network.eval()(x))


def test_building_is_deterministic_and_leaves_the_global_random_state():
    spec = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 8, 8))
    torch.manual_seed(5)
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    first, second, third = build(spec, seed=1), build(spec, seed=1), build(spec, seed=2)
    proxy = prune(first, spec, PruningSpec(ratio=0.5, importance="random", seed=4))
    fuse(first, proxy, "function_preserving")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (numpy.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.stem.weight, third.stem.weight)


def test_bytes_may_come_as_bytes():
    spec = NetworkSpec(architecture="textcnn", classes=4, input_shape=(32,))
    network, x = build(spec, seed=0).eval(), example_input(spec, samples=3)
    assert torch.equal(network(x.to(torch.uint8)), network(x))


def test_convolutions_start_with_he_variance():
    network = build(NetworkSpec(architecture="wrn16_8", classes=10, input_shape=(3, 8, 8)), seed=0)
    conv = network.blocks[-1].convs[-1]
    assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("architecture", "layers"), [("resnet20", 19), ("resnet56", 55), ("resnet164", 163), ("wrn28_10", 25)]
)
def test_the_depth_is_the_one_in_the_name(architecture, layers):
    """Convolutions on the main path and the classifier; shortcuts do not count."""
    network = build(NetworkSpec(architecture=architecture, classes=10, input_shape=(3, 8, 8)), seed=0)
    convs = [
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and "shortcut" not in name
    ]
    assert len(convs) == layers


def test_the_residual_network_of_small_images_has_the_known_size():
    """He et al.'s ResNet-18 with the first layers that are usual on CIFAR: 11.17 million weights, 0.56 GMACs."""
    spec = NetworkSpec(architecture="cifar_resnet18", classes=10, input_shape=(3, 32, 32))
    network = build(spec, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 11_173_962
    assert macs(network, spec.input_shape) == pytest.approx(0.556e9, rel=0.002)


class Lazy(nn.Module):
    """Every width but one is learnt from the first sample."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(32), nn.ReLU()
        )
        self.dropout = nn.Dropout(0.5).eval()
        self.classifier = nn.LazyLinear(num_classes)

    def forward(self, x):
        return self.classifier(self.dropout(self.layers(x)))


class Auxiliary(Lazy):
    """A second output, in training only."""

    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class LazyAside(Lazy):
    """A lazy layer that runs in training only."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.aside = nn.LazyLinear(3)

    def forward(self, x):
        if self.training:
            self.aside(self.layers(x))
        return super().forward(x)


def test_lazy_layers_learn_their_widths_and_go_through_every_stage():
    spec = NetworkSpec(architecture=f"{__name__}:Lazy", classes=5, input_shape=(3, 8, 8))
    state = torch.get_rng_state()
    dense, again = build(spec, seed=1), build(spec, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(dense.parameters(), build(spec, seed=2).parameters(), strict=True)
                   if a.ndim > 1)  # fmt: skip
    assert dense.training
    assert not dense.dropout.training, "what the network set itself"
    assert dense.layers[1].num_batches_tracked == 0, "the sample leaves no trace in statistics"
    proxy = prune(dense, spec, PruningSpec(ratio=0.5))
    assert proxy.network.layers[4].weight.shape == (16, 4 * 6 * 6)
    x = example_input(spec, samples=3)
    loaded = from_files(to_files(proxy), (spec.architecture,)).network.eval()
    assert torch.equal(loaded(x), proxy.network.eval()(x))
    torch.testing.assert_close(fuse(dense, proxy, "function_preserving").eval()(x), loaded(x), atol=1e-5, rtol=1e-5)


class TwoInputs(Lazy):
    def forward(self, x, mask):
        return super().forward(x * mask)


class SoftenedPixels(nn.Sequential):
    def __init__(self, num_classes, input_shape):
        super().__init__(nn.Conv2d(input_shape[0], num_classes, 1), nn.Softmax(1))


class Softened(nn.Sequential):
    def __init__(self, num_classes, input_shape):
        super().__init__(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes), nn.Softmax(1))


class Named(Lazy):
    def forward(self, x):
        return {"logits": super().forward(x)}


class Frozen(nn.Sequential):
    """Nothing of it can learn, as of a network that extracts features."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes))
        self.requires_grad_(False)


class Doubled(nn.Sequential):
    """Keeps what it was normalized by as numpy has it, float64."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes))
        self.register_buffer("mean", torch.from_numpy(numpy.full(1, 0.5)))

    def forward(self, x):
        return super().forward((x - self.mean).float())


class Computed(nn.Sequential):
    """The old weight normalization, whose weights are no parameters: not even a copy can be made."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Flatten(), nn.utils.weight_norm(nn.Linear(torch.Size(input_shape).numel(), num_classes)))


@pytest.mark.parametrize(
    ("architecture", "shape", "message"),
    [
        (f"{__name__}:LazyAside", (3, 8, 8), "module aside: a lazy layer that no sample reaches"),
        (f"{__name__}:TwoInputs", (3, 8, 8), r"network\.architecture: \S+ takes 2 inputs \(x, mask\)"),
        (f"{__name__}:Named", (3, 8, 8), "returns a dict; make it return the logits alone"),
        (f"{__name__}:Auxiliary", (3, 8, 8), "returns a tuple in training; make it return the logits alone"),
        (f"{__name__}:Softened", (3, 8, 8), "returns probabilities; logits are needed: leave its softmax out"),
        (f"{__name__}:SoftenedPixels", (3, 8, 8), "returns probabilities; logits are needed: leave its softmax out"),
        (f"{__name__}:Frozen", (3, 8, 8), r"Frozen has no weights to train: none has requires_grad set"),
        (
            f"{__name__}:Doubled",
            (3, 8, 8),
            r"network\.architecture: \S+: mean is torch.float64, .* made \(\.float\(\)\)",
        ),
        (f"{__name__}:Computed", (3, 8, 8), r"network\.architecture: \S+ cannot be copied .*weight_norm"),
        ("resnet57", (3, 32, 32), "did you mean resnet56"),
        ("torchvision:resnet51", (3, 32, 32), "did you mean"),
        ("torchvision:resnet18", (1, 32, 32), "takes \\(3, height, width\\)"),
        ("torchvision:vit_b_16", (3, 32, 48), "square"),
        ("torchvision:vit_b_16", (3, 20, 20), "vit_b_16"),
        ("torchvision:squeezenet1_1", (3, 16, 16), "cannot take"),
        ("no.such.module:function", (3, 32, 32), "cannot import"),
        (f"{__name__}:no_such_function", (3, 32, 32), "cannot import"),
        (f"{__name__}:returns_a_list", (3, 32, 32), "not an nn.Module"),
        ("resnet20", (3, 2, 32), "too small"),
        ("vgg16_bn", (3, 16, 16), "too small"),
        ("resnet20", (64,), "takes \\(channels, height, width\\)"),
        ("textcnn", (3, 8, 8), "takes \\(length,\\)"),
        ("textcnn", (4,), "too small"),
    ],
)
def test_what_cannot_be_built_is_refused(architecture, shape, message):
    with pytest.raises(NetworkError, match=message):
        build(NetworkSpec(architecture=architecture, classes=10, input_shape=shape), seed=0)


def test_timm_without_the_extra_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(NetworkError, match="timm extra"):
        build(NetworkSpec(architecture="timm:resnet18", classes=10, input_shape=(3, 32, 32)), seed=0)


def test_a_seed_apart_draws_what_torchs_own_does_and_leaves_its_state():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with isolated_seed(2**61 + 5, torch.device("cpu")):
        drawn = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2**61 + 5)
    assert torch.equal(torch.rand(4), drawn)


def test_a_tag_that_timm_does_not_have_is_one_message():
    pytest.importorskip("timm")
    spec = NetworkSpec(architecture="timm:resnet18.a1_in2k", classes=10, input_shape=(3, 32, 32))
    with pytest.raises(NetworkError, match=r"timm cannot build 'resnet18\.a1_in2k' .*Invalid pretrained tag"):
        build(spec, seed=0)
