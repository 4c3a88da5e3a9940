"""The benchmarks in small: that what they compare is right, not how long it takes."""

import json
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray.benchmarks import (
    bare,
    centers,
    coverage,
    gpu,
    measure,
    memory,
    overhead,
    photographs,
    scaling,
    scoring,
    sharing,
    topk,
    training,
    wide,
)  # fmt: skip
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import loop
from tests.support import ROOT
from tests.support.nets import OWN
from tests.support.runs import tiny


@pytest.mark.slow
def test_topk_finds_what_a_full_sort_does(local_ray, tmp_path):
    figures = topk.run(tmp_path, 30_000, 500, 20_000, 1, 5_000)
    assert figures["same_as_full_sort"]
    assert figures["subset_rows"] == 20_000
    assert figures["time_over_single"] > 0
    files = sorted(map(str, tmp_path.glob("*.parquet")))
    assert sorted(topk.single(files, 500)["score"].to_pylist())[0] >= 0
    assert len(set(topk.by_full_sort(files, 30_000))) == 30_000


def benchmark(*words: object) -> dict:
    """The figures of a benchmark in a process of its own: other tests leave freed memory that would be used again."""
    command = [sys.executable, "jobs/benchmark.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_the_driver_holds_no_samples_of_the_pool(tmp_path):
    figures = benchmark("memory", "--rows", 150_000, "--object-store-mb", 200, "--actors", 1, "--directory", tmp_path)
    assert figures["pool_mb"] > 400
    assert figures["driver_mb"] < 100
    assert figures["spilled_mb"] == 0


@pytest.mark.slow
def test_the_driver_holds_no_scores_but_the_top(tmp_path):
    figures = benchmark("topk", "--rows", 30_000_000, "--k", 1_000, "--repeats", 1, "--directory", tmp_path)
    assert figures["driver_mb"] < 100  # ids and scores of all: 360 MB


@pytest.mark.slow
def test_centers_chooses_what_the_loop_does(local_ray, tmp_path):
    figures = centers.run(tmp_path, centers.Sizes(rows=1_000, dimensions=8, k=50, shards=2, repeats=1))
    assert figures["same_choice"] == 1.0
    assert figures["same_as_run"]
    assert set(figures["seconds"]) == {"loop", "shards"}


@pytest.mark.slow
@pytest.mark.parametrize("heaps", [0, 60])
def test_centers_compares_two_rounds_with_the_exact_choice(local_ray, tmp_path, heaps):
    figures = centers.rounds(tmp_path / "pool", 1_200, 8, 100, heaps)
    assert figures["radius_over_exact"] < 2.0, "each choice is within twice the best radius, and nearly greedy"
    assert figures["time_over_exact"] > 0.0


@pytest.mark.slow
def test_coverage_is_nearly_that_of_exact_greedy_selection(local_ray, tmp_path):
    values = coverage.quality(tmp_path, 6_000, 8, 60)
    assert values["exact"] > values["two_rounds"] > 0.95 * values["exact"]
    assert values["two_rounds"] > values["chance"]
    assert coverage.time(tmp_path / "time", 2_000, 8, 20, "max_herding")["time_over_k_centers"] > 0


@pytest.mark.slow
def test_centers_measures_the_memory_of_its_actors(local_ray, tmp_path):
    figures = centers.memory(tmp_path, 30_000, 8, 10, 2)
    assert figures["features_mb"] == pytest.approx(30_000 * 8 * 4 / 2**20)
    assert figures["shards_mb"] > figures["features_mb"] / 2


@pytest.fixture
def unmeasured(monkeypatch):
    """Nothing is measured to find the fastest backend: tests/scoring/test_backend_choice.py does."""

    def fastest(*_):
        return {"chosen": {"backend": "torch", "precision": "fp32", "batch_size": 32, "call_rows": 128}}

    for benchmark_ in (scoring, memory, photographs):
        monkeypatch.setattr(benchmark_, "fastest", fastest)


@pytest.mark.slow
def test_scoring_measures_what_a_run_does(local_ray, tmp_path, monkeypatch, unmeasured):
    monkeypatch.setattr(scoring, "ROWS_PER_FILE", 500)
    sizes = scoring.Sizes(rows=1_000, compared=1_000, repeats=1, size=8, architecture="resnet8")
    bench = scoring.Bench(tmp_path, sizes, scoring.generated(50, 8))
    assert sum(len(pq.read_table(f)) for f in bench.pool.files) == 1_000
    assert len(scoring.first(bench.pool, 1).files) == 1
    assert {job.batch_size for job in bench.jobs.values()} == {32}, "not what was found to be the fastest"
    seconds = measure.side_by_side(
        {"bare": bench.bare("p5", bench.jobs["p5"], 500), "loader": bench.dataloader(500)}, 1
    )
    assert all(s[0] > 0 for s in seconds.values())
    scores = pq.read_table(tmp_path / "dataloader.parquet")["score"].to_numpy()
    assert len(scores) == 500
    np.testing.assert_array_equal(scores[:50], scores[50:100])


@pytest.mark.slow
def test_wide_compares_the_networks_alone_and_through_the_pipeline(local_ray, tmp_path, monkeypatch, unmeasured):
    monkeypatch.setattr(scoring, "ROWS_PER_FILE", 50)
    sizes = scoring.Sizes(rows=200, compared=200, repeats=1, size=8, architecture="cifar_resnet18")
    figures = wide.run(tmp_path, sizes, scoring.generated(50, 8), 100)
    assert figures["rows"] == {"p875": 200, "dense": 100}
    assert set(figures["samples_per_second"]) == {"p875", "bare p875", "dense", "bare dense"}


@pytest.mark.slow
def test_memory_scores_every_sample(local_ray, tmp_path, unmeasured):
    figures = memory.run(
        tmp_path, tmp_path / "spilled", rows=600, size=8, architecture="resnet8", actors=1, rows_per_file=250
    )
    assert figures["scored"] == 600


@pytest.mark.slow
def test_training_compares_the_same_work(local_ray, tmp_path):
    sizes = training.Sizes(samples=64, epochs=2, repeats=1, batch_size=32, architecture="resnet8")
    figures = training.run(tmp_path, sizes, scoring.generated(20, 32), workers=0)
    assert set(figures["samples_per_second"]) == {"dense ours", "dense bare", "p5 ours", "p5 bare"}
    assert figures["training_over_bare"] == min(figures["training_over_bare_dense"], figures["training_over_bare_p5"])


@pytest.mark.slow
def test_the_bare_loops_do_what_a_run_does(local_ray, tiny_pool, tmp_path, monkeypatch):
    """From a run's files: as accurate, and with its scores."""
    monkeypatch.setattr(overhead, "trusted", lambda _: OWN)
    config = tiny(tiny_pool, tmp_path, distillation={"weight": 0.3})
    ledger = loop.run(config)
    again = overhead.Bare(tmp_path / "tiny")
    kept = {}
    monkeypatch.setattr(bare, "train", lambda *args, work=bare.train: kept.update(accuracy=work(*args)))
    for step in (Step(2, "train"), Step(2, "finetune")):
        assert again.seconds(step) > 0
        assert kept["accuracy"] == pytest.approx(ledger.require(step).metrics["test_accuracy"], abs=0.3)
    assert again.seconds(Step(0, "select")) == 0
    network = again.read(Step(0, "train"), "proxies/0")
    bare.score(network, again.pool, again.form, "least_confidence", str(tmp_path / "bare.parquet"))
    scores = {r["id"]: r["score"] for r in pq.read_table(tmp_path / "bare.parquet").to_pylist()}
    found = pq.read_table(tmp_path / "tiny/rounds/000/scores").to_pylist()
    assert all(r["score"] == pytest.approx(scores[r["id"]], abs=1e-5) for r in found)
    assert len(scores) == 120


@pytest.mark.slow
def test_survey_counts_what_it_was_asked_for(tmp_path):
    asked = {"rows": 40_000, "files": 800, "labels": 4_000, "trials": 40}
    words = [word for name, count in asked.items() for word in (f"--{name}", count)]
    figures = benchmark("survey", *words, "--directory", tmp_path)
    expected = {f"{name}-{count // part}" for name, count in asked.items() for part in (4, 2, 1)}
    assert expected | {"small", "rows grown by 1 %", "machine"} == figures.keys()
    assert all(figures[name]["over_small_mb"] < 300 for name in expected)


def test_side_by_side_takes_turns():
    order = []
    seconds = measure.side_by_side({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert [len(s) for s in seconds.values()] == [3, 3]
    assert measure.ratio({"x": [1, 9, 2], "y": [4, 4, 4]}, "x", "y") == 0.5


def test_memory_growth_sees_what_was_there_for_a_moment():
    import mmap
    import time

    with measure.memory_growth() as grown:
        held = mmap.mmap(-1, 60 * 2**20)  # pages of its own: an array may get what other tests have freed
        held[:: mmap.PAGESIZE] = b"x" * (60 * 2**20 // mmap.PAGESIZE)
        time.sleep(0.3)
        held.close()
    assert grown.mb == pytest.approx(60, abs=15)


def test_the_last_line_of_a_report_is_its_figures(capsys):
    measure.report("title", [("a", "1", "<= 2")], {"a": 1})
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert json.loads(line)["a"] == 1


@pytest.mark.slow
def test_photographs_are_scored_decoded_and_prepared(local_ray, tmp_path, monkeypatch, unmeasured):
    monkeypatch.setattr(photographs, "ROWS_PER_FILE", 8)
    sizes = photographs.Sizes(rows=16, loader_rows=8, width=64, height=48, input=32, architecture="resnet8")
    figures = photographs.run(tmp_path, sizes, 1)
    assert set(figures["seconds"]) == {"first", "again", "dense", "dense_decoding", "dataloader"}
    assert figures["prepared_bytes_per_sample"] == pytest.approx(32 * 32 * 3, rel=0.2)
    assert figures["milliseconds"]["read"] > 0


@pytest.mark.slow
def test_sharing_does_the_same_trials_twice(tmp_path):
    sizes = sharing.Sizes(
        rows=60, tests=10, width=64, height=48, input=16, architecture="resnet8", ratios=(0.5,), budgets=((8,), (8, 12))
    )
    figures = sharing.run(tmp_path, sizes, 1)
    assert figures["trials"] == 2
    assert figures["sweep_over_apart"] > 0
    swept = {path.parent.name for path in tmp_path.glob("swept-0/sharing/trials/*/report.html")}
    alone = list(tmp_path.glob("apart-1/*/alone/report.html"))
    assert len(swept) == len(alone) == 2


def test_efficiency_is_counted_while_every_actor_is_at_work():
    one = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    other = [(1.0, 2.0), (2.5, 3.5)]  # it waits half a second in between
    found = scaling.steady([one, other])
    assert (found.start, found.end, found.efficiency, found.calls) == (1.0, 3.5, 4.5 / 5.0, 4.5)
    with pytest.raises(ValueError, match="more --batches"):
        scaling.steady([[(0.0, 1.0)], [(2.0, 3.0)]])


def test_a_pass_on_paper():
    paper = scaling.on_paper({"driver": 5.0, "scheduler": 2.0, "stream": 20.0}, per_gpu=1_000, rows=10**9, gpus=100)
    assert paper["hours"] == pytest.approx(10**9 / 1e5 / 3600)
    assert (paper["driver_cores"], paper["stream_cores"]) == (0.5, 2.0)
    assert paper["rows_per_second_at_which_the_driver_is_full"] == 200_000


def test_a_decoder_that_fails_takes_no_other_figure_with_it():
    class Bench(gpu.Bench):
        def decoding_there(self):
            raise RuntimeError("nvJPEG is not there")

        def __getattribute__(self, name):
            quick = name in ("bare", "scoring", "overlapped", "busy", "training", "decoding")
            return (lambda *_: 2.0) if quick else super().__getattribute__(name)

    bench = Bench(gpu.Sizes(architecture="resnet8", side=16, batch=2), torch.device("cpu"))
    bench.device = torch.device("cuda")
    found = gpu.run(bench)
    assert found["figures"]["decoded_core"] == 2.0
    assert found["skipped"] == {"decoded_gpu": "RuntimeError: nvJPEG is not there"}


@pytest.mark.slow
def test_the_check_of_a_gpu_runs_without_one_and_without_ray():
    code = "import sys; sys.modules['ray'] = None; from prunefuse_ray.benchmarks.gpu import main; main(['--dry-run'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"scored_dense", "scored_p75", "trained_p875", "p75_over_dense_bf16"} <= found["figures"].keys()
    if found["device"] == "cpu":
        assert set(found["skipped"].values()) == {"needs a CUDA device"}


@pytest.mark.slow
def test_the_papers_table_is_filled_call_by_call_without_ray(tmp_path):
    """Stopped after every round, it ends as in one go."""
    rng = np.random.default_rng(0)
    for name, count in (("pool", 120), ("test", 20)):
        labels = rng.integers(0, 3, count)
        pixels = np.clip(rng.normal(128, 30, (count, 32, 32, 3)) + 40 * labels[:, None, None, None], 0, 255)
        images = [{"bytes": encode_png(image)} for image in pixels.astype(np.uint8)]
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{name}.parquet")
    code = "import sys; sys.modules['ray'] = None; from prunefuse_ray.benchmarks.paper import main; main(sys.argv[1:])"
    data = [f"--{name}={tmp_path / name}.parquet" for name in ("pool", "test")]

    def call(out, *more):
        command = [
            sys.executable,
            "-c",
            code,
            *data,
            "--dry-run",
            "--seeds",
            "0",
            "1",
            "--out",
            str(tmp_path / out),
            *more,
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])["rounds"], json.loads((tmp_path / out).read_text())["rounds"]

    count, whole = call("whole.json")
    assert count == 16
    for round_ in whole:
        assert len(round_["labeled"]) == len(set(round_["labeled"])) == round_["labels"]
        assert not {*round_["labeled"]} & {*round_["next"]}
    first = [round_["labeled"] for round_ in whole if round_["labels"] == 40]
    assert len({tuple(some) for some in first}) == 2, "all arms of a seed begin with the same labels"
    for rounds in range(1, 4):
        assert call("pieces.json", "--seconds", "0")[0] == rounds
    _, pieces = call("pieces.json")
    assert pieces == whole


def test_start_and_end_of_a_run_are_its_own(tmp_path, monkeypatch):
    ledger = SimpleNamespace(require=lambda _: SimpleNamespace(metrics={"seconds": 0.0}))
    fake = SimpleNamespace(config=None, ledger=ledger, seconds=lambda _: 0.0)
    monkeypatch.setattr(overhead, "Bare", lambda _: fake)
    monkeypatch.setattr(overhead, "steps", lambda _: [Step(0, "train")])
    monkeypatch.setattr(overhead.subprocess, "run", lambda *_, **__: time.sleep(0.05))
    figures = overhead.run(tmp_path, [], 2)
    assert figures["phases"]["start and end"]["run"] == pytest.approx(statistics.median(figures["wall_seconds"]))


@pytest.mark.parametrize(
    ("rows", "asked", "loaded"), [(2_000, 300, 300), (200, 300, 200), (2_000, 250, 300), (150, 300, 150)]
)
def test_the_loaders_rate_is_of_the_rows_that_it_reads(rows, asked, loaded):
    assert photographs.Sizes(rows=rows, loader_rows=asked).loaded == loaded


def test_what_a_benchmark_refuses_is_one_message():
    command = [sys.executable, "jobs/benchmark.py", "scoring", "--rows", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: --rows 7: give a multiple of 10,000" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_core_decodes_as_much_as_the_gpu_does():
    """What scales and crops is the form."""
    bench = gpu.Bench(gpu.Sizes(architecture="resnet8", side=16, batch=2, seconds=0.0), torch.device("cpu"))
    bench.form = None
    assert bench.decoding() > 0
