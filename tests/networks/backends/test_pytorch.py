"""Backends of torch's own."""

import pytest
import torch
from torch import nn

from prunefuse_ray.networks import BACKENDS, NetworkError, NetworkSpec, build, example_input
from tests.support.nets import shifted


@pytest.mark.slow
def test_compiling_is_done_once_and_before_the_first_batch():
    spec = NetworkSpec(architecture="resnet8", classes=4, input_shape=(1, 8, 8))
    run = BACKENDS["compile"].runner(
        build(spec, seed=0),
        precision="fp32",
        device=torch.device("cpu"),
        example=example_input(spec, samples=4),
        threads=1,
    )
    with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
        for seed in range(2):
            assert run(example_input(spec, samples=4, seed=seed)).shape == (4, 4)


class Refusing(nn.Module):
    """torch.compile looks into it and gives up, because it asks for its code to be one graph."""

    def forward(self, x):
        raise RuntimeError("\x1b[31mno such luck\x1b[0m\nsecond line")


def test_what_cannot_be_compiled_is_refused_before_the_pool_is_read():
    with pytest.raises(NetworkError, match=r"cannot compile this network here \(no such luck\); use torch, or auto"):
        BACKENDS["compile"].runner(
            Refusing(), precision="fp32", device=torch.device("cpu"), example=torch.zeros(1, 3), threads=1
        )


@pytest.mark.parametrize("backend", ["torch", "compile"])
def test_a_network_that_makes_tensors_of_its_own_is_refused_in_bf16_before_the_pool_is_read(backend):
    how = {"device": torch.device("cpu"), "example": torch.rand(4, 1, 8, 8), "threads": 1}
    network = shifted(num_classes=2, input_shape=(1, 8, 8))
    with pytest.raises(NetworkError, match=r"does not run in bf16 \(.+\); set it to fp32"):
        BACKENDS[backend].runner(network, precision="bf16", **how)
    if backend == "torch":
        assert BACKENDS[backend].runner(network, precision="fp32", **how)(how["example"]).shape == (4, 2)
