"""Pruning: which channels go, iterative steps, and what is refused."""

import pytest
import torch
from torch import nn

from prunefuse_ray.networks import (
    IMPORTANCES,
    NetworkError,
    NetworkSpec,
    PruningSpec,
    build,
    example_input,
    from_files,
    fuse,
    gather,
    groups,
    macs,
    prune,
    to_files,
)

SPEC = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 8, 8))


class Chain(nn.Module):
    """One hidden layer: the smallest network whose choice of channels can be worked out by hand."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 10, 3, padding=1)
        self.classifier = nn.Linear(10, num_classes)

    def forward(self, x):
        return self.classifier(self.conv(x).relu().mean((2, 3)))


class Tied(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], 8, 3)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.third.weight = self.second.weight
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.third(self.second(self.first(x))).mean((2, 3)))


class PaddedShortcut(nn.Module):
    """A shortcut padded with zero channels, which ties channels to positions."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.conv(x) + nn.functional.pad(x, (0, 0, 0, 0, 4, 4))
        return self.classifier(x.relu().mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 8)
        self.memory = nn.LSTM(8, 8, batch_first=True)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.memory(self.embedding(x))[0][:, -1])


class SplitAttention(nn.Module):
    """Heads cut out of three separate layers, of which nothing says how wide a head is."""

    num_heads = 2

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.query(x.float()))


class FunctionalCall(nn.Module):
    """Uses a layer's weights without calling the layer."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(input_shape[0], 8, 3)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(nn.functional.conv2d(x, self.hidden.weight).mean((2, 3)))


class OnlyClassifier(nn.Sequential):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes))


class DepthwiseGrouped(nn.Module):
    """Depthwise, grouped and transposed convolutions in a row."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(input_shape[0], 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 1),
            nn.PReLU(24),
            nn.Conv2d(24, 24, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 20, 2, stride=2),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(20, num_classes)

    def forward(self, x):
        return self.classifier(self.layers(x).mean((2, 3)))


class Shuffled(nn.Module):
    """A channel shuffle between two convolutions, before a normalization and a gate."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], 16, 3, padding=1)
        self.norm = self.normalization()
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.gate = nn.Parameter(torch.ones(()))
        self.classifier = nn.Linear(16, num_classes)

    def normalization(self) -> nn.Module:
        return nn.BatchNorm2d(16)

    def forward(self, x):
        x = self.first(x)
        mixed = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.classifier((x + self.gate * self.second(self.norm(mixed))).relu().mean((2, 3)))


class ShuffledGroupNorm(Shuffled):
    def normalization(self) -> nn.Module:
        return nn.GroupNorm(2, 16)


class ShuffledLayerNorm(Shuffled):
    def normalization(self) -> nn.Module:
        return nn.LayerNorm([16, 8, 8], elementwise_affine=False)


class ShuffledZeroHead(Shuffled):
    """As trained vision transformers begin: nothing reaches the logits yet."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        nn.init.zeros_(self.classifier.weight)


class ShuffledClosedGate(Shuffled):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        nn.init.zeros_(self.gate)


class OwnAttention(nn.Module):
    """Heads cut out of layers that nothing marks as an attention."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        self.norm = nn.LayerNorm(32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.embedding(x)
        q, k, v = (layer(self.norm(x)).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.classifier(x.mean(1))


class AttentionLast(nn.Module):
    """An attention behind the feed-forward layers: what it writes and its heads end in the same layer."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.hidden = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.attention = pytest.importorskip("timm").layers.Attention(32, num_heads=4, qkv_bias=True)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.embedding(x)
        x = x + self.hidden(self.norms[0](x))
        x = x + self.attention(self.norms[1](x))
        return self.classifier(self.norms[2](x).mean(1))


class FixedPositions(nn.Module):
    """A positional code in a buffer, which pruning does not reach."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        self.register_buffer("positions", torch.randn(input_shape[0], 32))
        self.norm = nn.LayerNorm(32)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.classifier(self.norm(self.embedding(x) + self.positions).mean(1))


class WithoutGains(FixedPositions):
    """A layer normalization of which no tensor tells its width."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.norm = nn.LayerNorm(32, elementwise_affine=False)

    def forward(self, x):
        return self.classifier(self.norm(self.embedding(x)).mean(1))


class OneChannelGroups(nn.Module):
    """Group normalization of single channels."""

    groups = 1

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], 32, 3, padding=1)
        self.norm = nn.GroupNorm(32, 32)
        self.second = nn.Conv2d(32, 16, 3, padding=1, groups=self.groups)
        self.third = nn.Conv2d(16, 8, 3, padding=1)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.third(self.second(self.norm(self.first(x)).relu()).relu()).mean((2, 3)))


class GroupsOfOne(OneChannelGroups):
    """And a grouped convolution whose groups cannot become smaller."""

    groups = 16


class PairsNormalized(nn.Module):
    """Groups of two channels, of which a step before the last may leave one."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], 8, 3, padding=1)
        self.second = self.paired()
        self.classifier = nn.Linear(8, num_classes)

    def paired(self) -> nn.Module:
        return nn.GroupNorm(4, 8)

    def forward(self, x):
        return self.classifier(self.second(self.first(x)).relu().mean((2, 3)))


class PairsConvolved(PairsNormalized):
    def paired(self) -> nn.Module:
        return nn.Conv2d(8, 8, 3, groups=4)


class Multiplied(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], 8, 3)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.classifier(self.depthwise(self.first(x)).mean((2, 3)))


class Parametrised(Chain):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        nn.utils.parametrizations.weight_norm(self.conv)


class Casting(Chain):
    """Computes in single precision whatever it is given."""

    def forward(self, x):
        return super().forward(x.float())


class Thinking(Chain):
    """Has a tensor of its own and looks at values: shapes alone do not run through it."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.mean = torch.zeros(1, input_shape[0], 1, 1)

    def forward(self, x):
        x = x - self.mean.to(x.dtype)
        return super().forward(x if x.abs().sum() < 1e9 else x / 2)


class DepthwiseFirst(Chain):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.colors = nn.Conv2d(input_shape[0], input_shape[0], 3, padding=1, groups=input_shape[0])

    def forward(self, x):
        return super().forward(self.colors(x))


class Standardized(nn.Module):
    """Standardized weights before group normalization, as in Big Transfer."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        timm = pytest.importorskip("timm")
        self.first = timm.layers.StdConv2d(input_shape[0], 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.second = timm.layers.StdConv2d(16, 16, 3, padding=1)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.classifier(self.second(self.norm(self.first(x)).relu()).mean((2, 3)))


class Encoder(nn.Module):
    """torch's own transformer layers, before and after whose blocks it may normalize."""

    norm_first = True

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=self.norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(32)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.classifier(self.norm(self.encoder(self.embedding(x))).mean(1))


class PostNormEncoder(Encoder):
    norm_first = False


class DictInside(nn.Module):
    """A backbone that hands out two feature maps by name."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = Stages(input_shape[0])
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, x):
        maps = self.backbone(x)
        return self.classifier(torch.cat([maps["fine"].mean((2, 3)), maps["coarse"].mean((2, 3))], 1))


class Stages(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2)

    def forward(self, x):
        fine = self.fine(x).relu()
        return {"fine": fine, "coarse": self.coarse(fine).relu()}


class TwoInputsInside(Chain):
    """A module that merges two streams, and an input that may be left out."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.side = nn.Conv2d(input_shape[0], 6, 1)
        self.merge = Merge()
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, x, mask=None):
        x = x if mask is None else x * mask
        return self.classifier(self.merge(self.conv(x).relu(), self.side(x).relu()).mean((2, 3)))


class Merge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(16, 12, 1)

    def forward(self, first, second):
        return self.project(torch.cat([first, second], 1)).relu()


class ConvolutionalHead(Chain):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.classifier = nn.Conv2d(10, num_classes, 1)

    def forward(self, x):
        return self.classifier(self.conv(x).relu()).mean((2, 3))


class NormalizedLogits(Chain):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.after = nn.BatchNorm1d(num_classes)

    def forward(self, x):
        return self.after(super().forward(x)).log_softmax(1)


class CalledTwice(Chain):
    """A convolution that follows itself, and one that serves two streams."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.other = nn.Conv2d(input_shape[0], 10, 5, padding=2)
        self.again = nn.Conv2d(10, 10, 3, padding=1)

    def forward(self, x):
        first, second = (self.again(stream(x)) for stream in (self.conv, self.other))
        return self.classifier(self.again(first + second).tanh().mean((2, 3)))


class WithoutGradients(Chain):
    """A backbone frozen by the network itself."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.second = nn.Conv2d(10, 10, 3)

    def forward(self, x):
        with torch.no_grad():
            x = self.conv(x).relu()
        return self.classifier(self.second(x).relu().mean((2, 3)))


class Unreached(Chain):
    """A head for another purpose, of which a classifier knows nothing."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.aside = nn.Linear(10, 3)


class TwoNames(Chain):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.alias = self.conv


class Spectral(Chain):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        nn.utils.spectral_norm(self.conv)


class MatrixHead(Chain):
    """The classifier is a free parameter, which is no layer whose channels could be followed."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.last = nn.Conv2d(10, 12, 3)
        self.classifier = nn.Parameter(torch.randn(12, num_classes))

    def forward(self, x):
        return self.last(self.conv(x).relu()).relu().mean((2, 3)) @ self.classifier


def spec_of(kind: type, shape: tuple[int, ...] = (3, 8, 8)) -> NetworkSpec:
    return NetworkSpec(architecture=f"{__name__}:{kind.__name__}", classes=5, input_shape=shape)


def test_the_channels_with_the_smallest_norms_go():
    spec = spec_of(Chain)
    dense = build(spec, seed=0)
    with torch.no_grad():
        dense.classifier.weight.fill_(1)
        norms = torch.tensor([9.0, 2, 7, 4, 1, 8, 3, 10, 6, 5])
        dense.conv.weight.copy_(norms.view(-1, 1, 1, 1).expand_as(dense.conv.weight))
    proxy = prune(dense, spec, PruningSpec(ratio=0.5))
    assert proxy.kept["conv.weight"][0].tolist() == [0, 2, 5, 7, 8]
    assert proxy.kept["classifier.weight"][1].tolist() == [0, 2, 5, 7, 8]
    assert proxy.kept["classifier.bias"] == (None,)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_prunes_and_repeats_itself(importance):
    dense = build(SPEC, seed=0)
    pruning = PruningSpec(ratio=0.5, importance=importance, seed=1)
    first, second = (prune(dense, SPEC, pruning) for _ in range(2))
    assert first.network.stem.out_channels == 8
    for name, dims in first.kept.items():
        assert [None if i is None else i.tolist() for i in dims] == [
            None if i is None else i.tolist() for i in second.kept[name]
        ]


def test_random_importance_follows_its_seed():
    dense = build(SPEC, seed=0)
    kept = [
        prune(dense, SPEC, PruningSpec(ratio=0.5, importance="random", seed=seed)).kept["classifier.weight"][1]
        for seed in (0, 1)
    ]
    assert not torch.equal(*kept)


def test_nothing_is_pruned_at_ratio_zero():
    dense = build(SPEC, seed=0)
    proxy = prune(dense, SPEC, PruningSpec(ratio=0))
    assert all(index is None for dims in proxy.kept.values() for index in dims)
    x = example_input(SPEC)
    assert torch.equal(proxy.network.eval()(x), dense.eval()(x))


def test_a_trained_network_is_pruned_as_it_is():
    """Frozen parameters stay frozen, statistics and counters come along, the dense network stays as it was."""
    dense = build(SPEC, seed=0)
    dense.train()(example_input(SPEC, samples=16))
    dense.stem.weight.requires_grad_(False)
    dense.eval()
    proxy = prune(dense, SPEC, PruningSpec(ratio=0.6))
    assert not dense.training
    assert not proxy.network.stem.weight.requires_grad
    assert proxy.network.classifier.weight.requires_grad
    expected = gather(dense.state_dict(), proxy.kept)
    assert all(torch.equal(value, expected[name]) for name, value in proxy.network.state_dict().items())
    assert proxy.network.norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("ratio", "steps"),
    [
        (0.5, 2),
        (0.8, 5),
        *(pytest.param(r, s, marks=pytest.mark.slow) for r, s in ((0.5, 3), (0.5, 5), (0.8, 2), (0.8, 3))),
    ],
)
def test_iterative_pruning_composes_to_exact_counts_and_indices(steps, ratio):
    dense = build(SPEC, seed=0)
    proxy = prune(dense, SPEC, PruningSpec(ratio=ratio, steps=steps))
    once = prune(dense, SPEC, PruningSpec(ratio=ratio))
    for name, value in proxy.network.state_dict().items():
        assert value.shape == once.network.state_dict()[name].shape
        assert torch.equal(value, gather(dense.state_dict(), proxy.kept)[name])
    x = example_input(SPEC, samples=4)
    fused = fuse(dense, proxy, "function_preserving").eval()
    torch.testing.assert_close(fused(x), proxy.network.eval()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [PairsNormalized, PairsConvolved])
def test_blocks_stay_as_many_where_a_step_leaves_one_channel_of_each(kind):
    dense = build(spec_of(kind), seed=0)
    proxy = prune(dense, spec_of(kind), PruningSpec(ratio=0.5, steps=2))
    assert proxy.network.first.out_channels == 4


def test_later_steps_choose_among_the_channels_left():
    dense = build(SPEC, seed=0)
    halves = prune(dense, SPEC, PruningSpec(ratio=0.4)).kept
    final = prune(dense, SPEC, PruningSpec(ratio=0.8, steps=2)).kept
    for name, dims in final.items():
        for earlier, later in zip(halves[name], dims, strict=True):
            if later is not None:
                assert set(later.tolist()) <= set(earlier.tolist())


@pytest.mark.parametrize(
    ("ratio", "round_to", "widths"),
    [
        (0.6, 4, [8, 24]),  # of int(6.4) and int(25.6)
        (0.8, 8, [8, 16]),  # of 3 and 12
        (0.9, 16, [1, 16]),  # a layer of 16 has no smaller multiple of 16
        (0.1, 16, [14, 48]),  # the nearest to 57 would be the whole layer
    ],
)
def test_round_to_keeps_the_nearest_multiple(ratio, round_to, widths):
    proxy = prune(build(SPEC, seed=0), SPEC, PruningSpec(ratio=ratio, round_to=round_to))
    assert [proxy.network.stem.out_channels, proxy.network.classifier.in_features] == widths


@pytest.mark.parametrize("ratio", [0.5, 0.8])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (OneChannelGroups, (3, 8, 8)),
        (Casting, (3, 8, 8)),
        (Thinking, (3, 8, 8)),
        (DepthwiseFirst, (3, 8, 8)),
        (Standardized, (3, 8, 8)),
        (Encoder, (8,)),
        (PostNormEncoder, (8,)),
        (DictInside, (3, 8, 8)),
        (TwoInputsInside, (3, 8, 8)),
        (ConvolutionalHead, (3, 8, 8)),
        (NormalizedLogits, (3, 8, 8)),
        (CalledTwice, (3, 8, 8)),
    ],
)
def test_unusual_networks_that_can_be_followed_are_pruned(kind, shape, ratio):
    spec = spec_of(kind, shape)
    dense = build(spec, seed=0)
    proxy = prune(dense, spec, PruningSpec(ratio=ratio))
    sizes = [sum(p.numel() for p in network.parameters()) for network in (dense, proxy.network)]
    assert sizes[1] / sizes[0] < 1.3 * (1 - ratio) + 0.1
    assert proxy.network.eval()(example_input(spec, samples=3)).shape == (3, 5)
    assert macs(proxy.network, shape) < (1.2 - ratio) * macs(dense, shape)


@pytest.mark.slow
def test_indices_that_are_out_of_place_are_noticed(monkeypatch):
    """The first channels in place of the chosen ones, in normalizations only: shapes and files would all be right."""
    spec = NetworkSpec(architecture="torchvision:convnext_tiny", classes=5, input_shape=(3, 32, 32))
    dense = build(spec, seed=0)
    right = groups.product_indices

    def wrong(name, flat, shape):
        dims = right(name, flat, shape)
        return (torch.arange(len(dims[0])),) if name == "features.3.0.block.2.weight" else dims

    prune(dense, spec, PruningSpec(ratio=0.5))
    monkeypatch.setattr(groups, "product_indices", wrong)
    with pytest.raises(NetworkError, match=r"module features\.3\.0\.block\.3: it would read other channels"):
        prune(dense, spec, PruningSpec(ratio=0.5))


def test_a_ratio_that_leaves_too_little_is_called_that():
    """And not an architecture that cannot be pruned."""
    spec = NetworkSpec(architecture="torchvision:resnet18", classes=10, input_shape=(3, 32, 32))
    with pytest.raises(NetworkError, match=r"pruning\.ratio: leaves 1 channel of a layer .*; use a lower ratio"):
        prune(build(spec, seed=0), spec, PruningSpec(ratio=0.99))


def test_frozen_layers_are_pruned_and_stay_frozen_through_fusion():
    spec = spec_of(ConvolutionalHead)
    dense = build(spec, seed=0)
    dense.conv.requires_grad_(False)
    proxy = prune(dense, spec, PruningSpec(ratio=0.5))
    fused = fuse(dense, proxy, "function_preserving")
    for network, width in ((proxy.network, 5), (fused, 10)):
        assert network.conv.weight.shape[0] == width
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        assert frozen == {"conv.weight", "conv.bias"}


def test_a_layer_that_has_to_stay_whole_is_named(caplog):
    spec = spec_of(MatrixHead)
    dense = build(spec, seed=0)
    proxy = prune(dense, spec, PruningSpec(ratio=0.5))
    assert [proxy.network.conv.out_channels, proxy.network.last.out_channels] == [5, 12]
    assert "module last keeps all its channels, because no layer" in caplog.text
    x = example_input(spec, samples=3)
    torch.testing.assert_close(fuse(dense, proxy, "function_preserving").eval()(x), proxy.network.eval()(x))


def test_an_importance_that_a_layer_does_not_have_is_called_that():
    spec = spec_of(DepthwiseGrouped)
    for importance in ("bn_scale", "fpgm"):
        with pytest.raises(NetworkError, match=rf"pruning\.importance: {importance} cannot be computed for the \d+ ch"):
            prune(build(spec, seed=0), spec, PruningSpec(ratio=0.5, importance=importance))


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_depthwise_grouped_and_transposed_convolutions(ratio):
    spec = spec_of(DepthwiseGrouped)
    dense = build(spec, seed=0)
    proxy = prune(dense, spec, PruningSpec(ratio=ratio))
    assert proxy.network.layers[3].groups == proxy.network.layers[0].out_channels
    assert proxy.network.layers[7].groups == 2
    x = example_input(spec, samples=3)
    expected = proxy.network.eval()(x)
    torch.testing.assert_close(fuse(dense, proxy, "function_preserving").eval()(x), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(from_files(to_files(proxy), (proxy.spec.architecture,)).network.eval()(x), expected)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (Tied, (3, 8, 8), r"third\.weight shares its weights with second\.weight"),
        (Recurrent, (12,), "module memory: recurrent"),
        (SplitAttention, (8,), "attention of unknown form"),
        (FunctionalCall, (3, 8, 8), "module hidden: it is not called"),
        (OnlyClassifier, (3, 8, 8), "no channels that could be pruned"),
        (PaddedShortcut, (3, 8, 8), "module conv: its channels cannot be followed"),
        (Shuffled, (3, 8, 8), "module second: it would read other channels"),
        (ShuffledGroupNorm, (3, 8, 8), "module second: it would read other channels"),
        (ShuffledLayerNorm, (3, 8, 8), "first.weight: the kept positions are not whole channels"),
        (WithoutGains, (8,), r"module norm: it cannot run after pruning \(normalizes the shape \(32,\), not \(16,\)"),
        (ShuffledZeroHead, (3, 8, 8), "module second: it would read other channels"),
        (ShuffledClosedGate, (3, 8, 8), "module second: it would read other channels"),
        (OwnAttention, (8,), "module o: it would read other channels"),
        (FixedPositions, (8,), "cannot run after pruning"),
        (GroupsOfOne, (3, 8, 8), "module second: its channels are in 16 groups or heads of 1"),
        (Multiplied, (3, 8, 8), "module depthwise: a depthwise convolution with several outputs"),
        (Parametrised, (3, 8, 8), "module conv: its weights are computed from others"),
        (Spectral, (3, 8, 8), "module conv: its weights are computed from others"),
        (WithoutGradients, (3, 8, 8), r"module conv: no gradient reaches it \(no_grad, detach, or an output that"),
        (Unreached, (3, 8, 8), "module aside: it is not called as a module"),
        (TwoNames, (3, 8, 8), r"alias\.weight shares its weights with conv\.weight"),
    ],
)
def test_what_cannot_be_followed_is_refused(kind, shape, message):
    spec = spec_of(kind, shape)
    with pytest.raises(NetworkError, match=message):
        prune(build(spec, seed=0), spec, PruningSpec(ratio=0.5))


@pytest.mark.parametrize("steps", [1, 2])
def test_heads_lose_their_share_where_the_attention_writes_last(steps):
    spec = spec_of(AttentionLast, (8,))
    dense = build(spec, seed=0)
    proxy = prune(dense, spec, PruningSpec(ratio=0.5, steps=steps))
    assert proxy.network.attention.qkv.weight.shape == (3 * 4 * 4, 16)
    assert proxy.network.attention.head_dim == 4
    x = example_input(spec, samples=3)
    fused = fuse(dense, proxy, "function_preserving").eval()
    torch.testing.assert_close(fused(x), proxy.network.eval()(x), atol=1e-4, rtol=1e-4)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, x):
        return x * self.factor


class InTwoPlaces(Chain):
    """A module without weights that serves two layers."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape)
        self.halved = Half()
        self.again = nn.Sequential(nn.Conv2d(10, 10, 3, padding=1), self.halved)

    def forward(self, x):
        return self.classifier(self.again(self.halved(self.conv(x)).relu()).relu().mean((2, 3)))


def test_a_module_without_weights_may_stand_in_two_places():
    spec = spec_of(InTwoPlaces)
    dense = build(spec, seed=0)
    proxy = prune(dense, spec, PruningSpec(ratio=0.5))
    assert proxy.network.again[0].weight.shape[:2] == (5, 5)
    x = example_input(spec, samples=3)
    for rule in ("keep", "net2wider", "function_preserving"):
        fused = fuse(dense, proxy, rule).eval()
    torch.testing.assert_close(fused(x), proxy.network.eval()(x), atol=1e-5, rtol=1e-5)


class Bag(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.bag, self.hidden = nn.EmbeddingBag(256, 16), nn.Linear(16, 32)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.classifier(self.hidden(self.bag(x)).relu())


def test_a_bag_that_stays_whole_is_named(caplog):
    proxy = prune(build(spec_of(Bag, (8,)), seed=0), spec_of(Bag, (8,)), PruningSpec(ratio=0.5))
    assert (proxy.network.bag.embedding_dim, proxy.network.hidden.out_features) == (16, 16)
    assert "module bag keeps all its channels" in caplog.text


class WithState(Chain):
    def get_extra_state(self):
        return {"calls": 0}

    def set_extra_state(self, state): ...


def test_states_that_are_no_tensors_are_refused_by_name():
    with pytest.raises(NetworkError, match="_extra_state is a dict, and networks are kept as tensors"):
        build(spec_of(WithState), seed=0)
    with pytest.raises(NetworkError, match="_extra_state is a dict, no tensor"):
        prune(WithState(5, (3, 8, 8)), spec_of(WithState), PruningSpec(ratio=0.5))
