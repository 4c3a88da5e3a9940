"""Weights by name: taken from the libraries' own caches, read like any other file, refused with what there is."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch
import torchvision

from prunefuse_ray import progress
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.method.selector import dense_network
from prunefuse_ray.networks import NetworkError, NetworkSpec, build, is_name, named_weights
from tests.networks.test_trained import Malicious

SHUFFLE = "torchvision:shufflenet_v2_x0_5"
SPEC = NetworkSpec(architecture=SHUFFLE, classes=4, input_shape=(3, 32, 32))
FILE = "shufflenetv2_x0.5-f707e7126e.pth"
"""The name under which torchvision's own download keeps its weights of ImageNet."""


def config(weights, **pool):
    own = {"source": "parquet", "path": "p", "test_path": "t", "classes": 4, "channels": 3, "image_size": [32, 32]}
    network = {"architecture": SHUFFLE, "weights": weights}
    return config_from_tree({"pool": own | pool, "network": network})


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A network of 1,000 classes in torch.hub's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = build(NetworkSpec(architecture=SHUFFLE, classes=1000, input_shape=(3, 32, 32)), seed=5).state_dict()
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub/checkpoints" / FILE)
    return state


def test_torchvisions_weights_come_from_its_cache_and_the_head_is_new(imagenet):
    dense, told = dense_network(config("torchvision:DEFAULT"), SPEC)
    found, fresh = dense.network.state_dict(), build(SPEC, seed=0).state_dict()
    for tensor in found:
        assert torch.equal(found[tensor], fresh[tensor] if tensor.startswith("fc.") else imagenet[tensor]), tensor
    assert told["replaced"] == ["fc.bias", "fc.weight"]
    assert told["notes"] == [
        "a new head: fc.bias, fc.weight start fresh",
        "trained with mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225], and pool.mean is [0.5], pool.std "
        "[0.25]: set them to the same",
    ]
    same = config("torchvision:IMAGENET1K_V1", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert len(dense_network(same, SPEC)[1]["notes"]) == 1


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_weights_that_torchvision_feeds_with_other_values_say_by_which_they_were_normalized(monkeypatch, name):
    """The reference is torchvision's own network, which changes what it is given."""
    monkeypatch.setattr("prunefuse_ray.networks.pretrained._of_url", lambda *_: "file")
    found = named_weights("torchvision:DEFAULT", f"torchvision:{name}")
    theirs = torchvision.models.get_model(name, weights=None, init_weights=False)
    theirs.transform_input = True
    values = torch.rand(1, 3, 4, 4)
    imagenet = [torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (found.mean, found.std))
    inside = theirs._transform_input((values - imagenet[0]) / imagenet[1])
    torch.testing.assert_close(inside, (values - mean) / std)


def test_one_value_for_all_channels_is_the_same(imagenet, monkeypatch):
    found = dataclasses.replace(named_weights("torchvision:DEFAULT", SHUFFLE), mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr("prunefuse_ray.networks.named_weights", lambda *_: found)
    assert len(dense_network(config("torchvision:DEFAULT", mean=[0.5], std=[0.5]), SPEC)[1]["notes"]) == 1
    assert len(dense_network(config("torchvision:DEFAULT", mean=[0.5], std=[0.25]), SPEC)[1]["notes"]) == 2


def test_what_is_in_a_cache_runs_no_code(imagenet, tmp_path):
    torch.save({"fc.weight": Malicious()}, tmp_path / "hub/checkpoints" / FILE)
    with pytest.raises(NetworkError, match="could run code"):
        dense_network(config("torchvision:DEFAULT"), SPEC)


def test_without_a_network_the_message_says_what_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def away(url, **_):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", away)
    with pytest.raises(NetworkError) as caught:
        named_weights("torchvision:DEFAULT", SHUFFLE)
    said = str(caught.value)
    assert f"is not in {tmp_path}/hub/checkpoints/{FILE}, and cannot be downloaded (no route to host)" in said
    assert f"https://download.pytorch.org/models/{FILE}" in said


@pytest.mark.parametrize(
    ("weights", "architecture", "said"),
    [
        ("torchvision:V9", SHUFFLE, "torchvision has no 'V9' for shufflenet_v2_x0_5; it has torchvision:IMAGENET1K_V1"),
        ("torchvision:DEFAULT", "resnet20", "is for an architecture of torchvision, and network.architecture is"),
        ("timm:DEFAULT", SHUFFLE, "is for an architecture of timm"),
        (
            "timm:resnet50.a1_in1k",
            "timm:resnet18",
            "timm has no 'resnet50.a1_in1k' for resnet18; it has timm:resnet18.",
        ),
        (
            "timm:resnet18.a9_in2k",
            "timm:resnet18",
            "timm has no 'resnet18.a9_in2k' for resnet18; it has timm:resnet18.",
        ),
        ("huggingface:just-a-name", "timm:resnet18", "names no repository: write huggingface:OWNER/NAME"),
    ],
)
def test_names_that_a_library_does_not_have_are_refused(weights, architecture, said):
    if "timm" in weights:
        pytest.importorskip("timm")
    with pytest.raises(NetworkError, match=said.replace("[", r"\[")):
        named_weights(weights, architecture)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face cache on this machine, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repository, **files):
        commit, place = "0" * 40, tmp_path / f"models--{repository.replace('/', '--')}"
        for name, content in files.items():
            path = place / "snapshots" / commit / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs/main").write_text(commit)
        return place / "snapshots" / commit

    return put


def test_timms_weights_come_from_the_hugging_face_cache(hub):
    pytest.importorskip("timm")
    spec = NetworkSpec(architecture="timm:resnet18", classes=4, input_shape=(3, 32, 32))
    state = build(NetworkSpec(architecture="timm:resnet18", classes=1000, input_shape=(3, 32, 32)), seed=5).state_dict()
    where = hub("timm/resnet18.a1_in1k", model__safetensors=safetensors.torch.save(state))
    found = named_weights("timm:DEFAULT", spec.architecture)
    assert found.file == str(where / "model.safetensors")
    assert found.mean == (0.485, 0.456, 0.406)
    assert named_weights("timm:resnet18.a1_in1k", spec.architecture) == found
    assert named_weights("huggingface:timm/resnet18.a1_in1k", "resnet20").file == found.file
    own = config_from_tree({"network": {"architecture": spec.architecture, "weights": "timm:DEFAULT"}})
    dense, told = dense_network(own, spec)
    assert torch.equal(dense.network.state_dict()["conv1.weight"], state["conv1.weight"])
    assert told["replaced"] == ["fc.bias", "fc.weight"]


def test_a_repository_in_shards_is_read_whole(hub):
    state = build(SPEC, seed=7).state_dict()
    names, half = list(state), len(state) // 2
    shards = {f"model-{n}__safetensors": part for n, part in (("1", names[:half]), ("2", names[half:]))}
    index = {"weight_map": {name: s.replace("__", ".") for s, part in shards.items() for name in part}}
    contents = {s: safetensors.torch.save({n: state[n] for n in part}) for s, part in shards.items()}
    hub("me/mine", model__safetensors__index__json=json.dumps(index).encode(), **contents)
    dense, told = dense_network(config("huggingface:me/mine"), SPEC)
    assert all(torch.equal(t, state[n]) for n, t in dense.network.state_dict().items())
    assert told["replaced"] == []


def test_a_repository_that_is_nowhere_is_one_message(hub):
    with pytest.raises(
        NetworkError, match=r"'huggingface:me/none' is not in the Hugging Face cache, and cannot be down"
    ):
        named_weights("huggingface:me/none", "resnet20")
    hub("me/empty", README__md=b"nothing")
    with pytest.raises(
        NetworkError, match=r"'huggingface:me/empty' (holds none of model\.safetensors|is not in the Hug)"
    ):
        named_weights("huggingface:me/empty", "resnet20")


def test_paths_are_no_names():
    assert [is_name(w) for w in ("torchvision:DEFAULT", "timm:x", "huggingface:a/b")] == [True] * 3
    assert not any(is_name(w) for w in ("resnet.pth", "/data/w.safetensors", "s3://b/w.pth", "timm/resnet18"))


def test_a_download_may_take_its_time(monkeypatch, tmp_path):
    """Over a slow line it needs no core for longer than the supervisor lets a driver be quiet."""
    seen = []
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: seen.append(progress.now.waiting))
    named_weights("torchvision:DEFAULT", SHUFFLE)
    assert seen == [True]
    assert not progress.now.waiting


def test_a_download_that_was_stopped_is_not_taken_for_whole(hub):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    half = {"model__safetensors__index__json": json.dumps(index).encode(), "model-1__safetensors": b"x"}
    hub("me/half", **half)
    with pytest.raises(NetworkError, match=r"'huggingface:me/half' (holds none of|is not in the Hug)"):
        named_weights("huggingface:me/half", "resnet20")
    where = hub("me/whole", **half, **{"model-2__safetensors": b"x"})
    assert named_weights("huggingface:me/whole", "resnet20").file == str(where / "model.safetensors.index.json")
