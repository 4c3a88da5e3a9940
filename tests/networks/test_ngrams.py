"""The network of texts: what it takes from a pool, pruning, fusion, and that all its forms compute the same."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer

from prunefuse_ray import networks
from prunefuse_ray.data.texts import NgramForm
from prunefuse_ray.networks import ngrams
from prunefuse_ray.networks.inference import scoring_form
from prunefuse_ray.networks.specs import NetworkError

SPEC = networks.NetworkSpec(architecture="textngrams", classes=3, input_shape=(24, 2))
FORM = NgramForm(length=24)
WORDS = [f"word{i}" for i in range(30)]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name, value in {"HASHES": 2**12, "ROWS": 64, "TOPICS": 8, "HIDDEN": 8, "WORDS": 4}.items():
        monkeypatch.setattr(ngrams, name, value)


def texts(count, seed=0):
    """Texts of two topics: words of the first or the second half."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(WORDS[:20] if i % 2 else WORDS[10:], size=rng.integers(3, 12)) for i in range(count)]
    return FORM.inputs(torch.from_numpy(np.stack([FORM.decode(" ".join(words)) for words in drawn])))


@pytest.fixture
def learned():
    dense = networks.build(SPEC, seed=0)
    networks.take(dense, networks.statistics("textngrams", texts(60)))
    return dense


def test_what_it_takes_from_a_pool_is_tf_idf_and_its_singular_vectors_as_scikit_learn_has_them():
    pool = texts(60)
    counts = np.zeros((60, ngrams.HASHES), np.int64)
    for text, row in enumerate(pool.numpy()):
        np.add.at(counts[text], row[:, 0] % ngrams.HASHES, row[:, 1])
    frequent = np.flatnonzero((counts > 0).sum(0) > 1)
    frequent = frequent[np.argsort(-(counts[:, frequent] > 0).sum(0), kind="stable")][: ngrams.ROWS - 1]
    expected = TfidfTransformer(sublinear_tf=True).fit(counts[:, frequent])
    dense = networks.build(SPEC, seed=0)
    networks.take(dense, networks.statistics("textngrams", pool))
    row_NL, weight_NL = dense._weighted(pool)
    found = torch.zeros(60, ngrams.ROWS).scatter_add_(1, row_NL, weight_NL).numpy()
    np.testing.assert_allclose(
        found[:, 1 : len(frequent) + 1], expected.transform(counts[:, frequent]).toarray(), atol=1e-5
    )
    svd = TruncatedSVD(ngrams.TOPICS + 1, n_iter=2, random_state=0).fit(found)
    cosines = np.abs(svd.components_[1:] @ dense.topics.weight.numpy())
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-2)


def test_a_pool_of_a_few_texts_is_enough():
    for count in (1, 2, 3):
        dense = networks.build(SPEC, seed=0)
        networks.take(dense, networks.statistics("textngrams", texts(count)))
        assert dense(texts(2)).isfinite().all()


def test_statistics_of_another_network_are_refused():
    import safetensors.torch

    with pytest.raises(NetworkError, match="statistics of the pool"):
        networks.take(networks.build(SPEC, seed=0), safetensors.torch.save({"mean": torch.zeros(1)}))


def test_an_ngram_weighs_as_much_as_it_tells_classes_apart(learned):
    x = torch.zeros(4, 24, 2, dtype=torch.int64)
    known = (learned.rows > 0).nonzero().flatten()[:2]
    x[:2, 0, 0], x[2:, 0, 0], x[:, 1, 0] = known[0], known[1], 4095
    x[:, 0, 1] = 1
    spec = networks.NetworkSpec(architecture="textngrams", classes=2, input_shape=(24, 2))
    two = networks.build(spec, seed=0)
    two.rows.copy_(learned.rows)
    networks.meet(
        two, lambda: [(x[:3], torch.tensor([[1, 0], [1, 0], [0, 1]]).bool()), (x[3:], torch.tensor([[0, 1]]).bool())]
    )
    # Three times as frequent in the one class, once smoothed, as in the other.
    assert two.gain[two.rows[known[0]]].item() == pytest.approx(math.log(3), rel=1e-4)
    assert two.gain[0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_it_is_pruned_in_all_three_widths_and_fused_exactly(learned, ratio):
    proxy = networks.prune(learned, SPEC, networks.PruningSpec(ratio=ratio))
    kept = networks.PruningSpec(ratio=ratio).kept
    assert proxy.network.topics.weight.shape[1] == kept(8)
    assert proxy.network.words.weight.shape[1] == kept(4)
    assert proxy.network.hidden.weight.shape == (kept(8), kept(8))
    assert not proxy.network.topics.weight.requires_grad
    # Leading topics stay; what reads them begins at random, and may decide between neighbors.
    assert set(proxy.kept["topics.weight"][1].tolist()) <= set(range(kept(8) + 1))
    x = texts(5, seed=1)
    fused = networks.fuse(learned, proxy, "function_preserving")
    torch.testing.assert_close(fused.eval()(x), proxy.network.eval()(x))
    again = networks.from_files(networks.to_files(proxy))
    assert torch.equal(again.network.eval()(x), proxy.network(x))


def test_a_committee_of_them_is_fused_to_the_mean_of_its_members(learned):
    committee = networks.Committee(networks.split(learned, SPEC, networks.PruningSpec(ratio=0.5), 2))
    x = texts(5, seed=1)
    fused = networks.fuse(learned, committee, "function_preserving").eval()
    torch.testing.assert_close(fused(x), committee.network.eval()(x).mean(0))


def test_padded_and_not_in_training_and_in_scoring_it_computes_the_same(learned):
    x = texts(6, seed=1)
    torch.nn.init.normal_(learned.words.weight)
    traced = learned.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(learned(x), traced)
    torch.testing.assert_close(learned.train()(x), traced)
    torch.testing.assert_close(scoring_form(learned, "fp32", x, features=False)(x), traced)
    features, logits = networks.features_and_logits(learned, x)
    assert features.shape == (6, 8 + 8 + 4)
    torch.testing.assert_close(logits, traced)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("features", [False, True])
def test_backends_compute_what_it_computes(learned, backend, features):
    x = texts(6, seed=1)
    expected = learned.eval()(x).detach()
    runner = networks.BACKENDS[backend].runner(
        learned, precision="fp32", device=torch.device("cpu"), example=x, threads=1, features=features
    )
    with torch.inference_mode():
        found = runner(x)
    torch.testing.assert_close(found[0] if features else found, expected, atol=1e-4, rtol=1e-4)


def test_a_few_steps_learn_two_topics(learned):
    x, y = texts(40, seed=2), torch.arange(40) % 2
    networks.meet(learned, lambda: [(x, torch.nn.functional.one_hot(y).bool())])
    optimizer = torch.optim.SGD([p for p in learned.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(learned(x), y).backward()
        optimizer.step()
    assert (learned.eval()(texts(40, seed=3)).argmax(1) == y).float().mean() > 0.9


def test_gains_do_not_depend_on_how_many_classes_are_worked_out_together(learned, monkeypatch):
    x, y = texts(30), torch.arange(30) % 3

    def labeled():
        return [(x, torch.nn.functional.one_hot(y).bool())]

    networks.meet(learned, labeled)
    whole = learned.gain.clone()
    monkeypatch.setattr(ngrams, "CLASSES_AT_ONCE", 1)
    networks.meet(learned, labeled)
    torch.testing.assert_close(learned.gain, whole)
