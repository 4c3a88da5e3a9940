"""The loop: what it decides, what it records, and that a kill at any moment changes nothing of the outcome."""

import functools
import json
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.errors import ConfigError, LedgerError, PlanError, PoolError
from prunefuse_ray.method import steps
from prunefuse_ray.method.steps import Step
from prunefuse_ray.networks import NetworkError
from prunefuse_ray.run import loop
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.schemas import hardness_schema
from prunefuse_ray.storage import Place
from tests.support.driver import arm
from tests.support.nets import OWN
from tests.support.pools import random_images
from tests.support.runs import carried_out, driven
from tests.support.runs import tiny as in_the_driver


def tiny(where: Path, directory: Path, **more):
    return in_the_driver(where, directory, **{"scoring": {"actors": (1, 1)}, **more})


def scores_of(root: Path, round_: int) -> list[tuple]:
    files = (root / f"rounds/{round_:03d}/scores").glob("*.parquet")
    return sorted((r["id"], r["score"]) for f in files for r in pq.read_table(f).to_pylist())


def outcome(root: Path) -> dict:
    """What must not depend on kills or on the number of actors: selected ids, scores, labels, weights."""
    found: dict = {}
    rounds_ = sorted((root / "rounds").iterdir())
    for r, directory in enumerate(rounds_):
        found[r, "scores"] = scores_of(root, r)
        for name in ("selected", "labels"):
            found[r, name] = pq.read_table(directory / f"{name}.parquet").to_pylist()
        found[r, "proxy"] = (directory / "proxies/0/weights.safetensors").read_bytes()
    found["fused"] = (rounds_[-1] / "fused/weights.safetensors").read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(local_ray, tiny_pool, tmp_path_factory):
    """Scored in the driver, as so small a pool is; no number of actors and no kill may make a difference to it."""
    directory = tmp_path_factory.mktemp("undisturbed")
    loop.run(in_the_driver(tiny_pool, directory))
    return directory / "tiny"


@pytest.fixture(scope="module")
def undisturbed_with(local_ray, tiny_pool, tmp_path_factory):
    """The directory of a run with these label budgets, made once; tests only read it, or go on with a copy."""

    @functools.cache
    def made(*budgets: int) -> Path:
        directory = tmp_path_factory.mktemp("budgets")
        loop.run(in_the_driver(tiny_pool, directory, selection={"budgets": list(budgets)}))
        return directory / "tiny"

    return made


# --- an undisturbed run ---


def test_a_run_labels_exactly_the_budget_without_repeats(undisturbed):
    ids = []
    for r, chosen in enumerate([10, 8, 12]):
        selected = pq.read_table(undisturbed / f"rounds/{r:03d}/selected.parquet")
        labels = pq.read_table(undisturbed / f"rounds/{r:03d}/labels.parquet")
        assert selected.num_rows == chosen
        assert sorted(labels["id"].to_pylist()) == sorted(selected["id"].to_pylist())
        assert labels["label"].to_pylist() == [int(i[1:]) % 2 for i in labels["id"].to_pylist()]
        ids += selected["id"].to_pylist()
    assert len(set(ids)) == 30


def test_selection_is_the_top_of_the_scores_of_the_round_before(undisturbed):
    for r in (1, 2):
        scores = scores_of(undisturbed, r - 1)
        best = sorted(scores, key=lambda s: (-s[1], s[0]))
        selected = pq.read_table(undisturbed / f"rounds/{r:03d}/selected.parquet")
        assert selected["id"].to_pylist() == [i for i, _ in best[: selected.num_rows]]


def test_labeled_samples_are_not_scored(undisturbed):
    labeled = set()
    for r, rows in ((0, 110), (1, 102)):
        labeled |= set(pq.read_table(undisturbed / f"rounds/{r:03d}/labels.parquet")["id"].to_pylist())
        scored = {i for i, _ in scores_of(undisturbed, r)}
        assert len(scored) == rows
        assert not scored & labeled


def test_scores_are_those_of_the_saved_proxy(undisturbed):
    """Recomputed here from the files with plain torch, one sample at a time."""
    import torch

    directory = undisturbed / "rounds/000/proxies/0"
    proxy = networks.from_files({f.name: f.read_bytes() for f in directory.iterdir()}, OWN).network.eval()
    pixels = random_images(120)
    for id_, score in scores_of(undisturbed, 0)[::10]:
        x = (torch.tensor(pixels[int(id_[1:])]).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        expected = 1 - torch.softmax(proxy(x), 1).max().item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_the_run_directory_is_the_documented_one(undisturbed):
    for name in (
        "config.yaml",
        "pool.json",
        "result.json",
        "report.html",
        "fused/weights.safetensors",
        "fused/network.json",
    ):
        assert (undisturbed / name).is_file(), name
    for name in ("selected.parquet", "labels.parquet", "metrics.json", "proxies/0/weights.safetensors"):
        assert (undisturbed / "rounds/001" / name).is_file(), name
    assert not list(undisturbed.rglob("*.pkl")) + list(undisturbed.rglob("*.pt"))
    assert not (undisturbed / "rounds/000/training").exists() or not list(
        (undisturbed / "rounds/000/training").rglob("*.*")
    )


def test_a_complete_run_does_nothing_again(undisturbed, tiny_pool):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}
    seen = []
    loop.run(tiny(tiny_pool, undisturbed.parent), lambda *e: seen.append(e))
    assert not seen
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()} == before


def test_another_configuration_is_refused_with_the_difference(undisturbed, tiny_pool):
    other = tiny(tiny_pool, undisturbed.parent, run={"seed": 5}, training={"epochs": 4})
    with pytest.raises(LedgerError) as caught:
        loop.run(other)
    assert "run.seed: 0 -> 5" in str(caught.value)
    assert "training.epochs: 3 -> 4" in str(caught.value)
    assert "--run.name" in str(caught.value)


# --- the same outcome whatever happens ---


def end(*_):
    """Ends a run in this process, as nothing in it expects: what kills of the process do is for `make test-faults`."""
    raise KeyboardInterrupt


@pytest.mark.slow
def test_actors_score_as_the_driver_does_and_what_they_wrote_is_kept(undisturbed, tiny_pool, tmp_path, monkeypatch):
    config = tiny(tiny_pool, tmp_path, scoring={"actors": (2, 2)})
    with monkeypatch.context() as patch:
        arm("commit", 0, "score", str(tmp_path), end=end, patch=patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            loop.run(config)
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "tiny/rounds/000/scores").glob("*.parquet")}
    assert kept
    with pytest.raises(KeyboardInterrupt):
        loop.run(config, lambda event, step, _: end() if (event, step) == ("done", Step(0, "score")) else None)
    assert {f: f.stat().st_mtime_ns for f in kept} == kept, "finished rows were scored again"
    assert scores_of(tmp_path / "tiny", 0) == scores_of(undisturbed, 0)


@pytest.mark.slow
@pytest.mark.parametrize("actors", [(1, 1), (2, 2), (3, 3)])
def test_the_number_of_actors_changes_nothing(undisturbed, tiny_pool, tmp_path, actors):
    loop.run(tiny(tiny_pool, tmp_path, scoring={"actors": actors}))
    assert outcome(tmp_path / "tiny") == outcome(undisturbed)


def drive(config, tmp_path, *kill) -> tuple[int, list[str]]:
    """The driver's exit code and the steps that it finished."""
    done = driven(config, tmp_path, *kill)
    if done.returncode not in (0, -signal.SIGKILL):
        pytest.fail(done.stdout + done.stderr)
    return done.returncode, [line.removeprefix("DONE ") for line in done.stdout.splitlines() if line.startswith("DONE")]


def killed_at(moments, config, tmp_path):
    """Kill one run at each moment in turn; returns all finished steps in order."""
    steps = []
    for moment in moments:
        code, done = drive(config, tmp_path, *moment)
        assert code == -signal.SIGKILL, f"{moment} was never reached"
        steps += done
    return steps


def kill_at_each(moments, config, tmp_path):
    """The same, and then let it finish."""
    steps = killed_at(moments, config, tmp_path)
    code, done = drive(config, tmp_path)
    assert code == 0
    return steps + done


def expected_steps(config):
    return [f"{s.round} {s.phase}" for s in steps.steps(config)]


INSIDE = [
    ("commit", 0, "select"),
    ("commit", 0, "label"),
    ("inside", 0, "train"),
    ("inside", 0, "score"),
    ("inside", 2, "finetune"),
]


def test_a_run_ended_in_any_phase_ends_with_the_same_outcome(undisturbed, tiny_pool, tmp_path, monkeypatch):
    config = in_the_driver(tiny_pool, tmp_path)
    done = []

    def go():
        loop.run(config, lambda event, step, _: done.append(f"{step.round} {step.phase}") if event == "done" else None)

    in_the_middle = ("inside", 0, "score")  # of what the driver does in one piece
    for moment in (("commit", 0, "score") if m == in_the_middle else m for m in INSIDE):
        with monkeypatch.context() as patch:
            arm(*moment, loop.run_place(config).path, end=end, patch=patch.setattr)
            with pytest.raises(KeyboardInterrupt):
                go()
    go()
    assert done == expected_steps(config), "a step was done twice or left out"
    assert outcome(tmp_path / "tiny") == outcome(undisturbed)


@pytest.mark.faults
def test_a_driver_killed_inside_every_phase_ends_with_the_same_outcome(undisturbed, tiny_pool, tmp_path):
    """And scoring goes on with the rows that are missing."""
    config, scored = tiny(tiny_pool, tmp_path), INSIDE.index(("inside", 0, "score")) + 1
    steps = killed_at(INSIDE[:scored], config, tmp_path)
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "tiny/rounds/000/scores").glob("*.parquet")}
    steps += kill_at_each(INSIDE[scored:], config, tmp_path)
    survived = [f for f, t in kept.items() if f.exists() and f.stat().st_mtime_ns == t]
    assert survived, "rows that were finished before the kill were scored again"
    assert steps == expected_steps(config), "a step was done twice or left out"
    assert outcome(tmp_path / "tiny") == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("moment", ["start", "commit", "done"])
def test_a_driver_killed_around_every_phase_ends_with_the_same_outcome(undisturbed, tiny_pool, tmp_path, moment):
    config = tiny(tiny_pool, tmp_path)
    done = kill_at_each([(moment, s.round, s.phase) for s in steps.steps(config)], config, tmp_path)
    # A kill in the listener, right after a commit, comes before the step is printed as done or after it: never twice.
    assert sorted(set(done)) == sorted(done)
    assert outcome(tmp_path / "tiny") == outcome(undisturbed)


def test_a_finished_run_goes_on_with_a_larger_budget(undisturbed_with, tiny_pool, tmp_path):
    """As if it had been given from the beginning; and its labels begin another run."""
    whole = {"selection": {"budgets": [10, 18, 24]}}
    root = Path(shutil.copytree(undisturbed_with(10, 18), tmp_path / "tiny"))
    config = in_the_driver(tiny_pool, tmp_path, **whole)
    done = []
    loop.run(config, lambda event, step, _: done.append(step) if event == "done" else None)
    assert done[0] == Step(1, "score"), "what was done stays done"
    assert outcome(root) == outcome(undisturbed_with(10, 18, 24))
    rounds = json.loads((root / "result.json").read_text())["rounds"]
    assert len(rounds) == 3
    spent = Ledger(Place.at(str(root))).require(Step(1, "finetune")).metrics  # under the budgets before
    assert rounds[1]["seconds"]["finetune"] == spent["seconds"] > 0
    noted = json.loads((root / "rounds/001/metrics.json").read_text())["phases"]
    assert noted["finetune"]["macs"] == spent["macs"]
    with pytest.raises(LedgerError, match=r"with the labels of this one: --pool\.known_labels .*labels\.csv") as caught:
        loop.run(in_the_driver(tiny_pool, tmp_path, run={"seed": 5}, **whole))
    file = str(caught.value).rpartition(" ")[2]
    other = {"run": {"name": "next"}, "pool": {"known_labels": file}, "selection": {"budgets": [24, 30]}}
    loop.run(in_the_driver(tiny_pool, tmp_path, **other))
    known = pq.read_table(tmp_path / "next" / "known/labels.parquet").select(["id", "label"]).sort_by("id")
    theirs = [pq.read_table(root / f"rounds/{r:03d}/labels.parquet").select(["id", "label"]) for r in range(3)]
    assert known.equals(pa.concat_tables(theirs).sort_by("id"))


def test_auto_decides_anew_where_a_round_gets_another_budget(local_ray, tiny_pool, tmp_path):
    def stop(event, step, _):
        if event == "done" and step == Step(0, "score"):
            raise KeyboardInterrupt

    config = in_the_driver(tiny_pool, tmp_path, selection={"strategy": "auto", "budgets": [10, 18]})
    with pytest.raises(KeyboardInterrupt):
        loop.run(config, stop)
    config = in_the_driver(tiny_pool, tmp_path, selection={"strategy": "auto", "budgets": [10, 40]})
    ledger = carried_out(config, Step(0, "score"))
    assert ledger.require(Step(0, "score")).metrics["strategy"] == "max_herding", "as if it had been so from the start"


@pytest.mark.parametrize("after", [Step(1, "train"), Step(1, "score")], ids=str)
def test_a_run_ends_early_with_fewer_rounds(undisturbed_with, tiny_pool, tmp_path, after):
    """As if it had been given so from the beginning; and what it gave up, it can take up again."""
    whole, fewer = {"selection": {"budgets": [10, 18, 24]}}, {"selection": {"budgets": [10, 18]}}

    def stop(event, step, _):
        if event == "done" and step == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(in_the_driver(tiny_pool, tmp_path, **whole), stop)
    half = tmp_path / "tiny/rounds/001/scores/half.parquet"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"of a pass that was not finished")
    loop.run(in_the_driver(tiny_pool, tmp_path, **fewer))
    assert not half.exists()
    found, expected = outcome(tmp_path / "tiny"), outcome(undisturbed_with(10, 18))
    if after.phase == "score":  # nothing reads these scores now, and the third round will
        assert (found.pop((1, "scores")), expected.pop((1, "scores")))[1] == []
    assert found == expected
    loop.run(in_the_driver(tiny_pool, tmp_path, **whole))
    assert outcome(tmp_path / "tiny") == outcome(undisturbed_with(10, 18, 24))


def test_fewer_labels_than_are_known_are_refused_when_a_run_goes_on_too(local_ray, tiny_pool, tmp_path):
    (tmp_path / "known.csv").write_text("id,label\n" + "".join(f"s{i:04d},{i % 2}\n" for i in range(12)))
    pool = {"pool": {"known_labels": str(tmp_path / "known.csv")}}

    def stop(event, step, _):
        if (event, step) == ("start", Step(0, "select")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(in_the_driver(tiny_pool, tmp_path, **pool, selection={"budgets": [20, 30]}), stop)
    with pytest.raises(ConfigError, match=r"the first budget is 8 labels, but pool\.known_labels has 12"):
        loop.run(in_the_driver(tiny_pool, tmp_path, **pool, selection={"budgets": [8, 30]}))


def load(root: Path, where: str):
    return networks.from_files({f.name: f.read_bytes() for f in (root / where).iterdir()}, OWN)


def test_after_a_sync_the_fused_network_takes_the_place_of_the_initial_one(local_ray, tiny_pool, tmp_path):
    """The next proxy is pruned from it, and is fused back into it: twice, the second sync on the first."""
    loop.run(in_the_driver(tiny_pool, tmp_path, fusion={"sync_every": 1}, selection={"budgets": [10, 14, 18]}))
    root = tmp_path / "tiny"
    for r in (1, 2):
        before = load(root, f"rounds/{r - 1:03d}/fused").network.state_dict()
        start, trained = load(root, f"rounds/{r - 1:03d}/next/0"), load(root, f"rounds/{r:03d}/proxies/0")
        assert all(torch.equal(a, b) for a, b in zip(
            networks.gather(before, start.kept).values(), start.network.state_dict().values(), strict=True
        ))  # fmt: skip
        fused = load(root, f"rounds/{r:03d}/fused-initial").network.state_dict()
        expected = networks.scatter(before, trained.network.state_dict(), start.kept)
        assert all(torch.equal(fused[name], expected[name]) for name in expected)
        assert not torch.equal(fused["0.weight"], before["0.weight"]), "the proxy was trained meanwhile"


def test_a_smaller_architecture_selects_for_another(local_ray, tiny_pool, tmp_path):
    """Selection via Proxy: its scores choose the samples, and the network asked for is trained on them from nothing."""
    svp = {"selection": {"selector": "svp:resnet8", "budgets": [10, 18]}, "fusion": {"target": "scratch"}}
    ledger = loop.run(in_the_driver(tiny_pool, tmp_path, **svp))
    root = tmp_path / "tiny"
    selector, target = load(root, "rounds/000/proxies/0"), load(root, "rounds/001/fused")
    assert (selector.spec.architecture, target.spec.architecture) == ("resnet8", "tests.support.nets:tiny")
    scores = dict(scores_of(root, 0))
    chosen = pq.read_table(root / "rounds/001/selected.parquet")["id"].to_pylist()
    assert sorted(scores[i] for i in chosen) == sorted(scores.values())[-8:]
    initial = load(root, "dense").network.state_dict()
    start = load(root, "rounds/001/fused-initial").network.state_dict()
    assert all(torch.equal(start[name], initial[name]) for name in initial)
    macs = ledger.require(Step(-1, "init")).metrics["macs_per_sample"]
    assert macs["proxy"] == networks.macs(selector.network, (1, 8, 8))


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_with_sync_survives_kills_and_prunes_the_fused_network(local_ray, tiny_pool, tmp_path):
    """Its next proxy starts from the kept weights of the fused network, whatever was killed meanwhile."""
    sync = {"fusion": {"sync_every": 1}, "selection": {"budgets": [10, 18, 26]}}
    loop.run(tiny(tiny_pool, tmp_path / "whole", **sync))
    config = tiny(tiny_pool, tmp_path / "killed", **sync)
    moments = [("commit", 0, "sync"), ("inside", 1, "train"), ("inside", 1, "finetune"), ("commit", 1, "sync")]
    steps = kill_at_each(moments, config, tmp_path)
    assert steps == expected_steps(config)
    root = tmp_path / "killed" / "tiny"
    assert outcome(root) == outcome(tmp_path / "whole" / "tiny")

    fused, proxy = load(root, "rounds/000/fused"), load(root, "rounds/000/next/0")
    kept = networks.gather(fused.network.state_dict(), proxy.kept)
    for name, tensor in proxy.network.state_dict().items():
        assert (tensor == kept[name]).all(), name


def test_a_driver_killed_before_it_noted_a_commit_notes_it_when_it_goes_on(local_ray, tiny_pool, tmp_path, monkeypatch):
    note = loop._note

    def die_before_noting(work, step):
        if step == Step(0, "finetune"):
            raise KeyboardInterrupt
        note(work, step)

    config = in_the_driver(tiny_pool, tmp_path, fusion={"evaluate": "every"}, selection={"budgets": [10, 18]})
    monkeypatch.setattr(loop, "_note", die_before_noting)
    with pytest.raises(KeyboardInterrupt):
        loop.run(config)
    monkeypatch.undo()
    ledger = carried_out(config, Step(1, "select"))
    noted = json.loads((tmp_path / "tiny/rounds/000/metrics.json").read_text())["phases"]
    assert noted["finetune"]["test_accuracy"] == ledger.require(Step(0, "finetune")).metrics["test_accuracy"]
    assert set(noted) == {s.phase for s in steps.steps(config) if s.round == 0}


def test_a_second_driver_is_refused(undisturbed, tiny_pool, tmp_path):
    config = tiny(tiny_pool, tmp_path)
    held = Ledger(loop.run_place(config))
    held.lock()
    with pytest.raises(LedgerError, match="another process is driving this run"):
        loop.run(config)
    held.unlock()


# --- bad input: nothing written ---


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"selection": {"budgets": [10, 500]}}, ConfigError, "500 labels, but the pool has 120 samples"),
        ({"network": {"architecture": "resnet21"}}, NetworkError, "network.architecture: unknown 'resnet21'; did you"),
        (
            {"selection": {"selector": "svp:resnet9"}, "fusion": {"target": "scratch"}},
            ConfigError,
            "selection.selector: unknown 'resnet9'",
        ),
        (
            {"network": {"architecture": "tests.support.nets:grouped"}, "fusion": {"rule": "function_preserving"}},
            NetworkError,
            "use the rule 'keep'",
        ),
        ({"pool": {"image_column": "img"}}, PoolError, "pool.image_column"),
        ({"scoring": {"actors": [50, 50]}}, PlanError, "scoring.actors: 50 actors"),
        ({"workers": {"count": [6, 6]}}, PlanError, "workers.count: 6 workers"),
    ],
)
def test_what_cannot_run_is_refused_and_nothing_is_written(local_ray, tiny_pool, tmp_path, change, error, said):
    with pytest.raises(error) as caught:
        loop.run(tiny(tiny_pool, tmp_path, **change))
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by", ["random", "forgetting"])
def test_the_target_network_learns_from_the_core_set_alone(local_ray, tiny_pool, tmp_path, by):
    """Full batches of 8 in 3 epochs: two of 18 samples for the proxy, one of 9 for the target."""
    given = {"selection": {"budgets": [10, 18]}, "coreset": {"by": by, "share": 0.5}}
    ledger = loop.run(in_the_driver(tiny_pool, tmp_path, **given))
    trained, tuned = Step(1, "train"), Step(1, "finetune")
    for step, name, samples in ((trained, "proxies/0", 16), (tuned, "fused", 8)):
        network = networks.from_files(ledger.read_network(step, name), OWN).network
        assert ledger.require(step).metrics["macs"] == 3 * 3 * samples * networks.macs(network, (1, 8, 8))
    assert ledger.require(tuned).metrics["coreset"] == 9
    noted = [name for name in ledger.require(trained).files if name.endswith("hardness.parquet")]
    assert len(noted) == (by == "forgetting")
    if noted:
        found = ledger.read_table(trained, "hardness.parquet", hardness_schema("string"))
        chosen = pq.read_table((ledger.root / "selected.parquet").path)
        assert sorted(found["id"].to_pylist()) == sorted(chosen["id"].to_pylist())


@pytest.mark.parametrize(("target", "taken"), [("fused", [10, 18]), ("scratch", [10, 18, 9])])
def test_a_fused_network_keeps_what_its_proxy_took_of_all_labels(
    local_ray, tiny_pool, tmp_path, monkeypatch, target, taken
):
    """`textngrams` weighs n-grams by the labels: weighed by those of the core-set alone it would not start as the proxy
    any more."""
    seen = []
    monkeypatch.setattr(networks, "meet", lambda _, labeled: seen.append(sum(len(x) for x, _ in labeled())))
    given = {"selection": {"budgets": [10, 18]}, "coreset": {"by": "random", "share": 0.5}}
    carried_out(in_the_driver(tiny_pool, tmp_path, fusion={"target": target}, **given), Step(1, "finetune"))
    assert seen == taken


def test_the_labels_of_a_run_that_has_not_ended_begin_another_one(local_ray, tiny_pool, tmp_path):
    def stop(event, step, _):
        if (event, step) == ("start", Step(1, "select")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(in_the_driver(tiny_pool, tmp_path), stop)
    with pytest.raises(LedgerError, match=r"with the labels of this one: --pool\.known_labels .*labels\.csv") as caught:
        loop.run(in_the_driver(tiny_pool, tmp_path, pool={"classes": ["dark", "light", "new"]}))
    file = Path(str(caught.value).rpartition(" ")[2])
    assert len(file.read_text(encoding="utf-8-sig").splitlines()) == 1 + 10


def test_a_baseline_that_is_asked_for_too_late_is_told(undisturbed_with, tiny_pool, tmp_path, caplog):
    given = {"selection": {"budgets": [10, 18]}}
    shutil.copytree(undisturbed_with(10, 18), tmp_path / "tiny")
    loop.run(in_the_driver(tiny_pool, tmp_path, **given))
    assert "ended without a baseline" not in caplog.text
    loop.run(in_the_driver(tiny_pool, tmp_path, report={"baseline": True}, **given))
    assert "ended without a baseline" in caplog.text
