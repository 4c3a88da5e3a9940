"""What a network says of samples, against plain torch, and the order in which labels are doubted."""

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.pool import Source
from prunefuse_ray.scoring.predictions import doubts, export, predict
from prunefuse_ray.storage import Place
from tests.support.nets import OWN
from tests.support.pools import random_images

FORM = ImageForm(height=8, width=8, channels=1)


@pytest.fixture
def saved(tmp_path):
    """(source of five samples in two files, a saved network, its probabilities by id)."""
    pixels = random_images(5)
    table = pa.table({"id": [f"s{i}" for i in range(5)], "sample": [encode_png(p) for p in pixels]})
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pq.write_table(table.slice(0, 2), files[0])
    pq.write_table(table.slice(2), files[1])
    spec = networks.NetworkSpec(architecture="tests.support.nets:tiny", classes=2, input_shape=(1, 8, 8))
    network = networks.build(spec, seed=3).eval()
    source = Source(
        fs=pafs.LocalFileSystem(), files=tuple(map(str, files)), sizes=(1, 1), sample_column="sample"
    )  # fmt: skip
    x = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        p = network(x).softmax(1)
    return source, networks.to_files(networks.Dense(network=network, spec=spec)), p


def test_guesses_are_the_most_likely_classes(saved):
    source, network, p_NC = saved
    rows = {
        r["id"]: r
        for r in predict(source, network, FORM, task="classification", trusted=OWN, in_process=True).to_pylist()
    }
    assert len(rows) == 5
    for i in range(5):
        assert rows[f"s{i}"]["guess"] == int(p_NC[i].argmax())
        assert rows[f"s{i}"]["probability"] == pytest.approx(float(p_NC[i].max()), abs=1e-5)


def test_doubts_order_labels_by_their_probability_and_leave_out_samples_without_one(saved):
    source, network, p_NC = saved
    labels = pa.table({"id": ["s4", "s0", "s2", "s3"], "label": [0, 1, 1, 0]})
    rows = doubts(
        predict(source, network, FORM, labels, task="classification", trusted=OWN, in_process=True)
    ).to_pylist()
    expected = {"s4": p_NC[4, 0], "s0": p_NC[0, 1], "s2": p_NC[2, 1], "s3": p_NC[3, 0]}
    assert [r["id"] for r in rows] == sorted(expected, key=lambda i: float(expected[i]))
    for r in rows:
        assert r["label_probability"] == pytest.approx(float(expected[r["id"]]), abs=1e-5)


def test_a_file_without_any_of_the_labeled_samples_is_passed_over(saved):
    source, network, p_NC = saved
    labels = pa.table({"id": ["s0"], "label": [1]})
    (row,) = predict(source, network, FORM, labels, task="classification", trusted=OWN, in_process=True).to_pylist()
    assert (row["id"], row["label"]) == ("s0", 1)
    assert row["label_probability"] == pytest.approx(float(p_NC[0, 1]), abs=1e-5)


def test_tasks_on_the_cluster_say_the_same(saved, local_ray):
    source, network, _ = saved
    here = predict(source, network, FORM, task="classification", trusted=OWN, in_process=True).sort_by("id")
    there = predict(source, network, FORM, task="classification", trusted=OWN, in_process=False).sort_by("id")
    assert here["guess"].to_pylist() == there["guess"].to_pylist()
    assert here["probability"].to_pylist() == pytest.approx(there["probability"].to_pylist(), abs=1e-5)


def test_predictions_are_written_as_they_come(saved, tmp_path, monkeypatch):
    source, network, p_NC = saved
    monkeypatch.setattr("prunefuse_ray.data.prepared.chunk_rows", lambda form: 1)
    out = Place.at(str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    count = export(source, network, FORM, ["a", "b"], out, task="classification", size=0, trusted=OWN)
    files = [pq.ParquetFile(file.path) for file in out.written()]
    assert count == 5 == sum(file.num_row_groups for file in files)
    rows = pa.concat_tables(file.read() for file in files).sort_by("id")
    assert rows["prediction"].to_pylist() == p_NC.argmax(1).tolist()
