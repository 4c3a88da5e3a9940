"""What an autoscaler could add to the cluster: the machines that its configuration allows.

Ray's own state tells which nodes there are and which are on their way, but not what could be asked for. So the
configuration of the autoscaler itself is read, where it lies: on the head node, in the file that `ray start
--autoscaling-config` was given (`ray up` does so), or, under KubeRay, in the RayCluster that the head belongs to.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import requests
import yaml

logger = logging.getLogger(__name__)

ROLE = "prunefuse.io/role"
"""The node label by which the files in cluster/ tell machines apart: head, training or scoring."""

HEAD = "node:__internal_head__"
"""The resource that only the head node has, even where it has no CPUs."""

KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def units_of(has_cpus: float, has_gpus: float, cpus: float, gpus: float) -> int:
    """How many units of `cpus` and `gpus` a machine holds. A share of a GPU is one of a single GPU: two GPUs hold two
    of 0.6 and no third one."""
    by_cpu = int(has_cpus // cpus)
    if not gpus:
        return by_cpu
    by_gpu = int(has_gpus) * times(1, gpus) if gpus < 1 else int(has_gpus // gpus)
    return min(by_cpu, by_gpu)


def times(there: float, share: float) -> int:
    """How often a share of GPUs is there. Ray counts in ten thousandths; floating point has 1 // 0.1 = 9."""
    return math.floor(there / share + 1e-6)


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of machine that the autoscaler starts, and how many of it at most."""

    cpus: float
    gpus: float
    most: int
    role: str = ""


@dataclass(frozen=True, kw_only=True)
class Autoscaler:
    """What the cluster may grow to: at most `most` workers in all, of these types."""

    node_types: tuple[NodeType, ...]
    most: int

    def units(self, cpus: float, gpus: float, roles: tuple[str, ...] = ()) -> tuple[int, float]:
        """How many units of `cpus` and `gpus` the fully grown cluster holds, and all CPUs of the machines it takes.

        Args:
            roles: count machines with these labels only; empty: all.
        """

        def per_machine(kind: NodeType) -> int:
            return units_of(kind.cpus, kind.gpus, cpus, gpus)

        left, units, total = self.most, 0, 0.0
        for kind in sorted(self.node_types, key=per_machine, reverse=True):
            if (roles and kind.role not in roles) or not per_machine(kind):
                continue
            machines = min(left, kind.most)
            left -= machines
            units += machines * per_machine(kind)
            total += machines * kind.cpus
        return units, total


def autoscaler() -> Autoscaler | None:
    """The autoscaler of the cluster that this process is connected to; None where there is none (or none is found)."""
    here, address = ray.get_runtime_context().get_node_id(), ray.get_runtime_context().gcs_address
    try:
        if any(n["NodeID"] == here and HEAD in n["Resources"] for n in ray.nodes()):
            config = _read(address)
        else:
            task = ray.remote(num_cpus=0, resources={HEAD: 0.001}, max_retries=0)(_read)
            config = ray.get(task.remote(address), timeout=60)
    except Exception as error:  # whatever kept us from knowing: the run plans with the machines that are there
        logger.warning("cannot read the autoscaler's configuration on the head node: %s", error)
        return None
    return None if config is None else parse(config)


def parse(config: Mapping[str, Any]) -> Autoscaler | None:
    """The workers that a launcher's configuration allows; None where it allows none."""
    most = int(config.get("max_workers", 2))  # the launcher's own default
    types = []
    for name, kind in config["available_node_types"].items():
        resources, count = kind.get("resources") or {}, int(kind.get("max_workers", most))
        if name == config.get("head_node_type") or count <= 0:
            continue
        types.append(
            NodeType(
                cpus=float(resources.get("CPU", 0)),
                gpus=float(resources.get("GPU", 0)),
                most=min(count, most),
                role=(kind.get("labels") or {}).get(ROLE, ""),
            )
        )
    return Autoscaler(node_types=tuple(types), most=most) if types and most > 0 else None


def _read(address: str) -> dict[str, Any] | None:
    """Runs on the head: the part of the configuration that says what could be started, and nothing secret of it."""
    config = _of_monitor(address) or _of_kubernetes()
    if config is None:
        return None
    kinds = {
        name: {key: kind[key] for key in ("resources", "max_workers", "labels") if key in kind}
        for name, kind in (config.get("available_node_types") or {}).items()
    }
    return {
        **{key: config[key] for key in ("max_workers", "head_node_type") if key in config},
        "available_node_types": kinds,
    }


def _of_monitor(address: str) -> dict[str, Any] | None:
    """The file that the autoscaler process of this cluster was started with."""
    import psutil  # comes with Ray, which puts it on the path when it is imported

    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if f"--gcs-address={address}" not in arguments:
            continue
        for argument in arguments:
            if argument.startswith("--autoscaling-config="):
                text = Path(argument.partition("=")[2]).expanduser().read_text(encoding="utf-8")
                return yaml.safe_load(text)  # JSON, too, is YAML
    return None


def _of_kubernetes() -> dict[str, Any] | None:
    """The RayCluster of this pod as its autoscaler reads it. The head's service account may, for the autoscaler."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not KUBERNETES_NAMESPACE.exists():
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config as kuberay

    producer = kuberay.AutoscalingConfigProducer(name, KUBERNETES_NAMESPACE.read_text(encoding="utf-8").strip())
    try:
        custom_resource = producer.kubernetes_api_client.get(producer._ray_cr_path)
    except requests.HTTPError as error:
        # The operator gives the head this right together with an autoscaler: without it there is none.
        if error.response is not None and error.response.status_code in (401, 403):
            return None
        custom_resource = producer._fetch_ray_cr_from_k8s_with_retries()
    if not custom_resource["spec"].get("enableInTreeAutoscaling"):
        return None
    return kuberay._derive_autoscaling_config_from_ray_cr(custom_resource)
