"""From a configuration to networks: where weights are read from."""

import hashlib
import json

import pytest
import safetensors.torch
import torch

from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.method.selector import dense_network, make_selector, weights_digest
from prunefuse_ray.networks import Dense, NetworkSpec, build

SPEC = NetworkSpec(architecture="resnet8", classes=3, input_shape=(1, 8, 8))


@pytest.fixture
def index(tmp_path):
    """Weights in two files, and the index of both."""
    state = build(SPEC, seed=5).state_dict()
    names = sorted(state)
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        content = safetensors.torch.save({name: state[name] for name in names if files[name] == file})
        (tmp_path / file).write_bytes(content)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return path, state


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_index_brings_the_files_beside_it(index, scheme):
    path, state = index
    config = config_from_tree({"network": {"architecture": "resnet8", "weights": f"{scheme}{path}"}})
    dense, record = dense_network(config, SPEC)
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.network.state_dict().items())
    assert record["sha256"] == weights_digest(f"{scheme}{path}")
    assert record["tensors"] == len(state)
    assert record["notes"] == []
    before = weights_digest(str(path))
    part = path.parent / "part-1.safetensors"
    part.write_bytes(part.read_bytes() + b" ")
    assert weights_digest(str(path)) != before, "a change of a file that it names is noticed"
    part.unlink()
    with pytest.raises(ConfigError, match=r"network\.weights: .*part-1\.safetensors' cannot be read"):
        dense_network(config, SPEC)


def test_one_file_has_its_own_digest(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(safetensors.torch.save(build(SPEC, seed=5).state_dict()))
    assert weights_digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_another_network_that_needs_the_pools_statistics_is_refused():
    """It would select by vectors that nobody has standardized."""
    spec = NetworkSpec(architecture="tests.support.nets:plain", classes=3, input_shape=(5, 1, 1))
    pool = {"source": "parquet", "path": "p", "test_path": "t", "vector_column": "v"}
    config = config_from_tree({"pool": pool, "network": {"architecture": spec.architecture},
                               "selection": {"selector": "svp:mlp"}})  # fmt: skip
    with pytest.raises(ConfigError, match=r"selection\.selector: 'svp:mlp' begins with statistics of the pool"):
        make_selector(config, Dense(network=torch.nn.Linear(5, 3), spec=spec))


def test_a_folder_may_have_a_question_mark_in_its_name(index, tmp_path):
    path, _ = index
    (folder := tmp_path / "what?").mkdir()
    for file in [path, *path.parent.glob("part-*")]:
        file.rename(folder / file.name)
    assert weights_digest(str(folder)) == weights_digest(str(folder / path.name))
