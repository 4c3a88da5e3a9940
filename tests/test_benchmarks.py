"""The benchmarks in small: that what they compare is right, not how long it takes."""

import json

import pytest

from prunefuse_ray.benchmarks import centers, measure, topk


def test_topk_finds_what_a_full_sort_does(local_ray, tmp_path):
    figures = topk.run(tmp_path, 30_000, 500, 20_000, 1, 5_000)
    assert figures["same_as_full_sort"]
    assert figures["subset_rows"] == 20_000
    assert figures["time_over_single"] > 0
    files = sorted(map(str, tmp_path.glob("*.parquet")))
    assert sorted(topk.single(files, 500)["score"].to_pylist())[0] >= 0
    assert len(set(topk.by_full_sort(files, 30_000))) == 30_000


def test_centers_chooses_what_the_loop_does(local_ray, tmp_path):
    figures = centers.run(tmp_path, centers.Sizes(rows=1_000, dimensions=8, k=50, shards=2, repeats=1))
    assert figures["same_choice"] == 1.0
    assert figures["same_as_run"]
    assert set(figures["seconds"]) == {"loop", "shards"}


def test_centers_measures_the_memory_of_its_actors(local_ray, tmp_path):
    figures = centers.memory(tmp_path, 30_000, 8, 10, 2)
    assert figures["features_mb"] == pytest.approx(30_000 * 8 * 4 / 2**20)
    assert figures["shards_mb"] > figures["features_mb"] / 2


def test_side_by_side_takes_turns():
    order = []
    seconds = measure.side_by_side({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert [len(s) for s in seconds.values()] == [3, 3]
    assert measure.ratio({"x": [1, 9, 2], "y": [4, 4, 4]}, "x", "y") == 0.5


def test_memory_growth_sees_what_was_there_for_a_moment():
    import time

    import numpy as np

    with measure.memory_growth() as grown:
        held = np.ones(60 * 2**20 // 8)
        time.sleep(0.3)
        del held
    assert grown.mb == pytest.approx(60, abs=15)


def test_the_last_line_of_a_report_is_its_figures(capsys):
    measure.report("title", [("a", "1", "<= 2")], {"a": 1})
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert json.loads(line)["a"] == 1
