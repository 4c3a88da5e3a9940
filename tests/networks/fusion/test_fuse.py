"""Fusion rules against what they promise."""

import pytest
import torch
from torch import nn

from prunefuse_ray.errors import ConfigError
from prunefuse_ray.networks import (
    FUSION_RULES,
    NetworkError,
    NetworkSpec,
    PruningSpec,
    build,
    example_input,
    fuse,
    prune,
)
from prunefuse_ray.networks.indices import grid

SPEC = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 8, 8))


@pytest.fixture
def pair():
    """A dense network, and a proxy whose every value differs from the dense one's."""
    dense = build(SPEC, seed=0)
    proxy = prune(dense, SPEC, PruningSpec(ratio=0.5))
    with torch.no_grad():
        for tensor in proxy.network.state_dict().values():
            tensor.add_(1)
    return dense, proxy


def kept_mask(tensor, dims):
    mask = torch.zeros(tensor.shape, dtype=torch.bool)
    mask[grid(tensor.shape, dims)] = True
    return mask


def test_keep_writes_the_kept_positions_and_nothing_else(pair):
    dense, proxy = pair
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    fused = fuse(dense, proxy, "keep").state_dict()
    for name, value in before.items():
        mask = kept_mask(value, proxy.kept[name])
        assert torch.equal(fused[name][~mask], value[~mask]), name
        assert torch.equal(fused[name][mask], proxy.network.state_dict()[name].flatten()), name
        assert torch.equal(dense.state_dict()[name], value), "dense is not modified"


@pytest.mark.parametrize(
    ("rule", "parameters", "factor"),
    [("function_preserving", {}, 0.0), ("scaled", {}, 0.1), ("scaled", {"epsilon": 0.25}, 0.25)],
)
def test_only_weights_from_added_inputs_to_kept_outputs_are_damped(pair, rule, parameters, factor):
    dense, proxy = pair
    kept = fuse(dense, proxy, "keep").state_dict()
    fused = fuse(dense, proxy, rule, **parameters).state_dict()
    for name, value in fused.items():
        expected = kept[name].clone()
        if value.ndim > 1:
            rows, columns = proxy.kept[name][:2]
            for row in range(len(value)) if rows is None else rows.tolist():
                for column in set(range(value.shape[1])) - set(
                    range(value.shape[1]) if columns is None else columns.tolist()
                ):
                    expected[row, column] *= factor
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_shrink_perturb_is_between_what_was_trained_and_its_initialization(pair, share):
    dense, proxy = pair
    before = dict(dense.named_parameters())
    kept, fused = (
        fuse(dense, proxy, "keep").state_dict(),
        fuse(dense, proxy, "shrink_perturb", shrink=share).state_dict(),
    )
    for name, value in fused.items():
        if name not in before:
            assert torch.equal(value, kept[name]), name
            continue
        mask = kept_mask(value, proxy.kept[name])
        assert torch.equal(value[~mask], before[name][~mask]), name
        assert torch.allclose(value[mask], share * kept[name][mask] + (1 - share) * before[name][mask]), name


def test_variance_transfer_scales_the_other_weights_as_training_scaled_the_proxys(pair):
    dense, proxy = pair
    before = dense.state_dict()
    kept, fused = fuse(dense, proxy, "keep").state_dict(), fuse(dense, proxy, "variance_transfer").state_dict()
    grown = set()
    for name, value in fused.items():
        mask = kept_mask(value, proxy.kept[name])
        assert torch.equal(value[mask], kept[name][mask]), name
        if value.ndim < 2 or mask.all():
            assert torch.equal(value, kept[name]), name
            continue
        size = kept[name][mask].norm() / before[name][mask].norm()
        assert torch.allclose(value[~mask], size * before[name][~mask]), name
        grown.add(round(float(size), 3))
    assert len(grown) > 3, "each layer has its own"


def test_net2wider_gives_what_reads_a_channel_parts_that_add_up_and_differ():
    dense = build(SPEC, seed=0)
    proxy = prune(dense, SPEC, PruningSpec(ratio=0.5))
    fused, small = fuse(dense, proxy, "net2wider"), proxy.network.state_dict()
    name = "blocks.1.convs.1.weight"
    rows, columns = proxy.kept[name][:2]
    others = [c for c in range(fused.state_dict()[name].shape[1]) if c not in columns.tolist()]
    weight = fused.state_dict()[name][rows]
    assert torch.allclose(weight[:, columns] + weight[:, others], small[name], atol=1e-6)
    assert not torch.allclose(weight[:, columns], weight[:, others], atol=1e-2)
    x = example_input(SPEC, samples=8, seed=1)
    fused.train()
    torch.nn.functional.cross_entropy(fused(x), torch.arange(8)).backward()
    gradient = dict(fused.named_parameters())["blocks.1.convs.0.weight"].grad
    first, second = (gradient[i].flatten() for i in (columns[0], others[0]))
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) < 0.99, "copies would stay copies"


@pytest.mark.parametrize(("rule", "parameters"), [("shrink_perturb", {"shrink": 50}), ("scaled", {"epsilon": -3})])
def test_a_parameter_of_a_rule_is_a_share(pair, rule, parameters):
    with pytest.raises(NetworkError, match=r"fusion\.(shrink|epsilon): (50|-3) is no share from 0 to 1"):
        fuse(*pair, rule, **parameters)


def test_an_upsampling_of_each_channel_for_itself_keeps_the_new_ones():
    """Its weights are (inputs, outputs per group): a channel leads to itself alone."""
    own = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    spec = NetworkSpec(architecture="own", classes=5, input_shape=(3, 8, 8))
    proxy = prune(own, spec, PruningSpec(ratio=0.5))
    fused = fuse(own, proxy, "function_preserving")
    weights, new = fused[3].weight, ~kept_mask(own[3].weight, proxy.kept["3.weight"])
    assert torch.equal(weights[new], own[3].weight[new])
    assert new.any()


def test_positional_ignores_where_weights_came_from(pair):
    dense, proxy = pair
    fused = fuse(dense, proxy, "positional").state_dict()
    weight, small = fused["blocks.0.convs.0.weight"], proxy.network.state_dict()["blocks.0.convs.0.weight"]
    assert torch.equal(weight[::2, ::2], small)
    assert torch.equal(weight[1::2], dense.state_dict()["blocks.0.convs.0.weight"][1::2])
    narrow = prune(dense, SPEC, PruningSpec(ratio=0.8))
    fused = fuse(dense, narrow, "positional").state_dict()
    assert torch.equal(fused["blocks.0.convs.0.weight"][:3, :3], narrow.network.state_dict()["blocks.0.convs.0.weight"])


def test_gradients_reach_new_weights_after_one_step():
    """The zeros of the function-preserving form are a starting point, not a trap."""
    dense = build(SPEC, seed=0)
    proxy = prune(dense, SPEC, PruningSpec(ratio=0.5))
    fused = fuse(dense, proxy, "function_preserving").train()
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        x = example_input(SPEC, samples=32, seed=step)
        nn.functional.cross_entropy(fused(x), torch.arange(32) % 10).backward()
        if step == 0:
            optimizer.step()
    new = alive = 0
    for name, parameter in fused.named_parameters():
        mask = ~kept_mask(parameter, proxy.kept[name])
        new += int(mask.sum())
        alive += int((parameter.grad[mask] != 0).sum())
    assert alive > 0.99 * new


def test_foreign_proxies_and_unknown_rules_are_refused(pair):
    dense, proxy = pair
    other = NetworkSpec(architecture="resnet32", classes=10, input_shape=(3, 8, 8))
    for rule in FUSION_RULES:
        with pytest.raises(NetworkError, match="wrong network"):
            fuse(build(other, seed=0), proxy, rule)
    with pytest.raises(ConfigError, match=r"unknown fusion rule 'kept' \(did you mean 'keep'\?\)"):
        fuse(dense, proxy, "kept")
    with pytest.raises(NetworkError, match=r"fusion\.rule: 'keep' reads no epsilon"):
        fuse(dense, proxy, "keep", epsilon=0.2)


def test_group_normalization_has_no_preserving_form():
    spec = NetworkSpec(architecture=f"{__name__}:GroupNormNet", classes=4, input_shape=(3, 8, 8))
    dense = build(spec, seed=0)
    proxy = prune(dense, spec, PruningSpec(ratio=0.5))
    with pytest.raises(NetworkError, match="use the rule 'keep'"):
        fuse(dense, proxy, "function_preserving")
    fuse(dense, proxy, "keep")


class GroupNormNet(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 16, 3)
        self.norm = nn.GroupNorm(4, 16)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.classifier(self.norm(self.conv(x)).relu().mean((2, 3)))
