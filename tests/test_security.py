"""What comes from storage cannot run code, and what must not be written is not written."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from prunefuse_ray import networks
from prunefuse_ray.cli import main
from prunefuse_ray.config.files import config_from_tree, merge, to_tree
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.labeled_set import load_samples
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import refuse_pickles, tables
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, Preprocessing, preprocessing_to_bytes
from prunefuse_ray.data.sources.huggingface import scan_arrow
from prunefuse_ray.errors import PoolError
from prunefuse_ray.method.selector import trusted
from prunefuse_ray.networks import NETWORK_FILE, WEIGHTS_FILE, NetworkError, NetworkSpec
from prunefuse_ray.run import loop
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.support.pools import random_images, write_pool
from tests.support.runs import tiny

SECRET = "wJalrXUtnFEMI-not-a-real-key"
SPEC = NetworkSpec(architecture="resnet20", classes=2, input_shape=(1, 8, 8))


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A path that must not come to exist; the bomb itself works."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    yield tmp_path / "exploded"
    assert not (tmp_path / "exploded").exists()


# --- networks -------------------------------------------------------------------------------------------------------


def saved():
    return networks.to_files(networks.Dense(network=networks.build(SPEC, seed=0), spec=SPEC))


@pytest.mark.parametrize("weights", ["pickle", "torch"])
def test_pickled_weights_are_refused_unread(mark, weights):
    buffer = io.BytesIO()
    torch.save({"conv": Bomb(mark)}, buffer)
    content = buffer.getvalue() if weights == "torch" else pickle.dumps(Bomb(mark))
    with pytest.raises(NetworkError, match="not a safetensors file"):
        networks.from_files(saved() | {WEIGHTS_FILE: content})


def test_a_file_cannot_have_a_module_imported(tmp_path, monkeypatch, mark):
    for file in ("evil.py", "timm:evil.py", "torchvision:evil.py"):
        (tmp_path / file).write_text(f"import os\nos.mkdir({str(mark)!r})\ndef network(**_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    files = saved()
    description = json.loads(files[NETWORK_FILE])
    names = ("evil:network", "os:system", "torchvision.models:resnet18", ":evil", "timm:evil:network")
    for name in (*names, "torchvision:evil:network"):
        description["network"]["architecture"] = name
        with pytest.raises(NetworkError):
            networks.from_files(
                files | {NETWORK_FILE: json.dumps(description).encode()}, trusted=("tests.support.nets:tiny",)
            )
    assert "evil" not in sys.modules


def test_only_what_the_configuration_names_is_trusted(tmp_path):
    own = tiny(tmp_path, tmp_path, selection={"selector": "svp:mine.nets:small"}, fusion={"target": "scratch"})
    assert trusted(own) == ("tests.support.nets:tiny", "mine.nets:small")
    spec = NetworkSpec(architecture="tests.support.nets:tiny", classes=2, input_shape=(1, 8, 8))
    files = networks.to_files(networks.Dense(network=networks.build(spec, seed=0), spec=spec))
    with pytest.raises(NetworkError, match=r"set network\.architecture to it if you trust the file"):
        networks.from_files(files)
    networks.from_files(files, trusted(own))


EVIL = "import pathlib\npathlib.Path({!r}).mkdir()\nname = None\n"


@pytest.mark.parametrize(
    "field", ["selection.strategy", "pool.source", "fusion.rule", "task", "scoring.backend", "network.architecture"]
)
@pytest.mark.parametrize("command", [["report"], ["plan", "--against"]], ids=" ".join)
def test_what_a_run_directory_names_is_not_imported_to_read_it(mark, tmp_path, monkeypatch, capsys, field, command):
    (tmp_path / "evil.py").write_text(EVIL.format(str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "run"
    ledger = Ledger(Place.at(str(root)))
    tree = to_tree(config_from_tree({}))
    section, _, key = field.partition(".")
    tree = merge(tree, {section: {key: "evil:name"}} if key else {section: "evil:name"})
    ledger.create(tree, {})
    assert main([*command, str(root)]) == 2
    assert "evil" not in sys.modules
    if field != "network.architecture" or command != ["report"]:
        assert "--trusted evil:name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part",
    [
        {"arms": {"a": {"selection": {"strategy": "evil:name"}}}},
        {"space": {"selection.strategy": {"grid": ["evil:name"]}}},
    ],
    ids=["arms", "space"],
)
def test_what_a_sweep_directory_names_is_not_imported_to_read_it(mark, tmp_path, monkeypatch, capsys, part):
    (tmp_path / "evil.py").write_text(EVIL.format(str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "sweep"
    (Place.at(str(root)) / "sweep.yaml").write_bytes(
        yaml.safe_dump({"base": to_tree(config_from_tree({})), **part}).encode()
    )
    for command in (["report"], ["sweep", "--resume"]):
        assert main([*command, str(root)]) == 2
        assert "evil" not in sys.modules
        assert "--trusted evil:name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "draw"),
    [
        (
            {"search": "optuna", "space": {"selection.strategy": {"choice": ["margin", "entropy"]}}},
            {"selection.strategy": "evil:name"},
        ),
        ({"arms": {"a": {"network": {"architecture": "evil:name"}}}}, None),
    ],
    ids=["draws", "network"],
)
def test_what_a_sweep_directory_names_is_not_imported_to_resume_it(mark, tmp_path, monkeypatch, capsys, part, draw):
    (tmp_path / "evil.py").write_text(EVIL.format(str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    root = Place.at(str(tmp_path / "sweep"))
    tree = {"base": to_tree(config_from_tree({})), **part}
    (root / "sweep.yaml").write_bytes(yaml.safe_dump(tree).encode())
    if draw:
        (root / "draws/000.json").write_json(draw)
    assert main(["sweep", "--resume", root.path]) == 2
    assert "evil" not in sys.modules
    assert "--trusted evil:name" in capsys.readouterr().err


# --- pools ----------------------------------------------------------------------------------------------------------


def pickled_column(mark, rows):
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    return ArrowPythonObjectArray.from_objects(np.array([Bomb(mark)] * rows, dtype=object))


@pytest.mark.parametrize("column", ["id", "image", "label"])
def test_a_pool_of_pickled_objects_is_refused_unread(mark, tmp_path, column):
    columns = {"id": pa.array(["a", "b"]), "image": pa.array([b"", b""]), "label": pa.array([0, 1])}
    (tmp_path / "pool").mkdir()
    file = tmp_path / "pool" / "part.parquet"
    pq.write_table(pa.table(columns | {column: pickled_column(mark, 2)}), file)
    source = Source(fs=Place.at(str(tmp_path)).fs, files=(str(file),), sizes=(file.stat().st_size,))
    with pytest.raises(PoolError, match=f"column '{column}' holds pickled Python objects"):
        next(tables(source, [column]))
    with pytest.raises(PoolError, match="pickled"):
        load_samples(source, ImageForm(height=8, width=8, channels=1))


def test_pickled_labels_of_an_arrow_stream_are_refused_unread(mark, tmp_path):
    table = pa.table({"image": pa.array([b"x"]), "label": pickled_column(mark, 1)})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(PoolError, match="pickled"):
        list(scan_arrow(Place.at(str(tmp_path / "a.arrow")), "image", "label"))


def test_pickles_inside_other_columns_are_found(mark):
    objects = pickled_column(mark, 2)
    nested = pa.ListArray.from_arrays(pa.array([0, 2]), objects)
    with pytest.raises(PoolError, match="column 'x'"):
        refuse_pickles(pa.table({"x": nested}).schema, "f")
    refuse_pickles(pa.table({"x": pa.array([[{"y": 1}]])}).schema, "f")


def test_a_run_on_such_a_pool_stops_before_it_begins(local_ray, mark, tmp_path):
    """The bad file is neither the first nor the last: all of them are looked at."""
    write_pool(tmp_path / "pool", random_images(30), files=3)
    write_pool(tmp_path / "test", random_images(6, seed=1), first_id=900)
    middle = tmp_path / "pool" / "part-1.parquet"
    table = pq.read_table(middle)
    bad = table.set_column(0, "id", pickled_column(mark, table.num_rows))
    pq.write_table(bad, middle)
    with pytest.raises(PoolError, match="column 'id' holds pickled Python objects"):
        loop.run(tiny(tmp_path, tmp_path / "runs", selection={"budgets": [4, 8]}))
    assert not (tmp_path / "runs").exists()


# --- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA123:{SECRET}@bucket/runs",
        f"s3://bucket/runs?secret_key={SECRET}",
        f"s3://bucket/pool.parquet?X-Amz-Signature={SECRET}",
        f"abfs://container/runs?sas_token={SECRET}",
        f"abfs://container:{SECRET}@account.dfs.core.windows.net/runs",
    ],
)
@pytest.mark.parametrize("field", ["run.directory", "pool.path"])
def test_a_secret_in_a_path_is_refused_and_not_repeated(uri, field, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["--pool.source", "parquet", "--pool.test_path", "x", "--pool.classes", "2"] if field == "pool.path" else []
    assert main(["run", f"--{field}", uri, *more]) == 2
    out, err = capfd.readouterr()
    assert field in err
    assert "holds credentials" in err
    assert SECRET not in out + err
    assert not list(tmp_path.iterdir())


def test_a_secret_of_the_environment_is_in_no_file_of_a_run(local_ray, tiny_pool, tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    loop.run(tiny(tiny_pool, tmp_path, selection={"budgets": [10, 18]}))
    token = os.environ["RAY_AUTH_TOKEN"]
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert {"config.yaml", "events.jsonl", "report.html", "result.json"} <= {f.name for f in files}
    for file in files:
        data = file.read_bytes()
        assert SECRET.encode() not in data, file
        assert token.encode() not in data, file


def test_nobody_is_told_of_what_is_done_here():
    """Usage statistics of Ray, of trackers, of OpenVINO."""
    code = """if True:
        import os, sys
        from prunefuse_ray.distributed.security import secure
        secure()
        import torch
        from ray._common.usage import usage_lib
        from prunefuse_ray.networks import BACKENDS
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
        x = torch.ones(2, 3, 2, 2)
        run = BACKENDS["openvino"].runner(network, precision="fp32", device=x.device, example=x, threads=1)
        assert run(x).shape == (2, 2)
        print(usage_lib.usage_stats_enabled(), os.environ["DO_NOT_TRACK"], "openvino_telemetry" in sys.modules)
    """
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_USAGE_STATS_ENABLED", "DO_NOT_TRACK", "RAY_ADDRESS")}
    said = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "1", "False"]


def test_a_ray_that_is_imported_already_keeps_to_its_own_token():
    """It has read its environment: half of the processes would ask for a token that the others do not have."""
    code = """if True:
        import os
        import ray
        from prunefuse_ray.distributed.security import secure
        secure()
        print(sorted(n for n in os.environ if n.startswith("RAY_AUTH")))
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    said = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_what_ray_recovers_from_does_not_stand_among_the_results():
    """Ray prints the deaths of its processes on standard output; that memory runs out shall be heard."""
    again = "Task _scan failed. There are 3 retries remaining, so the task will be retried. Error: "
    recovered = [
        "A worker died or was killed while executing a task by an unexpected system error.",
        "Raylet is terminated. Termination is unexpected. Last lines:\n    raylet.cc:1: memory",
        "The node with node id: ae85 and address: 127.0.0.1 and node name: 127.0.0.1 has been marked dead because the "
        "detector has missed too many heartbeats from it.",
        f"{again}The worker died.\nMore",
    ]
    told = [f"{again}killed:\nthe node was low on memory", "Out of disk"]
    code = f"""if True:
        from prunefuse_ray.distributed.security import secure
        secure()
        from ray._private.worker import print_to_stdstream
        for line in {recovered + told}:
            print_to_stdstream(dict(lines=[line], pid="raylet", is_err=False), ignore_prefix=False)
    """
    clean = {k: v for k, v in os.environ.items() if k != "RAY_DEDUP_LOGS_SKIP_REGEX"}
    said = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True).stdout
    assert said.count("(raylet)") == len(told)
    assert all(line in said for line in told)


def test_a_network_cannot_have_its_task_imported_to_score_with_it(mark, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil.py").write_text(EVIL.format(str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    told = Preprocessing(task="evil:name", form=ImageForm(height=8, width=8, channels=1), classes=["a", "b"])
    (tmp_path / "n").mkdir()
    for name, content in (saved() | {PREPROCESSING_FILE: preprocessing_to_bytes(told)}).items():
        (tmp_path / "n" / name).write_bytes(content)
    assert main(["score", str(tmp_path / "n"), "--out", str(tmp_path / "out")]) == 2
    assert "names a task of its own, 'evil:name'" in capsys.readouterr().err
    assert not mark.exists()
