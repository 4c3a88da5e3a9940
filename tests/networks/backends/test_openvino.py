"""The backend of OpenVINO: what it cannot do, and where its threads run."""

import sys

import pytest
import torch
from torch import nn

from prunefuse_ray.networks import BACKENDS, NetworkError


def runner(network):
    return BACKENDS["openvino"].runner(
        network, precision="fp32", device=torch.device("cpu"), example=torch.zeros(1, 4, 4), threads=1
    )


class Inverting(nn.Module):
    """An operation that OpenVINO has no counterpart of."""

    def forward(self, x):
        return torch.linalg.eigvals(x).real


def test_a_network_that_it_cannot_follow_is_refused():
    pytest.importorskip("openvino")
    with pytest.raises(NetworkError, match="OpenVINO cannot convert this network"):
        runner(Inverting())


def test_without_it_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(NetworkError, match=r"openvino is not installed: pip install 'prunefuse-ray\[openvino\]'"):
        runner(nn.Identity())


def test_one_that_cannot_be_imported_is_a_refusal_that_auto_understands(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "openvino.frontend.pytorch.ts_decoder", None)
    with pytest.raises(NetworkError, match=r"cannot be imported .*pip install --upgrade 'prunefuse-ray\[openvino\]'"):
        runner(nn.Flatten())
