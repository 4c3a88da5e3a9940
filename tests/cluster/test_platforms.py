"""Slurm, SkyPilot, Anyscale, Kueue and Grafana: what of their files can be held to account without the platform."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from prunefuse_ray.commands.options import parse_run
from prunefuse_ray.run import events
from prunefuse_ray.scoring import meter
from tests.cluster.test_manifests import CLUSTER, JOB_FIELDS, JOBS, KUBERAY, PINS, faults, instructions
from tests.support import ROOT

SLURM = CLUSTER / "slurm.sh"
SKYPILOT_FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
SKYPILOT_RESOURCES = {
    "infra", "accelerators", "cpus", "memory", "instance_type", "use_spot", "disk_size", "disk_tier", "network_tier",
    "image_id", "ports", "labels", "autostop", "any_of", "ordered", "job_recovery",
}  # fmt: skip
ANYSCALE_FIELDS = {
    "name", "image_uri", "containerfile", "compute_config", "working_dir", "excludes", "requirements", "env_vars",
    "py_modules", "cloud", "project", "entrypoint", "max_retries", "timeout_s", "tags",
}  # fmt: skip


def tree(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def runs_digits(command):
    python, script, *words = shlex.split(command)
    assert python.endswith("python")
    assert (ROOT / script).is_file()
    assert parse_run(words).pool.source == "digits"


# --- Slurm ---


@pytest.fixture
def allocation(tmp_path):
    """Two nodes, as far as a script sees them: Slurm's commands write down what they were asked."""
    stand_in = tmp_path / "bin"
    stand_in.mkdir()
    asked = tmp_path / "asked"
    (tmp_path / "resolved").write_text("10.0.0.1 fd00::1\n")
    (tmp_path / "interfaces").write_text("10.0.0.1 172.17.0.1 fd00::1\n")
    commands = {
        "scontrol": "echo node-1; echo node-2",
        "hostname": f'case "$1" in --ip-address) cat {tmp_path}/resolved;; *) cat {tmp_path}/interfaces;; esac',
        "srun": 'case "$*" in *hostname*) while [ "$1" != bash ]; do shift; done; exec "$@";; '
        '*) printf "%s\\n" "$SRUN_CPUS_PER_TASK" "$RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT" '
        f'"$RAY_AUTH_MODE" "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" "$(wc -c < "$RAY_AUTH_TOKEN_PATH")" "$@" > {asked};'
        f' [ ! -e {tmp_path}/starts ] || touch "$RAY_AUTH_TOKEN_PATH.ended";; esac',
    }
    for name, body in commands.items():
        (stand_in / name).write_text(f"#!/bin/bash\n{body}\n")
        (stand_in / name).chmod(0o755)
    (tmp_path / "home").mkdir()
    (tmp_path / "starts").touch()

    def submit(*options):
        environment = {
            "PATH": f"{stand_in}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(tmp_path / "home"),
            "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "8",
        }  # fmt: skip
        subprocess.run(["bash", str(SLURM), *options], env=environment, check=True)
        assert not list((tmp_path / "home/.ray-auth").iterdir()), "the token goes with the job"
        cpus, wait, mode, rights, length, *words = asked.read_text().splitlines()
        assert cpus == "8", "srun takes it from nowhere else"
        assert int(wait) > 30, "Ray's own limit is short for nodes that read it from a shared disk"
        assert (mode, rights, length) == ("token", "600", "64")
        return words

    return submit


def test_slurm_gives_every_node_to_one_ray(allocation):
    words = allocation()
    start, entrypoint = words[: words.index("--")], words[words.index("--") + 1 :]
    assert start[:4] == ["--ntasks=2", "--ntasks-per-node=1", "ray", "symmetric-run"]
    # What Ray itself makes of the options, and that it takes the rest.
    from ray.scripts.scripts import start as ray_start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    context = symmetric_run.make_context("_", [*start[4:]], resilient_parsing=True)
    assert (context.params["address"], context.params["min_nodes"]) == ("10.0.0.1:6379", 2)
    rest = curate_and_validate_ray_start_args([*start[4:]])
    assert ray_start.make_context("_", ["--head", *rest]).params["num_cpus"] == 8
    # Without RAY_ADDRESS a run would start another Ray beside that one.
    assert entrypoint[:2] == ["env", "RAY_ADDRESS=10.0.0.1:6379"]
    assert entrypoint[3:5] == ["bash", "-c"]
    script, *options = entrypoint[5:]
    assert script.startswith('python jobs/run.py "$@"; code=$?;')
    runs_digits(shlex.join(["python", "jobs/run.py", *options[1:]]))


def test_slurm_hands_on_the_options_of_a_run(allocation):
    words = allocation("--preset", "imdb", "--run.name", "two words")
    assert words[-5:] == ["run", "--preset", "imdb", "--run.name", "two words"]


@pytest.mark.parametrize(
    ("resolved", "interfaces", "address"),
    [
        ("127.0.1.1", "10.0.0.7 172.17.0.1", "10.0.0.7"),
        ("::1 127.0.1.1 10.0.0.7", "172.17.0.1", "10.0.0.7"),
        ("fe80::1 127.0.0.53", "fe80::1 10.0.0.7", "10.0.0.7"),
        ("", "10.0.0.7", "10.0.0.7"),
    ],
)
def test_slurm_gives_an_address_that_other_nodes_reach(allocation, tmp_path, resolved, interfaces, address):
    """Debian's and Ubuntu's /etc/hosts has the machine's own name at 127.0.1.1."""
    (tmp_path / "resolved").write_text(f"{resolved}\n")
    (tmp_path / "interfaces").write_text(f"{interfaces}\n")
    words = allocation()
    assert words[words.index("--address") + 1] == f"{address}:6379"
    assert f"RAY_ADDRESS={address}:6379" in words


def test_slurm_says_when_a_node_has_no_address(allocation, tmp_path):
    for file in ("resolved", "interfaces"):
        (tmp_path / file).write_text("127.0.1.1\n")
    with pytest.raises(subprocess.CalledProcessError):
        allocation()


def test_slurm_does_not_call_a_run_done_that_never_began(allocation, tmp_path):
    (tmp_path / "starts").unlink()
    with pytest.raises(subprocess.CalledProcessError):
        allocation()


# --- SkyPilot, Anyscale ---


def test_skypilot_runs_digits_on_a_machine_of_its_own():
    task = tree("skypilot.yaml")
    assert set(task) <= SKYPILOT_FIELDS
    assert set(task["resources"]) <= SKYPILOT_RESOURCES
    assert "--constraint constraints.txt" in task["setup"]
    unset, command = task["run"].strip().splitlines()
    assert unset == "unset RAY_ADDRESS", "SkyPilot's own Ray is not ours"
    runs_digits(command.replace("$OPTIONS", task["envs"]["OPTIONS"]))
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


def test_anyscale_runs_digits_in_the_image():
    job = tree("anyscale.yaml")
    assert set(job) <= ANYSCALE_FIELDS
    assert job["image_uri"].endswith(f":ray{PINS['ray']}-torch{PINS['torch']}")
    assert job["max_retries"] > 0
    runs_digits(job["entrypoint"])


def test_the_image_of_anyscale_keeps_anyscales_ray_and_adds_the_package():
    """A PATH would hide Anyscale's packages, and RAY_AUTH_MODE=token asks for a token that it does not give."""
    assert "anyscale.Dockerfile" in (CLUSTER / "anyscale.yaml").read_text()
    steps = instructions("anyscale.Dockerfile")
    assert steps[0] == ("FROM", f"anyscale/ray:{PINS['ray']}-slim-py311")
    assert {what for what, _ in steps} == {"FROM", "ARG", "COPY", "RUN"}, "no ENV and no USER"
    copied = [s for what, rest in steps if what == "COPY" for s in rest.split()[1:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    (install,) = (rest for what, rest in steps if what == "RUN")
    assert install.startswith("pip install --no-cache-dir --constraint /home/ray/prunefuse/constraints.txt ")
    assert ("ARG", 'EXTRAS="openvino"') in steps
    assert ("ARG", 'EXTRAS="openvino"') in instructions()


# --- Kueue ---


@pytest.mark.parametrize("which", JOBS)
def test_kueue_and_kuberay_take_a_job_with_the_changes_that_its_comment_asks(which):
    """The rules are those of Kueue's webhook (raycluster.ValidateCreate) and of KubeRay 1.7's validation."""
    text = (KUBERAY / f"{which}.yaml").read_text()
    asked, count = re.subn(r"^  # (labels: \{kueue\.x-k8s\.io/queue-name: .*\})$", r"  \1", text, flags=re.MULTILINE)
    assert count == 1
    job = yaml.safe_load(asked)
    assert list(job["metadata"]["labels"]) == ["kueue.x-k8s.io/queue-name"]
    cluster = job["spec"]["rayClusterSpec"]
    cluster["enableInTreeAutoscaling"] = False
    for group in cluster["workerGroupSpecs"]:
        group["replicas"] = group["minReplicas"] + 1
    assert refused(job) == []
    assert faults(job["spec"], JOB_FIELDS) == []
    as_it_stands = yaml.safe_load(asked)
    assert refused(as_it_stands) == ["Kueue: enableInTreeAutoscaling"]
    del cluster["autoscalerOptions"]
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    assert refused(job) == [f"KubeRay: {key} of {n}" for n in names for key in ("idleTimeoutSeconds", "priority")]


def refused(job):
    cluster = job["spec"]["rayClusterSpec"]
    rules = {
        "Kueue: shutdownAfterJobFinishes": not job["spec"]["shutdownAfterJobFinishes"],
        "Kueue: enableInTreeAutoscaling": cluster["enableInTreeAutoscaling"],
        "Kueue: a group of the name head": "head" in [g["groupName"] for g in cluster["workerGroupSpecs"]],
    }
    second = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    for group in cluster["workerGroupSpecs"]:
        name, counts = group["groupName"], [group[key] for key in ("minReplicas", "replicas", "maxReplicas")]
        for key in ("idleTimeoutSeconds", "priority"):
            rules[f"KubeRay: {key} of {name}"] = key in group and not second
        rules[f"KubeRay: replicas of {name}"] = counts != sorted(counts)
    return [rule for rule, broken in rules.items() if broken]


# --- Grafana ---


def test_the_dashboard_shows_metrics_that_there_are(monkeypatch):
    made = set()
    for module, kind, ending in ((events, "Gauge", ""), (meter, "Counter", "_total")):
        monkeypatch.setattr(module, kind, lambda name, ending=ending, **_: made.add(f"ray_{name}{ending}"))
    context = SimpleNamespace(get_job_id=lambda: "1")
    monkeypatch.setattr(events.ray, "get_runtime_context", lambda: context)
    from prunefuse_ray.tasks.classification import CLASSIFICATION

    events.Telemetry(None, "run", CLASSIFICATION.metric)
    meter.ScoringMeter()
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    shown = {name for p in dashboard["panels"] for t in p["targets"] for name in re.findall(r"ray_\w+", t["expr"])}
    assert shown
    assert shown <= made
    ids = [p["id"] for p in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(cells) == len(set(cells)), "no panel covers another"


def test_skypilot_gets_a_python_that_the_package_takes():
    """The machine's own is 3.10."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = re.search(r"venv .*--python 3\.(\d+) ", tree("skypilot.yaml")["setup"])
    assert found
    assert int(found[1]) >= int(project["requires-python"].removeprefix(">=3."))


def test_anyscale_leaves_out_no_part_of_the_package():
    """It reads `excludes` as Ray does: lines of a .gitignore, which without a slash match at every depth."""
    from ray._private.runtime_env.packaging import _get_excludes

    left_out = _get_excludes(ROOT, tree("anyscale.yaml")["excludes"])
    assert [str(p) for p in (ROOT / "prunefuse_ray").rglob("*.py") if left_out(p)] == []
    assert all(left_out(ROOT / name) for name in ("data", "runs", ".git"))
