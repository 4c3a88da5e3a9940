"""Scoring without a loop: the network's own scores, exactly once, and never those of something else."""

import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.cli import main
from prunefuse_ray.config.files import to_tree
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, Preprocessing, preprocessing_to_bytes
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import reader_of
from prunefuse_ray.errors import ConfigError, LedgerError
from prunefuse_ray.run import rank as ranking
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.support import ROOT
from tests.support.pools import random_images, write_pool
from tests.support.sources import pool_of

SPEC = networks.NetworkSpec(architecture="tests.support.nets:tiny", classes=3, input_shape=(1, 8, 8))
FORM = ImageForm(height=8, width=8, channels=1, mean=(0.4,), std=(0.3,))
NOTHING = ranking.Ranked(root=Place.at("nowhere"), scored=0, rejected=0, ranked=0, seconds=0.0)
TOLD = Preprocessing(task="classification", form=FORM, classes=["a", "b", "c"])


def save(where, seed=0):
    network = networks.build(SPEC, seed=seed)
    proxy = networks.prune(network, SPEC, networks.PruningSpec(ratio=0.5))
    where.mkdir()
    for name, data in networks.to_files(proxy).items():
        (where / name).write_bytes(data)
    (where / PREPROCESSING_FILE).write_bytes(preprocessing_to_bytes(TOLD))
    return proxy.network.eval()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A saved proxy, and a pool without labels, in which one sample cannot be read."""
    where = tmp_path_factory.mktemp("given")
    network = save(where / "proxy")
    images = [encode_png(p) for p in random_images(60)]
    images[7] = b"x"
    write_pool(where / "pool", random_images(60), files=4, image=images)
    for file in (where / "pool").iterdir():
        pq.write_table(pq.read_table(file).drop_columns(["label"]), file)
    return where, network


def arguments(given, out, *more):
    return [
        str(given[0] / "proxy"), "--out", str(out), "--top", "5", "--pool.source", "parquet",
        "--trusted", "tests.support.nets:tiny",
        "--pool.path", str(given[0] / "pool"), "--pool.max_rejected", ".1", "--scoring.batch_size", "8", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def passed(given, local_ray, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "pass"
    assert main(["score", *arguments(given, out, "--scoring.features", "true")]) == 0
    return out


def scores_of(out):
    return {r["id"]: r for f in (out / "scores").glob("*.parquet") for r in pq.read_table(f).to_pylist()}


def test_scores_are_the_networks_on_its_own_preprocessing(given, passed):
    scores = scores_of(passed)
    assert sorted(scores) == [f"s{i:04d}" for i in range(60)]
    x = (torch.from_numpy(random_images(60)).permute(0, 3, 1, 2) / 255 - 0.4) / 0.3
    with torch.inference_mode():
        expected = 1 - torch.softmax(given[1](x), 1).max(1).values
    for i in set(range(60)) - {7}:
        assert scores[f"s{i:04d}"]["score"] == pytest.approx(float(expected[i]), abs=1e-5)
        assert len(scores[f"s{i:04d}"]["feature"]) == 8
    assert scores["s0007"]["score"] is None
    assert pq.read_table(passed / "rejected.parquet")["id"].to_pylist() == ["s0007"]


def test_the_ranked_list_is_the_top_of_the_scores(passed):
    usable = [r for r in scores_of(passed).values() if r["score"] is not None]
    best = sorted(usable, key=lambda r: (-r["score"], r["id"]))[:5]
    ranked = pq.read_table(passed / "ranked.parquet").to_pylist()
    assert [(r["id"], r["rank"]) for r in ranked] == [(r["id"], n) for n, r in enumerate(best)]


def test_the_same_command_again_does_nothing(given, passed, capsys):
    before = {p: p.stat().st_mtime_ns for p in passed.rglob("*.parquet")}
    assert main(["score", *arguments(given, passed, "--scoring.features", "true", "--scoring.actors", "1,1")]) == 0
    assert "complete already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in passed.rglob("*.parquet")} == before


def test_another_network_pool_or_question_is_refused(given, passed, tmp_path, capsys):
    save(tmp_path / "other", seed=1)
    base = arguments(given, passed, "--scoring.features", "true")
    for change, said in (
        ([str(tmp_path / "other"), *base[1:]], "network.weights_sha256"),
        ([*base, "--selection.strategy", "entropy"], "selection.strategy: 'least_confidence' -> 'entropy'"),
        ([*base, "--pool.path", str(tmp_path)], "pool.path"),
    ):
        assert main(["score", *change]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "another --out" in error


def held(directory):
    """What its files hold, but for the lock, which says since when."""
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("when", ["before the survey", "meanwhile"])
def test_a_pass_that_another_command_began_meanwhile_is_not_ones_own(
    given, passed, tmp_path, monkeypatch, capsys, when
):
    """Its ranking would be reported as that of this command's network."""
    save(tmp_path / "other", seed=1)
    out = tmp_path / "out"
    name, really = ("start_ray", None) if when == "before the survey" else ("survey", ranking.survey)

    def quicker(*args, **more):
        shutil.copytree(passed, out)
        return really and really(*args, **more)

    monkeypatch.setattr(ranking, name, quicker)
    kept = held(passed)
    assert main(["score", str(tmp_path / "other"), *arguments(given, out, "--scoring.features", "true")[1:]]) == 2
    said = "network.weights_sha256" if really is None else "another command began to score here meanwhile"
    assert said in capsys.readouterr().err
    assert held(out) == kept
    Ledger(Place.at(str(out))).lock()  # it was given back


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pool.channels", "3"], "pool.channels: 3, but the network was trained with 1"),
        (["--pool.mean", "0.9"], "pool.mean: [0.9], but the network was trained with [0.4]"),
        (["--selection.strategy", "random"], "'random' gives no scores by which samples are ranked; use one of"),
        (["--selection.strategy", "auto"], "'auto' gives no scores by which samples are ranked; use one of"),
        (["--selection.pixel_share", "0.1"], "selection.pixel_share: 0.1 is of the pixels"),
        (["--pool.image_column", "photo"], "pool.image_column"),
        (["--pool.max_rejected", "0"], "pool.max_rejected: 1 of 60 samples cannot be used"),
        (["--top", "0"], "--top 0"),
    ],
)
def test_what_cannot_be_scored_is_one_message(given, local_ray, tmp_path, capsys, more, said):
    assert main(["score", *arguments(given, tmp_path / "out", *more)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "ranked.parquet").exists()


def test_a_directory_without_a_network_is_said(tmp_path, capsys):
    assert main(["score", str(tmp_path), "--out", str(tmp_path / "o"), "--pool.source", "digits"]) == 2
    assert "holds no network.json" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_runs_own_file_names_the_pool(given, local_ray, tmp_path):
    (tmp_path / "my.yaml").write_text(
        f"run: {{name: x}}\nnetwork: {{architecture: resnet20}}\nselection: {{strategy: margin, budgets: [10]}}\n"
        f"pool: {{source: parquet, path: {given[0]}/pool, test_path: nowhere, validation_path: nowhere, classes: 3,\n"
        f"  max_rejected: 0.1}}\n"
    )
    out = tmp_path / "out"
    assert (
        main(
            [
                "score",
                str(given[0] / "proxy"),
                "--out",
                str(out),
                "--config",
                str(tmp_path / "my.yaml"),
                "--trusted",
                "tests.support.nets:tiny",
            ]
        )
        == 0
    )
    x = (torch.from_numpy(random_images(60)).permute(0, 3, 1, 2) / 255 - 0.4) / 0.3
    with torch.inference_mode():
        two = torch.softmax(given[1](x), 1).topk(2, 1).values
    expected = 1 - (two[:, 0] - two[:, 1])
    assert scores_of(out)["s0003"]["score"] == pytest.approx(float(expected[3]), abs=1e-5)


def test_a_complete_pass_over_a_pool_that_has_changed_is_refused(given, tmp_path):
    """The same command on what came in since must not say that it was done already."""
    out, pool = tmp_path / "out", tmp_path / "pool"
    pool.mkdir()
    (pool / "a.parquet").write_bytes(b"1")
    config = ranking.Ranking.model_validate({"pool": {"source": "parquet", "path": str(pool), "image_size": [8, 8]}})
    trained = ranking._as_trained(config, {PREPROCESSING_FILE: preprocessing_to_bytes(TOLD)}, SPEC)
    now = reader_of(trained.pool).listing(SampleSet(trained.pool))
    info = PoolInfo(source="parquet", path=str(pool), rows=1, bytes=1, files=1, listing_digest=now.digest, id_digest="",
                    id_type="string", classes=[], sample_size=(8, 8))  # fmt: skip
    ledger = Ledger(Place.at(str(out)))
    weights = hashlib.sha256((given[0] / "proxy" / networks.WEIGHTS_FILE).read_bytes()).hexdigest()
    ledger.create(to_tree(trained) | {"network": {"weights_sha256": weights}, "top": 5}, info.to_json())
    ledger.lock()
    ledger.commit(ranking.SCORE, {}, {"samples": 1, "rejected": 0})
    ledger.commit(ranking.RANK, {}, {"ranked": 1})
    ledger.unlock()

    def again():
        return ranking.rank(config, str(given[0] / "proxy"), str(out), 5, "tests.support.nets:tiny")

    assert (again().ranked, again().seconds) == (1, 0.0)
    (pool / "b.parquet").write_bytes(b"2")
    with pytest.raises(LedgerError, match=r"has changed since.*another --out"):
        again()
    shutil.rmtree(pool)
    assert again().ranked == 1, "nobody asks for a pool that is gone"


def test_a_runs_own_file_says_how_its_pool_is_kept_and_ranked(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(ranking, "rank", lambda config, *_: found.append(config) or NOTHING)
    (tmp_path / "my.yaml").write_text(
        "task: segmentation\nprepared: {format: none}\nscoring: {batch_size: 8}\n"
        "selection: {strategy: margin, pixel_share: 0.1, budgets: [10]}\n"
    )
    assert main(["score", "network", "--out", str(tmp_path), "--config", str(tmp_path / "my.yaml")]) == 0
    (config,) = found
    assert (config.prepared.format, config.scoring.batch_size) == ("none", 8)
    assert (config.selection.strategy, config.selection.pixel_share) == ("margin", 0.1)


def test_the_file_that_init_writes_is_taken(tmp_path, monkeypatch, capsys):
    """There the strategy is `auto`, which has no score of its own."""
    found, file = [], tmp_path / "my.yaml"
    monkeypatch.setattr(ranking, "rank", lambda config, *_: found.append(config) or NOTHING)
    file.write_text("selection: {strategy: auto, pixel_share: 0.1, budgets: [10]}\n")
    command = ["score", "network", "--out", str(tmp_path), "--config", str(file)]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("selection.strategy 'auto' decides in the rounds of a run, and not here;")
    assert main([*command, "--selection.strategy", "entropy"]) == 0
    assert "auto" not in capsys.readouterr().out
    assert [c.selection.strategy for c in found] == [ranking.Strategy().strategy, "entropy"]
    assert "strategy" not in found[0].selection.model_fields_set, "the task may have another default"
    assert found[0].selection.pixel_share == 0.1
    assert main(["score", "network", "--out", str(tmp_path), "--selection.strategy", "auto"]) == 2


@pytest.mark.faults
def test_a_pass_that_was_killed_goes_on_with_the_rows_that_are_missing(given, passed, tmp_path):
    import ray

    out = tmp_path / "out"
    command = [
        sys.executable,
        "jobs/score.py",
        *arguments(given, out, "--scoring.features", "true", "--scoring.actors", "[1,1]"),
    ]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    written = out / "scores-checkpoint"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if written.is_dir() and any("pending" not in n for n in os.listdir(written)):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "ranked.parquet").exists(), "it was over before it could be killed"
    kept = {f: f.stat().st_mtime_ns for f in (out / "scores").glob("*.parquet")}
    assert main(["score", *command[2:]]) == 0
    assert any(f.exists() and f.stat().st_mtime_ns == t for f, t in kept.items()), "finished rows were scored again"
    assert scores_of(out) == scores_of(passed)
    ranked = [pq.read_table(o / "ranked.parquet").to_pylist() for o in (out, passed)]
    assert ranked[0] == ranked[1]


def test_a_strategy_of_ones_own_ranks(tmp_path, monkeypatch):
    (tmp_path / "own_bright.py").write_text(
        "from prunefuse_ray.acquisition import Strategy\n"
        "BRIGHT = Strategy(name='bright', wants='x', score=lambda p: p[:, 1].astype('float32'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    named = ranking.Strategy(strategy="own_bright:BRIGHT").strategy
    ranking._check_strategy(named, "classification", None)
    with pytest.raises(ConfigError, match="makes no sense for task 'regression'"):
        ranking._check_strategy(named, "regression", None)


def test_the_help_names_every_strategy_that_ranks():
    said = ranking.Strategy.model_fields["strategy"].description
    able = [n for n, s in STRATEGIES.items() if s.score and not s.select and not s.wanted]
    assert [name for name in able if name not in said] == []


def test_what_is_decoded_is_shared_beside_the_directory_where_there_is_a_place():
    assert ranking._beside(Place.at("/scores")).path == "/scores"
    assert ranking._beside(Place.at("/a/b")).path == "/a"
    assert ranking._beside(Place.at("s3://bucket?region=here")).path == "bucket"


def test_an_empty_directory_is_refused(capsys):
    assert main(["score", "x", "--out", ""]) == 2
    assert "--out: is empty" in capsys.readouterr().err


def test_a_table_that_is_written_while_it_is_looked_through_is_refused(tmp_path, local_ray, monkeypatch, capsys):
    """Its index has numbers of rows, and these moved: every score would be that of another sample."""
    lance = pytest.importorskip("lance")
    save(tmp_path / "proxy")
    pool, really = pool_of("lance", tmp_path), ranking.materialize

    def meanwhile(found, root):
        really(found, root)
        row = lance.dataset(pool.path).to_table(filter="id = 's0003'")
        lance.dataset(pool.path).delete("id = 's0003'")
        lance.write_dataset(row, pool.path, mode="append")  # as an upsert does: as many rows as before

    monkeypatch.setattr(ranking, "materialize", meanwhile)
    code = main(["score", str(tmp_path / "proxy"), "--out", str(tmp_path / "out"), "--top", "5", "--trusted",
                 "tests.support.nets:tiny", "--pool.source", "lance", "--pool.path", pool.path])  # fmt: skip
    assert code == 2
    assert "has changed since" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_one_message(given, local_ray, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ranking, "score", full)
    assert main(["score", *arguments(given, tmp_path / "out")]) == 2
    assert "another --out" in capsys.readouterr().err


def test_what_another_network_expects_is_refused_before_anything_is_scored(given, tmp_path, capsys):
    shutil.copytree(given[0] / "proxy", tmp_path / "n")
    other = dataclasses.replace(TOLD, classes=["a", "b"])
    (tmp_path / "n" / PREPROCESSING_FILE).write_bytes(preprocessing_to_bytes(other))
    assert main(["score", str(tmp_path / "n"), *arguments(given, tmp_path / "out")[1:]]) == 2
    assert "is another network's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
