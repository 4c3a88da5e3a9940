"""Trained weights: every usual wrapping is read, a head for other classes is replaced, anything else is refused."""

import io
import os

import pytest
import safetensors.torch
import torch

from prunefuse_ray.networks import NetworkError, NetworkSpec, PruningSpec, build, gather, load_trained, prune

SPEC = NetworkSpec(architecture="resnet20", classes=4, input_shape=(3, 8, 8))


def trained(spec=SPEC, seed=1):
    network = build(spec, seed=seed)
    network.train()(torch.randn(4, *spec.input_shape))  # statistics of its own
    return network.state_dict()


def checkpoint(tree) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        safetensors.torch.save,
        checkpoint,
        lambda s: checkpoint({"state_dict": prefixed(s, "module."), "epoch": 3, "optimizer": {"lr": 0.1}}),
        lambda s: checkpoint({"model": prefixed(s, "module._orig_mod.")}),
        lambda s: safetensors.torch.save(prefixed(s, "model.")),
        lambda s: checkpoint({n: t for n, t in s.items() if not n.endswith("num_batches_tracked")}),
    ],
    ids=["safetensors", "checkpoint", "data parallel", "compiled", "lightning", "without counters"],
)
def test_every_usual_form_of_a_file_is_read(wrap):
    state, network = trained(), build(SPEC, seed=0)
    found = load_trained(network, SPEC, wrap(state))
    assert found.replaced == []
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name]), name


def test_half_precision_becomes_float32():
    state, network = trained(), build(SPEC, seed=0)
    halves = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    load_trained(network, SPEC, safetensors.torch.save(halves))
    weight = network.state_dict()["stem.weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, state["stem.weight"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("headless", [False, True])
def test_another_number_of_classes_replaces_the_head_and_nothing_else(headless):
    ten = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 8, 8))
    state, network = trained(ten), build(SPEC, seed=0)
    if headless:
        state = {n: t for n, t in state.items() if not n.startswith("classifier")}
    found = load_trained(network, SPEC, safetensors.torch.save(state))
    assert found.replaced == ["classifier.bias", "classifier.weight"]
    fresh = build(SPEC, seed=0).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in found.replaced else state[name]), name


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/prunefuse-was-here",)


def without(state, *names):
    return {n: t for n, t in state.items() if n not in names}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda s: b"no network", "neither safetensors nor a checkpoint"),
        (lambda s: checkpoint(s)[:-2000], "weights: "),
        (lambda s: checkpoint({"state_dict": s, "callback": Malicious()}), "could run code"),
        (lambda s: checkpoint({"epoch": 3}), r"holds no state dict, but keys \['epoch'\]"),
        (lambda s: checkpoint([1, 2]), "holds no state dict, but list"),
        (lambda s: safetensors.torch.save(without(s, "stem.weight")), r"missing: stem\.weight; none unknown"),
        (lambda s: safetensors.torch.save(s | {"extra.weight": torch.ones(1)}), r"unknown: extra\.weight"),
        (
            lambda s: safetensors.torch.save(s | {"stem.weight": torch.ones(16, 1, 3, 3)}),
            r"stem\.weight is \(16, 1, 3, 3\) instead of \(16, 3, 3, 3\)",
        ),
        (
            lambda s: safetensors.torch.save(s | {"norm.bias": torch.full((64,), torch.nan)}),
            r"not finite in norm\.bias",
        ),
    ],
)
def test_what_is_not_this_network_is_refused_and_changes_nothing(content, said):
    network = build(SPEC, seed=0)
    with pytest.raises(NetworkError, match=said):
        load_trained(network, SPEC, content(trained()))
    fresh = build(SPEC, seed=0).state_dict()
    assert all(torch.equal(t, fresh[n]) for n, t in network.state_dict().items())
    assert not os.path.exists("/tmp/prunefuse-was-here")


def test_the_proxy_holds_the_trained_weights_at_its_kept_positions():
    """And they are the strongest channels of the trained network, not those of its initialisation."""
    network = build(SPEC, seed=0)
    load_trained(network, SPEC, safetensors.torch.save(trained(seed=7)))
    proxy = prune(network, SPEC, PruningSpec(ratio=0.5))
    kept = gather(network.state_dict(), proxy.kept)
    for name, tensor in proxy.network.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    initial = prune(build(SPEC, seed=0), SPEC, PruningSpec(ratio=0.5))
    assert any(not torch.equal(proxy.kept[n][0], d[0]) for n, d in initial.kept.items() if d and d[0] is not None)


@pytest.mark.slow
def test_an_imagenet_resnet50_starts_a_run_of_200_classes():
    from torchvision.models import resnet50

    old = resnet50(weights=None)
    spec = NetworkSpec(architecture="torchvision:resnet50", classes=200, input_shape=(3, 224, 224))
    network = build(spec, seed=0)
    found = load_trained(network, spec, checkpoint({"state_dict": prefixed(old.state_dict(), "module.")}))
    assert found.replaced == ["fc.bias", "fc.weight"]
    proxy = prune(network, spec, PruningSpec(ratio=0.5))
    kept = gather(network.state_dict(), proxy.kept)
    assert torch.equal(proxy.network.state_dict()["layer3.0.conv2.weight"], kept["layer3.0.conv2.weight"])
    source = gather(old.state_dict(), proxy.kept)["layer3.0.conv2.weight"]
    assert torch.equal(proxy.network.state_dict()["layer3.0.conv2.weight"], source)
    assert proxy.network.eval()(torch.randn(1, 3, 224, 224)).shape == (1, 200)
