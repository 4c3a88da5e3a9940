"""Recorded configurations: compared by what they mean, refused by the name of the field."""

import logging

import pytest
import yaml

from prunefuse_ray.config import Config
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.recorded import read_recorded
from prunefuse_ray.storage import Place

CONFIG = config_from_tree({"training": {"epochs": 7}, "annotation": {"image_size": 300}})


@pytest.fixture
def record(tmp_path):
    """Writes a configuration as a run has it, changed by hand into what another version would have written."""
    ledger = Ledger(Place.at(str(tmp_path / "run")))

    def write(change):
        tree = to_tree(CONFIG)
        change(tree)
        ledger.create(tree, {})
        return ledger

    return write


def test_a_field_that_came_later_has_its_default(record):
    ledger = record(lambda tree: (tree["training"].pop("patience"), tree.pop("distillation")))
    assert ledger.read_config() == CONFIG
    ledger.check_config(CONFIG)
    with pytest.raises(LedgerError, match=r"distillation\.weight: 0\.0 -> 0\.5"):
        ledger.check_config(config_from_tree({**to_tree(CONFIG), "distillation": {"weight": 0.5}}))


def test_a_renamed_field_is_read_without_a_note_to_the_person(record, caplog):
    ledger = record(lambda tree: tree["annotation"].update(picture_size=tree["annotation"].pop("image_size")))
    with caplog.at_level(logging.WARNING):
        assert ledger.read_config() == CONFIG
    assert not caplog.records, "nobody is to edit what a run has recorded"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree["training"].update(swish=3), "training.swish: unknown key"),
        (lambda tree: tree["selection"].update(strategy="gone"), "selection.strategy: "),
    ],
)
def test_what_this_version_does_not_take_is_named_with_the_way_on(record, change, said):
    with pytest.raises(LedgerError) as caught:
        record(change).check_config(CONFIG)
    for part in ("run/config.yaml", said, "the version that recorded it", "another --run.name"):
        assert part in str(caught.value)


def test_the_option_that_starts_afresh_is_named(tmp_path):
    for content, said in ((b"[1]", "is damaged"), (yaml.safe_dump({"a": 1}).encode(), "a: unknown key")):
        (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(LedgerError, match=said) as caught:
            read_recorded(Place.at(str(tmp_path)) / "config.yaml", Config, "--out")
        assert "another --out" in str(caught.value)


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(LedgerError, match="is this a run directory"):
        read_recorded(Place.at(str(tmp_path)) / "config.yaml", Config)
