"""Scoring actors: the right numbers, whatever company a sample keeps."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.config.scoring import Scoring
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.prepared import Chunk
from prunefuse_ray.data.sample_format import read_column
from prunefuse_ray.data.stream import decoded_rows
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.scoring.score_pass import fitting
from prunefuse_ray.scoring.scorer import ActorScorer, Scorer, ScoringJob
from prunefuse_ray.scoring.summary import summarize
from prunefuse_ray.storage import Place
from tests.support.pools import random_images

FORM = ImageForm(height=8, width=8, channels=1)
SPEC = networks.NetworkSpec(architecture="resnet20", classes=10, input_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pruned ResNet-20 with batch-norm statistics of its own, saved."""
    torch.manual_seed(0)
    proxy = networks.prune(networks.build(SPEC, seed=0), SPEC, networks.PruningSpec(ratio=0.5))
    proxy.network.train()
    for _ in range(3):
        proxy.network(torch.randn(16, 1, 8, 8))
    place = Place.at(str(tmp_path_factory.mktemp("proxy")))
    for name, data in networks.to_files(proxy).items():
        (place / name).write_bytes(data)
    return place, proxy.network.eval()


def scorer(saved, **more):
    job = {"strategy": "entropy", "form": FORM, "batch_size": 16,
           "features": False, "threads": 1, "gpu": False}  # fmt: skip
    return Scorer(saved[0], ScoringJob(**{**job, **more}))


def rows(pixels):
    return decoded([encode_png(p) for p in pixels])


def decoded(images):
    ids = pa.table({"id": [f"s{i}" for i in range(len(images))]})
    return decoded_rows(Chunk(rows=ids, samples=read_column(pa.chunked_array([pa.array(images, pa.binary())]), FORM)))


def plain_inputs(pixels):
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def test_scores_are_the_plain_networks(saved):
    pixels = random_images(37)
    got = scorer(saved)(rows(pixels))
    with torch.inference_mode():
        p = torch.softmax(saved[1](plain_inputs(pixels)), 1)
    np.testing.assert_allclose(got["score"].to_numpy(), -(p * p.log()).sum(1), atol=1e-5)
    assert got["rejected"].null_count == 37


def test_a_score_does_not_depend_on_its_neighbors_to_the_last_bit(saved):
    pixels = random_images(50)
    actor = scorer(saved)
    whole = actor(rows(pixels))["score"].to_numpy()
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(actor(rows(pixels[order]))["score"].to_numpy(), whole[order])
    alone = np.concatenate([actor(rows(pixels[i : i + 1]))["score"].to_numpy() for i in range(50)])
    np.testing.assert_array_equal(alone, whole)


def test_features_are_the_input_of_the_classifier(saved):
    pixels = random_images(5)
    got = scorer(saved, features=True)(rows(pixels))
    features = torch.tensor(np.stack(got["feature"].combine_chunks().to_numpy(zero_copy_only=False)))
    classifier = [m for m in saved[1].modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.inference_mode():
        torch.testing.assert_close(classifier(features), saved[1](plain_inputs(pixels)), atol=1e-4, rtol=1e-4)


def test_rejected_samples_have_a_reason_and_no_score(saved):
    got = scorer(saved)(decoded([b"x", None, encode_png(random_images(1)[0])])).to_pylist()
    assert [r["score"] is None for r in got] == [True, True, False]
    assert [r["rejected"] is None for r in got] == [False, False, True]


def write(tmp_path, scores, rejected=None):
    rejected = rejected or [None] * len(scores)
    mask = np.array([r is not None for r in rejected])
    table = pa.table({
        "id": [f"s{i}" for i in range(len(scores))],
        "score": pa.array(np.array(scores, np.float32), mask=mask, from_pandas=False),
        "rejected": pa.array(rejected, pa.string()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    return [str(tmp_path / "a.parquet")], Place.at(str(tmp_path))


def test_the_summary_counts_rows_rejections_and_scores(tmp_path, local_ray):
    summary = summarize(*write(tmp_path, [0.0, 0.01, 0.99, 1.0, 0], [None, None, None, None, "bad"]), 1.0)
    assert (summary.rows, summary.scored) == (5, 4)
    assert summary.rejected.to_pylist() == [{"id": "s4", "reason": "bad"}]
    counts = summary.histogram["counts"]
    assert (counts[0], counts[-1], sum(counts)) == (2, 2, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_named(tmp_path, local_ray, bad):
    with pytest.raises(ScoreError, match=r"not finite for 2 samples, e\.g\. ids 's1', 's2'"):
        summarize(*write(tmp_path, [0.5, bad, bad]), 1.0)


def test_what_does_not_fit_in_the_making_of_an_actor_is_said_by_its_first_call(saved):
    def make(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    actor = ActorScorer(make, saved[0], None)
    with pytest.raises(torch.OutOfMemoryError):
        actor(pa.table({}))


def test_an_actor_is_limited_to_its_share(saved, monkeypatch):
    def limit(share):
        raise InterruptedError(str(share))  # before anything touches a GPU

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    with pytest.raises(InterruptedError, match=r"0\.45"):
        scorer(saved, gpu=True, gpu_share=0.5)


@pytest.mark.parametrize(("gpus", "helps"), [(0.25, True), (1.0, False)])
def test_what_is_told_of_a_full_gpu_helps(gpus, helps):
    with pytest.raises(ScoreError) as told, fitting("x", Scoring(gpus=gpus), "run.name"):
        raise torch.OutOfMemoryError("full")
    assert ("scoring.actors" in str(told.value)) is ("larger scoring.gpus" in str(told.value)) is helps
