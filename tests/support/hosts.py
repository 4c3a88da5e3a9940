"""Clusters of several hosts on one machine, in namespaces of their own: nothing outside is seen, or ended, by them.

    unshare -m -n -p -f --kill-child --mount-proc python -m tests.support.hosts SCENARIO SHARED_DIRECTORY

Every host has its own network address and its own /tmp; SHARED_DIRECTORY is /mnt on all of them. A scenario writes what
it saw to SHARED_DIRECTORY/seen.json, for the test that started it. Everything ends with the first process.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support import ROOT

NAMESPACES = ["unshare", "-m", "-n", "-p", "-f", "--kill-child", "--mount-proc"]
HEAD, ADDRESS = "10.77.0.1", "http://127.0.0.1:8265"
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
START = [*RAY, "start", "--disable-usage-stats", "--object-store-memory=200000000"]
SMALL = ["--selection.budgets", "[40,60]", "--training.epochs", "6", "--finetuning.epochs", "4"]


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    inherited["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])  # a job's `python`
    return inherited | {"PYTHONPATH": os.pathsep.join([str(ROOT), inherited.get("PYTHONPATH", "")])} | more


def sh(*words: object, **more) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **more)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Hosts:
    """The first host is this process's namespace; `add` makes another."""

    def __init__(self, shared: Path) -> None:
        sh("ip", "link", "set", "lo", "up")
        sh("mount", "--bind", shared, "/mnt")
        sh("mount", "-t", "tmpfs", "tmpfs", "/tmp")
        self.env = environment(
            RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), OMP_NUM_THREADS="1",
            # Several Rays start on the cores of one machine.
            RAY_raylet_start_wait_time_s="300", RAY_agent_register_timeout_ms="300000",
        )  # fmt: skip
        sh("ip", "link", "add", "hosts", "type", "bridge")
        sh("ip", "addr", "add", f"{HEAD}/24", "dev", "hosts")
        sh("ip", "link", "set", "hosts", "up")
        self.count = 1

    def add(self) -> tuple[int, str]:
        """(first process of the new host, its address); the end of that process is the end of the host."""
        self.count += 1
        address, wire = f"10.77.0.{self.count}", f"wire{self.count}"
        starter = subprocess.Popen(["unshare", "-n", "-m", "-p", "-f", "--kill-child", "--mount-proc", "sleep", "inf"])
        children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children")
        wait_for(children.read_text, 30)
        host = int(children.read_text())
        time.sleep(0.5)
        sh("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", host)
        sh("ip", "link", "set", wire, "master", "hosts", "up")
        for words in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "addr", "add", f"{address}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("mount", "-t", "tmpfs", "tmpfs", "/tmp"),
        ):
            self.on(host, *words)
        return host, address

    def on(self, host: int, *words: object) -> str:
        return sh("nsenter", "-t", host, "-n", "-m", "-p", *words, env=self.env)

    def head(self, *words: str, **env: str) -> None:
        sh(*START, "--head", f"--node-ip-address={HEAD}", "--port=6379", "--dashboard-host=127.0.0.1", *words,
           env=self.env | env)  # fmt: skip

    def submit(self, *arguments: str, wait: bool = True, **env: str) -> tuple[int, str]:
        """`ray job submit` of jobs/run.py with these arguments: (exit code, output)."""
        words = ["job", "submit", "--address", ADDRESS, "--working-dir", self.code(), *([] if wait else ["--no-wait"])]
        done = subprocess.run(
            [*RAY, *words, "--", "python", "jobs/run.py", "--run.directory", "/mnt/runs", *SMALL, *arguments],
            env=self.env | env, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def code(self) -> str:
        """What a checkout holds of the project, for --working-dir."""
        where = Path("/tmp/code")
        if not where.exists():
            for name in ("prunefuse_ray", "jobs"):
                shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("__pycache__"))
        return str(where)


def wait_for(what, seconds: float = 900) -> None:
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.5)


def two_hosts(hosts: Hosts) -> dict:
    """The head drives and has no CPUs; the other host does all the work. Refusals, a stop, and resuming."""
    other, address = hosts.add()
    hosts.head("--num-cpus=0")
    hosts.on(other, *START, f"--address={HEAD}:6379", f"--node-ip-address={address}", "--num-cpus=4")
    seen: dict = {"no token": hosts.submit(RAY_AUTH_TOKEN="wrong" * 10)}
    seen["own disk"] = hosts.submit("--run.directory", "/tmp/runs")
    seen["nothing left"] = not Path("/tmp/runs").exists()
    Path("/mnt/seen.json").write_text(json.dumps(seen))
    _, output = hosts.submit("--run.name", "first", wait=False)
    job = next(w.strip("'") for w in output.split() if w.startswith("'raysubmit_"))
    committed = Path("/mnt/runs/first/rounds/000/commits/train.json")
    wait_for(committed.exists)
    sh(*RAY, "job", "stop", "--address", ADDRESS, job, env=hosts.env)
    seen["stopped"] = sh(*RAY, "job", "status", "--address", ADDRESS, job, env=hosts.env)
    trained = committed.stat().st_mtime_ns
    seen["resumed"] = hosts.submit("--run.name", "first")
    seen["trained once"] = committed.stat().st_mtime_ns == trained
    return seen


def autoscaling(hosts: Hosts) -> dict:
    """No worker at all, then two for scoring, then none again."""
    import ray

    def kind(cpus: int, role: str, most: int) -> dict:
        labels = {"prunefuse.io/role": role}
        return {"resources": {"CPU": cpus}, "labels": labels, "node_config": {}, "min_workers": 0, "max_workers": most}

    head_id = "f" * 51 + "00000"  # the fake provider's name for the head
    lists = ("cluster_synced_files", "file_mounts_sync_continuously", "setup_commands", "initialization_commands",
             "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
             "rsync_exclude", "rsync_filter")  # fmt: skip
    config = {
        "cluster_name": "fake",
        "max_workers": 3,
        "idle_timeout_minutes": 0.25,
        "upscaling_speed": 1.0,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "provider": {
            "type": "fake_multinode",
            "launch_multiple": True,
            "head_node_id": head_id,
            "disable_node_updaters": True,
        },
        "available_node_types": {
            "ray.head.default": kind(0, "head", 0),
            "training": kind(1, "training", 1),
            "scoring": kind(2, "scoring", 2),
        },
        "head_node_type": "ray.head.default",
        **{name: [] if name != "file_mounts_sync_continuously" else False for name in lists},
    }
    Path("/tmp/fake.json").write_text(json.dumps(config))
    # Ray's wheel lacks a file of the fake provider; in this mount namespace the folder may have it.
    folder = Path(ray.__file__).parent / "autoscaler" / "_private" / "fake_multi_node"
    shutil.copytree(folder, "/tmp/fake_multi_node")
    Path("/tmp/fake_multi_node/example.yaml").write_text(json.dumps(config))
    sh("mount", "--bind", "/tmp/fake_multi_node", folder)
    hosts.head(
        "--num-cpus=0", "--autoscaling-config=/tmp/fake.json", "--labels=prunefuse.io/role=head",
        RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_enable_autoscaler_v2="1",
        RAY_CLOUD_INSTANCE_ID=head_id, RAY_OVERRIDE_NODE_ID_FOR_TESTING=head_id,
    )  # fmt: skip
    watcher = subprocess.Popen([sys.executable, "-m", "tests.support.hosts", "watch", "/mnt"], env=hosts.env, cwd=ROOT)
    job = hosts.submit("--run.name", "grown", "--scoring.actors", "[3,3]", "--workers.max_failures", "-1")
    time.sleep(60)
    watcher.terminate()
    lines = Path("/mnt/nodes.jsonl").read_text().splitlines()
    return {"job": job, "nodes": [json.loads(line) for line in lines]}


def lost(hosts: Hosts) -> dict:
    """A host lost in mid-training and one in mid-scoring; the same run without losses beside it."""

    def join() -> int:
        host, address = hosts.add()
        hosts.on(host, *START, f"--address={HEAD}:6379", f"--node-ip-address={address}", "--num-cpus=4")
        return host

    def working(name: str) -> int | None:
        """The host on which a Ray worker runs whose title has this name."""
        for host in alive:
            for process in hosts.on(host, "ps", "-eo", "args").splitlines():
                if process.startswith("ray::") and name in process:
                    return host
        return None

    def lose(name: str) -> bool:
        wait_for(lambda: working(name))
        host = working(name)
        os.kill(host, signal.SIGKILL)
        alive.remove(host)
        alive.append(join())
        return True

    hosts.head("--num-cpus=0")
    alive = [join(), join()]
    seen: dict = {"whole": hosts.submit("--run.name", "whole")}
    _, output = hosts.submit("--run.name", "struck", "--training.epochs", "6", wait=False)
    job = next(w.strip("'") for w in output.split() if w.startswith("'raysubmit_"))
    root = Path("/mnt/runs/struck")
    wait_for(lambda: list(root.glob("rounds/000/training/*/state.safetensors")))
    seen["lost in training"] = lose("RayTrainWorker") and not (root / "rounds/000/commits/train.json").exists()
    wait_for((root / "rounds/000/commits/train.json").exists)
    seen["lost in scoring"] = lose("Scorer") and not (root / "rounds/000/commits/score.json").exists()

    def ended() -> bool:
        seen["struck"] = sh(*RAY, "job", "status", "--address", ADDRESS, job, env=hosts.env)
        return "RUNNING" not in seen["struck"]

    wait_for(ended, 1800)
    return seen


def watch() -> None:
    """Every second, the nodes of each role that are alive."""
    import ray

    ray.init(address=f"{HEAD}:6379", log_to_driver=False)
    with open("/mnt/nodes.jsonl", "w", buffering=1) as file:
        while True:
            roles = [n["Labels"].get("prunefuse.io/role") for n in ray.nodes() if n["Alive"]]
            print(json.dumps({r: roles.count(r) for r in ("training", "scoring")}), file=file)
            time.sleep(1)


SCENARIOS = {"two_hosts": two_hosts, "autoscaling": autoscaling, "lost": lost}


def main(scenario: str, shared: str) -> None:
    if scenario == "watch":
        return watch()
    seen = SCENARIOS[scenario](Hosts(Path(shared)))
    Path("/mnt/seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
