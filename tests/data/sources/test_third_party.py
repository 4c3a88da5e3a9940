"""A source of another package, in one file: validation, survey, stream, growth and error texts know it."""

import json
import os
import subprocess
import sys

import pytest
import ray

from prunefuse_ray import config as cfg
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import reader_of
from tests.support import ROOT

SOURCE = '''
"""JSON Lines of texts: {"key": ..., "text": ..., "kind": ...} a line."""

import json

from prunefuse_ray.config.sources import PATHS, PoolSource
from prunefuse_ray.data.index import Found, scanned
from prunefuse_ray.data.left_out import LeftOut
from prunefuse_ray.data.paths import check_names, locate
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.sources.base import SourceReader


class JsonLines(SourceReader):
    def listing(self, samples):
        return locate(samples.paths, (".jsonl",), samples.field)

    def index(self, samples, listing, classes, new=None):
        check_names(listing, samples.field)
        columns = (samples.sample_column, samples.label_column)
        return scanned(scan, columns, samples, listing, self.rows(samples), classes, new)

    def rows(self, samples):
        return Source(fs=samples.places[0].fs, files=(), sizes=(), sample_column="sample")


def scan(place, name, text, label):
    lines = [json.loads(line) for line in place.read_bytes().splitlines()]
    kept = [(n, line) for n, line in enumerate(lines) if line.get(text)]
    yield Found(
        ids=[f"{name}:{n}" for n, _ in kept],
        labels=[line.get(label) for _, line in kept],
        columns={"sample": [line[text] for _, line in kept]},
        left_out=[LeftOut(f"{name}:{n}", "no text") for n, line in enumerate(lines) if not line.get(text)],
    )


JSONL = PoolSource(
    help="JSON Lines", ids="file and line", labels="`label_column`", reader=JsonLines(),
    fields=(*PATHS, "text_column", "label_column"), needs=("path", "test_path", "text_column"),
    defaults={"text_column": "text", "label_column": "kind", "text_length": 16}, may_grow=True,
)
'''

SCRIPT = """
import json, os, sys
import ray
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.config.sources import POOL_SOURCES
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import materialize, sources, survey
from prunefuse_ray.distributed.resources import configure_data
from prunefuse_ray.errors import PruneFuseError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import growth
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.support.pools import rows

where, name = sys.argv[1:]
tree = {"source": name, "path": where + "/pool", "test_path": where + "/test", "classes": ["good", "bad"]}
tree["allow_growth"] = True
said = {}
wrong = {
    "misspelt": {"source": "json-lines"}, "ids": {"id_column": "key"},
    "digits": {"source": "digits", "path": None, "test_path": None, "text_column": "text", "allow_growth": False},
}
for what, change in wrong.items():
    try:
        config_from_tree({"pool": {**tree, **change}, "training": {"augment": []}, "finetuning": {"augment": []}})
    except PruneFuseError as error:
        said[what] = str(error)
recipe = {"augment": []}
config = config_from_tree({"pool": tree, "training": recipe, "finetuning": recipe, "selection": {"budgets": [2, 4]}})
# As for a job: the package has to be on every node.
ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}})
configure_data()
found = survey(config.pool)
ledger = Ledger(Place.at(where + "/run"))
materialize(found, ledger.root)
growth.record(config.pool, found.info, ledger.root)
ledger.create({}, found.info.to_json())
first = rows(stream(sources(config.pool, ledger.root)[0], label=True))
with open(where + "/pool/b.jsonl", "w") as file:
    file.write(json.dumps({"text": "late", "kind": "bad"}) + "\\n")
outputs, metrics = growth.grow(config, ledger, found.info)
ledger.commit(Step(0, "grow"), outputs, metrics)
later = rows(stream(growth.seen_source(config, ledger, sources(config.pool, ledger.root)[0]), label=True))
try:
    survey(config.pool.model_copy(update={"classes": ["good", "worse"]}))
except PruneFuseError as error:
    said["labels"] = str(error)
print(json.dumps({"names": list(POOL_SOURCES), "said": said, "info": found.info.to_json(), "first": first,
                  "left_out": found.indexes["path"].left_out.examples, "later": later}))
"""


@pytest.fixture
def installed(tmp_path):
    """The folder of another package, which registers its source."""
    package = tmp_path / "installed"
    (package / "their_source-1.0.dist-info").mkdir(parents=True)
    (package / "their_source-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (package / "their_source-1.0.dist-info/entry_points.txt").write_text(
        "[prunefuse_ray.sources]\ntheirs = their_source:JSONL\n"
    )
    (package / "their_source.py").write_text(SOURCE)
    for part in ("pool", "test"):
        (tmp_path / part).mkdir()
        lines = ['{"text": "fine", "kind": "good"}', '{"text": "awful", "kind": "bad"}', '{"kind": "bad"}']
        (tmp_path / part / "a.jsonl").write_text("\n".join(lines))
    return package


def test_a_source_of_another_package_is_one_object_in_one_file(installed, tmp_path, local_ray):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "PYTHONPATH": os.pathsep.join((str(installed), str(ROOT))),
    }
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path), "theirs"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    said = seen["said"]
    lake = "lance, delta"
    known = (
        f"known: digits, parquet, images, webdataset, huggingface, csv, jsonl, {lake}, iceberg, theirs, or module:name"
    )
    assert known in said["misspelt"]
    texts = f"text_column is for pool.source parquet, huggingface, csv, jsonl, {lake}, iceberg and theirs, not 'digits'"
    assert texts in said["digits"]
    ids = f"id_column is for pool.source parquet, csv, jsonl, {lake} and iceberg, not 'theirs': leave it out"
    assert ids in said["ids"]
    assert "pool.path: 2 labels that are none of the 2 classes, e.g. 'bad' (id 'a.jsonl:1')" in said["labels"]
    assert (seen["info"]["rows"], seen["info"]["sample_size"]) == (2, [16])
    assert {i: (r["sample"], r["label"]) for i, r in seen["first"].items()} == {
        "a.jsonl:0": ("fine", 0), "a.jsonl:1": ("awful", 1),
    }  # fmt: skip
    assert seen["left_out"] == {"no text": ["a.jsonl:2"]}
    assert {i: r["sample"] for i, r in seen["later"].items() if i not in seen["first"]} == {"b.jsonl:0": "late"}


def test_a_source_is_named_by_reference_too(installed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    name = "their_source:JSONL"
    pool = cfg.Pool.model_validate({"source": name, "path": str(tmp_path / "pool"), "test_path": "t"})
    assert (pool.label_column, pool.text_length) == ("kind", 16)
    with pytest.raises(ValueError, match=f"group_column is for pool.source parquet, delta and iceberg, not '{name}'"):
        cfg.Pool.model_validate({**pool.model_dump(), "group_column": "site"})
    listing = reader_of(pool).listing(SampleSet(pool))
    assert listing.names == ("a.jsonl",)
    sys.modules.pop("their_source")
