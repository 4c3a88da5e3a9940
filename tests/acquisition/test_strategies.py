"""Every registered strategy, and how one comes from outside the package."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.acquisition import STRATEGIES, Chance, Strategy
from prunefuse_ray.acquisition.probabilities import gradient_factor, softmax
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.selection.rows import Files
from prunefuse_ray.selection.set_selection import select_set
from prunefuse_ray.storage import Place
from tests.support import ROOT
from tests.support.runs import tiny

N, C, M, D = 200, 4, 3, 6


@pytest.fixture(scope="module")
def p_MNC():
    return softmax(np.random.default_rng(0).normal(0, 2, (M, N, C)).astype(np.float32))


SCORED = [name for name, s in STRATEGIES.items() if s.score is not None]
SETS = [name for name, s in STRATEGIES.items() if s.select is not None]


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_strategy_says_what_it_is(name):
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.wants
    assert strategy.paper or name == "random"
    assert strategy.select is None or strategy.score is not None, "the report shows scores of what was selected"


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_of_each_sample_alone_and_within_their_range(name, p_MNC):
    strategy = STRATEGIES[name]
    p = p_MNC if strategy.members else p_MNC[0]
    scores = strategy.score(p)
    assert (scores.dtype, scores.shape) == (np.float32, (N,))
    assert scores.min() >= 0
    assert scores.max() <= strategy.largest(C, M) * (1 + 1e-6)
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(strategy.score(p[..., order, :]), scores[order])
    np.testing.assert_array_equal(strategy.score(p[..., :7, :]), scores[:7])
    broken = p.copy()
    broken[..., 3, :] = np.nan
    assert np.flatnonzero(np.isnan(strategy.score(broken))).tolist() == [3]


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_k_different_samples_whatever_the_order_of_the_rows(name, p_MNC, tmp_path):
    strategy, p_NC = STRATEGIES[name], p_MNC[0]
    rng = np.random.default_rng(2)
    features, known = rng.normal(size=(N, D)).astype(np.float32), rng.normal(size=(5, D)).astype(np.float32)
    gradients = gradient_factor(p_NC)

    def write(folder, rows, x):
        table = {"id": pa.array(rows), "score": strategy.score(p_NC)[rows]}
        for column, values in (("feature", x), ("gradient", gradients[rows])):
            flat = pa.array(values.reshape(-1), pa.float32())
            table[column] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table(table), tmp_path / folder / "a.parquet")
        columns = ("gradient", "feature") if strategy.gradients else ("feature",)
        return Files(
            where=Place.at(str(tmp_path)), paths=(str(tmp_path / folder / "a.parquet"),), sizes=(1,), columns=columns
        )

    order = rng.permutation(N)
    labeled = write("labeled", np.arange(5), known) if strategy.labeled else None
    chance = Chance(seed=1, round=2)
    found = [
        select_set(strategy, write(folder, rows, features[rows]), labeled, 20, chance, 2)
        for folder, rows in (("one", np.arange(N)), ("other", order))
    ]
    assert found[0].equals(found[1])
    assert found[0].column_names == ["id", "score", "rank"]
    assert len(set(found[0]["id"].to_pylist())) == 20
    assert found[0]["rank"].to_pylist() == list(range(20))


# --- strategies of other packages ---

OURS = """
import numpy as np
from prunefuse_ray.acquisition import Strategy

def brightest(p_NC):
    return p_NC[:, 1].astype(np.float32)

BRIGHTEST = Strategy(name="brightest", wants="the second class", score=brightest)
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package with a strategy of its own, as pip installs it."""
    site = tmp_path / "site"
    (site / "bright-1.0.dist-info").mkdir(parents=True)
    (site / "bright-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: bright\nVersion: 1.0\n")
    (site / "bright-1.0.dist-info/entry_points.txt").write_text(
        "[prunefuse_ray.strategies]\nbrightest = bright:BRIGHTEST\n"
    )
    (site / "bright.py").write_text(OURS)
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("bright", None)


def test_a_configuration_takes_a_strategy_from_outside(outside):
    for name in ("brightest", "bright:BRIGHTEST"):
        assert config_from_tree({"selection": {"strategy": name}}).selection.strategy == name
    with pytest.raises(ConfigError, match=r"unknown acquisition strategy 'brightes' \(did you mean 'brightest'\?\)"):
        config_from_tree({"selection": {"strategy": "brightes"}})


@pytest.mark.slow
def test_a_run_selects_by_a_strategy_from_outside(outside, tiny_pool, tmp_path):
    """In a process of its own: Ray's workers, too, find the package."""
    config = tiny(
        tiny_pool, tmp_path, selection={"strategy": "brightest", "budgets": [10, 14]}, scoring={"actors": [1, 1]}
    )
    code = (
        "import sys, json; from prunefuse_ray.config.files import config_from_tree; from prunefuse_ray.run import loop;"
        "loop.run(config_from_tree(json.loads(sys.argv[1])))"
    )
    subprocess.run(
        [sys.executable, "-c", code, config.model_dump_json()],
        cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": f"{ROOT}:{outside}"}, timeout=240,
    )  # fmt: skip
    root = tmp_path / "tiny"
    scores = pq.read_table(root / "rounds/000/scores").sort_by([("score", "descending"), ("id", "ascending")])
    assert pq.read_table(root / "rounds/001/selected.parquet")["id"].to_pylist() == scores["id"].to_pylist()[:4]
    assert json.loads((root / "result.json").read_text())["task"] == "classification"


def test_a_set_strategy_without_a_score_is_refused():
    with pytest.raises(ConfigError, match="'mine': selects a set but has no score"):
        Strategy(name="mine", wants="x", select=lambda candidates, k, chance: None)


def test_the_guide_names_what_reads_gradients():
    guide = (ROOT / "docs/how-to/strategies.md").read_text(encoding="utf-8")
    told = next(line for line in guide.splitlines() if "also `gradient`" in line)
    assert all(name.upper() in told for name, s in STRATEGIES.items() if s.gradients)
