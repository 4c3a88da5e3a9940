"""What the documents say is what the program does."""

import re

import pytest

from prunefuse_ray.cli import main
from prunefuse_ray.commands.list import KINDS
from tests.support import ROOT
from tests.support.documents import DOCUMENTS, TABLE, with_tables


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_of_what_can_be_named_are_current(document):
    text = document.read_text(encoding="utf-8")
    assert text == with_tables(text), "make tables"


def test_a_table_that_is_out_of_date_is_found():
    text = "a\n<!-- prunefuse list tasks -->\n| old |\n<!-- end -->\nb\n"
    assert "| `classification` | one class a sample |" in with_tables(text)
    assert "old" not in with_tables(text)
    assert len(TABLE.findall("".join(path.read_text(encoding="utf-8") for path in DOCUMENTS))) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_named_is_listed(capsys, kind):
    assert main(["list", kind]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in KINDS[kind]().rows)
    assert main(["list", kind, "--markdown"]) == 0
    assert capsys.readouterr().out.count("\n") == 2 + len(KINDS[kind]().rows)


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
