"""Trackers are told each round once, whatever kills the run; what fails in one is told, and the run goes on."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunefuse_ray.cli import main
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.errors import ConfigError, PlanError
from prunefuse_ray.method.steps import TRAIN, Step, steps
from prunefuse_ray.run import loop, phases, tracking
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import sweep_from_tree
from prunefuse_ray.tracking import TRACKERS, Figures, TrackedRun, Tracker
from tests.support.runs import tiny

TOLD: list = []


class Recorder:
    """A tracker of somebody else's."""

    def __init__(self, run):
        TOLD.append(("open", run.name, run.id, [f.round for f in run.before]))

    def log(self, figures):
        TOLD.append(("log", figures.round, figures.labels, dict(figures.values)))
        if figures.round == 1:
            raise OSError("server away")

    def close(self, status):
        TOLD.append(("close", status))


RECORDER = Tracker(name="recorder", about="a list", open=Recorder)
NO_TRACKER = Tracker(name="none", about="nothing", open=Recorder, lacks=lambda: "a pigeon is missing")


def broken(run):
    raise OSError("no such server\nat all")


BROKEN = Tracker(name="broken", about="nothing", open=broken)
MINE = f"{__name__}:RECORDER"


@pytest.fixture(scope="module")
def tracked(local_ray, tiny_pool, tmp_path_factory):
    """A run of three rounds, told to TensorBoard and a tracker of one's own. It fails in the training of round 1, and
    is taken up again."""
    directory = tmp_path_factory.mktemp("tracked")
    config = tiny(tiny_pool, directory, run={"trackers": ["tensorboard", MINE]}, report={"baseline": True})
    train, patch = phases.PHASES["train"], pytest.MonkeyPatch()

    def fails(context, step):
        if step.round == 1:
            raise RuntimeError("no luck")
        return train(context, step)

    TOLD.clear()
    with patch.context() as changed:
        changed.setitem(phases.PHASES, TRAIN, fails)
        with pytest.raises(RuntimeError, match="no luck"):
            loop.run(config)
    warned: list[str] = []
    with patch.context() as changed:
        changed.setattr(tracking.logger, "warning", lambda words, *values: warned.append(words % values))
        loop.run(config)
    return config, directory / "tiny", list(TOLD), warned


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_event_files_hold_every_round_once_and_the_learning_curve_over_labels(tracked):
    """Two drivers wrote two files, and both told of round 0."""
    _, root, _, _ = tracked
    assert len(list((root / "tensorboard").iterdir())) == 2
    found, result = scalars(root / "tensorboard"), json.loads((root / "result.json").read_text())
    proxies = [r["proxy_accuracy"] for r in result["rounds"]]
    assert [step for step, _ in found["proxy_accuracy"]] == [0, 1, 2]
    assert [value for _, value in found["proxy_accuracy"]] == pytest.approx(proxies)
    assert found["learning_curve/proxy_accuracy"] == [
        (labels, pytest.approx(value)) for labels, value in zip([10, 18, 30], proxies, strict=True)
    ]
    assert found["learning_curve/fused_accuracy"] == [(30, pytest.approx(result["fused_accuracy"]))]
    assert found["selection_macs"] == [(r["round"], pytest.approx(r["selection_macs"])) for r in result["rounds"]]
    assert found["baseline_accuracy"] == [(2, pytest.approx(result["baseline_accuracy"]))]


def test_event_files_hold_the_hyper_parameters_with_their_metrics(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    _, root, _, _ = tracked
    found = EventAccumulator(str(root / "tensorboard"))
    found.Reload()
    content = found.summary_metadata
    start = plugin_data_pb2.HParamsPluginData.FromString(
        content["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info.hparams
    assert start["training.epochs"].number_value == 3
    assert start["selection.strategy"].string_value == "least_confidence"
    assert start["selection.budgets"].string_value == "[10, 18, 30]"
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        content["_hparams_/experiment"].plugin_data.content
    ).experiment
    assert {m.name.tag for m in experiment.metric_infos} == {"fused_accuracy", "proxy_accuracy"}


def test_a_tracker_of_ones_own_is_told_what_was_done_before(tracked):
    _, _, told, warned = tracked
    assert [t[0] for t in told] == ["open", "log", "close", "open", "log", "log", "log", "close"]
    assert told[0][:2] == told[3][:2] == ("open", "tiny")
    assert told[0][2] == told[3][2], "the same run"
    assert (told[0][3], told[3][3]) == ([], [0])
    assert [t[1:3] for t in told if t[0] == "log"] == [(0, 10), (1, 18), (2, 30), (2, 30)]
    assert (told[2], told[-1]) == (("close", "failed"), ("close", "done"))
    (what_failed,) = warned
    assert "did not take the figures (server away); the run goes on, and sends" in what_failed
    row = told[5][3]
    assert row["seconds"] == pytest.approx(sum(v for k, v in row.items() if k.startswith("seconds_of/")))


@pytest.mark.slow
def test_the_same_samples_are_selected_with_and_without(tracked, local_ray, tiny_pool, tmp_path):
    _, root, _, _ = tracked
    loop.run(tiny(tiny_pool, tmp_path))
    assert (tmp_path / "tiny/selected.parquet").read_bytes() == (root / "selected.parquet").read_bytes()


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("NO_TRACKER", PlanError, "a pigeon is missing, or leave it out"),
        ("BROKEN", ConfigError, "cannot begin: no such server; put it right, or leave it out"),
    ],
)
def test_a_tracker_that_cannot_begin_is_one_message(local_ray, tiny_pool, tmp_path, name, error, said):
    with pytest.raises(error, match=said):
        loop.run(tiny(tiny_pool, tmp_path, run={"trackers": [f"{__name__}:{name}"]}))
    assert not list(tmp_path.rglob("commits/*.json"))


def test_names_are_checked_with_the_configuration_and_listed(capsys):
    with pytest.raises(ConfigError, match=r"run\.trackers.*unknown tracker 'mlfow' \(did you mean 'mlflow'\?\)"):
        config_from_tree({"run": {"trackers": ["mlfow"]}})
    with pytest.raises(ConfigError, match=r"unknown tracker 'wandbb'"):
        sweep_from_tree({"loggers": ["wandbb"]})
    with pytest.raises(ConfigError, match=r"base\.run\.trackers: a sweep says by its own `loggers`"):
        sweep_from_tree({"base": {"run": {"trackers": ["mlflow"]}}})
    assert main(["list", "trackers", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["tensorboard", "mlflow", "wandb"]


# --- the trackers themselves ---


def figures(round_: int, **values: float) -> Figures:
    return Figures(round=round_, labels=10 + round_, values={"proxy_accuracy": 0.5 + round_ / 10, **values})


def a_run(*before: Figures, parameters: int = 250) -> TrackedRun:
    many = {f"section.field{n}": n for n in range(parameters)}
    return TrackedRun(name="mine", id="a1b2c3", metric="accuracy", parameters={**many, "long": "x" * 9_000},
                      keep=lambda *_: None, before=before)  # fmt: skip


def test_mlflow_goes_on_with_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    first = TRACKERS["mlflow"].open(a_run())
    first.log(figures(0, seconds=2.0))
    first.close("failed")
    again = TRACKERS["mlflow"].open(a_run(figures(0, seconds=2.0), figures(1)))
    again.log(figures(2))
    again.close("done")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("prunefuse_ray").experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, run.data.params["section.field249"], len(run.data.params)) == ("mine", "249", 251)
    history = client.get_metric_history(run.info.run_id, "proxy_accuracy")
    assert [(p.step, p.value) for p in history] == [(0, 0.5), (1, 0.6), (2, 0.7)], "round 0 once"
    curve = client.get_metric_history(run.info.run_id, "learning_curve/proxy_accuracy")
    assert [p.step for p in curve] == [10, 11, 12]


def test_a_server_of_mlflow_that_is_away_is_waited_for_briefly(monkeypatch):
    """MLflow's own patience is four minutes for each request, in which a run or a sweep would stand still."""
    pytest.importorskip("mlflow")
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    for variable in (MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT):
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with monkeypatch.context() as asked_once:
        asked_once.setenv(MLFLOW_HTTP_REQUEST_MAX_RETRIES.name, "0")  # what a user says counts
        with pytest.raises(Exception, match="Max retries exceeded"):
            TRACKERS["mlflow"].open(a_run())
        assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 0
    monkeypatch.setattr("mlflow.MlflowClient", lambda: (_ for _ in ()).throw(ConnectionError("away")))
    with pytest.raises(ConnectionError):
        TRACKERS["mlflow"].open(a_run())
    assert (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()) == (3, 30)


def test_wandb_offline_writes_a_run_that_can_be_synchronized(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    session = TRACKERS["wandb"].open(a_run(figures(0, labels=10), parameters=3))
    session.log(figures(1, seconds=2.0))
    session.close("done")
    (written,) = tmp_path.glob("wandb/offline-run-*/run-a1b2c3.wandb")
    words, deadline = (b"learning_curve", b"proxy_accuracy", b"section.field2", b"mine"), time.monotonic() + 20
    while not all(word in written.read_bytes() for word in words):  # a process of its own writes it
        assert time.monotonic() < deadline, written.read_bytes()[:100]
        time.sleep(0.1)


def test_tensorboards_folder_goes_with_the_command_that_was_killed(tmp_path, monkeypatch):
    """In the folder that the next command removes."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    run = TrackedRun(name="a", id="a", metric="accuracy", parameters={}, keep=lambda *_: None, before=[])
    opened = TRACKERS["tensorboard"].open(run)
    assert len(list(tmp_path.glob("prunefuse-tensorboard-*"))) == 1
    opened.close("done")


def test_what_ends_after_its_step_stands_in_the_summary_of_weights_and_biases(monkeypatch):
    """It takes no figures of a step below the last one; a run that was ended early has its target only then."""
    logged, summary = [], {}
    run = SimpleNamespace(
        step=2, summary=summary, define_metric=lambda *_, **__: None, log=lambda values, step: logged.append(step)
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    session = TRACKERS["wandb"].open(a_run(figures(0), figures(1), parameters=3))
    session.log(figures(1, fused_accuracy=0.9))
    assert (logged, summary.get("fused_accuracy")) == ([], 0.9)
    session.log(figures(2))
    assert logged == [2]
    TRACKERS["wandb"].open(a_run(figures(1, fused_accuracy=0.8), parameters=3))
    assert summary["fused_accuracy"] == 0.8, "told again, for a driver that was killed before it could"


class Server:
    """Of MLflow's client what a session asks; one run."""

    def __init__(self):
        self.points, self.runs = [], []

    def get_experiment_by_name(self, _):
        return SimpleNamespace(experiment_id="0")

    def search_runs(self, *_):
        return self.runs

    def create_run(self, *_, **__):
        self.runs.append(SimpleNamespace(info=SimpleNamespace(run_id="r"), data=SimpleNamespace(params={})))
        return self.runs[0]

    def update_run(self, *_, **__):
        pass

    def log_batch(self, _, metrics=(), params=()):
        self.points += metrics

    def get_metric_history(self, _, name):
        return [point for point in self.points if point.name == name]


def test_a_round_that_ends_again_is_no_second_point_of_mlflow(monkeypatch):
    server = Server()
    entities = SimpleNamespace(
        Metric=lambda name, value, now, step: SimpleNamespace(name=name, value=value, step=step),
        Param=lambda *_: None,
        ViewType=SimpleNamespace(ACTIVE_ONLY=1),
    )
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: server))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for macs in (0.0, 7.0):
        TRACKERS["mlflow"].open(a_run(parameters=3)).log(figures(1, selection_macs=macs))
    told = {
        name: [(p.step, p.value) for p in server.get_metric_history("r", name)]
        for name in ("proxy_accuracy", "selection_macs")
    }
    assert told == {"proxy_accuracy": [(1, 0.6)], "selection_macs": [(1, 0.0), (1, 7.0)]}


def test_a_round_to_which_label_budgets_were_added_is_told_when_it_is_scored(tmp_path):
    def config(*budgets):
        return config_from_tree({"selection": {"budgets": list(budgets)}, "fusion": {"evaluate": "every"}})

    ledger, more = Ledger(Place.at(str(tmp_path))), config(10, 20, 30)
    ledger.create(to_tree(config(10, 20)), {})
    for step in steps(config(10, 20)):
        ledger.commit(step, {}, {"seconds": 1.0})
    ledger.take_budgets(more)
    assert list(tracking.figures_of(more, ledger)) == [0]
    ledger.commit(Step(1, "score"), {}, {"seconds": 1.0, "macs": 7})
    assert tracking.figures_of(more, ledger)[1].values["selection_macs"] == 7
