"""The page of a run: its facts, what it does with hostile and missing data, and that it stands alone."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from prunefuse_ray.report import html, plots
from prunefuse_ray.report.contact_sheets import SHOWN, TEXTS_SHOWN
from prunefuse_ray.report.page import render, wilson
from prunefuse_ray.report.view import Chosen, Doubt, RoundView, RunView, ScoreHistogram
from prunefuse_ray.storage import json_bytes
from prunefuse_ray.tasks import Metric
from prunefuse_ray.tasks.classification import CLASSIFICATION
from tests.support import ROOT

VOID = {"img", "meta", "br", "link"}


class Page(HTMLParser):
    """What a reader sees of a page: the words of each section, and every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {"": ""}
        self.cells: list[list[str]] = []  # of all tables, in order
        self._open: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.sections[self._section] += data + " "
        if self._open and {"td", "th"} & set(self._open) and self.cells:
            self.cells[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self, section: str = "") -> str:
        return " ".join(self.sections[section].split())

    def row(self, *start: str) -> list[str]:
        """The one row of any table that starts with these cells."""
        (found,) = [row for row in self.cells if tuple(row[: len(start)]) == start]
        return found


def encoded(size: tuple[int, int] = (8, 8), mode: str = "L", kind: str = "PNG", seed: int = 0) -> bytes:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, kind)
    return stored.getvalue()


def chosen(rank: int, **changed: Any) -> Chosen:
    fields: dict[str, Any] = {
        "id": f"img/{rank:03d}.png",
        "score": 0.9 - rank / 100,
        "rank": rank,
        "label": f"cat{rank % 3}",
        "image": encoded(seed=rank),
    }
    return Chosen(**fields | changed)


def round_view(number: int, phases: dict[str, dict[str, Any]], **changed: Any) -> RoundView:
    fields: dict[str, Any] = {
        "round": number,
        "labels": 100 + 50 * number,
        "chosen": 50 if number else 100,
        "strategy": "margin" if number else "random",
        "metrics": {
            "labels": 100 + 50 * number,
            "phases": phases,
            "cluster": {"nodes": 1 + number, "cpus": 2 + 2 * number, "gpus": 0},
        },
        "scores": None,
        "first": [chosen(rank) for rank in range(4)],
        "last": [chosen(rank) for rank in range(46, 50)],
    }
    return RoundView(**fields | changed)


def run_view(**changed: Any) -> RunView:
    """Two rounds: 150 of 2,000 labels; scoring 1,900 samples at 1 M MACs each where the dense network takes 8 M."""
    histogram = ScoreHistogram(edges=np.linspace(0, 1, 6), counts=np.array([1500, 300, 60, 30, 10]), threshold=0.625)
    first: dict[str, dict[str, Any]] = {
        "select": {"seconds": 0.5},
        "label": {"seconds": 0.25},
        "train": {
            "seconds": 20.0,
            "macs": 4_500_000_000,
            "epochs": 3,
            "samples_per_second": 1500.0,
            "test_accuracy": 0.8,
            "test_loss": 0.71,
            "train_loss": [2.0, 1.0, 0.5],
        },
        "score": {
            "seconds": 4.0,
            "macs": 1_900_000_000,
            "dense_macs": 15_200_000_000,
            "samples": 1900,
            "samples_per_second": 475.0,
            "rejected": 2,
            "actors": [1, 4],
        },
    }
    second: dict[str, dict[str, Any]] = {
        "select": {"seconds": 0.5},
        "label": {"seconds": 0.25},
        "train": first["train"] | {"seconds": 30.0, "samples_per_second": 1600.0, "test_accuracy": 0.875},
        "fuse": {"seconds": 1.0},
        "finetune": {
            "seconds": 63.5,
            "macs": 36_000_000_000,
            "epochs": 2,
            "test_accuracy": 0.9,
            "test_loss": 0.3,
            "evaluations": [{"epoch": 1, "accuracy": 0.7, "loss": 0.6}, {"epoch": 2, "accuracy": 0.9, "loss": 0.3}],
        },
    }
    fields: dict[str, Any] = {
        "name": "digits",
        "directory": "s3://runs/digits-0",
        "complete": True,
        "metric": CLASSIFICATION.metric,
        "config": {"seed": 7, "network": {"name": "resnet18", "stem": {"width": 16}}, "tags": ["a", "b"], "note": None},
        "pool": {
            "rows": 2000,
            "files": 3,
            "bytes": 1_500_000,
            "classes": ["cat0", "cat1", "cat2"],
            "path": "s3://pool",
        },
        "rounds": [round_view(0, first, scores=histogram), round_view(1, second)],
        "result": {
            "rounds": [
                {"round": 0, "labels": 100, "proxy_accuracy": 0.8, "fused_accuracy": None},
                {"round": 1, "labels": 150, "proxy_accuracy": 0.875, "fused_accuracy": 0.9},
            ],
            "fused_accuracy": 0.9,
            "proxy_accuracy": 0.875,
            "selection_macs": 1_900_000_000,
            "dense_selection_macs": 15_200_000_000,
            "seconds": 150.0,
            "parameters": {"dense": 11_200_000, "proxy": 2_800_000},
            "macs_per_sample": {"dense": 8_000_000, "proxy": 1_000_000},
        },
        "rejected": [("img/x.png", "truncated"), ("img/y.png", "not an image")],
        "rejected_count": 5,
    }
    return RunView(**fields | changed)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(run_view()))


def python(code: str) -> bytes:
    """What another process prints."""
    root = ROOT
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=root).stdout


def unfinished(drop: set[str], **changed: Any) -> RunView:
    """The same run before its last round has done these phases."""
    run = run_view()
    last = run.rounds[-1]
    phases = {key: value for key, value in last.metrics["phases"].items() if key not in drop}
    last = dataclasses.replace(last, metrics=last.metrics | {"phases": phases})
    return run_view(**{"complete": False, "result": None, "rounds": [run.rounds[0], last]} | changed)


def test_the_interval_of_an_accuracy_is_wilsons():
    """Known values: 8 of 10, and none of 20."""
    assert wilson(0.8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.161), abs=1e-3)


def test_the_headline_tells_labels_accuracies_cost_and_time(page: Page) -> None:
    words = page.words()
    assert "Labels used 150 7.5% of 2,000 in the pool" in words
    assert "Fused accuracy 90.0% +2.5 points on its proxy" in words
    assert "Proxy accuracy 87.5% +7.5 points since round 0" in words
    assert "Selection MACs 12.5% of dense: 1.90 G vs 15.2 G" in words
    assert "Wall time 2 min 30 s 2 rounds" in words
    assert "With 150 of 2,000 pool samples labeled, the fused network reaches 90.0% on the test set" in words
    assert "its proxy reaches 87.5%. Scoring the pool took 12.5% of the MACs" in words
    assert "complete" in words
    assert "s3://runs/digits-0" in words


def test_accuracy_names_both_networks_at_their_labels_and_the_facts_of_the_run(page: Page) -> None:
    words = page.words("metric")
    assert "proxy 87.5%" in words
    assert "fused 90.0%" in words
    assert re.search(r"\b100 150 labels", words)
    assert "s3://pool 2,000 samples, 3 files, 1.50 MB" in words
    assert "3: cat0, cat1, cat2" in words
    assert "random, then margin" in words
    assert "2.80 M parameters, 25.0% of the dense network's 11.2 M" in words
    assert "1.00 M MACs per sample, 12.5% of the dense network's 8.00 M" in words
    assert "1–2 nodes, 2–4 CPUs, 0 GPUs" in words


def test_each_round_has_a_row(page: Page) -> None:
    # chosen, total | proxy, loss, fused | samples, rate, actors, MACs, of dense, rejected | time: 0.5 + .25 + 20 + 4
    first = ["100", "100", "80.0%", "0.710", "–", "1,900", "475", "1–4", "1.90 G", "12.5%", "2", "24.8 s"]
    assert page.row("0", "random")[2:] == first
    # 0.5 + 0.25 + 30 + 1 + 63.5 = 95.25 s
    second = ["50", "150", "87.5%", "0.710", "90.0%", "–", "–", "–", "–", "–", "–", "1 min 35 s"]
    assert page.row("1", "margin")[2:] == second


def test_time_and_macs_are_summed_per_phase(page: Page) -> None:
    # seconds: 1.0 + 0.5 + 50 + 4 + 1 + 63.5 = 120; MACs: 9 + 1.9 + 36 = 46.9 G
    assert page.row("select") == ["select", "2", "1.0 s", "0.8%", "–", "–", "–", "–"]
    assert page.row("train") == ["train", "2", "50.0 s", "41.7%", "9.00 G", "19.2%", "6", "1,500–1,600"]
    assert page.row("score") == ["score", "1", "4.0 s", "3.3%", "1.90 G", "4.1%", "–", "475"]
    assert page.row("finetune") == ["finetune", "1", "1 min 04 s", "52.9%", "36.0 G", "76.8%", "2", "–"]
    assert page.row("all phases") == ["all phases", "", "2 min 00 s", "", "46.9 G", "", "", ""]
    assert page.row("before round 0")[2] == "30.0 s"
    assert "G MACs" in page.words("cost")
    assert "Hollow: scoring the same samples with the dense network." in page.words("cost")


def test_fine_tuning_that_would_hide_the_cost_of_scoring_is_left_out_of_the_bars() -> None:
    run = run_view()
    run.rounds[1].metrics["phases"]["finetune"]["macs"] = 153_000_000_000  # over ten times the 15.2 G of dense scoring
    page = Page(render(run))
    assert "Fine-tuning, 153 G in all, is left out" in page.words("cost")
    assert page.row("finetune")[4] == "153 G"
    assert "left out" not in Page(render(run_view())).words("cost")


def test_scores_are_drawn_with_their_threshold(page: Page) -> None:
    words = page.words("scores")
    assert "Round 0" in words
    assert "Round 1" not in words
    assert "0.625" in words
    assert "1 k" in words  # the logarithmic axis goes past the 1,500 of the first bin


def test_contact_sheets_show_the_first_and_the_last(page: Page) -> None:
    words = page.words("samples")
    assert "Round 0 · 100 chosen by random" in words
    assert "First: scores 0.900 to 0.870" in words
    assert "Last: scores 0.440 to 0.410" in words
    images = page.named("img")
    assert len(images) == 16
    assert images[0]["alt"] == "img/000.png"
    assert all(one["class"] == "tiny" for one in images)
    tips = [one["title"] for one in page.named("figure") if "title" in one]
    assert tips[1] == "img/001.png\nlabel cat1, score 0.890, rank 1"


def test_training_shows_both_curves(page: Page) -> None:
    words = page.words("training")
    assert "Proxy" in words
    assert "round 0" in words
    assert "Dashed: the proxy it was fused from, in round 1." in words


def test_rejected_samples_come_with_their_reasons(page: Page) -> None:
    assert "5 samples (0.25% of the pool) were rejected" in page.words("rejected")
    assert "The first 2:" in page.words("rejected")
    assert page.row("img/x.png") == ["img/x.png", "truncated"]
    assert "No sample was rejected." in Page(render(run_view(rejected=[], rejected_count=0))).words("rejected")


def test_the_configuration_is_folded_and_whole(page: Page) -> None:
    words = page.words("configuration")
    assert "5 settings" in words
    assert "seed 7" in words
    assert 'tags ["a", "b"]' in words
    assert "note null" in words
    assert "network name resnet18 stem.width 16" in words
    assert page.named("details")[-1] == {}  # not open


def test_the_page_needs_nothing_from_outside(page: Page) -> None:
    html = render(run_view())
    assert "@import" not in html
    assert "url(http" not in html
    assert "http://" not in html
    assert "https://" not in html
    assert not page.named("script")
    assert not page.named("link")
    for name, attributes in page.tags:
        for key in ("src", "href", "xlink:href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:image/")), (name, value)
    assert any("default-src 'none'" in (one.get("content") or "") for one in page.named("meta"))


def test_no_id_occurs_twice_and_every_reference_has_a_target(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {(one.get("href") or one.get("xlink:href") or "") for _, one in page.tags} - {""}
    clips = {
        found for _, one in page.tags for found in re.findall(r"url\((#[^)]*)\)", " ".join(map(str, one.values())))
    }
    assert {one for one in wanted | clips if one.startswith("#")} <= {f"#{one}" for one in ids}


def test_plots_take_every_color_from_the_page() -> None:
    page = render(run_view())
    assert not set(plots.COLOR.values()) & set(re.findall(r"#[0-9a-f]{6}", page))
    for name in re.findall(r"var\(--([a-z]+)\)", page):
        assert f"--{name}:" in html.STYLE


def test_the_same_run_gives_the_same_bytes_whatever_the_users_plot_style(page: Page) -> None:
    first = render(run_view())
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert render(run_view()) == first
    code = "import sys; from tests.report.test_page import *; sys.stdout.buffer.write(render(run_view()).encode())"
    assert python(code).decode() == first


def test_the_module_needs_neither_ray_nor_pyplot() -> None:
    code = "import sys, prunefuse_ray.report.page; print({'ray', 'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    assert python(code) == b"set()\n"


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;$x^2$\x00\ud800"


def test_strings_from_data_stay_text() -> None:
    bad = [chosen(rank, id=f"{EVIL}{rank}", label=EVIL) for rank in range(3)]
    run = run_view(
        name=EVIL,
        directory=EVIL,
        config={EVIL: EVIL, "a": {EVIL: {EVIL: [EVIL]}}},
        pool={"rows": 2000, "files": 1, "bytes": 10, "classes": [EVIL], "path": EVIL},
        rounds=[
            round_view(0, {EVIL: {"seconds": 1.0}}, first=bad, last=[], strategy=EVIL),
            round_view(1, {}, first=[chosen(0, id=EVIL, label=EVIL, image=None, text=EVIL)], last=[]),
            round_view(2, {}, first=[chosen(0, id=EVIL, image=b"no image")], last=[]),
        ],
        result=None,
        rejected=[(EVIL, EVIL)],
        rejected_count=1,
    )
    html = render(run)
    html.encode("utf-8")
    page = Page(html)
    shown = EVIL.replace("\x00", "\ufffd").replace("\ud800", "?")
    assert not page.named("script")
    assert all(str(one["src"]).startswith("data:image/png;base64,") for one in page.named("img"))
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert shown in page.sections[""]
    assert page.row(shown, shown)  # a rejected id with its reason
    for section in ("metric", "rounds", "cost", "samples", "configuration"):
        assert shown in page.sections[section], section


def test_a_run_in_progress_says_how_far_it_is() -> None:
    page = Page(render(unfinished({"train", "fuse", "finetune"})))
    words = page.words()
    assert "in progress" in words
    assert (
        "With 100 of 2,000 pool samples labeled, the proxy reaches 80.0% on the test set; nothing is fused yet."
        in words
    )
    assert "Last finished: label of round 1." in words
    assert "Fused accuracy – not fused yet" in words
    assert "Proxy accuracy 80.0% after one round" in words
    assert "Selection MACs 12.5%" in words  # from the rounds: there is no result
    assert "Time so far 25.5 s" in words
    learned = unfinished({"train", "fuse", "finetune"}, pretraining={"method": "rotation", "seconds": 100.0})
    assert "Time so far 2 min 06 s" in Page(render(learned)).words()
    assert page.row("1", "margin")[4:] == ["–"] * 9 + ["750 ms"]
    assert "fused" not in page.words("metric")


def test_a_run_that_fuses_in_every_round_compares_each_fused_network_with_its_own_proxy() -> None:
    run = unfinished({"fuse", "finetune"})
    tuned = {"seconds": 9.0, "macs": 1, "epochs": 1, "test_accuracy": 0.84,
             "evaluations": [{"epoch": 1, "accuracy": 0.84, "loss": 0.4}]}  # fmt: skip
    run.rounds[0].metrics["phases"]["finetune"] = tuned
    words = Page(render(run)).words()
    assert "With 100 of 2,000 pool samples labeled, the fused network reaches 84.0% on the test set" in words
    assert "Fused accuracy 84.0% +4.0 points on its proxy" in words
    assert "Proxy accuracy 87.5%" in words


def test_the_fine_tuning_is_shown_as_it_was_measured_on_the_way() -> None:
    """By the figures that a training records (`trainer._metrics`): none where finetuning.evaluate_every is 0."""
    drawn = Page(render(run_view())).words("training")
    assert "Accuracy on the test set while it was fine-tuned; epoch 0 is before that." in drawn
    run = run_view()
    run.rounds[1].metrics["phases"]["finetune"]["evaluations"] = []
    assert "fine-tuned" not in Page(render(run)).words("training")


@pytest.mark.parametrize("rounds", [[], [round_view(0, {})], [round_view(0, {"select": {"seconds": 0.1}})]])
def test_a_run_that_has_hardly_begun_has_a_page(rounds: list[RoundView]) -> None:
    page = Page(render(run_view(complete=False, result=None, rounds=rounds)))
    assert "no network is trained yet." in page.words()
    assert "No network has been tested yet." in page.words("metric")
    assert "Selection MACs – nothing scored yet" in page.words()
    assert "training" not in page.sections


def test_metrics_that_are_not_numbers_count_as_missing() -> None:
    phases: dict[str, Any] = {
        "train": {"seconds": None, "test_accuracy": float("nan"), "train_loss": [float("inf")]},
        "score": None,
    }
    page = Page(render(run_view(complete=False, result=None, pool={}, rounds=[round_view(0, phases)])))
    assert page.row("0", "random")[4:] == ["–"] * 10
    assert "nan" not in page.words().lower()


def test_one_round_without_scoring() -> None:
    run = run_view()
    only = run_view(rounds=[dataclasses.replace(run.rounds[-1], round=0)], result=None)
    words = Page(render(only)).words()
    assert "Selection MACs – nothing scored Wall time" in words
    assert "Wall time 1 min 35 s 1 round" in words
    assert "Proxy accuracy 87.5% after one round" in words


def test_text_samples_are_shown_as_text_and_cut() -> None:
    first = [chosen(rank, image=None, text=f"sample {rank} " + "word " * 100) for rank in range(SHOWN)]
    page = Page(render(run_view(rounds=[round_view(0, {}, first=first, last=[])])))
    assert not page.named("img")
    words = page.words("samples")
    assert f"sample {TEXTS_SHOWN - 1} word" in words
    assert f"sample {TEXTS_SHOWN} word" not in words
    assert words.count(" …") == TEXTS_SHOWN
    assert "cat0 · 0.900 · img/000.png" in words


def test_undecodable_images_are_placeholders() -> None:
    broken = [b"", b"no image", encoded()[:60], b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    first = [chosen(rank, image=data) for rank, data in enumerate([*broken, encoded(), None])]
    page = Page(render(run_view(rounds=[round_view(0, {}, first=first, last=[])])))
    assert page.words("samples").count("not decodable") == len(broken)
    assert page.words("samples").count("no image") == 1
    assert len(page.named("img")) == 1


def test_a_sheet_shows_no_sample_twice_and_no_more_than_its_share() -> None:
    few = [chosen(rank) for rank in range(6)]
    page = Page(render(run_view(rounds=[round_view(0, {}, first=few, last=few, chosen=6)])))
    assert len(page.named("img")) == 6
    assert "All: scores 0.900 to 0.850" in page.words("samples")
    many = [chosen(rank) for rank in range(60)]
    page = Page(render(run_view(rounds=[round_view(0, {}, first=many, last=many[::-1], chosen=60)])))
    names = [one["alt"] for one in page.named("img")]
    assert names == [f"img/{rank:03d}.png" for rank in (*range(SHOWN), *range(60 - SHOWN, 60))]


def test_many_rounds_fold_the_middle_and_stay_small() -> None:
    photo = encoded((400, 300), "RGB", "JPEG")
    views = [
        round_view(
            number,
            {"train": {"seconds": 1.0, "macs": 10, "test_accuracy": 0.5 + number / 100, "train_loss": [1.0] * 50}},
            first=[chosen(rank, image=photo) for rank in range(SHOWN)],
            last=[chosen(rank, image=photo) for rank in range(70, 70 + SHOWN)],
            scores=ScoreHistogram(edges=np.linspace(0, 1, 41), counts=np.full(40, 10**number), threshold=0.9),
        )
        for number in range(12)
    ]
    html = render(run_view(rounds=views))
    page = Page(html)
    folded = ["open" in one for one in page.named("details")[:-1]]
    assert folded == [True] + [False] * 8 + [True] * 3
    assert len(page.named("img")) == 12 * 2 * SHOWN
    assert len(html) < 12 * 2 * SHOWN * 8_000  # noise, the worst that JPEG can meet


@pytest.mark.parametrize(
    ("source", "size", "kind"),
    [
        (encoded((8, 8)), (8, 8), "PNG"),
        (encoded((32, 32), "RGB"), (32, 32), "PNG"),
        (encoded((400, 300), "RGB", "JPEG"), (96, 72), "JPEG"),
        (encoded((200, 200), "RGBA"), (96, 96), "JPEG"),
        (encoded((4000, 2), "RGB"), (96, 1), "JPEG"),
    ],
)
def test_thumbnails_are_small_and_tiny_images_keep_their_pixels(
    source: bytes, size: tuple[int, int], kind: str
) -> None:
    shown = html.image(source, "x")
    assert shown is not None
    (attributes,) = Page(shown).named("img")
    stored = Image.open(io.BytesIO(base64.b64decode(str(attributes["src"]).split(",")[1])))
    assert (stored.size, stored.format) == (size, kind)
    assert ("class" in attributes) == (kind == "PNG")
    if kind == "PNG":
        assert np.array_equal(np.asarray(stored), np.asarray(Image.open(io.BytesIO(source))))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0, "0"), (7, "7"), (999, "999"), (1500, "1.50 k"), (999_999, "1.00 M"), (2_345_678_901, "2.35 G")),
        *((15.2e12, "15.2 T"), (3e21, "3,000 E"), (0.5, "0.50"), (None, "–"), (float("nan"), "–"), ("7", "–")),
    ],
)
def test_quantities(value: Any, words: str) -> None:
    assert html.quantity(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.0004, "0 ms"), (0.42, "420 ms"), (1, "1.0 s"), (59.94, "59.9 s"), (59.97, "1 min 00 s")),
        *((192.3, "3 min 12 s"), (3599.6, "1 h 00 min"), (7260, "2 h 01 min"), (200_000, "2 d 8 h"), (None, "–")),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert html.duration(seconds) == words


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0.0%"), (0.0001, "<0.1%"), (0.1234, "12.3%"), (1, "100.0%"), (None, "–")]
)
def test_percents(share: float | None, words: str) -> None:
    assert html.percent(share) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.5, "0.500"), (0, "0.000"), (1e-7, "1.00e-07"), (-12345.6, "-1.23e+04")]
)
def test_scores_stay_short(value: float, words: str) -> None:
    assert html.score(value) == words


@pytest.mark.parametrize("threshold", [None, -5.0, 0.0, 0.5, 1.0, 5.0])
def test_any_threshold_can_be_drawn(threshold: float | None) -> None:
    panel = plots.Histogram(title="x", edges=np.linspace(0, 1, 5), counts=np.array([1, 0, 0, 2]), threshold=threshold)
    Page(plots.histograms("k", "d", [panel], width=500))


def test_a_histogram_without_samples_or_width_is_left_out() -> None:
    for edges, counts in (([0, 1], [0]), ([2, 2], [5]), ([0, np.inf], [1])):
        scores = ScoreHistogram(edges=np.array(edges), counts=np.array(counts), threshold=None)
        assert "scores" not in Page(render(run_view(rounds=[round_view(0, {}, scores=scores)]))).sections


def test_tags_escape_what_is_not_markup() -> None:
    assert html.tag("p", "<b>", html.tag("b", 1), None, [2, "&"], title='"', hidden=True, lang=None) == (
        '<p title="&quot;" hidden>&lt;b&gt;<b>1</b>2&amp;</p>'
    )


# Labels to look at again


def test_doubtful_labels_are_shown_of_the_last_round_that_has_them() -> None:
    first, second = run_view().rounds
    doubt = Doubt(id="a/<1>.png", label="cat0", label_probability=0.012, guess="cat2", probability=0.9, image=encoded())
    rounds = [
        dataclasses.replace(first, doubts=[dataclasses.replace(doubt, id="old")]),
        dataclasses.replace(second, doubts=[doubt, dataclasses.replace(doubt, id="b", image=b"broken")]),
    ]
    page = Page(render(run_view(rounds=rounds)))
    words = page.words("doubts")
    assert "cat0 1.2% cat2? 90.0%" in words
    assert "rounds/001/doubts.parquet" in words
    figures = [attributes.get("title") or "" for attributes in page.named("figure")]
    assert "a/<1>.png\nlabel cat0 1.2%, proxy: cat2 90.0%" in figures
    assert not any(title.startswith("old") for title in figures)
    assert "no image" in words


def test_doubtful_texts_and_none_at_all() -> None:
    first, second = run_view().rounds
    doubt = Doubt(
        id="t", label="neg", label_probability=0.1, guess="pos", probability=0.9, image=None, text="so <good>"
    )
    page = Page(render(run_view(rounds=[first, dataclasses.replace(second, doubts=[doubt])])))
    assert "so <good> neg · label neg 10.0%, proxy: pos 90.0% · t" in page.words("doubts")
    assert "doubts" not in Page(render(run_view())).sections


def test_a_run_of_another_task_is_told_by_its_own_metric():
    def renamed(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key.replace("accuracy", "r2"): renamed(value) for key, value in tree.items()}
        return [renamed(value) for value in tree] if isinstance(tree, list) else tree

    run = run_view()
    run = dataclasses.replace(
        run,
        metric=Metric(name="r2", title="R²", share=False),
        result=renamed(run.result),
        rounds=[dataclasses.replace(view, metrics=renamed(view.metrics)) for view in run.rounds],
    )
    page = render(run)
    assert "ccuracy" not in page
    assert "the fused network reaches 0.900 on the test set; its proxy reaches 0.875." in page
    assert "+0.025 on its proxy" in page


def test_the_pass_for_the_initial_set_is_part_of_the_cost() -> None:
    first = {"seconds": 10.0, "macs": 2_000_000_000, "dense_macs": 16_000_000_000, "samples_per_second": 200.0}
    page = Page(render(run_view(initial=first)))
    assert page.row("score, for the initial set")[2:6] == ["10.0 s", "7.7%", "2.00 G", "4.1%"]
    assert page.row("all phases")[4] == "48.9 G"
    assert page.row("before round 0")[2] == "20.0 s"


def test_only_what_was_fused_is_called_so() -> None:
    run = run_view(config={"selection": {"selector": "dense"}, "fusion": {"target": "scratch"}})
    page = render(run)
    assert "the target network reaches 90.0% on the test set; the selector reaches 87.5%." in page
    assert "Target accuracy" in page
    assert not re.search("fused network|fused from|its proxy|Fused accuracy|Proxy accuracy|bring the proxy", page)
    assert Page(page).row("Round")[4:7] == ["Selector", "Loss", "Target"]


def test_the_figure_beside_the_metric_is_told_in_its_own_unit() -> None:
    pixels = Metric(name="pixel_accuracy", title="Pixel accuracy")
    first, last = run_view().rounds
    phases = {**last.metrics["phases"], "train": {**last.metrics["phases"]["train"], "test_pixel_accuracy": 0.9}}
    rounds = [first, dataclasses.replace(last, metrics={**last.metrics, "phases": phases})]
    page = render(run_view(rounds=rounds, beside=(pixels,)))
    assert "Pixel accuracy on the test set over the number of labels." in page
    assert "Predicted numbers" not in page
    assert "units of the labels" not in page


def test_workers_that_a_training_lost_are_told() -> None:
    view = run_view()
    assert "lost workers" not in render(view)
    first, *others = view.rounds
    phases = first.metrics["phases"]
    phases = {
        **phases,
        "train": {**phases["train"], "lost_workers": [f"worker {n} (its machine is gone)" for n in range(12)]},
    }
    rounds = [dataclasses.replace(first, metrics={**first.metrics, "phases": phases}), *others]
    shown = render(
        dataclasses.replace(
            view, rounds=rounds, pretraining={"method": "rotation", "lost_workers": ["worker 7 (killed)"]}
        )
    )
    assert "pretrain: worker 7 (killed)" in shown
    assert "round 0, train: worker 8 (its machine is gone)" in shown
    assert "round 0, train: worker 9" not in shown
    assert "and 3 more" in shown


def test_a_core_set_is_said():
    run = run_view()
    last = run.rounds[-1]
    phases = last.metrics["phases"]
    phases = phases | {"finetune": phases["finetune"] | {"coreset": 75}}
    last = dataclasses.replace(last, metrics=last.metrics | {"phases": phases})
    assert "round 1 on 75 of its 150 labels" in Page(render(run_view(rounds=[run.rounds[0], last]))).words("rounds")


def test_the_box_behind_a_label_has_the_color_of_the_page() -> None:
    line = plots.Line(x=[1, 2], y=[0.1, 0.2], color="proxy", label="x")
    drawn = plots.lines("k", "d", [line], size=(300, 200), x_label="labels")
    assert "#ffffff" not in drawn
    assert "var(--bg)" in drawn


def test_the_name_of_a_target_may_hold_backslashes() -> None:
    drawn = plots.beside_truth("p", r"\Delta_T as \1 predicted", [[0.0, 1.0], [1.0, 2.0]], "fused", size=(300, 200))
    assert r'aria-label="\Delta_T as \1 predicted"' in drawn


def test_rates_are_told_below_one_too() -> None:
    assert [html.rate(v) for v in (0.4, 0.0, None, 1500.0)] == ["0.4", "–", "–", "1,500"]
    assert html.span([0.42, None, 0.84], html.rate) == "0.42–0.84"


def pool_words(one: dict[str, Any], **more: Any) -> str:
    """Of an account as a run's directory gives it back."""
    bare: dict[str, Any] = {
        "samples": 9, "files": 1, "bytes": 9, "left_out": {}, "labels": {}, "looked": 9, "decoded": False,
        "conversions": {}, "unreadable": {}, "sizes": {}, "repeated": None, "examples": {},
    }  # fmt: skip
    account: dict[str, Any] = {
        "classes": ["World", "Business"], "sets": {"path": bare | one}, "known_labels": {}, "known_notes": [],
        "known": 0, "drawn": 0, "twins": 0, "compared": 9, "overlaps": {}, "numbers": False,
    }  # fmt: skip
    return Page(render(run_view(inventory=json.loads(json_bytes(account | more))))).words("pool")


def test_classes_stand_with_their_own_numbers() -> None:
    counts = {"World": 4, "Business": 5}
    words = pool_words({"labels": counts}, known_labels=counts, known=9)
    assert "By class 0 World: 4, 1 Business: 5" in words
    assert "Known labels 0 World: 4, 1 Business: 5" in words


def test_the_commonest_reasons_are_named_first() -> None:
    reasons = {f"{side} x 9000 pixels": 1 for side in range(9000, 9040)} | {"not an image in a known format": 500}
    words = pool_words({"left_out": reasons})
    assert "Left out 500 not an image in a known format" in words
    assert "11 for 11 other reasons" in words


def test_a_part_of_a_pass_over_the_pool_is_told() -> None:
    learned = {"method": "rotation", "seconds": 1.0, "macs": 10, "epochs": 0.42}
    assert Page(render(run_view(pretraining=learned))).row("pretrain (rotation)")[6] == "0.42"
