"""Draws by what came out: written down before they are tried, told once, and the same after a kill."""

import json
import signal
import time

import pytest
import yaml

from prunefuse_ray.commands import sweep as sweep_command
from prunefuse_ray.errors import ConfigError, LedgerError, PlanError
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import ends, sweep_from_tree, trials
from prunefuse_ray.sweep.results import COMPLETE, read_draws, read_sweep, trials_of
from prunefuse_ray.sweep.runner import run_sweep
from prunefuse_ray.sweep.search import Draws, check_search, optuna
from tests.sweep.test_runner import Heard, start, tree, wait_for

SPACE = {"training.lr": {"loguniform": [0.001, 1.0]}, "training.batch_size": {"choice": [16, 32]}}


def made(tmp_path, **more):
    own = {"base": {"run": {"directory": str(tmp_path), "name": "s"}}, "space": SPACE, "seeds": [0, 1], "samples": 6}
    return sweep_from_tree({**own, "search": "optuna", **more})


def quality(trial):
    """Best at a rate of 0.1; a seed changes it a little; rates below 0.01, a third of the space, fail."""
    rate = trial.config.training.lr
    return None if rate < 0.01 else 1 - abs(rate - 0.1) + trial.config.run.seed / 100


class Tune:
    """As Ray Tune uses a searcher, one trial at a time."""

    def __init__(self, sweep, root, todo=()):
        self.searcher = Draws(sweep, root, quality, todo, optuna(sweep, len(read_draws(root))))
        self.study = self.searcher.search._ot_study

    def go(self, most=99):
        names = []
        while len(names) < most and (found := self.searcher.suggest(f"t{len(names)}")) != "FINISHED":
            names.append(found["trial"]["name"])
            self.searcher.on_trial_complete(f"t{len(names) - 1}", {})
        return names


def told(study):
    return [(t.params["training.lr"], t.value) for t in study.trials if t.state.name == "COMPLETE"]


def test_a_draw_that_was_being_written_when_the_sweep_was_killed_is_none(tmp_path):
    root = Place.at(str(tmp_path))
    (root / "draws" / "000.json").write_json({"training.lr": 0.1})
    (root / "draws" / ".001.json.4711.tmp").write_bytes(b"{")
    assert read_draws(root) == [{"training.lr": 0.1}]


def test_every_draw_is_tried_with_all_seeds_and_told_once(tmp_path):
    pytest.importorskip("optuna")
    sweep, root = made(tmp_path), Place.at(str(tmp_path / "s"))
    tuned = Tune(sweep, root)
    names = tuned.go()
    drawn = read_draws(root)
    assert (len(names), len(drawn)) == (12, 6)
    assert names == [t.name for t in trials_of(sweep, root)], "what is on the disk gives the same trials"
    assert [t.config.training.lr for t in trials_of(sweep, root)][::2] == [d["training.lr"] for d in drawn]
    points = trials_of(sweep, root)
    pairs = [(quality(a), quality(b)) for a, b in zip(points[::2], points[1::2], strict=True)]
    means = [(a + b) / 2 for a, b in pairs if a is not None]
    assert [value for _, value in told(tuned.study)] == pytest.approx(means)
    assert len([t for t in tuned.study.trials if t.state.name == "PRUNED"]) == 6 - len(means)


def test_a_search_that_was_killed_goes_on_with_what_it_drew(tmp_path):
    """In the middle of its third draw: that one is finished, what was measured is told, and no draw comes twice."""
    pytest.importorskip("optuna")
    sweep, root = made(tmp_path), Place.at(str(tmp_path / "s"))
    Tune(sweep, root).go(most=5)
    before = read_draws(root)
    assert len(before) == 3
    todo = trials_of(sweep, root)[5:]
    again = Tune(sweep, root, todo)
    assert len(again.study.trials) == 2, "told of the two draws that have ended"
    names = again.go()
    assert (len(names), names[0]) == (7, todo[0].name)
    assert read_draws(root)[:3] == before
    assert len({json.dumps(d) for d in read_draws(root)}) == 6
    assert len(again.study.trials) == 6
    more = made(tmp_path, samples=7)
    assert len(Tune(more, root).go()) == 2, "a sweep may grow"


def test_it_looks_where_it_was_good_and_not_where_trials_fail(tmp_path):
    pytest.importorskip("optuna")
    sweep, root = made(tmp_path, samples=40, seeds=[0]), Place.at(str(tmp_path / "s"))
    Tune(sweep, root).go()
    rates = [d["training.lr"] for d in read_draws(root)]
    assert sum(0.03 < r < 0.3 for r in rates[20:]) > 12, "a third of the space by chance: 7 of 20"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"space": {}}, "search: optuna needs distributions in `space`"),
        ({"arms": {"a": {}}}, r"leaves no room for arms \(a\)"),
        (
            {"space": {**SPACE, "pruning.ratio": {"grid": [0.5]}}},
            r"no room for a grid \(pruning\.ratio\): make it a choice",
        ),
        ({"space": {**SPACE, "pool.image_size": {"choice": [[8, 8]]}}}, "'pool.image_size' makes pools of its own"),
    ],
)
def test_what_a_search_cannot_do_is_refused(tmp_path, more, said):
    with pytest.raises(ConfigError, match=said):
        made(tmp_path, **more)


def test_the_ends_of_the_space_have_to_be_configurations(tmp_path):
    points = [tuple(point.values()) for point in ends(made(tmp_path))]
    assert sorted(points) == [(0.001, 16), (0.001, 32), (1.0, 16), (1.0, 32)]
    assert ends(made(tmp_path, space={"training.lr": {"uniform": [0.1, 0.2]}})) == [
        {"training.lr": 0.1},
        {"training.lr": 0.2},
    ]
    with pytest.raises(ConfigError, match=r"pruning\.ratio: 1\.5 is not valid"):
        run_sweep(made(tmp_path, space={"pruning.ratio": {"uniform": [0.5, 1.5]}}))
    assert not (tmp_path / "s").exists()


def test_fields_that_do_not_go_together_are_refused_before_anything_is_drawn(tmp_path):
    space = {
        "training.lr": {"uniform": [0.1, 0.2]},
        "training.epochs": {"randint": [2, 31]},
        "training.warmup_epochs": {"uniform": [0, 10]},
    }
    sweep = made(tmp_path, space=space)
    with pytest.raises(ConfigError, match="warmup_epochs 10 leaves nothing of 2 epochs"):
        trials(sweep, ends(sweep))


def test_a_space_from_which_values_were_drawn_gains_no_field(tmp_path):
    root = Place.at(str(tmp_path / "s"))
    (root / "draws" / "000.json").write_json({"training.lr": 0.1, "training.batch_size": 16})
    with pytest.raises(LedgerError, match=r"have been drawn already, and space has .*pruning\.ratio"):
        trials_of(made(tmp_path, space={**SPACE, "pruning.ratio": {"uniform": [0.5, 0.8]}}), root)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"search: optuna is not installed: pip install 'prunefuse-ray\[optuna\]'"):
        check_search(made(tmp_path))


def test_numbers_are_shown_as_they_were_tried_and_stay_inside(tmp_path):
    axis = made(tmp_path, space={"training.lr": {"uniform": [0.012345, 0.5]}}).space["training.lr"]
    assert [axis.as_shown(v) for v in (0.0123451, 0.1234567, 0.49999)] == [0.01235, 0.1235, 0.5]
    assert axis.model_copy(update={"uniform": (0.12344, 0.5)}).as_shown(0.12344) == 0.12344, "and not 0.1234"


@pytest.mark.slow
def test_a_sweep_that_searches(local_ray, tiny_pool, tmp_path):
    pytest.importorskip("optuna")
    own = tree(tiny_pool, tmp_path, space={"training.lr": {"loguniform": [0.01, 0.2]}}, search="optuna", samples=3)
    own["arms"] = {}
    sweep, heard = sweep_from_tree(own), Heard()
    found = run_sweep(sweep, heard)
    assert [t.name for t in found] == sorted(heard.of(COMPLETE))
    assert len(found) == 3
    again = Heard()
    run_sweep(sweep, again)
    assert again.events == []
    more = Heard()
    run_sweep(sweep.model_copy(update={"samples": 4}), more)
    assert len(more.of(COMPLETE)) == 1
    result = read_sweep(Place.at(str(tmp_path / "swept")))
    assert [r.outcome.status for r in result.trials] == [COMPLETE] * 4


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_killed_sweep_that_searches_loses_no_draw(tiny_pool, tmp_path):
    """SIGKILL of the command in the first training of its second draw, which may live on for a moment."""
    pytest.importorskip("optuna")
    own = tree(tiny_pool, tmp_path, space={"training.lr": {"loguniform": [0.01, 0.2]}}, search="optuna", samples=3)
    own["arms"], own["concurrency"], own["loggers"] = {}, 1, []
    file, root = tmp_path / "swept.yaml", tmp_path / "swept"
    file.write_text(yaml.safe_dump(own))
    first = start(file, tmp_path)
    wait_for(root / "draws/001.json", first)
    while not (labeled := list(root.glob("trials/001*/rounds/000/commits/label.json"))):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    while Ledger(Place.at(str(labeled[0].parents[3]))).driven:
        time.sleep(0.1)
    drawn, before = read_draws(Place.at(str(root))), read_sweep(Place.at(str(root))).trials
    kept = {p: p.stat().st_mtime_ns for p in root.rglob("commits/*.json")}
    assert labeled[0] in kept
    output, _ = (again := start(file, tmp_path)).communicate(timeout=900)
    assert again.returncode == 0, output
    complete = sum(r.outcome.status == COMPLETE for r in before)
    assert f"{complete} of them were complete already" in output
    assert complete >= 1
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "a committed phase was done again"
    after = read_draws(Place.at(str(root)))
    assert (after[: len(drawn)], len(after)) == (drawn, 3)
    assert [r.outcome.status for r in read_sweep(Place.at(str(root))).trials] == [COMPLETE] * 3


def test_what_ended_a_sweep_is_what_is_said(tmp_path, monkeypatch):
    """And not that its results cannot be read."""

    def interrupted(*_):
        (tmp_path / "s").mkdir()
        (tmp_path / "s/sweep.yaml").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr("prunefuse_ray.sweep.runner.run_sweep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep_command.main(["--preset", "digits_sweep", "--run.directory", str(tmp_path), "--run.name", "s"])
