"""The commands as a person meets them."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunefuse_ray import cli
from prunefuse_ray.cli import main
from prunefuse_ray.commands import COMMANDS, EXIT_CODES
from prunefuse_ray.commands.networks import _rate
from prunefuse_ray.commands.run import closing_table, phase_line
from prunefuse_ray.commands.terminal import account, si
from prunefuse_ray.config.files import PRESETS, config_from_tree, to_tree
from prunefuse_ray.errors import LabelsWaiting, PoolError, lost_by_ray, store_trouble
from prunefuse_ray.method.steps import Step, steps
from prunefuse_ray.networks import Dense, NetworkSpec, build
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.rounds import RoundLines, round_line
from prunefuse_ray.scoring import backend_choice
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks.classification import CLASSIFICATION

ACCURACY = CLASSIFICATION.metric
ROOT = Path(__file__).parent.parent
RESULT = {
    "rounds": [
        {"labels": 50, "proxy_accuracy": 0.5, "fused_accuracy": None, "selection_macs": 25e9,
         "dense_selection_macs": 1e11, "seconds": {"select": 1.0, "train": 2.5}},
        {"labels": 100, "proxy_accuracy": 0.75, "fused_accuracy": 0.8, "selection_macs": 0, "dense_selection_macs": 0,
         "seconds": {"train": 4.5}},
    ],
    "selection_macs": 25e9, "dense_selection_macs": 1e11, "seconds": 8.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, ""), (7, "7"), (1234, "1.23 k"), (2.5e9, "2.5 G"), (3e15, "3 P"), (999_600, "1 M"), (1.42e18, "1.42 E")],
)
def test_si(value, shown):
    assert si(value) == shown


def test_a_round_in_a_line():
    figures = {"train": {"test_accuracy": 0.912}, "score": {"samples": 1387}, "seconds": 12.34}
    assert round_line(0, 50, figures, ACCURACY) == "round 0: 50 labels, proxy 91.2%, 1,387 scored, 12.3 s"


def test_the_closing_table():
    table = closing_table(RESULT, ACCURACY)
    cells = {c.header: (list(c.cells), c.footer) for c in table.columns}
    assert cells["labels"][0] == ["50", "100"]
    assert cells["fused"][0] == ["", "80.0%"]
    assert cells["of dense"] == (["25.0%", ""], "25.0%")
    assert cells["seconds"] == (["3.5", "4.5"], "8.0")
    assert phase_line(RESULT) == "seconds per phase: select 1.0, train 7.0"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--pool.source", "parquet"], "path is missing"),
        (["run", "--run.seed", "x"], "run.seed"),
        (["run", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["report", "/nowhere"], "is this a run directory?"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(arguments, said, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error


def test_samples_that_wait_for_labels_are_no_error_and_exit_code_3(monkeypatch, capsys):
    def wait(*_):
        raise LabelsWaiting("9 samples wait for labels")

    monkeypatch.setattr("prunefuse_ray.commands.run.parse_run", wait)
    assert main(["run"]) == 3
    assert capsys.readouterr().err == "waiting: 9 samples wait for labels\n"


@pytest.mark.parametrize("flag", ["--bogus", "--workers.cpu"])
def test_unknown_and_abbreviated_flags_end_with_exit_code_2(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", flag, "1"])
    assert stopped.value.code == 2
    assert flag in capsys.readouterr().err


def test_the_table_of_what_pruning_leaves(capsys):
    assert main(["networks", "resnet20", "--input", "3,32,32", "--ratios", ".5"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "16→8 32→16 64→32" in shown
    assert "samples" not in shown
    assert main(["networks", "resnet21"]) == 2
    assert main(["networks", "resnet20", "--input", "3,x"]) == 2


def test_a_speedup_is_answered_by_the_largest_proxy_that_reaches_it(capsys, monkeypatch):
    """Rates that are proportional to what is left of the network, but widths that are no multiples of 8 cost double."""

    def rate(scoring, selector, job, macs, rows):
        whole = selector.network.stem.out_channels
        return 64.0 / whole if whole % 8 == 0 else 32.0 / whole

    monkeypatch.setattr("prunefuse_ray.scoring.backend_choice.rate_here", rate)
    asked = ["networks", "resnet8", "--input", "3,32,32", "--ratios", ".3,.5", "--speedup"]
    assert main([*asked, "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "pruning: {ratio: 0.3, round_to: 8}"
    assert main([*asked, "3"]) == 2
    assert "the fastest 2.0" in capsys.readouterr().err
    assert main(["networks", "textcnn", "--input", "128", "--measure"]) == 2


def test_the_speed_of_a_network_with_a_class_for_every_pixel_is_measured(monkeypatch):
    """Its outputs have two more axes than a classifier's."""
    monkeypatch.setattr(backend_choice, "MEASURED_SECONDS", 0.001)
    monkeypatch.setattr(backend_choice, "BATCH_SIZES", {False: (8,), True: (8,)})
    monkeypatch.setattr(backend_choice, "MACS_WORTH_MEASURING", float("inf"))
    spec = NetworkSpec(architecture="fcn_resnet8", classes=4, input_shape=(3, 32, 32))
    assert _rate(Dense(network=build(spec, seed=0), spec=spec), spec) > 0


def test_presets_are_listed_with_the_command_that_takes_them_and_a_line_of_their_own(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(PRESETS.glob("*.yaml")))
    for line in lines:
        *command, name = line.split()[:4]
        assert command in (["prunefuse", "run", "--preset"], ["prunefuse", "sweep", "--preset"])
        first = (PRESETS / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# "), f"{name}: begin it with a comment that says in one line what it is"
        assert first.endswith("."), f"{name}: the first line is to be a sentence of its own"
        assert line.endswith(first.removeprefix("#"))


def test_the_help_names_every_command_and_exit_code(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in COMMANDS)
    assert all(f"\n  {code} " in shown for code in EXIT_CODES)
    assert shown.count("\n") < 40
    assert {p.stem for p in (ROOT / "prunefuse_ray" / "commands").glob("*.py")} >= set(COMMANDS)
    assert main([]) == 2
    assert main(["lable"]) == 2
    assert "'lable' is no command (did you mean 'label'?)" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["list", "strategies"], ["presets"]])
def test_tables_come_as_json(argv, capsys):
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name"} <= found[0].keys()
    assert len(found) > 5


def test_no_color_is_kept_to():
    code = "from prunefuse_ray.commands.terminal import console; console.print('[red]x[/red]')"
    environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"}
    for more, colored in (({}, True), ({"NO_COLOR": "1"}, False)):
        done = subprocess.run([sys.executable, "-c", code], env=environment | more, capture_output=True, text=True)
        assert ("\x1b[31m" in done.stdout) == colored, done


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prunefuse_ray {version('prunefuse-ray')}\n"


@pytest.mark.faults
def test_the_job_runs_resumes_and_reports(tmp_path, capsys):
    """`jobs/run.py` on a cut of the digits, in a process and a Ray of its own, as a person would start it; what starts
    no Ray any more, in this process."""
    options = [
        "--run.directory", str(tmp_path), "--run.name", "cut", "--network.architecture", "resnet8",
        "--selection.budgets", "20,40", "--training.epochs", "4", "--finetuning.epochs", "4",
        "--training.min_steps", "0", "--finetuning.min_steps", "0",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()

    first = subprocess.run(
        [sys.executable, "jobs/run.py", *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert first.returncode == 0, first.stdout + first.stderr
    lines = first.stdout.splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("round")] == [
        "round 0: 20 labels",
        "round 1: 40 labels",
    ]
    assert str(tmp_path / "cut" / "report.html") in lines[-1]
    assert "Traceback" not in first.stderr
    assert main(["run", *options]) == 0
    assert "this run was complete already" in capsys.readouterr().out
    assert main(["run", *options, "--training.lr", "0.05"]) == 2
    assert "training.lr: 0.1 -> 0.05" in capsys.readouterr().err
    assert not list((tmp_path / "home").rglob("auth_token")), "a token was left in the home directory"
    page = (tmp_path / "cut" / "report.html").read_bytes()
    assert main(["report", str(tmp_path / "cut")]) == 0
    assert (tmp_path / "cut" / "report.html").read_bytes() == page


def test_code_of_ones_own_is_found_in_the_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("from tests.support.nets import tiny\n")
    monkeypatch.chdir(tmp_path)
    # As for an installed command: Python itself would not look there.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    try:
        assert main(["networks", "mine:tiny", "--input", "1,8,8", "--ratios", ".5"]) == 0
    finally:
        sys.modules.pop("mine", None)
    assert "mine:tiny, input 1,8,8" in capsys.readouterr().out


def test_the_line_of_a_round_tells_of_what_an_earlier_command_did(tmp_path):
    """It was stopped after the round's training: its accuracy and time belong to the round as well."""
    config = config_from_tree({"selection": {"budgets": [50, 100]}})
    ledger, said = Ledger(Place.at(str(tmp_path))), []
    ledger.create(to_tree(config), {})
    metrics = {"label": {"labels": 50}, "train": {"test_accuracy": 0.912}, "score": {"samples": 1387}}
    mine = [s for s in steps(config) if s.round == 0]
    for step in mine:
        ledger.commit(step, {}, {"seconds": 2.0, **metrics.get(step.phase, {})})
    lines = RoundLines(config, ledger.root, said.append)
    lines("done", mine[-1], ledger.committed(mine[-1]))
    assert said == [f"round 0: 50 labels, proxy 91.2%, 1,387 scored, {2.0 * len(mine):.1f} s"]


def test_a_round_to_which_budgets_were_added_has_its_line_when_it_is_scored(tmp_path):
    """The last of its steps in the plan was done before."""
    config = config_from_tree({"selection": {"budgets": [50, 100]}, "fusion": {"evaluate": "every"}})
    ledger, said = Ledger(Place.at(str(tmp_path))), []
    ledger.create(to_tree(config), {})
    lines, mine = RoundLines(config, ledger.root, said.append), [s for s in steps(config) if s.round == 0]
    scored = Step(0, "score")
    for step in [*(s for s in mine if s != scored), scored]:
        told = {"label": {"labels": 50}, "train": {"test_accuracy": 0.9}, "score": {"samples": 9}}.get(step.phase, {})
        ledger.commit(step, {}, {"seconds": 1.0, "test_accuracy": 0.9, **told})
        lines("done", step, ledger.committed(step))
    assert len(said) == 1
    assert "9 scored" in said[0]


PRINTS = """
import sys
from prunefuse_ray.commands.terminal import console
sys.stdin.readline()
console.print("nobody reads this")
console.print("nor this")
print("went on", file=sys.stderr)
"""


def unread(code):
    """(errors, exit code) of Python code that waits for a line of input first, and whose output nobody reads."""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.flush()
        errors = process.stderr.read()
    return errors, process.returncode


def test_a_reader_that_has_gone_ends_no_work():
    """`prunefuse run ... | head`"""
    assert unread(PRINTS) == ("went on\n", 0)


def test_a_table_that_nobody_reads_is_no_traceback():
    command = "sys.stdin.readline(); sys.exit(entry(['presets', '--json']))"
    assert unread(f"import sys; from prunefuse_ray.cli import entry; {command}") == ("", 141)


def test_a_terminal_that_is_not_utf_8_ends_no_command():
    code = "from prunefuse_ray.cli import entry; entry(['--version']); print('\u2013')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, b"?")


def test_a_working_directory_that_is_gone_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    (tmp_path / "x").rmdir()
    assert main(["presets"]) == 2
    assert capsys.readouterr().err == "error: the working directory is gone: change to another one\n"


def test_names_of_a_pool_tell_a_terminal_nothing(capsys):
    account(["a\x1b[2Jb"])
    assert capsys.readouterr().out == "a\ufffd[2Jb\n"
    assert str(PoolError("a\x1b[2Jb\tc\nd")) == "a\ufffd[2Jb\tc\nd"


def test_an_error_in_a_function_of_ray_data_is_no_death_of_ray():
    import ray

    ours = ray.exceptions.RayTaskError("f", "Traceback", ray.exceptions.UserCodeException("UDF failed"))
    assert lost_by_ray(ours) is None
    assert lost_by_ray(ray.exceptions.ActorDiedError()) is not None


def test_a_supervised_driver_leaves_without_rays_shutdown_and_without_what_was_spilled(monkeypatch):
    """The supervisor ends Ray's processes; spilled objects may lie outside its folder."""
    removed, last, no_more = [], [], []
    node = SimpleNamespace(is_head=lambda: True, destroy_external_storage=lambda: removed.append("spilled"))
    worker = SimpleNamespace(_global_node=node)
    ray = SimpleNamespace(shutdown=object(), _private=SimpleNamespace(worker=worker))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv(cli.supervisor.CHILD, "1,2,3")
    monkeypatch.setattr(cli, "_attach", lambda *_: None)
    monkeypatch.setattr(cli, "main", lambda _: 3)
    monkeypatch.setattr(cli.interrupts, "install", lambda: None)
    monkeypatch.setattr(cli.progress, "tell", lambda **_: None)
    monkeypatch.setattr(cli, "atexit", SimpleNamespace(register=last.append, unregister=no_more.append))
    assert cli.entry(["run"]) == 3
    assert (removed, last, no_more) == (["spilled"], [cli._leave], [ray.shutdown])


def test_what_ray_train_wraps_is_found():
    """It keeps what it heard of a worker, and what failed in its controller, in attributes of its own errors."""
    import ray.train
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    died = ray.exceptions.ActorDiedError()
    lost = WorkerHealthCheckFailedError("no answer", failure=died)
    assert lost_by_ray(ray.train.WorkerGroupError("worker 0", {0: lost})) is died
    assert lost_by_ray(ray.train.ControllerError(died)) is died
    away = OSError("When writing: AWS Error SLOW_DOWN during PutObject operation")
    assert store_trouble(ray.train.ControllerError(away)).startswith("object store: ")


def test_an_error_that_cannot_be_pickled_is_no_death_of_ray():
    import threading

    import ray

    held = ValueError("bad")
    held.lock = threading.Lock()
    ours = ray.exceptions.RayTaskError("f", "Traceback", held, proctitle="p", pid=1, ip="127.0.0.1")
    assert type(ours.cause) is ray.exceptions.RayError
    assert lost_by_ray(ours) is None
