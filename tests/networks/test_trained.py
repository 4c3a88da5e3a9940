"""Trained weights: every usual wrapping is read, a head for other classes is replaced, anything else is refused."""

import io
import json
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from prunefuse_ray.networks import (
    NetworkError,
    NetworkSpec,
    PruningSpec,
    build,
    gather,
    load_trained,
    prune,
    shard_names,
)

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


def lightning(state, **more):
    """What Lightning writes: the network under an attribute of its module, beside losses, metrics and an optimizer."""
    own = prefixed(state, "model.") | {
        "criterion.weight": torch.ones(4),
        "train_accuracy.confusion": torch.zeros(4, 4),
        "train_accuracy._extra_state": {"samples": 3},
    }
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": own | more,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1},
    }


def averaged(network):
    return torch.optim.swa_utils.AveragedModel(network).state_dict()


def distributed(network):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), world_size=1, rank=0)
    try:
        return nn.parallel.DistributedDataParallel(network).state_dict()
    finally:
        torch.distributed.destroy_process_group()


def compiled(network):
    return torch.compile(network).state_dict()


def compiled_inside(network):
    """A submodule alone, as people do who compile the backbone."""
    network.blocks = torch.compile(network.blocks)
    return network.state_dict()


def sharded_inside(network):
    """As PyTorch's FSDP names the layers that it wraps one by one."""
    return {
        f"_fsdp_wrapped_module.{n.replace('blocks.', 'blocks._fsdp_wrapped_module.')}": t
        for n, t in network.state_dict().items()
    }


LOSS = ["criterion.weight", "train_accuracy.confusion"]


@pytest.mark.parametrize(
    ("wrap", "left_out"),
    [
        (lambda n: safetensors.torch.save(n.state_dict()), []),
        (lambda n: checkpoint(n.state_dict()), []),
        (lambda n: checkpoint({"state_dict": distributed(n), "epoch": 3, "optimizer": {"lr": 0.1}}), []),
        (lambda n: checkpoint({"model": compiled(n)}), []),
        (lambda n: checkpoint({"trainer": {"state_dict": distributed(torch.compile(n))}}), []),
        (lambda n: checkpoint(compiled_inside(n)), []),
        (lambda n: checkpoint(sharded_inside(n)), []),
        (lambda n: checkpoint(averaged(n)), ["n_averaged"]),
        (lambda n: safetensors.torch.save(prefixed(n.state_dict(), "model.")), []),
        (lambda n: checkpoint(lightning(n.state_dict())), [*LOSS, "state_dict.train_accuracy._extra_state"]),
        (
            lambda n: checkpoint(lightning(compiled_inside(n), n_averaged=torch.tensor(3))),
            [*LOSS, "n_averaged", "state_dict.train_accuracy._extra_state"],
        ),
        (lambda n: checkpoint({"state_dict": averaged(n), "state_dict_ema": n.state_dict()}),
         ["n_averaged", "state_dict_ema"]),
        (lambda n: safetensors.torch.save(n.state_dict() | {"projection.0.weight": torch.ones(1)}),
         ["projection.0.weight"]),
        (lambda n: checkpoint({x: t for x, t in n.state_dict().items() if not x.endswith("num_batches_tracked")}), []),
    ],
    ids=[
        "safetensors", "checkpoint", "data parallel", "compiled", "both, deep in a dictionary", "compiled inside",
        "sharded inside", "averaged", "under an attribute", "lightning", "lightning of all that", "with its average",
        "with a head for something else", "without counters",
    ],
)  # fmt: skip
def test_every_usual_form_of_a_file_is_read(wrap, left_out):
    source, network = build(SPEC, seed=1), build(SPEC, seed=0)
    source.train()(torch.randn(4, *SPEC.input_shape))  # statistics of its own
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    found = load_trained(network, SPEC, wrap(source))
    assert found.replaced == []
    assert sorted(found.left_out) == sorted(left_out)
    assert bool(found.notes()) == bool(left_out)
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name]), name


def test_shards_are_put_together_by_their_index(tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    state, network = trained(), build(SPEC, seed=0)
    huggingface_hub.save_torch_state_dict(state, tmp_path, max_shard_size="300KB")
    index = (tmp_path / "model.safetensors.index.json").read_bytes()
    names = shard_names(index)
    assert len(names) > 2
    shards = {name: (tmp_path / name).read_bytes() for name in names}
    found = load_trained(network, SPEC, index, shards)
    assert found.tensors == len(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    stray = names[1] + ": other.weight"
    more = safetensors.torch.load(shards[names[1]]) | {"other.weight": torch.ones(2), "stem.weight": torch.zeros(1)}
    where = json.loads(index)["weight_map"]["stem.weight"]
    assert where != names[1]
    found = load_trained(network, SPEC, index, shards | {names[1]: safetensors.torch.save(more)})
    assert sorted(found.left_out) == [stray, f"{names[1]}: stem.weight"], "a tensor is where the index says"
    assert torch.equal(network.state_dict()["stem.weight"], state["stem.weight"])
    with pytest.raises(NetworkError, match=r"not in the files that the index names for them"):
        load_trained(network, SPEC, index, {names[0]: shards[names[0]]})


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", 3])
def test_an_index_leads_nowhere_else(name):
    with pytest.raises(NetworkError, match="give files beside it"):
        shard_names(json.dumps({"weight_map": {"a": name}}).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"weight_map": 3}', safetensors.torch.save(trained())])
def test_other_files_are_no_index(content):
    assert shard_names(content) == []


@pytest.mark.parametrize(
    ("dtype", "off"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2), (torch.float64, 0), (torch.float8_e4m3fn, 0.1)]
)
def test_other_precisions_become_float32_and_are_counted(dtype, off):
    state, network = trained(), build(SPEC, seed=0)
    others = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    found = load_trained(network, SPEC, checkpoint(others))
    count = sum(t.is_floating_point() for t in state.values())
    assert found.converted == {str(dtype).removeprefix("torch."): count}
    assert f"{count} tensors of {str(dtype).removeprefix('torch.')}" in found.notes()[0]
    weight = network.state_dict()["stem.weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, state["stem.weight"], atol=off, rtol=off)


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
        return os.system, ("touch was-here",)


def without(state, *names):
    return {n: t for n, t in state.items() if n not in names}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda s: b"no network", "neither safetensors nor a checkpoint"),
        (lambda s: checkpoint(s)[:-2000], "weights: "),
        (lambda s: checkpoint({"state_dict": s, "callback": Malicious()}), "could run code"),
        (lambda s: checkpoint({"epoch": 3}), r"holds no state dict, but keys epoch;"),
        (lambda s: checkpoint([1, 2]), "holds no state dict, but a list"),
        (
            lambda s: checkpoint({"model": prefixed(s, "student.") | prefixed(s, "teacher.")}),
            r"holds this network twice, as student\.\* and as teacher\.\*",
        ),
        (lambda s: checkpoint(s | prefixed(s, "module.")), r"holds this network twice, as module\.\S+ and as "),
        (lambda s: safetensors.torch.save(s | {"blocks.9.convs.0.weight": torch.ones(1)}), r"unknown: blocks\.9\."),
        (lambda s: checkpoint({"a": s, "b": s}), "holds no state dict, but keys a, b;"),
        (
            lambda s: checkpoint(s | {"stem.weight": torch.ones(16, 3, 3, 3, dtype=torch.int8)}),
            r"stem\.weight is \(16, 3, 3, 3\) int8 instead of \(16, 3, 3, 3\) float32",
        ),
        (lambda s: safetensors.torch.save(without(s, "stem.weight")), r"missing: stem\.weight; unknown: none"),
        (
            lambda s: safetensors.torch.save(s | {"stem.weight": torch.ones(16, 1, 3, 3)}),
            r"stem\.weight is \(16, 1, 3, 3\) float32 instead of \(16, 3, 3, 3\) float32",
        ),
        (
            lambda s: safetensors.torch.save(s | {"norm.bias": torch.full((64,), torch.nan)}),
            r"not finite in norm\.bias",
        ),
    ],
)
def test_what_is_not_this_network_is_refused_and_changes_nothing(content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = build(SPEC, seed=0)
    with pytest.raises(NetworkError, match=said) as caught:
        load_trained(network, SPEC, content(trained()))
    assert "\x1b" not in str(caught.value), "torch colors its messages for terminals"
    fresh = build(SPEC, seed=0).state_dict()
    assert all(torch.equal(t, fresh[n]) for n, t in network.state_dict().items())
    assert not os.path.exists("was-here")


def test_the_proxy_holds_the_trained_weights_at_its_kept_positions():
    """And they are the strongest channels of the trained network, not those of its initialization."""
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
