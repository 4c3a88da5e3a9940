"""Monte Carlo dropout: what the members of a masked network compute."""

import pytest
import torch
from torch import nn

from prunefuse_ray.networks import BACKENDS, NetworkError, build, under_masks
from prunefuse_ray.networks.specs import NetworkSpec
from tests.networks.test_inference import randomize


class Dropped(nn.Sequential):
    """Dropout of channels, of values between linear layers, and one that drops nothing."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(8 * 36, 16),
            inner or nn.Dropout(0.25), nn.Linear(16, 4), nn.Dropout(0.0),
        )  # fmt: skip
        randomize(self)


X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_members_are_the_network_with_values_dropped_alike_for_all_samples():
    network = Dropped()
    members = under_masks(network, 3, 7, X)
    found = members(X)
    assert found.shape == (3, 5, 4)
    for m, member in enumerate(members.members):
        channels, values = member[3].kept, member[6].kept
        assert set(channels.unique().tolist()) <= {0.0, 2.0}
        assert channels.shape == (1, 8, 1, 1)
        assert values.shape == (1, 16)
        layers = list(network.eval())
        x = nn.Sequential(*layers[:3])(X) * channels
        x = layers[5](x.flatten(1)) * values
        torch.testing.assert_close(found[m], layers[7](x))
        torch.testing.assert_close(member(X[2:3]), found[m, 2:3], msg="whatever it is scored with")
    assert not torch.equal(found[0], found[1])
    assert torch.equal(under_masks(network, 3, 7, X)(X), found), "the same seed"
    assert not torch.equal(under_masks(network, 3, 8, X)(X), found)


def test_members_share_their_weights():
    members = under_masks(Dropped(), 10, 0, X).members
    assert len({member[5].weight.data_ptr() for member in members}) == 1


def test_on_average_they_are_what_training_sees():
    """The mean over masks of a layer's values is the network's without dropout (inverted dropout)."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    mean = under_masks(network, 1000, 0, X)(X).mean(0)
    torch.testing.assert_close(mean, network.eval()(X), atol=0.1, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_every_backend_runs_them(backend):
    if lack := BACKENDS[backend].lacks():
        pytest.skip(lack)
    members = under_masks(Dropped(), 3, 7, X)
    run = BACKENDS[backend].runner(members, precision="fp32", device=torch.device("cpu"), example=X, threads=1)
    torch.testing.assert_close(run(X), members(X), atol=1e-4, rtol=1e-4)


class TwiceCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(self.dropout(self.dropout(x).flatten(1)[:, :4]))


class SamplesLast(TwiceCalled):
    def forward(self, x):
        return self.classifier(self.dropout(x.flatten(1)[:, :4].T).T)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), "has no dropout layer"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(192, 2)), "has no dropout layer"),
        (TwiceCalled(), "module dropout is called several times"),
        (SamplesLast(), "do not begin with the samples"),
    ],
    ids=["none", "of nothing", "twice", "samples last"],
)
def test_what_no_mask_fits_is_refused(network, why):
    with pytest.raises(NetworkError, match=why):
        under_masks(network, 2, 0, X)


def test_a_network_of_torchvisions_has_members():
    spec = NetworkSpec(architecture="torchvision:mobilenet_v3_small", classes=3, input_shape=(3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    found = under_masks(build(spec, seed=0), 4, 0, x)(x)
    assert found.shape == (4, 2, 3)
    assert (found.std(0) > 0).all()


class Encoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        return self.classifier(self.encoder(x.flatten(1, 2)).mean(1))


def test_torchs_fused_encoder_layer_has_its_masks():
    members = under_masks(Encoded(), 2, 0, X)
    with torch.inference_mode():
        found = members(X)
    assert not torch.allclose(found[0], found[1])


def test_a_layer_that_stands_twice_is_masked_twice():
    drop = nn.Dropout(0.5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), drop, nn.Linear(16, 16), drop, nn.Linear(16, 4))
    assert not any(isinstance(m, nn.Dropout) for m in under_masks(network, 2, 0, X).modules())
