"""Files: what comes back equals what was written, and nothing else is accepted."""

import json

import pytest
import safetensors.torch
import torch

from prunefuse_ray.networks import (
    NETWORK_FILE,
    WEIGHTS_FILE,
    Dense,
    NetworkError,
    NetworkSpec,
    Proxy,
    PruningSpec,
    build,
    from_files,
    fuse,
    prune,
    to_files,
)
from tests.support.nets import OWN

SPEC = NetworkSpec(architecture="resnet20", classes=10, input_shape=(3, 8, 8))


@pytest.fixture(scope="module")
def files():
    return to_files(prune(build(SPEC, seed=0), SPEC, PruningSpec(ratio=0.5)))


def with_description(files, change):
    description = json.loads(files[NETWORK_FILE])
    del description["sha256"]  # as 0.1 wrote it: what refuses must not be the digest alone
    change(description)
    return files | {NETWORK_FILE: json.dumps(description).encode()}


def with_weights(files, change):
    state = safetensors.torch.load(files[WEIGHTS_FILE])
    change(state)
    return files | {WEIGHTS_FILE: safetensors.torch.save(state)}


def test_a_dense_network_comes_back():
    dense = Dense(build(SPEC, seed=3), SPEC)
    loaded = from_files(to_files(dense))
    assert isinstance(loaded, Dense)
    assert loaded.spec == SPEC
    for name, value in dense.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)


def test_weights_that_an_architecture_ties_stay_tied():
    spec = NetworkSpec(architecture="tests.support.nets:tied", classes=2, input_shape=(1, 8, 8))
    network = from_files(to_files(Dense(build(spec, seed=0), spec)), OWN).network
    assert network[3].weight is network[5].weight


def test_the_directory_above_a_single_proxy_is_no_committee(files):
    with pytest.raises(NetworkError, match=r"read from its own directory, \.\.\./0"):
        from_files({f"0/{name}": data for name, data in files.items()})


def test_a_proxy_comes_back_with_its_indices_and_without_pruning_again(monkeypatch):
    proxy = prune(build(SPEC, seed=0), SPEC, PruningSpec(ratio=0.6, steps=2, importance="random", seed=7))
    files = to_files(proxy)
    monkeypatch.setattr("torch_pruning.DependencyGraph", None)
    loaded = from_files(files)
    assert isinstance(loaded, Proxy)
    assert (loaded.spec, loaded.pruning) == (proxy.spec, proxy.pruning)
    for name, dims in proxy.kept.items():
        for expected, found in zip(dims, loaded.kept[name], strict=True):
            assert (expected is None and found is None) or torch.equal(expected, found)
    assert all(parameter.requires_grad for parameter in loaded.network.parameters())


def test_the_same_network_is_written_as_the_same_bytes(files):
    assert to_files(from_files(files)) == files


def test_a_network_read_back_can_be_pruned_and_fused():
    dense = from_files(to_files(Dense(build(SPEC, seed=0), SPEC)))
    proxy = from_files(to_files(prune(dense.network, SPEC, PruningSpec(ratio=0.5))))
    fused = fuse(dense.network, proxy, "keep")
    for name, value in dense.network.state_dict().items():
        assert torch.equal(fused.state_dict()[name], value), "an untrained proxy brings nothing new"


def test_what_could_not_be_read_back_is_not_written():
    proxy = prune(build(SPEC, seed=0), SPEC, PruningSpec(ratio=0.5))
    wrapped = Proxy(torch.nn.DataParallel(proxy.network), proxy.kept, proxy.spec, proxy.pruning)
    with pytest.raises(NetworkError, match="wrapper"):
        to_files(wrapped)
    with pytest.raises(NetworkError, match="float32"):
        to_files(Dense(build(SPEC, seed=0).bfloat16(), SPEC))


def test_nothing_is_pickled(files):
    header = int.from_bytes(files[WEIGHTS_FILE][:8], "little")
    json.loads(files[WEIGHTS_FILE][8 : 8 + header])
    json.loads(files[NETWORK_FILE])


def first_kept(description):
    return next(dims for dims in description["kept"].values() if dims and dims[0] is not None)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format=2),
        lambda d: d.update(extra=1),
        lambda d: d.pop("pruning"),
        lambda d: d["network"].update(architecture="resnet21"),
        lambda d: d["network"].update(architecture="resnet32"),
        lambda d: d["network"].update(classes=11),
        lambda d: d["network"].pop("classes"),
        lambda d: d["network"].update(more=1),
        lambda d: d["pruning"].update(ratio=2),
        lambda d: d["kept"].pop("stem.weight"),
        lambda d: d["kept"].update(other=[0]),
        lambda d: d["kept"].update({"stem.weight": [0, None]}),
        lambda d: d["kept"].update({"stem.weight": 3}),
        lambda d: first_kept(d).__setitem__(0, 10**6),
        lambda d: first_kept(d).__setitem__(0, True),
        lambda d: first_kept(d).__setitem__(0, -1),
        lambda d: d.update(indices=3),
        lambda d: d["indices"][0].reverse(),
        lambda d: d["indices"][0].pop(),
        lambda d: d["indices"][0].__setitem__(-1, 10**6),
        lambda d: d["indices"][0].__setitem__(0, -1),
        lambda d: d["indices"][0].__setitem__(0, 0.5),
        lambda d: d["indices"][0].__setitem__(1, d["indices"][0][0]),
        lambda d: d["indices"].__setitem__(0, []),
        lambda d: d["indices"].__setitem__(0, "0123"),
    ],
)
def test_a_changed_description_is_refused(files, change):
    with pytest.raises(NetworkError):
        from_files(with_description(files, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("stem.weight"), "stem.weight"),
        (lambda s: s.update(other=torch.zeros(2)), "other"),
        (lambda s: s.update({"stem.weight": torch.zeros(7, 3, 3, 3)}), "stem.weight"),
        (lambda s: s.update({"stem.weight": torch.zeros(8)}), "stem.weight"),
        (lambda s: s.update({"stem.weight": s["stem.weight"].double()}), "stem.weight"),
    ],
)
def test_changed_weights_are_refused_by_name(files, change, message):
    with pytest.raises(NetworkError, match=message):
        from_files(with_weights(files, change))


@pytest.mark.parametrize("name", [WEIGHTS_FILE, NETWORK_FILE])
@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"[]", None])
def test_files_that_are_no_such_files_are_refused(files, name, content):
    broken = {key: value for key, value in files.items() if key != name} | (
        {name: content} if content is not None else {}
    )
    with pytest.raises(NetworkError, match=name):
        from_files(broken)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_weights_are_refused(files, share):
    content = files[WEIGHTS_FILE]
    with pytest.raises(NetworkError, match=WEIGHTS_FILE):
        from_files(files | {WEIGHTS_FILE: content[: int(share * len(content))]})
