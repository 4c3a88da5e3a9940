"""What a run will take: by hand from the configuration, and against what a run took."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from prunefuse_ray.cli import main
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.networks import Dense, NetworkSpec, build
from prunefuse_ray.run import loop
from prunefuse_ray.run.estimate import (
    Costs,
    _seconds_of,
    _training_rate,
    caveats,
    estimate,
    labels_asked,
    measured_costs,
    nodes_for,
    peak_bytes,
)
from prunefuse_ray.tasks.classification import CLASSIFICATION
from tests.support.runs import tiny

INFO = PoolInfo(
    source="digits", path="", rows=1_000, bytes=500_000, files=4, listing_digest="", id_digest="", id_type="string",
    classes=["a", "b"], sample_size=(8, 8),
)  # fmt: skip
COSTS = Costs(
    proxy_macs=100, dense_macs=400, parameters=(10, 50), scored_per_second=50.0, proxy_trained_per_second=20.0,
    dense_trained_per_second=5.0, actor_bytes=7,
)  # fmt: skip
TRAINED = {"epochs": 2, "batch_size": 50, "min_steps": 0, "warmup_epochs": 0}
CONFIG = config_from_tree(
    {
        "selection": {"budgets": [100, 200, 300]},
        "training": TRAINED,
        "finetuning": {"epochs": 3, "batch_size": 50, "min_steps": 0, "warmup_epochs": 0},
    }
)


@pytest.fixture
def brief(monkeypatch):
    """Rates are measured as ever, but for moments: here they are given, or of no account."""
    monkeypatch.setattr("prunefuse_ray.run.estimate._seconds_of", lambda work, _: _seconds_of(work, 0.0))
    monkeypatch.setattr("prunefuse_ray.scoring.backend_choice.MEASURED_SECONDS", 0.0)


def test_an_estimate_by_hand():
    """Rounds of 100, 200, 300 labels: 900 + 800 scored; 2 epochs of 600 and 3 of 300 trained."""
    found = estimate(CONFIG, INFO, COSTS, actors=2)
    by_phase = {p: [(e.samples, e.macs) for e in found.phases if e.phase == p] for p in ("score", "train", "finetune")}
    assert by_phase["score"] == [(900, 90_000), (800, 80_000)]
    assert by_phase["train"] == [(200, 60_000), (400, 120_000), (600, 180_000)]
    assert by_phase["finetune"] == [(900, 1_080_000)]
    assert found.seconds("score") == 1_700 / (50 * 2)
    assert found.seconds("train") == 1_200 / 20
    assert found.seconds("finetune") == 900 / 5
    assert found.seconds() == 17 + 60 + 180
    assert found.bytes_read == (3 + 2) * 500_000  # three rounds fetch their samples, two score the pool
    assert found.bytes_stored == 1_700 * 32 + 3 * 4 * 10 + 4 * 50 + 150_000


def test_a_teacher_is_asked_of_every_sample_that_is_fine_tuned_on():
    config = config_from_tree({**CONFIG.model_dump(exclude_unset=True), "distillation": {"weight": 0.5}})
    found, [without] = (
        [p for p in estimate(c, INFO, COSTS, actors=2).phases if p.phase == "finetune"] for c in (config, CONFIG)
    )
    assert [(p.samples, p.macs) for p in found] == [(900, without.macs + 900 * 100)]
    assert found[0].seconds == without.seconds + 900 / (3 * 20)


def test_evaluations_take_their_time():
    """A test set of 40 and a validation set of 10. Each of 3 proxies: 2 epochs of 10, then 40. The fused network: 3
    epochs of 10; 40 before the first, after each, at the end. A sample takes a third of what training on it does."""
    finetuning = CONFIG.finetuning.model_copy(update={"evaluate_every": 1})
    config = CONFIG.model_copy(update={"finetuning": finetuning})
    found = estimate(config, INFO, COSTS, actors=2, tested=40, validated=10)
    assert found.seconds("train") == pytest.approx(60 + 3 * (2 * 10 + 40) / (3 * 20))
    assert found.seconds("finetune") == pytest.approx(180 + (3 * 10 + 5 * 40) / (3 * 5))
    scratch = config.model_copy(update={"fusion": config.fusion.model_copy(update={"target": "scratch"})})
    found = estimate(scratch, INFO, COSTS, actors=2, tested=40)
    assert found.seconds("finetune") == pytest.approx(180 + 4 * 40 / (3 * 5)), "not before the first epoch"
    shared = config.model_copy(update={"pool": config.pool.model_copy(update={"validation_share": 0.5})})
    more, less = (estimate(shared, INFO, COSTS, actors=2, tested=t).seconds("train") for t in (60, 0))
    assert more - less == pytest.approx(3 * 60 / (3 * 20))
    assert less == pytest.approx(600 / 20 + 2 * (50 + 100 + 150) / (3 * 20)), "what is held out validates each epoch"


def test_a_core_set_is_fine_tuned_on_alone():
    config = CONFIG.model_copy(update={"coreset": CONFIG.coreset.model_copy(update={"by": "el2n", "share": 0.5})})
    found = estimate(config, INFO, COSTS, actors=2)
    assert [p.samples for p in found.phases if p.phase == "finetune"] == [450]


def test_the_labels_of_a_drawn_test_set_are_asked_for_and_copied_too():
    """Rounds of 100, 200, 300 labels, of which 30 are known, and 40 of the test set, of which 5 are."""
    pool = {"source": "parquet", "path": "p", "test_samples": 40, "classes": 2}
    people = config_from_tree(
        {
            "pool": pool,
            "selection": {"budgets": [100, 200, 300]},
            "annotation": {"kind": "files", "labels_per_sample": 2},
        }
    )
    asked = labels_asked(people, known=30, known_test=5)
    assert (asked.rounds, asked.test, asked.known) == ((70, 100, 100), 35, 35)
    assert (asked.samples, asked.answers) == (305, 610)
    assert asked.words() == (
        "305 by people, 2 answers each: 610 answers (270 selected in 3 rounds, 35 for the test set); 35 more are known "
        "already"
    )
    assert labels_asked(CONFIG).words() == "300 from the pool (300 selected in 3 rounds)"
    assert labels_asked(CONFIG).answers == 0
    info = replace(INFO, rows=960)  # the other 40 are the test set
    found = estimate(people, info, COSTS, 2, asked)
    assert [p.samples for p in found.phases if p.phase == "label"] == [105, 100, 100]
    assert found.labels == asked
    none = estimate(people.model_copy(update={"pool": CONFIG.pool}), INFO, COSTS, 2)
    written = [f.bytes_stored - sum(p.samples for p in f.phases if p.phase == "score") * 32 for f in (found, none)]
    assert written[0] - written[1] == 40 * 500, "a sample has 500 bytes"


def test_features_are_stored_where_the_selection_reads_them():
    """900 and 800 rows of 16 features, and for BADGE of a factor for each of 10 classes; before the first label 1,000
    of 16."""
    costs = replace(COSTS, features=16, gradients=10)

    def more(selection, **sections):
        budgets = {"budgets": [100, 200, 300]}
        with_ = config_from_tree({"selection": budgets | selection, "training": TRAINED, **sections})
        without = replace(costs, features=0, gradients=0)
        return estimate(with_, INFO, costs, 1).bytes_stored - estimate(with_, INFO, without, 1).bytes_stored

    assert more({}) == 0
    assert more({}, scoring={"features": True}) == more({"strategy": "k_centers"}) == 1_700 * 4 * 16
    assert more({"strategy": "badge"}) == 1_700 * 4 * (16 + 10)
    assert more({"strategy": "margin", "initial": "typiclust"}) == 1_000 * 4 * 16


def test_labels_that_are_held_out_are_not_trained_on():
    held = CONFIG.model_copy(update={"pool": CONFIG.pool.model_copy(update={"validation_share": 0.5})})
    found = estimate(held, INFO, COSTS, 1)
    assert [p.samples for p in found.phases if p.phase in ("train", "finetune")] == [2 * 50, 2 * 100, 2 * 150, 3 * 150]
    assert found.labels == labels_asked(CONFIG), "people give them all the same"


def test_what_was_not_measured_is_said():
    config = config_from_tree({"workers": {"gpu": True, "count": [2, 4]}, "scoring": {"gpus": 1}})
    said = caveats(config, gpu=False)
    assert [line.partition(":")[0] for line in said] == ["scoring.gpus", "workers.gpu", "workers.count [2, 4]"]
    assert caveats(config, gpu=True) == said[2:]
    assert caveats(config, gpu=False, scoring=False, training=False) == caveats(CONFIG, gpu=False) == []


def test_costs_have_the_features_and_the_prepared_pool(brief):
    spec = NetworkSpec(architecture="resnet8", classes=10, input_shape=(3, 16, 16))
    dense = Dense(network=build(spec, seed=0), spec=spec)
    config = config_from_tree({"selection": {"strategy": "badge"}, "scoring": {"backend": "torch"}})
    form = ImageForm(height=16, width=16, channels=3)
    costs = measured_costs(config, dense, dense, form, [], rows=100_000, seconds=0.0)
    assert (costs.features, costs.gradients) == (64, 10)
    samples = 100_000 + config.selection.budgets[-1]
    assert costs.prepared_bytes == samples * 16 * 16 * 3
    tree = {"training": {"augment": ["resized_crop"]}, "pretraining": {"method": "vicreg"}}
    learned = config_from_tree({**tree, "scoring": {"backend": "torch"}})
    cut = ImageForm(height=16, width=16, channels=3, crop_ratio=0.5)
    costs = measured_costs(learned, dense, dense, cut, [], rows=100_000, seconds=0.0)
    assert costs.prepared_bytes == samples * 3 * (16 * 16 + 32 * 32), "uncut for learning from the pool, too"


@pytest.mark.parametrize(
    ("scoring", "gpus", "scored"),
    [
        ({}, 0, 1 / (1 / 100 + 1 / 10)),
        ({"gpus": 1}, 0, 7 * 10),
        ({"gpus": 1}, 2, 3 * 10),
        ({"gpus": 0.25}, 1, 10),
        ({"gpus": 1, "cpus": 9}, 1, 10),
    ],
)
def test_beside_a_gpu_other_cpus_decode(monkeypatch, scoring, gpus, scored):
    """Of 8 cores, each of which decodes 10 samples a second; the network scores 100."""
    spec = NetworkSpec(architecture="resnet8", classes=10, input_shape=(3, 16, 16))
    dense = Dense(network=build(spec, seed=0), spec=spec)
    config = config_from_tree({"scoring": scoring})
    form = ImageForm(height=16, width=16, channels=3)
    monkeypatch.setattr("prunefuse_ray.run.estimate.rate_here", lambda *_: 100.0)
    monkeypatch.setattr("prunefuse_ray.run.estimate._seconds_of", lambda *_: 0.1)
    monkeypatch.setattr("prunefuse_ray.run.estimate.cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    costs = measured_costs(config, dense, dense, form, [b"x"], rows=1_000)
    assert costs.scored_per_second == pytest.approx(scored)


@pytest.mark.parametrize(("seconds", "actors"), [(1e9, 1), (274, 1), (241, 34), (240, None), (1, None)])
def test_actors_for_a_wanted_time(seconds, actors):
    """240 s train; 34 s of one actor score: n actors end within 240 + 34 / n."""
    assert estimate(CONFIG, INFO, COSTS, actors=2).actors_within(seconds) == actors


@pytest.mark.parametrize(
    ("actors", "cpus", "node_cpus", "nodes"), [(1, 1, 8, 1), (6, 1, 8, 1), (7, 1, 8, 2), (4, 3, 8, 2), (1, 9, 8, 0)]
)
def test_machines_hold_the_actors_and_their_stream(actors, cpus, node_cpus, nodes):
    assert nodes_for(actors, cpus, node_cpus) == nodes


def test_random_selection_scores_nothing():
    config = config_from_tree({"selection": {"budgets": [100, 200], "strategy": "random"}})
    found = estimate(config, INFO, COSTS, actors=1)
    assert found.seconds("score") == 0
    assert found.actors_within(1e9) == 1


def test_the_command_agrees_with_a_run_about_its_work(local_ray, tiny_pool, tmp_path, capsys, monkeypatch, brief):
    """Budgets that fill whole batches: then every MAC that a run counts is foreseen."""
    from prunefuse_ray.commands import plan

    config = tiny(tiny_pool, tmp_path, selection={"budgets": [16, 24]})
    monkeypatch.setattr("prunefuse_ray.distributed.resources.cores", lambda: 2)
    loop.run(config)
    monkeypatch.setattr(plan.console, "_width", 200)
    assert main(["plan", "--against", str(tmp_path / "tiny"), "--training-rate", "1e9", "--scoring-rate", "10",
                 "--trusted", "tests.support.nets:tiny"]) == 0  # fmt: skip
    rows = {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert rows["score"][:2] == rows["score"][2:4]  # "1.2 M" foreseen, "1.2 M" counted
    assert rows["train"][:2] == rows["train"][2:4]
    assert rows["finetune"][:2] == rows["finetune"][2:4]
    assert rows["score"][4] == "5.2"  # 104 samples, 10 a second in each of two threads
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(to_tree(config)))
    rates = ["--training-rate", "1e9", "--scoring-rate", "10", "--json"]
    assert main(["plan", "--against", str(tmp_path / "tiny"), *rates]) == 0
    assert main(["plan", "--config", str(tmp_path / "tiny.yaml"), *rates]) == 0
    compared, foreseen = map(json.loads, capsys.readouterr().out.splitlines())
    for phases in (compared, foreseen["phases"]):
        for phase in ("train", "finetune"):  # evaluations count in seconds alone
            found = [row for row in phases if row["phase"] == phase]
            assert sum(row["seconds"] for row in found) > 1.01 * sum(row["macs"] for row in found) / 1e9


def test_what_the_driver_scores_by_itself_needs_no_actors(local_ray, capsys, monkeypatch, brief):
    from prunefuse_ray.commands import plan

    monkeypatch.setattr(plan.console, "_width", 200)
    monkeypatch.setattr("prunefuse_ray.distributed.resources.cores", lambda: 3)
    rates = ["--preset", "digits", "--training-rate", "1e9", "--scoring-rate", "10"]
    for more, actors, threads, said in (
        ([], 0, 3, "scored by the driver itself, in 3 threads, with about"),
        (["--scoring.actors", "[1,1]"], 1, 0, "scoring actors: 1, each with 1 CPU and about"),
    ):
        assert main(["plan", *rates, *more, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        scored = [p for p in found["phases"] if p["phase"] == "score"]
        assert (found["actors"], found["threads"]) == (actors, threads)
        assert sum(p["seconds"] for p in scored) == pytest.approx(
            sum(p["samples"] for p in scored) / (10 * max(actors, threads))
        )
        assert main(["plan", *rates, *more]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.slow
def test_code_of_ones_own_in_a_run_directory_has_to_be_trusted(local_ray, tiny_pool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prunefuse_ray.registry._trusted", set())
    for name, own in (("mine", "tests.support.nets:tiny"), ("resnet8", "resnet8")):
        loop.run(
            tiny(tiny_pool, tmp_path, run={"name": name}, network={"architecture": own}, selection={"budgets": [16]})
        )
    rates = ["--training-rate", "1e9", "--scoring-rate", "10"]
    assert main(["plan", "--against", str(tmp_path / "mine"), *rates]) == 2
    assert "names code of its own, 'tests.support.nets:tiny'" in capsys.readouterr().err
    assert main(["plan", "--against", str(tmp_path / "resnet8"), *rates]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--within", "0"], "--within 0: give a number above zero"),
        (["--within", "inf"], "--within inf: give a number above zero"),
        (["--scoring-rate", "nan"], "--scoring-rate nan: give a number above zero"),
        (["--against", "x", "--run.seed", "1"], "--run.seed: --against takes the configuration of the run directory"),
        (["--against", "/nowhere"], "is this a run directory?"),
        (["--node-cpus", "8"], "--node-cpus: is of the machines that --within counts"),
        (["--against", "x", "--within", "2"], "--within: --against compares a run with what it took"),
    ],
)
def test_bad_arguments_are_one_message(arguments, said, capsys):
    assert main(["plan", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_this_process_holds_memory():
    assert 50e6 < peak_bytes() < 50e9


def test_what_training_costs_is_measured_as_it_is_trained(monkeypatch):
    """In channels-last format oneDNN's backward pass of strided 1 x 1 convolutions writes beyond its memory."""
    spec = NetworkSpec(architecture="resnet20", classes=2, input_shape=(3, 16, 16))
    network = Dense(network=build(spec, seed=0), spec=spec)
    before, met = [p.clone() for p in network.network.parameters()], []
    forward = torch.nn.Conv2d.forward

    def watched(conv, x):
        met.append((conv.kernel_size, conv.stride, x.is_contiguous(memory_format=torch.channels_last)))
        return forward(conv, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    form = ImageForm(height=16, width=16, channels=3)
    assert _training_rate(CLASSIFICATION, network, Recipe(batch_size=4), form, 0.0, torch.device("cpu")) > 0
    assert any(last for _, _, last in met)
    assert not [m for m in met if m[0] == (1, 1) and m[1] != (1, 1)]
    assert all(torch.equal(a, b) for a, b in zip(before, network.network.parameters(), strict=True))
    assert all(c.stride == (2, 2) for c in network.network.modules() if isinstance(c, torch.nn.Conv2d)
               and c.kernel_size == (1, 1))  # fmt: skip


def test_a_pool_that_is_prepared_is_decoded_once():
    found = estimate(CONFIG, INFO, replace(COSTS, again_per_second=100.0), actors=2)
    samples = [p.samples for p in found.phases if p.phase == "score"]
    first, again = samples[0], sum(samples[1:])
    assert again, "one pass alone shows nothing"
    assert found.seconds("score") == pytest.approx(first / (COSTS.scored_per_second * 2) + again / (100 * 2))


@pytest.mark.parametrize(("more", "actors"), [(["--scoring.gpus", "64"], 1), (["--scoring.actors", "[400,500]"], 400)])
def test_what_only_machines_of_another_place_hold_is_estimated_all_the_same(local_ray, brief, capsys, more, actors):
    rates = ["--preset", "digits", "--training-rate", "1e9", "--scoring-rate", "10", "--json"]
    assert main(["plan", *rates, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["actors"] == actors
    assert any(note.startswith("Here the run would be refused: scoring.actors") for note in found["notes"])


@pytest.mark.parametrize(
    ("actors", "gpus", "node_gpus", "nodes"), [(8, 1, 1, 8), (8, 0.25, 1, 2), (8, 1, 4, 2), (3, 2, 1, 0)]
)
def test_machines_hold_the_gpus_of_their_actors(actors, gpus, node_gpus, nodes):
    assert nodes_for(actors, 1, 8, gpus, node_gpus) == nodes


def test_gpus_of_machines_are_counted_only_for_actors_that_take_some(capsys):
    assert main(["plan", "--preset", "digits", "--within", "1", "--node-gpus", "2"]) == 2
    assert "--node-gpus: scoring.gpus is 0" in capsys.readouterr().err


GROWS = {"source": "parquet", "path": "a", "test_path": "b", "classes": 2, "allow_growth": True}


def test_budgets_beyond_a_pool_that_grows_take_no_work_back():
    config = config_from_tree({"pool": GROWS, "selection": {"budgets": [100, 2_000, 3_000]}})
    found = estimate(config, INFO, COSTS, 1)
    assert [p.samples for p in found.phases if p.phase == "score"] == [900, 0]
    assert min(p.seconds for p in found.phases) >= 0


def test_tables_are_copied_whole_into_the_run_directory():
    texts = {"source": "csv", "path": "a", "test_path": "b", "text_column": "text", "classes": 2}
    config = config_from_tree({**CONFIG.model_dump(exclude_unset=True), "pool": texts})
    assert estimate(config, INFO, COSTS, actors=2).bytes_stored >= INFO.bytes
