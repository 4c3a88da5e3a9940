"""What the first version (0.1.0) has left on disk goes on, or is refused by name. `tests/run/data` holds what it wrote:

first_version_runs.tar.xz    `finished`, a whole run; `stopped`, killed after it had scored round 0, before the commit
first_version_sweep.tar.xz   `swept`, a sweep killed in its second trial; `scored`, a pass of `prunefuse score`
"""

import tarfile

import pyarrow.parquet as pq
import pytest
import yaml

import prunefuse_ray
from prunefuse_ray.cli import main
from prunefuse_ray.config.files import config_from_tree, merge
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.run import loop
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep import runner
from prunefuse_ray.sweep.config import sweep_from_tree
from prunefuse_ray.sweep.results import COMPLETE, UNFINISHED, read_sweep
from tests.support import ROOT

RECIPE = {"epochs": 2, "min_steps": 0, "warmup_epochs": 1}
COMMAND = {
    "network": {"architecture": "resnet8"},
    "selection": {"budgets": [20, 30], "strategy": "margin"},
    "training": RECIPE,
    "finetuning": RECIPE,
}
"""What a person would give again."""


@pytest.fixture
def earlier(tmp_path):
    """Everything that the first version wrote, below `tmp_path`."""
    for archive in ("first_version_runs", "first_version_sweep"):
        with tarfile.open(ROOT / f"tests/run/data/{archive}.tar.xz") as tar:
            tar.extractall(tmp_path, filter="data")
    for file in [*tmp_path.rglob("config.yaml"), tmp_path / "swept/sweep.yaml"]:
        file.write_text(file.read_text().replace("directory: RUNS", f"directory: {tmp_path}"))
    return tmp_path


def command(where, name, **more):
    return config_from_tree(merge(merge(COMMAND, {"run": {"directory": str(where), "name": name, "seed": 3}}), more))


def rows(root, name):
    return pq.read_table(root / name).to_pylist()


def files(root):
    return {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


# --- runs ---


def test_a_finished_run_is_complete(earlier):
    before = files(earlier / "finished")
    seen = []
    loop.run(command(earlier, "finished"), lambda *event: seen.append(event))
    assert not seen
    assert files(earlier / "finished") == before


def test_a_stopped_run_goes_on_to_the_same_selection(local_ray, earlier):
    done = []
    loop.run(command(earlier, "stopped"), lambda event, step, _: done.append(str(step)) if event == "done" else None)
    assert done[0] == "round 0, score", "what had been committed was done again"
    scores, then = (
        {r["id"]: r["score"] for r in rows(earlier / run, "rounds/000/scores")} for run in ("stopped", "finished")
    )
    assert scores == pytest.approx(then, abs=1e-5)
    chosen, whole = (
        [r["id"] for r in rows(earlier / run, "rounds/001/selected.parquet")] for run in ("stopped", "finished")
    )
    if scores == then:  # on a CPU of another kind the last bits differ, and near-ties may be chosen the other way
        assert chosen == whole
    assert len(set(chosen)) == 10
    assert min(then[i] for i in chosen) == pytest.approx(min(then[i] for i in whole), abs=1e-5)
    assert (earlier / "stopped/fused/weights.safetensors").exists()


@pytest.mark.parametrize("name", ["finished", "stopped"])
def test_another_configuration_is_refused_by_name(earlier, name):
    before = files(earlier / name)
    with pytest.raises(LedgerError) as caught:
        loop.run(command(earlier, name, training={"epochs": 3}))
    assert "was started with another configuration:\n  training.epochs: 2 -> 3\n" in str(caught.value)
    assert "another --run.name" in str(caught.value)
    assert files(earlier / name) == before


@pytest.mark.parametrize("name", ["finished", "stopped"])
def test_the_report_is_made_again(earlier, name):
    (earlier / name / "report.html").unlink(missing_ok=True)
    assert main(["report", str(earlier / name)]) == 0
    page = (earlier / name / "report.html").read_text()
    for part in (name, "digit-", "margin"):
        assert part in page


# --- networks ---


@pytest.mark.parametrize("directory", ["finished", "finished/fused", "finished/rounds/000/proxies/0"])
def test_a_saved_network_predicts(earlier, directory):
    images = [r["image"] for r in rows(earlier / "finished", "pool/test/digits.parquet")[:5]]
    found = list(prunefuse_ray.load(earlier / directory).predict(images))
    assert len(found) == 5
    for prediction in found:
        assert prediction.label in prediction.probabilities
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_a_saved_network_ranks_a_pool(local_ray, earlier):
    network = str(earlier / "swept/trials/margin_seed-3/fused")
    assert main(["score", network, "--out", str(earlier / "again"), "--top", "20", "--pool.source", "digits"]) == 0
    again, then = ({r["id"]: r["score"] for r in rows(earlier / out, "scores")} for out in ("again", "scored"))
    assert again == pytest.approx(then, abs=1e-5)


def test_a_pass_of_scoring_is_complete_and_another_is_refused(earlier, capsys):
    network, out = str(earlier / "swept/trials/margin_seed-3/fused"), str(earlier / "scored")
    given = ["score", network, "--out", out, "--top", "20", "--pool.source", "digits"]
    before = files(earlier / "scored")
    assert main(given) == 0
    assert "this was complete already" in capsys.readouterr().out
    assert main([*given, "--scoring.features", "true"]) == 2
    assert "scoring.features: False -> True" in capsys.readouterr().err
    # What versions to come may do to a pass: a field that came later, one that is taken no more.
    recorded = earlier / "scored/config.yaml"
    tree = yaml.safe_load(recorded.read_text())
    for section, field in (("pool", "max_pixels"), ("scoring", "features")):
        del tree[section][field]
    recorded.write_text(yaml.safe_dump(tree))
    assert main(given) == 0
    recorded.write_text(yaml.safe_dump(tree | {"width": 3}))
    assert main(given) == 2
    error = capsys.readouterr().err
    assert "width: unknown key" in error
    assert "another --out" in error
    recorded.write_text(yaml.safe_dump(tree))
    assert files(earlier / "scored").keys() == before.keys()


# --- sweeps ---


def sweep(where, **more):
    base = {**COMMAND, "run": {"directory": str(where), "name": "swept"}}
    arms = {"margin": {}, "entropy": {"selection": {"strategy": "entropy"}}}
    return sweep_from_tree(merge({"base": base, "arms": arms, "seeds": [3], "loggers": []}, more))


def test_a_sweep_is_known_again_and_another_is_refused(earlier):
    root = Place.at(str(earlier / "swept"))
    runner._check_unchanged_sweep(root, sweep(earlier))
    runner._check_unchanged_sweep(root, sweep(earlier, seeds=[3, 4]))
    assert [t.outcome.status for t in read_sweep(root).trials] == [COMPLETE, UNFINISHED]
    for more, said in (
        ({"base": {"training": {"epochs": 3}}}, "base.training.epochs: 2 -> 3"),
        ({"arms": {"entropy": {"selection": {"strategy": "random"}}}}, "trial 'entropy_seed-3': selection.strategy"),
        ({"seeds": [4]}, "trial 'margin_seed-3' would be gone"),
    ):
        with pytest.raises(LedgerError) as caught:
            runner._check_unchanged_sweep(root, sweep(earlier, **more))
        assert said in str(caught.value)


def test_a_sweep_from_before_a_field_is_known_again_and_a_field_that_is_gone_is_named(earlier):
    root, recorded = Place.at(str(earlier / "swept")), earlier / "swept/sweep.yaml"
    tree = yaml.safe_load(recorded.read_text())
    del tree["base"]["distillation"], tree["base"]["training"]["patience"], tree["metric"]
    recorded.write_text(yaml.safe_dump(tree, sort_keys=False))
    runner._check_unchanged_sweep(root, sweep(earlier))
    tree["base"]["training"]["swish"] = 3
    recorded.write_text(yaml.safe_dump(tree, sort_keys=False))
    for read in (lambda: runner._check_unchanged_sweep(root, sweep(earlier)), lambda: read_sweep(root)):
        with pytest.raises(LedgerError, match=r"sweep\.yaml.*\n  base\.training\.swish: unknown key"):
            read()


def test_the_report_of_a_sweep_is_made_again(earlier):
    assert main(["report", str(earlier / "swept")]) == 0
    assert "margin" in (earlier / "swept/report.html").read_text()


@pytest.mark.slow
def test_a_sweep_goes_on_with_its_unfinished_trial(local_ray, earlier):
    before = files(earlier / "swept/trials/margin_seed-3")
    started = []
    runner.run_sweep(sweep(earlier), lambda event, name, _: started.append(name) if event == "start" else None)
    assert started == ["entropy_seed-3"]
    assert files(earlier / "swept/trials/margin_seed-3") == before
    found = read_sweep(Place.at(str(earlier / "swept"))).trials
    assert [t.outcome.status for t in found] == [COMPLETE, COMPLETE]
    assert found[1].shared == {"margin_seed-3": 4}, "init, select, label and train of round 0 had been taken over"


@pytest.mark.slow
def test_a_sweep_whose_pool_was_recorded_under_another_key_asks_its_trials(local_ray, earlier, monkeypatch):
    """As a field that is new in `pool` would make it."""
    asked = []
    monkeypatch.setattr(runner.growth, "check_unchanged", lambda _, ledger: asked.append(ledger.root.name))
    monkeypatch.setattr(runner, "pool_key", lambda _: "another")
    swept = sweep(earlier)
    found = runner.trials(swept)
    runner._survey_pools(Place.at(str(earlier / "swept")), found, found, runner.observe(), 1, lambda _: None)
    assert asked == ["margin_seed-3"]
