"""What an autoscaler's configuration says the cluster may grow to."""

import os
import secrets
import subprocess
import sys

import pytest
import requests
import yaml

from prunefuse_ray.distributed import autoscaler
from prunefuse_ray.distributed.autoscaler import Autoscaler, NodeType, parse
from tests.support import ROOT

CLUSTER = ROOT / "cluster"


def test_the_launchers_file_of_aws():
    found = parse(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))
    assert found.most == 40
    assert [(k.role, k.cpus, k.gpus, k.most) for k in found.node_types] == [
        ("training", 8, 1, 4), ("scoring", 16, 0, 32), ("scoring", 8, 1, 8),
    ]  # fmt: skip


def test_a_raycluster_is_read_as_its_autoscaler_reads_it(monkeypatch, tmp_path):
    from ray.autoscaler._private.kuberay import node_provider

    cluster = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())
    cluster["metadata"]["namespace"] = "here"
    asked = []
    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", lambda _, path: asked.append(path) or cluster)
    (tmp_path / "namespace").write_text("here\n")
    monkeypatch.setattr(autoscaler, "KUBERNETES_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "prunefuse")
    found = parse(autoscaler._read("10.0.0.1:6379"))
    assert asked == ["rayclusters/prunefuse"]
    assert {(k.role, k.cpus, k.gpus, k.most) for k in found.node_types} == {
        ("training", 7, 1, 4), ("scoring", 15, 0, 32), ("scoring", 7, 1, 8),
    }  # fmt: skip
    cluster["spec"]["enableInTreeAutoscaling"] = False
    assert autoscaler._read("10.0.0.1:6379") is None


def test_the_file_of_the_running_autoscaler_is_found_and_nothing_secret_read(tmp_path):
    secret, address = secrets.token_hex(8), f"10.9.8.7:{secrets.randbelow(50_000)}"
    (tmp_path / "cluster.yaml").write_text(
        yaml.safe_dump(
            {
                "provider": {"key": secret},
                "max_workers": 3,
                "head_node_type": "h",
                "available_node_types": {
                    "h": {"resources": {"CPU": 4}, "node_config": {}},
                    "w": {"resources": {"CPU": 2}, "node_config": {"password": secret}},
                },
            }
        )
    )
    words = [f"--gcs-address={address}", f"--autoscaling-config={tmp_path}/cluster.yaml"]
    monitor = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()", *words],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        monitor.stdout.readline()
        config = autoscaler._read(address)
        assert parse(config) == Autoscaler(node_types=(NodeType(cpus=2, gpus=0, most=3),), most=3)
        assert secret not in str(config)
        assert autoscaler._read("10.9.8.7:1") is None or "RAY_CLUSTER_NAME" in os.environ
    finally:
        monitor.kill()
        monitor.wait()


@pytest.mark.parametrize(
    "config",
    [
        {"head_node_type": "h", "available_node_types": {"h": {"resources": {"CPU": 4}}}},
        {"max_workers": 0, "available_node_types": {"w": {"resources": {"CPU": 4}}}},
        {"max_workers": 5, "available_node_types": {"w": {"resources": {"CPU": 4}, "max_workers": 0}}},
    ],
)
def test_a_configuration_without_workers_adds_nothing(config):
    assert parse(config) is None


@pytest.mark.parametrize(
    ("cpus", "gpus", "roles", "most", "expected"),
    [
        (1, 0, (), 9, (2 * 8 + 3 * 5, 31)),
        (1, 0, (), 1, (8, 8)),  # of the larger machines first
        (3, 0, (), 9, (2 * 2 + 3 * 1, 31)),  # what is left over on a machine holds no unit
        (4, 1, (), 9, (2 * 2, 16)),
        (4, 0.5, (), 9, (4, 16)),
        (1, 0, ("training",), 9, (16, 16)),
        (9, 0, (), 9, (0, 0)),
    ],
)
def test_units_of_the_grown_cluster(cpus, gpus, roles, most, expected):
    types = (NodeType(cpus=5, gpus=0, most=3, role="scoring"), NodeType(cpus=8, gpus=2, most=2, role="training"))
    assert Autoscaler(node_types=types, most=most).units(cpus, gpus, roles) == expected


def test_a_head_that_may_not_read_its_raycluster_has_no_autoscaler(monkeypatch, tmp_path):
    """KubeRay's operator gives the right with the autoscaler; Ray itself would ask five times, with tracebacks."""
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    asked = []

    def refuse(_, path):
        asked.append(path)
        answer = requests.Response()
        answer.status_code = 403
        answer.raise_for_status()

    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", refuse)
    monkeypatch.setattr(autoscaling_config.time, "sleep", lambda _: None)
    (tmp_path / "namespace").write_text("here\n")
    monkeypatch.setattr(autoscaler, "KUBERNETES_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "prunefuse")
    assert autoscaler._read("10.0.0.1:6379") is None
    assert asked == ["rayclusters/prunefuse"]
