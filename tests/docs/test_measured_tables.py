"""Tables that are written by hand say what the files of their sweeps say."""

import itertools
import json
import re
import statistics

import pandas as pd
import pytest

from tests.support import ROOT

FIGURES = ROOT / "docs/explanation/figures"
BENCHMARKS = "docs/reference/benchmarks.md"
RESULTS, COMMITTEES, README = "docs/explanation/results.md", "docs/how-to/committees.md", "README.md"
LOOP, FUSION = "cifar10_small_comparison", "cifar10_small_fusion"
BUDGETS = (1_000, 2_500, 5_000)

WHOLE_LOOP = {
    "PruneFuse, p = .5": "prunefuse-p50",
    "PruneFuse, p = .8": "prunefuse-p80",
    "PruneFuse, [committee](../how-to/committees.md) of 2": "committee-2",
    "the same, `bald`": "committee-2-bald",
    "the same, `function_preserving`": "committee-2-preserving",
    "PruneFuse, committee of 4, `function_preserving`": "committee-4-preserving",
    "the dense network selects (classic active learning)": "dense",
    "ResNet-8 selects (Selection via Proxy)": "svp-resnet8",
    "random selection": "random",
}
RULES = {"keep": "keep", "function_preserving": "preserving", "scaled": "scaled", "positional": "positional"}
AMONG_COMMITTEES = {
    "from scratch": "scratch",
    "from scratch, longer": "scratch-longer",
    "one proxy, p = .75": "p75-keep",
    "one proxy, p = .5": "p50-keep",
    "committee of 2, `keep`": "committee-2-keep",
    "committee of 2, `function_preserving`": "committee-2-preserving",
    "committee of 4, `function_preserving`": "committee-4-preserving",
}


def rows_of(document, title):
    """The cells of the table rows of this title."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        line.strip().strip("|").split("|")[1:] for line in text.splitlines() if line.strip().startswith(f"| {title} |")
    ]


def measured(sweep, arm, labels, column="fused_accuracy"):
    table = pd.read_csv(FIGURES / f"{sweep}.csv")
    values = table[(table["arm"] == arm) & (table["labels"] == labels)][column]
    assert len(values) == 3, "three seeds"
    return f"{100 * values.mean():.1f} ± {100 * values.std():.1f}"


def tera(sweep, arm):
    table = pd.read_csv(FIGURES / f"{sweep}.csv")
    return f"{table[(table['arm'] == arm) & (table['labels'] == 5_000)]['total_macs'].mean() / 1e12:.1f} T"


def cells(row):
    return [re.sub(r"[*]", "", cell).strip() for cell in row]


@pytest.mark.parametrize("title", WHOLE_LOOP)
def test_the_whole_loop(title):
    (row,) = rows_of(RESULTS, title)
    found = cells(row)
    assert found[:3] == [measured(LOOP, WHOLE_LOOP[title], n) for n in BUDGETS]
    assert found[5] == tera(LOOP, WHOLE_LOOP[title])


def macs_until(arm, accuracy):
    """(points of one seed: labels, accuracy, MACs) -> MACs at which it is so accurate; None where it never is."""
    for (_, low, before), (_, high, after) in itertools.pairwise(arm):
        if low < accuracy <= high:
            return before + (after - before) * (accuracy - low) / (high - low)
    return None


@pytest.mark.parametrize("title", ["PruneFuse, p = .5", "PruneFuse, p = .8", "random selection"])
def test_macs_for_the_same_accuracy(title):
    table = pd.read_csv(FIGURES / f"{LOOP}.csv").sort_values("labels")

    def points(arm, seed):
        of = table[(table["arm"] == arm) & (table["seed"] == seed)]
        return list(of[["labels", "fused_accuracy", "total_macs"]].itertuples(index=False, name=None))

    (row,) = rows_of(RESULTS, f"{title}, of its MACs")
    for told, budget in zip(cells(row), BUDGETS[1:], strict=True):
        shares = []
        for seed in range(3):
            ((_, accuracy, macs),) = [p for p in points("dense", seed) if p[0] == budget]
            needed = macs_until(points(WHOLE_LOOP[title], seed), accuracy)
            shares.append(needed and 100 * needed / macs)
        if None in shares:
            found = [f"{share:.0f}%" for share in shares if share is not None]
            assert told == f"{', '.join(found)}; one of three seeds never is"
        else:
            assert told == f"{statistics.mean(shares):.0f} ± {statistics.stdev(shares):.0f}%"


CLASSIC = "the dense network selects (classic active learning)"


@pytest.mark.parametrize("title", ["PruneFuse, p = .5", "PruneFuse, p = .8", CLASSIC, "random selection"])
def test_the_readme(title):
    (row,) = rows_of(README, title)
    found, arm = cells(row), WHOLE_LOOP[title]
    assert found[:3] == [measured(LOOP, arm, n) for n in BUDGETS]
    table = pd.read_csv(FIGURES / f"{LOOP}.csv").query("labels == 5000")
    means = table.groupby("arm")[["selection_macs", "selection_training_macs", "selection_seconds"]].mean()
    macs, training, seconds = means.loc[arm] / means.loc["dense"]
    share = "0" if macs == 0 else f"{100 * macs:.0f}%" if macs == 1 else f"{100 * macs:.1f}%"
    assert found[3:] == [share, f"{100 * seconds:.0f}%", tera(LOOP, arm)]
    assert training == pytest.approx(macs), "the shares with training are the same"


def test_random_selection_at_equal_cost_stands_beside_the_method():
    """What a user would do instead with the same multiply-accumulates."""
    expected = [measured(FUSION, "scratch-longer", n) for n in (1_000, 5_000)]
    for document, title in (
        (README, "random selection, 23 epochs"),
        (RESULTS, "random selection, 23 epochs ([below](#fusion-rules-and-distillation))"),
    ):
        (row,) = rows_of(document, title)
        assert [cells(row)[0], cells(row)[2]] == expected
    assert tera(FUSION, "scratch-longer") == tera(LOOP, "prunefuse-p50") == "14.1 T"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("told", "arm"), [("", ""), (", distilled", "-distilled")])
def test_fusion_rules(rule, told, arm):
    (row,) = rows_of(RESULTS, f"`{rule}`{told}")
    arms = [f"p{p}-{RULES[rule]}{arm}" for p in (50, 70)]
    assert cells(row) == [measured(FUSION, a, n) for a in arms for n in (1_000, 5_000)]


@pytest.mark.parametrize(
    ("title", "arm"), [("from scratch", "scratch"), ("from scratch, 23 epochs instead of 15", "scratch-longer")]
)
def test_what_fusion_is_compared_with(title, arm):
    (row,) = [r for r in rows_of(RESULTS, title) if len(r) == 4]
    assert cells(row) == 2 * [measured(FUSION, arm, n) for n in (1_000, 5_000)]


@pytest.mark.parametrize("title", AMONG_COMMITTEES)
def test_committees(title):
    (row,) = rows_of(COMMITTEES, title)
    found, arm = cells(row), AMONG_COMMITTEES[title]
    assert found[:2] == [measured(FUSION, arm, n) for n in (1_000, 5_000)]
    assert found[2] == tera(FUSION, arm)
    assert found[3] in ("", measured(FUSION, arm, 5_000, "proxy_accuracy"))


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("the pool's own samples", "pool"),
        ("two other classes of CIFAR-10", "other classes"),
        ("photographs of Imagenette", "photographs"),
        ("digits", "digits"),
    ],
)
def test_samples_that_belong_to_no_class(title, kind):
    seeds = json.loads((FIGURES / "hold_back.json").read_text(encoding="utf-8"))["seeds"]

    def told(values):
        return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"

    raw, unit = ("" if kind == "pool" else told([s[of]["auroc"][kind] for s in seeds]) for of in ("raw", "unit"))
    held = [told([s["raw"]["held back, usual by labeled"][t][kind] for s in seeds]) for t in ("1.0", "1.25", "2.0")]
    (row,) = rows_of(RESULTS, title)
    assert cells(row) == [raw, *held, unit]


def of_seeds(file, labels, column, arm=None):
    """As the text of README has it: mean ± standard deviation over the seeds of a file."""
    tree = json.loads((FIGURES / f"{file}.json").read_text(encoding="utf-8"))
    rows = tree["rounds"] if arm is None else [row for row in tree["rows"] if row["arm"] == arm]
    values = [100 * row[column] for row in rows if row["labels"] == labels]
    assert len(values) == 3, "three seeds"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} %"


def test_the_simplest_model_in_the_readme():
    text = (ROOT / README).read_text(encoding="utf-8").replace("*", "")
    loop, pool, imdb, docstrings = (
        "as above (p = .5)",
        "from the unlabeled pool",
        "(IMDb)",
        "docstrings of four libraries",
    )
    for title, labels, simplest, reached in (
        (loop, 1_000, of_seeds("kmeans_cifar10", 1_000, "baseline"), measured(LOOP, "prunefuse-p50", 1_000)),
        (loop, 5_000, of_seeds("kmeans_cifar10", 5_000, "baseline"), measured(LOOP, "prunefuse-p50", 5_000)),
        (pool, 1_000, of_seeds("learned_from_pool", 1_000, "baseline"), of_seeds("learned_from_pool", 1_000, "fused")),
        (imdb, 1_000, of_seeds("texts_imdb", 1_000, "baseline"), of_seeds("texts_imdb", 1_000, "fused")),
        (docstrings, 400, *(of_seeds("texts_selected", 400, n, "random-fused") for n in ("baseline", "fused"))),
        (
            "selected by `margin`",
            400,
            of_seeds("texts_selected", 400, "baseline", "random-fused"),
            of_seeds("texts_selected", 400, "fused", "margin"),
        ),
    ):
        cells = f"| {labels:,} | {simplest} | {reached} |".replace(" %", "")
        assert any(title in line and line.endswith(cells) for line in text.splitlines()), (title, cells)


@pytest.mark.parametrize(
    ("file", "figure"),
    [
        ("topk", "time_over_single"),
        ("overhead", "overhead_share"),
        ("sharing", "sweep_over_apart"),
        ("training", "training_over_bare_dense"),
        ("training", "training_over_bare_p5"),
        ("training", "group_over_bare_dense"),
        ("training", "group_over_bare_p5"),
        ("photographs", "again_over_dense"),
        ("photographs", "first_over_dense"),
        ("scaling", "efficiency_16"),
        ("scaling", "efficiency_32"),
        ("wide", "p875_over_dense"),
        ("wide", "of_the_bare_ratio"),
        ("scoring", "p5_over_dense"),
        ("scoring", "p8_over_dense"),
        ("scoring", "pipeline_over_bare"),
    ],
)
def test_benchmarks_are_those_of_their_files(file, figure):
    value = json.loads((FIGURES / f"{file}.json").read_text(encoding="utf-8"))[figure]
    rows = [line for line in (ROOT / BENCHMARKS).read_text(encoding="utf-8").splitlines() if f"`{figure}`" in line]
    assert any(told in row for row in rows for told in (f"{value:.2f}", f"{value:.1f}")), (value, rows)
