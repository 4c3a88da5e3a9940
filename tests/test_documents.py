"""What the documents say is what the program does."""

import html
import os
import re
import subprocess
import sys

import pytest

from prunefuse_ray.cli import main
from prunefuse_ray.commands.list import KINDS
from prunefuse_ray.config.files import PRESETS
from prunefuse_ray.config.schema import Config
from tests.support import ROOT
from tests.support.documents import DOCUMENTS, PAGES, REFERENCE, TABLE, interval, with_tables

FILES = {"json", "py", "yaml", "md", "parquet", "html"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_of_what_can_be_named_are_current(document):
    text = document.read_text(encoding="utf-8")
    assert text == with_tables(text), "make reference"


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_is_current(page):
    assert (REFERENCE / page).read_text(encoding="utf-8") == PAGES[page](), "make reference"


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_site_builds_and_every_link_and_anchor_leads_somewhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "how-to" / "clusters" / "index.html").exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(document):
    """Also where mkdocs does not look: README, and links out of docs/."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert not [link for link in links if link and "://" not in link and not (document.parent / link).exists()]


def test_fields_and_presets_that_documents_name_exist():
    """`section.field` in backticks is a field of the configuration, `--preset NAME` a preset."""
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    sections = {
        n: f.annotation.model_fields for n, f in Config.model_fields.items() if hasattr(f.annotation, "model_fields")
    }
    named = set(re.findall(r"`(?:--)?([a-z]+)\.([a-z_]+)(?=[`: ])", text))
    wrong = {f"{s}.{f}" for s, f in named if s in sections and f not in sections[s] and f not in FILES}
    assert not wrong
    presets = {path.stem for path in PRESETS.glob("*.yaml")}
    assert set(re.findall(r"--preset ([a-z0-9_]+)", text)) <= presets


def test_a_table_that_is_out_of_date_is_found():
    text = "a\n<!-- prunefuse list tasks -->\n| old |\n<!-- end -->\nb\n"
    assert "| `classification` | one class per sample |" in with_tables(text)
    assert "old" not in with_tables(text)
    assert len(TABLE.findall("".join(path.read_text(encoding="utf-8") for path in DOCUMENTS))) >= 3


def test_intervals_are_those_of_students_t():
    """Of three seeds 2.48 standard deviations: 4.303 / sqrt(3)."""
    assert interval([0.0, 1.0, 2.0]) == pytest.approx(4.303 / 3**0.5, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_named_is_listed(capsys, kind):
    assert main(["list", kind]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in KINDS[kind]().rows)
    assert main(["list", kind, "--markdown"]) == 0
    assert capsys.readouterr().out.count("\n") == 2 + len(KINDS[kind]().rows)


def test_the_tutorial_of_clusters_ends_what_it_started():
    page = (ROOT / "docs" / "tutorials" / "cluster.md").read_text(encoding="utf-8")
    assert page.index("ray up cluster/aws.yaml") < page.index("ray down cluster/aws.yaml")
    assert page.index("ray start --head") < page.index("`ray stop`")


def test_pages_that_link_to_what_is_in_cluster_name_the_file():
    """GitHub does not fill in snippets: anchors of cluster/README.md are not in docs/how-to/clusters.md there."""
    own = (ROOT / "docs" / "how-to" / "clusters.md").read_text(encoding="utf-8")
    anchors = {re.sub(r"[^a-z- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)", own, re.M)}
    for page in DOCUMENTS:
        text = page.read_text(encoding="utf-8")
        linked = set(re.findall(r"clusters\.md#([\w-]+)", text))
        assert linked <= anchors or "`cluster/README.md`" in text, page


def test_the_files_that_the_architecture_names_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+/[a-z_/]*(?:[a-z_]+\.py|))`", text))
    assert len(named) > 30
    assert not [name for name in named if not (ROOT / "prunefuse_ray" / name).exists()]


def test_the_rooms_that_the_architecture_draws_are_those_of_the_package():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"\b([a-z]+)/", text[text.index("```") : text.rindex("```")])) - {"phases", "sources"}
    package = ROOT / "prunefuse_ray"
    assert drawn == {path.parent.name for path in package.glob("*/__init__.py")}


def test_the_diagrams_are_those_of_their_sources():
    """`make pictures` draws them; Graphviz is no dependency of the tests."""
    sources = sorted((ROOT / "docs" / "assets").glob("*.dot"))
    assert sources
    for source in sources:
        drawn = html.unescape(source.with_suffix(".svg").read_text())
        names = [part for label in re.findall(r'label="(.*?)"', source.read_text()) for part in label.split(r"\n")]
        assert names
        assert [name for name in names if f">{name}<" not in drawn] == []
