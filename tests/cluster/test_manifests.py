"""The files in cluster/, offline: Ray's own check of launcher files, and what every one of them promises."""

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from prunefuse_ray.commands.options import parse_run, parse_sweep
from prunefuse_ray.config.section import no_credentials
from prunefuse_ray.errors import without_secrets
from prunefuse_ray.sweep.config import trials
from tests.support import ROOT

CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
PINS = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
FILES = sorted(p for p in CLUSTER.rglob("*") if p.is_file())
MANIFESTS = [p for p in FILES if p.suffix == ".yaml"]
CLOUDS = ["aws", "gcp", "azure"]
LAUNCHERS = [*CLOUDS, "onprem"]
JOBS = ["rayjob-run", "rayjob-sweep"]
RAY_MANIFESTS = ["raycluster", *JOBS]


def name(path):
    return str(path.relative_to(ROOT))


class UniqueKeys(yaml.SafeLoader):
    """SafeLoader keeps the last of two equal keys; here they are an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate keys {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def documents(path):
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def launcher(which):
    return documents(CLUSTER / f"{which}.yaml")[0]


def manifest(which):
    return documents(KUBERAY / f"{which}.yaml")[0]


def cluster_spec(which):
    spec = manifest(which)["spec"]
    return spec.get("rayClusterSpec", spec)


def prepared(which):
    """The launcher file as `ray up` sees it: Ray's defaults filled in."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    try:
        return util.prepare_config(launcher(which))
    except ImportError as error:
        pytest.skip(f"the launcher needs the provider's SDK: {error}")


def walk(tree, path=()):
    """Every (path, mapping or scalar) below `tree`."""
    yield path, tree
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from walk(value, (*path, key))


@dataclass(frozen=True, kw_only=True)
class Group:
    """A node type of the launcher or a group of KubeRay, in the same words."""

    where: str
    role: str
    label: str
    """Capacity as Ray's label says it."""
    rented: str
    """Capacity as it is asked of the provider."""
    resources: dict
    counts: tuple[int, int]
    idle: float | None


def rented(node_config):
    """Spot or on-demand, by what the launcher would ask of AWS, GCP or Azure."""
    model = node_config.get("scheduling", {})
    spot = (
        node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
        model.get("provisioningModel") == "SPOT" or model.get("preemptible"),
        node_config.get("azure_arm_parameters", {}).get("priority") == "Spot",
    )
    return "spot" if any(spot) else "on-demand"


def launcher_groups(which):
    config = launcher(which)
    return [
        Group(
            where=f"{which}.yaml: {key}",
            role=kind["labels"]["prunefuse.io/role"],
            label=kind["labels"]["ray.io/market-type"],
            rented=rented(kind["node_config"]),
            resources=kind.get("resources", {}),
            counts=(kind["min_workers"], kind["max_workers"]),
            idle=kind.get("idle_timeout_s", config["idle_timeout_minutes"] * 60),
        )
        for key, kind in config["available_node_types"].items()
    ]


def kuberay_groups(which):
    spec = cluster_spec(which)
    groups = []
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        head = "groupName" not in group
        pod = group["template"]["spec"]
        limits = pod["containers"][0]["resources"]["limits"]
        groups.append(
            Group(
                where=f"{which}.yaml: {group.get('groupName', 'head')}",
                role=group["labels"]["prunefuse.io/role"],
                label=group["labels"]["ray.io/market-type"],
                rented=pod["nodeSelector"]["karpenter.sh/capacity-type"],
                resources={
                    "CPU": int(group["rayStartParams"].get("num-cpus", limits["cpu"])),
                    "GPU": int(group["rayStartParams"].get("num-gpus", limits.get("nvidia.com/gpu", 0))),
                },
                counts=(0, 0) if head else (group["minReplicas"], group["maxReplicas"]),
                idle=group.get("idleTimeoutSeconds", spec["autoscalerOptions"]["idleTimeoutSeconds"]),
            )
        )
    return groups


GROUPS = [g for which in CLOUDS for g in launcher_groups(which)]
GROUPS += [g for which in RAY_MANIFESTS for g in kuberay_groups(which)]


def groups(role):
    return [pytest.param(g, id=g.where) for g in GROUPS if g.role == role]


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_yaml_is_safe_and_says_nothing_twice(path):
    assert all(isinstance(d, dict) for d in yaml.load_all(path.read_text(encoding="utf-8"), UniqueKeys))


def test_duplicate_keys_would_be_seen():
    with pytest.raises(yaml.YAMLError, match="duplicate"):
        yaml.load("a: {b: 1, b: 2}", UniqueKeys)


SECRETS = {
    "access key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "key of Google": r"\bAIza[0-9A-Za-z_-]{35}|\"private_key",
    "token of GitHub or Hugging Face": r"\b(gh[pousr]_|github_pat_|hf_)[0-9A-Za-z_]{20,}",
    "JSON web token": r"\beyJ[0-9A-Za-z_-]{20,}",
    "long random string": r"(?<![0-9A-Za-z/+_-])(?=[0-9A-Za-z/+_-]*[0-9])[0-9A-Za-z/+]{32,}(?![0-9A-Za-z/+_.-])",
    "value of a secret": r"(?i)(secret|password|passwd|api_?key|access_?key|auth_token)\w*['\"]?\s*[:=]\s*['\"]?"
    r"(?!\$|\.|/|~)[^\s'\"<]{6,}",
    "token in the environment": r"RAY_AUTH_TOKEN\s*[:=](?!\$\()",
    "credentials in a URL": r"://[^/\s:@]+:[^/\s@]+@",
}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_holds_a_secret(path):
    text = path.read_text(encoding="utf-8")
    found = {what: m.group() for what, pattern in SECRETS.items() if (m := re.search(pattern, text))}
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "RAY_AUTH_TOKEN" + ": abc",
        "--env=RAY_AUTH_TOKEN" + "=abc",
        "a" * 20 + "0123456789ab",
        "auth_token" + ": hunter2hunter2",
        "https://user" + ":word@host/",
    ],
)
def test_secrets_would_be_seen(text):
    assert any(re.search(pattern, text) for pattern in SECRETS.values())


@pytest.mark.parametrize("path", FILES, ids=name)
def test_versions_are_those_the_tests_ran_with(path):
    text = path.read_text(encoding="utf-8")
    ray = re.findall(
        r"(?:rayVersion: \"|(?:rayproject|anyscale)/ray:|\bray(?:\[[a-z,]+\])?==|:ray)(\d+\.\d+\.\d+)", text
    )
    torch = re.findall(r"(?:\btorch==|-torch)(\d+\.\d+\.\d+)", text)
    assert set(ray) <= {PINS["ray"]}
    assert set(torch) <= {PINS["torch"]}


def test_every_image_names_its_versions():
    tag = f"ray{PINS['ray']}-torch{PINS['torch']}"
    images = {value for which in LAUNCHERS for path, value in walk(launcher(which)) if path[-2:] == ("docker", "image")}
    images |= {v for which in RAY_MANIFESTS for path, v in walk(manifest(which)) if path and path[-1] == "image"}
    assert {image.rpartition(":")[2] for image in images} == {tag}
    assert all(cluster_spec(which)["rayVersion"] == PINS["ray"] for which in RAY_MANIFESTS)
    assert tag in (CLUSTER / "Dockerfile").read_text()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_listens_on_every_address(path):
    """One exception in words: the README says where others do it."""
    if path.name != "README.md":
        assert not re.search(r"(?<![\d.])0\.0\.0\.0|(?<![\w:])::(?![\w:])", path.read_text(encoding="utf-8"))


# --- what every cluster promises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", groups("head"))
def test_heads_do_no_work_and_last(group):
    assert group.resources.get("CPU") == 0
    assert not group.resources.get("GPU")
    assert (group.label, group.rented) == ("on-demand", "on-demand")


@pytest.mark.parametrize("group", groups("training"))
def test_training_has_gpus_that_last(group):
    assert group.resources["GPU"] >= 1
    assert (group.label, group.rented) == ("on-demand", "on-demand")
    assert group.counts[1] >= 1
    assert group.idle


@pytest.mark.parametrize("group", groups("scoring"))
def test_scoring_is_spot_from_none_to_many(group):
    assert (group.label, group.rented) == ("spot", "spot")
    assert group.counts[0] == 0
    assert group.counts[1] > 1
    assert group.resources["CPU"] > 0
    assert group.idle


@pytest.mark.parametrize("where", [*CLOUDS, *RAY_MANIFESTS])
def test_each_cluster_has_one_head_training_and_both_kinds_of_scoring(where):
    mine = [g for g in GROUPS if g.where.startswith(f"{where}.yaml")]
    assert [g.role for g in mine].count("head") == 1
    assert "training" in [g.role for g in mine]
    assert {bool(g.resources.get("GPU")) for g in mine if g.role == "scoring"} == {False, True}


@pytest.mark.parametrize("where", [*CLOUDS, *RAY_MANIFESTS])
def test_gpu_work_that_names_no_group_goes_to_the_one_that_lasts(where):
    spec = launcher(where)["available_node_types"] if where in CLOUDS else None
    workers = (
        {key: kind for key, kind in spec.items() if key != "head"}
        if spec
        else {g["groupName"].replace("-", "_"): g for g in cluster_spec(where)["workerGroupSpecs"]}
    )
    assert workers["training"]["priority"] > workers["scoring_gpu"]["priority"]
    assert workers["scoring_cpu"]["priority"] > workers["scoring_gpu"]["priority"]


def autoscaler_view(where):
    """The node types as the autoscaler of the installed Ray reads them."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    if where in CLOUDS:
        return AutoscalingConfig(prepared(where), skip_content_hash=True)
    kuberay = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    resource = {
        "metadata": {"name": "prunefuse", "namespace": "prunefuse", "uid": "0"},
        "spec": cluster_spec(where),
    }
    return AutoscalingConfig(kuberay._derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)


@pytest.mark.parametrize("where", [*CLOUDS, *RAY_MANIFESTS])
def test_the_autoscaler_reads_what_the_file_says(where):
    kinds = autoscaler_view(where).get_node_type_configs().values()
    mine = {g.role + str(g.resources.get("GPU", 0)): g for g in GROUPS if g.where.startswith(f"{where}.yaml")}
    assert len(kinds) == len(mine) == 4
    for kind in kinds:
        group = mine[kind.labels["prunefuse.io/role"] + str(int(kind.resources.get("GPU", 0)))]
        assert kind.resources["CPU"] == group.resources["CPU"]
        assert kind.labels["ray.io/market-type"] == group.rented
        if group.role != "head":
            assert (kind.min_worker_nodes, kind.max_worker_nodes) == group.counts
            assert kind.priority > 0
        if group.role == "scoring":
            assert kind.idle_timeout_s == group.idle


# --- the launcher ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", LAUNCHERS)
def test_ray_accepts_the_launcher_file(which):
    config = prepared(which)
    from ray.autoscaler._private.util import validate_config

    validate_config(config)
    assert config["max_workers"] >= 1
    assert config["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("which", CLOUDS)
def test_every_node_type_declares_resources_and_labels(which):
    config = launcher(which)
    from ray._private.label_utils import validate_node_label_syntax

    for kind in config["available_node_types"].values():
        assert "CPU" in kind["resources"]
        validate_node_label_syntax(kind["labels"])
    assert config["head_node_type"] == "head"
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("which", LAUNCHERS)
def test_launcher_clusters_need_a_token_that_the_file_does_not_hold(which):
    config = launcher(which)
    options = config["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    (path,) = (o.partition("RAY_AUTH_TOKEN_PATH=")[2] for o in options if "RAY_AUTH_TOKEN_PATH=" in o)
    assert any(path == f"{remote}/auth_token" for remote in config["file_mounts"])


@pytest.mark.parametrize("which", LAUNCHERS)
def test_launcher_dashboards_listen_on_loopback_only(which):
    """Also after Ray's defaults are filled in, which open it to all."""
    config = prepared(which)
    assert "0.0.0.0" not in str(config)
    (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)


@pytest.mark.parametrize("which", LAUNCHERS)
def test_launcher_defaults_install_nothing(which):
    """Ray's defaults for a cloud would install a nightly build into the image."""
    config = prepared(which)
    assert not any(config[key] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"))


@pytest.mark.parametrize("which", LAUNCHERS)
def test_launcher_containers_know_the_shared_run_directory(which):
    options = launcher(which)["docker"]["run_options"]
    (where,) = (o.partition("PRUNEFUSE_RUNS=")[2] for o in options if "PRUNEFUSE_RUNS=" in o)
    assert re.match(r"(s3|gs|abfs)://", where)
    assert no_credentials(where) == where
    assert without_secrets(where) == where


def test_aws_machines_use_the_users_network_and_roles():
    """Without a security group of one's own the launcher opens port 22 to the world."""
    for kind in launcher("aws")["available_node_types"].values():
        node = kind["node_config"]
        assert node["SecurityGroupIds"]
        assert node["IamInstanceProfile"]
        assert node["MetadataOptions"] == {"HttpTokens": "required"}


def test_gcp_workers_have_no_address_outside_and_an_account_of_their_own():
    for key, kind in launcher("gcp")["available_node_types"].items():
        outside = any("accessConfigs" in i for i in kind["node_config"]["networkInterfaces"])
        assert outside == (key == "head")
        assert ("serviceAccounts" in kind["node_config"]) == (key != "head")


def test_gcp_disks_are_of_a_type_that_machines_with_an_l4_take():
    """Without a type the API takes pd-standard, which G2 machines refuse."""
    config = launcher("gcp")
    zone = config["provider"]["availability_zone"]
    for kind in config["available_node_types"].values():
        types = [disk["initializeParams"]["diskType"] for disk in kind["node_config"]["disks"]]
        assert types == [f"zones/{zone}/diskTypes/pd-balanced"]


def test_azure_machines_are_what_rays_template_takes():
    """What the launcher hands to Azure: parameters of its template, whose own values the file does not give."""
    import ray

    template = Path(ray.__file__).parent / "autoscaler" / "_private" / "_azure" / "azure-vm-template.json"
    takes = json.loads(template.read_text())["parameters"]
    kinds = {"string": str, "int": int}
    launchers = {
        "vmName",
        "adminUsername",
        "publicKey",
        "vmTags",
        "vmCount",
        "provisionPublicIp",
        "msi",
        "nsg",
        "subnet",
    }
    for kind in launcher("azure")["available_node_types"].values():
        given = kind["node_config"]["azure_arm_parameters"]
        assert given.keys() <= takes.keys() - launchers
        assert all(isinstance(value, kinds[takes[name]["type"]]) for name, value in given.items())
        assert {"vmSize", "imageId"} <= given.keys()
    provider = launcher("azure")["provider"]
    assert (provider["use_internal_ips"], provider["use_external_head_ip"]) == (True, True)
    assert {"subscription_id", "resource_group", "location", "msi_name", "msi_resource_group"} <= provider.keys()


def test_the_readme_names_the_rights_that_the_launcher_gives():
    """Read from Ray: GCP's list of roles, and Azure's assignment, which has no condition."""
    import ray

    text = " ".join((CLUSTER / "README.md").read_text(encoding="utf-8").split())
    private = Path(ray.__file__).parent / "autoscaler" / "_private"
    gcp = (private / "gcp" / "config.py").read_text()
    (given,) = re.findall(r"^DEFAULT_SERVICE_ACCOUNT_ROLES = \[(.*?)\]", gcp, re.DOTALL | re.MULTILINE)
    called = {
        "roles/compute.admin": "Compute Admin",
        "roles/storage.objectAdmin": "Storage Object Admin",
        "roles/iam.serviceAccountUser": "Service Account User",
        "roles/iam.roleViewer": "Role Viewer",
    }
    assert set(re.findall(r'"(roles/\S+)"', given)) == called.keys()
    assert [role for role in called.values() if role not in text] == []
    azure = json.loads((private / "_azure" / "azure-config-template.json").read_text())
    (assigned,) = (r for r in azure["resources"] if r["type"].endswith("/roleAssignments"))
    assert "condition" not in assigned
    assert (assigned["properties"]["roleDefinitionId"], assigned["properties"]["scope"]) == (
        "[variables('contributor')]",
        "[resourceGroup().id]",
    )
    assert "RoleAssignmentExists" in text


def test_onprem_roles_are_given_when_ray_starts():
    """The launcher has no node types for machines at hand."""
    config = launcher("onprem")
    head, worker = (config[f"{who}_start_ray_commands"][-1] for who in ("head", "worker"))
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(shlex.split(head))
    assert "prunefuse.io/role=head" in head
    assert all(word in worker for word in ("role=training", "role=scoring", "prunefuse.io/role=$role"))
    assert "spot" not in head + worker


# --- KubeRay --------------------------------------------------------------------------------------------------------

POD_TEMPLATE = dict
CLUSTER_FIELDS = {
    "rayVersion": str,
    "authOptions": {"mode": str, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": str,
        "idleTimeoutSeconds": int,
        "upscalingMode": str,
        "resources": dict,
        "securityContext": dict,
        "env": list,
    },
    "headGroupSpec": {"rayStartParams": dict, "labels": dict, "serviceType": str, "template": POD_TEMPLATE},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "idleTimeoutSeconds": int,
            "priority": int,
            "rayStartParams": dict,
            "labels": dict,
            "template": POD_TEMPLATE,
        }
    ],
}
JOB_FIELDS = {
    "entrypoint": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "submissionMode": str,
    "submitterConfig": {"backoffLimit": int},
    "submitterPodTemplate": POD_TEMPLATE,
    "rayClusterSpec": CLUSTER_FIELDS,
}
"""The fields of ray.io/v1 that this project uses; the API server drops or refuses what it does not know."""


def faults(value, fields, path="spec"):
    """What does not have the form of `fields`."""
    if isinstance(fields, type):
        right = isinstance(value, fields) and not (fields is int and isinstance(value, bool))
        return [] if right else [f"{path}: {value!r} is no {fields.__name__}"]
    if isinstance(fields, list):
        return [f for i, v in enumerate(value) for f in faults(v, fields[0], f"{path}[{i}]")]
    unknown = [f"{path}.{key}: unknown" for key in value if key not in fields]
    return unknown + [f for k, v in value.items() if k in fields for f in faults(v, fields[k], f"{path}.{k}")]


@pytest.mark.parametrize("which", RAY_MANIFESTS)
def test_kuberay_knows_every_field(which):
    tree = manifest(which)
    assert tree["apiVersion"] == "ray.io/v1"
    assert tree["kind"] == ("RayJob" if which in JOBS else "RayCluster")
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", tree["metadata"]["name"])
    assert faults(tree["spec"], JOB_FIELDS if which in JOBS else CLUSTER_FIELDS) == []


def test_unknown_and_mistyped_fields_would_be_seen():
    assert faults({"rayVersion": 2.6, "enableAutoscaling": True}, CLUSTER_FIELDS) == [
        "spec.enableAutoscaling: unknown",
        "spec.rayVersion: 2.6 is no str",
    ]


KUBERNETES = ["1.29", "1.34"]


def pod_templates(which):
    """Every pod template of a manifest, by where it stands."""
    spec = cluster_spec(which)
    found = {"head": spec["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    if "submitterPodTemplate" in manifest(which)["spec"]:
        found["submitter"] = manifest(which)["spec"]["submitterPodTemplate"]
    return found


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("which", RAY_MANIFESTS)
def test_kubernetes_knows_every_field_of_the_pods(which, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    templates = pod_templates(which)
    assert {"head", "training", "scoring-cpu", "scoring-gpu"} <= templates.keys()
    for place, template in templates.items():
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": place, **template.get("metadata", {})}
        kubernetes_validate.validate(pod, version, strict=True)
    template["spec"]["containers"][0]["imagePolicy"] = "Always"  # it is imagePullPolicy
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field_of_the_access_rules(version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in documents(KUBERAY / "access.yaml"):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder with KubeRay's CRD files")
@pytest.mark.parametrize("which", RAY_MANIFESTS)
def test_kuberay_manifests_fit_the_given_crds(which):
    jsonschema = pytest.importorskip("jsonschema")
    tree = manifest(which)
    (crd,) = documents(Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{tree['kind'].lower()}s.yaml")
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1")

    def closed(part):
        """JSON schema of an OpenAPI part, in which unknown fields are errors as in `kubectl apply`."""
        if isinstance(part, list):
            return [closed(p) for p in part]
        if not isinstance(part, dict):
            return part
        if part.get("x-kubernetes-int-or-string"):
            return {"type": ["integer", "string"]}
        same = {key: closed(value) for key, value in part.items() if key != "format"}
        if isinstance(part.get("properties"), dict) and not part.get("x-kubernetes-preserve-unknown-fields"):
            same["additionalProperties"] = False
        return same

    schema = closed(schema)
    schema["properties"]["metadata"] = {}
    jsonschema.Draft7Validator(schema).validate(tree)


@pytest.mark.parametrize("which", RAY_MANIFESTS)
def test_kuberay_clusters_need_a_token_and_scale_by_the_second_autoscaler(which):
    spec = cluster_spec(which)
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"


@pytest.mark.parametrize("which", RAY_MANIFESTS)
def test_pods_are_confined(which):
    spec = cluster_spec(which)
    templates = [g["template"] for g in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]
    submitter = manifest(which)["spec"].get("submitterPodTemplate")
    for template in [*templates, *([submitter] if submitter else [])]:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert (
                container["resources"]["requests"].keys()
                == container["resources"]["limits"].keys()
                >= {
                    "cpu",
                    "memory",
                }
            )
            # Objects that Ray spills go to a node's disk, which others use, too; the submitter has none.
            assert ("ephemeral-storage" in container["resources"]["limits"]) == (template is not submitter)
            assert not container["securityContext"].get("privileged")
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(g["template"]["spec"]["automountServiceAccountToken"] is False for g in spec["workerGroupSpecs"])


def test_scoring_pods_tolerate_spot_and_gpu_nodes():
    for group in cluster_spec("raycluster")["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        tolerated = {t["key"] for t in pod.get("tolerations", [])}
        assert ("prunefuse.io/spot" in tolerated) == (group["labels"]["ray.io/market-type"] == "spot")
        assert ("nvidia.com/gpu" in tolerated) == ("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"])


def test_the_network_policy_keeps_others_out():
    account, policy = documents(KUBERAY / "access.yaml")
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    for which in RAY_MANIFESTS:
        spec = cluster_spec(which)
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            assert selected <= group["template"]["metadata"]["labels"].items()
            assert group["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    among, dashboard, metrics = policy["spec"]["ingress"]
    assert among["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
    assert [p["port"] for p in dashboard["ports"]] == [8265]
    assert [p["port"] for p in metrics["ports"]] == [8080]
    assert not any("ipBlock" in peer for rule in (among, dashboard, metrics) for peer in rule["from"])
    assert all(peer.get("namespaceSelector") != {} for peer in (*dashboard["from"], *metrics["from"]))


@pytest.mark.parametrize("which", JOBS)
def test_ray_jobs_end_are_cleaned_up_and_resume(which):
    spec = manifest(which)["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    assert spec["submitterConfig"]["backoffLimit"] > 0


@pytest.mark.parametrize("which", JOBS)
def test_ray_jobs_use_the_cluster_of_raycluster_yaml(which):
    assert cluster_spec(which) == cluster_spec("raycluster")


# --- entrypoints ----------------------------------------------------------------------------------------------------


def check_run(words):
    """The words after `python`: the script exists, and the project takes its arguments."""
    assert (ROOT / words[0]).is_file()
    config = parse_run(words[1:])
    assert re.match(r"(s3|gs)://|\$PRUNEFUSE_RUNS$", config.run.directory)
    return config


def test_the_ray_job_runs_what_the_project_has():
    python, *words = shlex.split(manifest("rayjob-run")["spec"]["entrypoint"])
    assert python == "python"
    config = check_run(words)
    training = next(g for g in kuberay_groups("rayjob-run") if g.role == "training")
    assert config.workers.cpus <= training.resources["CPU"]
    assert config.workers.gpu


def test_the_sweep_job_runs_what_the_project_has():
    python, script, *words = shlex.split(manifest("rayjob-sweep")["spec"]["entrypoint"])
    assert (python, script) == ("python", "jobs/sweep.py")
    assert (ROOT / script).is_file()
    sweep = parse_sweep(words)
    assert sweep.base.run.directory.startswith("s3://")
    training = next(g for g in kuberay_groups("rayjob-sweep") if g.role == "training")
    assert all(t.config.workers.gpu and t.config.workers.cpus <= training.resources["CPU"] for t in trials(sweep))


def test_the_readmes_submissions_are_taken():
    text = (CLUSTER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("ray job submit")]
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert "--working-dir" in words
        entrypoint = words[words.index("--") + 1 :]
        # In single quotes and a second shell, so that the head fills in the variable and not the submitter.
        inner = shlex.split(entrypoint[2]) if entrypoint[:2] == ["bash", "-c"] else entrypoint
        assert inner[0] == "python"
        check_run(inner[1:])


# --- the image ------------------------------------------------------------------------------------------------------


def instructions(file="Dockerfile"):
    text = re.sub(r"^\s*#.*\n", "", (CLUSTER / file).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_image_is_pinned_unprivileged_and_has_a_home():
    steps = instructions()
    assert ("ARG", "BASE=python:3.11-slim-bookworm") in steps
    users = [rest for what, rest in steps if what == "USER"]
    assert users[-1] == "${UID}"
    assert ("ARG", "UID=1000") in steps
    (home,) = (rest for what, rest in steps if what == "ENV")
    # The launcher reads it from the image's environment and mounts below /root without it.
    assert "HOME=/home/ray" in home.split()
    assert "RAY_AUTH_MODE=token" in home.split()
    installs = [rest for what, rest in steps if what == "RUN" and "pip install" in rest]
    assert all("--constraint constraints.txt" in rest or "--no-deps" in rest for rest in installs)


def test_the_image_asks_for_the_dependencies_of_the_extras(tmp_path):
    steps = instructions()
    (extras,) = (rest.partition("=")[2].strip('"') for what, rest in steps if what == "ARG" and "EXTRAS=" in rest)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    assert set(extras.split(",")) <= optional.keys()
    (install,) = (rest for what, rest in steps if what == "RUN" and "tomllib" in rest)
    (command,) = re.findall(r"(python -c .*?) > requirements.txt", install)

    def asked(extras):
        environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "EXTRAS": extras,
        }
        done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.stdout.splitlines()

    assert asked(extras) == project["dependencies"] + optional["openvino"]
    assert asked("") == project["dependencies"]
    assert asked("openvino, timm") == project["dependencies"] + optional["openvino"] + optional["timm"]
    assert asked("opnvino") == [], "an extra that there is not ends the build"


@pytest.mark.parametrize("user", ["ray:1000", "ray:1001", ""])
def test_the_image_has_a_user_with_the_given_id_and_a_home(user, tmp_path):
    """Of a base that has a user `ray` and of one that has none; stand-ins write down what would be done."""
    (setup,) = (rest for what, rest in instructions() if what == "RUN" and "useradd" in rest)
    (command,) = re.findall(r"(if ! id ray.*?; fi) ", setup)
    for name in ("useradd", "usermod", "chown"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "id").write_text(f"#!/bin/sh\n{'echo ' + user[4:] if user else 'exit 1'}\n")
    (tmp_path / "id").chmod(0o755)
    command = command.replace("${UID}", "1001")  # a shell may have a UID of its own
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert (
        done.stdout.splitlines()
        == {
            "ray:1000": ["usermod --uid 1001 ray", "chown -R ray /home/ray"],
            "ray:1001": [],
            "": ["useradd --create-home --uid 1001 --shell /bin/bash ray"],
        }[user]
    )


def test_files_name_the_driver_that_the_pinned_cuda_needs():
    """CUDA 13 needs a driver of version 580 or newer; with other pins these sentences need another number."""
    assert PINS["cuda-toolkit"].startswith("13.")
    for file in ("Dockerfile", "README.md", "aws.yaml", "gcp.yaml", "azure.yaml"):
        assert "580 or newer" in " ".join((CLUSTER / file).read_text(encoding="utf-8").split()), file


def test_compilers_stay_in_the_stage_that_builds():
    steps = instructions()
    first, last = [n for n, (what, _) in enumerate(steps) if what == "FROM"]
    assert [steps[first][1], steps[last][1]] == ["${BASE} AS build", "${BASE}"]
    compilers = re.compile(r"build-essential|\b(gcc|g\+\+|clang|make|cmake)\b|-dev\b")
    assert any(compilers.search(rest) for _, rest in steps[first:last])
    assert not [rest for _, rest in steps[last:] if compilers.search(rest)]
    assert ("COPY", "--from=build /opt/prunefuse /opt/prunefuse") in steps[last:]
    (environment,) = (rest for what, rest in steps[last:] if what == "ENV")
    assert "PATH=/opt/prunefuse/bin:${PATH}" in environment.split()


def test_the_image_copies_only_what_exists_and_is_let_through():
    allowed = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = [rest.split() for what, rest in instructions() if what == "COPY"]
    patterns = [s for words in copied if not words[0].startswith("--from=") for s in words[:-1]]
    for pattern in patterns:
        assert (ROOT / pattern).exists()
        assert fnmatch.filter(allowed, pattern)


def test_the_readme_says_to_wait_for_the_hosts_that_no_autoscaler_tells_of():
    from prunefuse_ray.distributed.autoscaler import parse

    assert parse(prepared("onprem")) is None, "else a run could wait for them by itself"
    assert "ray exec cluster/onprem.yaml 'ray status'" in (CLUSTER / "README.md").read_text(encoding="utf-8")
    assert "hosts that have joined" in (CLUSTER / "onprem.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("extras", "wanted"), [("", "/home/ray/prunefuse"), ("timm", "/home/ray/prunefuse[timm]")])
def test_anyscales_image_is_built_without_extras_too(extras, wanted):
    (line,) = [x for x in (CLUSTER / "anyscale.Dockerfile").read_text().splitlines() if x.startswith("RUN pip")]
    told = subprocess.run(["sh", "-c", f"printf %s {line.split()[-1]}"], env={"EXTRAS": extras}, capture_output=True)
    assert told.stdout.decode() == wanted


@pytest.mark.parametrize("name", ["aws", "azure", "gcp", "onprem"])
def test_hosts_are_told_of_a_store_with_several_options(name):
    """The launcher joins the options into a command of a shell."""
    where = "s3://bucket/runs?endpoint_override=store:9000&scheme=http"
    text = (CLUSTER / f"{name}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(PRUNEFUSE_RUNS=)[^'\"\s]+", lambda found: found[1] + where, text)
    options = " ".join(yaml.safe_load(text)["docker"]["run_options"])
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {options}"], capture_output=True, text=True, check=True)
    assert f"--env=PRUNEFUSE_RUNS={where}" in shown.stdout.splitlines()
