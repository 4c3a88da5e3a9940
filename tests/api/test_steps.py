"""The steps by themselves: on a network and data of one's own they give what a run gives, or what can be counted."""

import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import prunefuse_ray
from prunefuse_ray import networks
from prunefuse_ray.acquisition import STRATEGIES, Chance
from prunefuse_ray.api.steps import Scores, _StreamScorer
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.errors import ConfigError, PlanError, PruneFuseError, ScoreError
from prunefuse_ray.inference.predictor import Predictor
from prunefuse_ray.networks import NetworkError
from prunefuse_ray.selection import set_selection
from prunefuse_ray.selection.rows import Files, vector_column
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS


class Mine(nn.Module):
    """A network that the package does not know."""

    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.body(x))


class Several(nn.Module):
    """A network that returns a tuple, as those with an auxiliary output do."""

    def __init__(self, network, outputs):
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, x):
        return self.outputs(self.network(x))


@pytest.fixture
def mine():
    torch.manual_seed(0)
    return Mine()


@pytest.fixture
def images():
    return torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def expected_margin(network, x):
    with torch.no_grad():
        p = torch.softmax(network.eval()(x).double(), 1).sort(1, descending=True).values
    return (1 - (p[:, 0] - p[:, 1])).float().numpy()


def test_a_proxy_of_ones_own_network_goes_back_into_it(mine, images):
    before = {n: t.clone() for n, t in mine.state_dict().items()}
    proxy = prunefuse_ray.prune(mine, images, ratio=0.5)
    assert proxy.network.body[0].out_channels == 4
    assert proxy.network.body[3].weight.shape == (8, 4, 3, 3)
    optimizer = torch.optim.SGD(proxy.network.parameters(), lr=0.1)
    nn.functional.cross_entropy(proxy.network(images), torch.arange(70) % 3).backward()
    optimizer.step()
    fused = prunefuse_ray.fuse(mine, proxy)
    assert isinstance(fused, Mine)
    kept = proxy.kept["body.0.weight"][0]
    torch.testing.assert_close(fused.body[0].weight[kept], proxy.network.body[0].weight, rtol=0, atol=0)
    others = [n for n in range(8) if n not in kept.tolist()]
    torch.testing.assert_close(fused.body[0].weight[others], before["body.0.weight"][others], rtol=0, atol=0)
    assert all(torch.equal(t, before[n]) for n, t in mine.state_dict().items()), "the dense network is not changed"
    preserving = prunefuse_ray.fuse(mine, proxy, "function_preserving").eval()
    torch.testing.assert_close(preserving(images), proxy.network.eval()(images), rtol=1e-4, atol=1e-5)


def test_scores_are_those_of_the_network_however_the_data_come(mine, images):
    expected = expected_margin(mine, images)
    labels = torch.arange(70) % 3
    mine.train()
    for data in (images, TensorDataset(images), TensorDataset(images, labels), list(images),
                 DataLoader(TensorDataset(images, labels), batch_size=9), [images[:30], images[30:]],
                 DataLoader([images[:30], images[30:]], batch_size=None)):  # fmt: skip
        if isinstance(data, list) and len(data) == 70:
            data = TensorDataset(torch.stack(data))
        if isinstance(data, list):
            data = iter(data)
        scores = prunefuse_ray.score(mine, data, "margin")
        np.testing.assert_allclose(scores.table["score"].to_numpy(), expected, atol=1e-5)
        assert scores.table["id"].to_pylist() == list(range(70))
        assert (len(scores), scores.classes) == (70, 3)
    assert mine.training, "the network is left as it was"


def test_a_series_of_pandas_is_read_by_place(mine, images):
    series = pd.Series([image.numpy() for image in images], index=[*range(1, 70), 0])
    found = prunefuse_ray.score(mine, series, prepare=lambda batch: torch.as_tensor(np.stack(list(batch))))
    np.testing.assert_allclose(found.table["score"].to_numpy(), expected_margin(mine, images), atol=1e-5)


class InPlace(Mine):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))


@pytest.mark.parametrize("strategy", ["margin", "badge"])
def test_data_stay_as_they_were(strategy, images):
    network, before = InPlace(), images.clone()
    prunefuse_ray.prune(network, images)
    prunefuse_ray.score(network, images, strategy)
    assert torch.equal(images, before)


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")], ids=["spread", "compiled"])
def test_a_proxy_wrapped_for_its_training_is_fused(wrap, mine, images):
    proxy = prunefuse_ray.prune(wrap(mine), images[:2])
    expected = prunefuse_ray.fuse(mine, proxy).state_dict()
    proxy.network = wrap(proxy.network)
    found = prunefuse_ray.fuse(wrap(mine), proxy).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(t, found[n]) for n, t in expected.items())


def test_a_row_that_sums_to_one_is_no_softmax(images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.tensor([0.25, 0.75])
    assert len(prunefuse_ray.score(network, iter(images[:3].split(1)))) == 3
    assert len(prunefuse_ray.score(network, images)) == 70


def test_a_network_that_works_in_place_is_exported(images, tmp_path):
    prunefuse_ray.export(InPlace(), images, tmp_path / "n.onnx")
    assert (tmp_path / "n.onnx").exists()


def test_a_default_device_of_the_callers_is_no_obstacle(mine, images):
    with torch.device("meta"):  # stands for a GPU
        assert len(prunefuse_ray.score(mine, TensorDataset(images))) == 70
        proxy = prunefuse_ray.prune(mine, images)
        prunefuse_ray.fuse(mine, proxy, "function_preserving")


def test_samples_of_a_ray_dataset_without_an_id_are_refused(mine):
    scorer = _StreamScorer(mine, "margin", "classification", None, ("id", "image"), 1, "cpu")
    with pytest.raises(ConfigError, match="column 'id' leaves samples without an id"):
        scorer({"id": np.array([1.0, np.nan]), "image": np.zeros((2, 1, 8, 8), np.float32)})


def test_numbers_of_numpy_and_unread_streams_do_no_harm(mine, images):
    scores = prunefuse_ray.score(mine, images, "badge")
    found = prunefuse_ray.select(scores, 5, seed=np.int64(3), round=np.int64(1))
    assert found.equals(prunefuse_ray.select(scores, 5, seed=3, round=1))
    assert Scores(strategy="margin", classes=2, dataset=object()), "asked without being counted"


def test_inputs_may_be_prepared_and_samples_named(mine, images):
    names = [f"s{n}" for n in range(70)]
    records = [{"pixels": image.numpy() * 255} for image in images]
    loader = DataLoader(records, batch_size=16)
    scores = prunefuse_ray.score(mine, loader, ids=names, prepare=lambda batch: batch["pixels"] / 255)
    np.testing.assert_allclose(scores.table["score"].to_numpy(), expected_margin(mine, images), atol=1e-5)
    selected = prunefuse_ray.select(scores, 5)
    best = sorted(range(70), key=lambda n: (-scores.table["score"][n].as_py(), names[n]))[:5]
    assert selected["id"].to_pylist() == [names[n] for n in best]
    assert selected["rank"].to_pylist() == list(range(5))


@pytest.mark.parametrize("ids", [torch.arange(100, 170), np.arange(100, 170), range(100, 170)], ids=type)
def test_ids_come_in_any_sequence(ids, mine, images):
    assert prunefuse_ray.score(mine, images, ids=ids).table["id"].to_pylist() == list(range(100, 170))


def test_samples_that_make_no_batch_are_prepared_as_a_list(mine, images):
    pixels = (images[:, 0] * 255).byte().numpy()
    pillows = [(Image.fromarray(p), 0) for p in pixels]
    unequal = [torch.zeros(1, 8, 8 + n % 2) for n in range(70)]

    def prepare(batch):
        return torch.stack([torch.from_numpy(np.array(image))[None] for image in batch]) / 255

    scores = prunefuse_ray.score(mine, pillows, prepare=prepare).table["score"].to_numpy()
    np.testing.assert_allclose(scores, expected_margin(mine, torch.from_numpy(pixels)[:, None] / 255), atol=1e-5)
    narrow = prunefuse_ray.score(mine, unequal, prepare=lambda batch: torch.stack([x[..., :8] for x in batch]))
    assert len(narrow) == 70
    for data, said in ((pillows, "samples of Image make no batch"), (unequal, "samples of Tensor make no batch")):
        with pytest.raises(ConfigError, match=f"data: {said} .*; give `prepare`"):
            prunefuse_ray.score(mine, data)


@pytest.mark.parametrize("strategy", [n for n, s in STRATEGIES.items() if s.select is not None])
def test_every_strategy_for_sets_selects_different_samples(strategy, mine, images):
    scores = prunefuse_ray.score(mine, images, strategy)
    labeled = prunefuse_ray.score(mine, images[:9], strategy, ids=range(100, 109))
    if STRATEGIES[strategy].labeled:
        with pytest.raises(ConfigError, match="begins with the labeled samples"):
            prunefuse_ray.select(scores, 7)
    selected = prunefuse_ray.select(scores, 7, labeled=labeled)
    assert len(set(selected["id"].to_pylist())) == 7
    again = prunefuse_ray.select(scores, 7, labeled=labeled)
    assert again.equals(selected)


def test_many_samples_go_to_tasks_through_rays_store(local_ray, monkeypatch, tmp_path):
    """Other nodes do not see the driver's disk."""
    monkeypatch.setattr(set_selection, "PAIRWISE_ROWS", 40)
    monkeypatch.setattr(set_selection, "GROUPS", 3)  # so many tasks deal rows out, each in a process that has to start
    rng = np.random.default_rng(0)

    def table(ids):
        features = vector_column(rng.normal(size=(len(ids), 4)).astype(np.float32))
        return pa.table({"id": ids, "score": rng.random(len(ids), np.float32), "feature": features})

    def files(rows):
        place = Place.at(str(tmp_path / f"{rows.num_rows}.parquet"))
        place.write_table(rows)
        return Files(where=place.parent, paths=(place.path,), sizes=(1,))

    pool, known = table([f"s{n}" for n in rng.permutation(90)]), table(["a", "b", "c"])
    strategy, chance = STRATEGIES["uncertainty_herding"], Chance(seed=0, round=0, classes=3)
    expected = set_selection.select_set(strategy, files(pool), files(known), 7, chance, 2)
    monkeypatch.setattr("tempfile.TemporaryDirectory", None)
    scores, labeled = (Scores(strategy=strategy.name, classes=3, table=rows) for rows in (pool, known))
    assert prunefuse_ray.select(scores, 7, labeled=labeled).equals(expected)


@pytest.mark.parametrize("strategy", [n for n, s in STRATEGIES.items() if s.select and s.needs_no_training])
def test_the_first_samples_are_selected_without_labels(strategy, mine, images):
    scores = prunefuse_ray.score(mine, images, strategy)
    with pytest.raises(ConfigError, match="or initial=True where there are none yet"):
        prunefuse_ray.select(scores, 7)
    selected = prunefuse_ray.select(scores, 7, initial=True)
    assert len(set(selected["id"].to_pylist())) == 7
    with pytest.raises(ConfigError, match="initial: selects the first samples to label, and `labeled` holds some"):
        prunefuse_ray.select(scores, 7, initial=True, labeled=prunefuse_ray.score(mine, images[:9], strategy))


@pytest.mark.parametrize("strategy", ["margin", "badge", "cal", "uncertainty_herding"])
def test_what_asks_a_trained_network_does_not_select_the_first_samples(strategy, mine, images):
    with pytest.raises(ConfigError, match=f"initial: '{strategy}' asks a trained network; score by one of k_centers"):
        prunefuse_ray.select(prunefuse_ray.score(mine, images, strategy), 7, initial=True)


def test_k_centers_are_the_farthest_points(mine, images):
    scores = prunefuse_ray.score(mine, images, "k_centers")
    labeled = prunefuse_ray.score(mine, images[:2], "k_centers", ids=[100, 101])
    with torch.no_grad():
        points = mine.eval().body(images)
    nearest = torch.cdist(points, points[:2]).min(1).values
    expected = []
    for _ in range(5):
        expected.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, torch.cdist(points, points[expected[-1:]])[:, 0])
    assert prunefuse_ray.select(scores, 5, labeled=labeled)["id"].to_pylist() == expected


@pytest.fixture
def dataset(images, local_ray):
    import ray

    ids = pa.table({"id": [f"s{n:03d}" for n in range(len(images))]})
    pixels = images.numpy()  # a tensor would have every task import torch
    return ray.data.from_arrow(ids).add_column(
        "image", lambda batch: np.stack([pixels[int(i[1:])] for i in batch["id"]]), batch_format="numpy"
    )


def test_a_ray_dataset_is_scored_by_actors_and_selected_from(mine, images, dataset):
    import ray

    ids = [f"s{n:03d}" for n in range(len(images))]
    here = prunefuse_ray.score(mine, images, "margin", ids=ids)
    there = prunefuse_ray.score(mine, dataset, "margin", batch_size=16, actors=(1, 1), device="cpu")
    chosen, expected = (prunefuse_ray.select(found, 6).select(["id", "rank"]) for found in (there, here))
    assert chosen.equals(expected)
    some = ray.data.from_items([{"id": 1}])
    with pytest.raises(ConfigError, match="has no column 'image'"):
        prunefuse_ray.score(mine, some)
    with pytest.raises(ConfigError, match=r"prepare: gives 0 inputs for a batch of 1 samples"):
        prunefuse_ray.score(mine, some, prepare=lambda batch: torch.zeros(0, 1, 8, 8), device="cpu")


def test_the_cluster_says_whether_there_are_gpus(mine, dataset, monkeypatch):
    """The driver may run on a machine with a GPU, and its cluster have none."""
    import ray

    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(type(dataset), "map_batches", lambda self, scorer, **how: asked.update(how))
    prunefuse_ray.score(mine, dataset)
    module, *_, device = asked["fn_constructor_args"]
    assert (asked["num_gpus"], device) == (None, "cpu")
    assert module is not mine, "the user's network stays where it is"
    for gpus, wanted, expected in ((2, None, (1, "cuda")), (2, "cpu", (None, "cpu")), (0, "cuda:1", (1, "cuda"))):
        monkeypatch.setattr(ray, "cluster_resources", lambda gpus=gpus: {"CPU": 8, "GPU": gpus})
        prunefuse_ray.score(mine, dataset, device=wanted)
        assert (asked["num_gpus"], asked["fn_constructor_args"][-1]) == expected


@pytest.mark.parametrize("strategy", ["margin", "k_centers"])
def test_what_has_a_label_is_not_selected_again(strategy, mine, images):
    scores = prunefuse_ray.score(mine, images, strategy, ids=range(70))
    labeled = prunefuse_ray.score(mine, images[7:9], strategy, ids=[7, 8])
    with pytest.raises(ConfigError, match="hold samples that have labels, 7, 8; score those without"):
        prunefuse_ray.select(scores, 5, labeled=labeled)
    # Numbers that nobody gave name places in two sets of data, and no samples.
    numbered = prunefuse_ray.score(mine, images[7:9], strategy)
    assert prunefuse_ray.select(scores, 5, labeled=numbered).num_rows == 5


@pytest.mark.parametrize("by", ["margin", "typiclust"])
def test_labeled_samples_are_scored_by_the_same_strategy(by, mine, images):
    scores = prunefuse_ray.score(mine, images, "cal")
    with pytest.raises(ConfigError, match=f"labeled: scored by '{by}', but the scores are of 'cal'"):
        prunefuse_ray.select(scores, 5, labeled=prunefuse_ray.score(mine, images[:9], by))


def test_ids_that_name_several_samples_are_not_selected():
    table = pa.table({"id": ["a", "b", "a", "c"], "score": pa.array([0.9, 0.8, 0.7, 0.1], pa.float32())})
    scores = Scores(strategy="margin", classes=2, table=table)
    with pytest.raises(ConfigError, match="several samples have the id a"):
        prunefuse_ray.select(scores, 3)
    assert prunefuse_ray.select(scores, 2)["id"].to_pylist() == ["a", "b"]


@pytest.mark.slow
def test_features_of_a_ray_dataset_are_those_of_the_samples(mine, images, dataset):
    ids = [f"s{n:03d}" for n in range(len(images))]
    here = prunefuse_ray.score(mine, images, "badge", ids=ids)
    there = prunefuse_ray.score(mine, dataset, "badge", batch_size=16, actors=(1, 1), device="cpu")
    assert len(prunefuse_ray.select(there, 4)) == 4
    scores, expected = np.sort(there.to_table()["score"].to_numpy()), np.sort(here.table["score"].to_numpy())
    np.testing.assert_allclose(scores, expected, atol=1e-6)


class Endless(IterableDataset):
    """Every worker gives all of it."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


class OfRay:
    """What is taken for a dataset of Ray's."""

    __module__ = "ray.data.dataset"


class Batches:
    """What is taken for an iterator over a dataset of Ray's."""

    __module__ = "ray.data.iterator"


class Backwards(BatchSampler):
    def __iter__(self):
        return reversed(list(super().__iter__()))


def drawn(x, **more):
    return DataLoader(TensorDataset(x), **more)


def without_the_third(samples):
    """As people leave out what cannot be read."""
    without_the_third.seen = getattr(without_the_third, "seen", 0) + 1
    return torch.stack([x for (x,) in samples]) if without_the_third.seen != 3 else torch.zeros(0, 1, 8, 8)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda m, x: prunefuse_ray.score(m, x, "margn"), "did you mean 'margin'"),
        (lambda m, x: prunefuse_ray.score(m, x, "random"), "asks no network"),
        (lambda m, x: prunefuse_ray.score(m, x, "bald"), "needs a committee"),
        (lambda m, x: prunefuse_ray.score(m, x, ids=[1, 2]), "but the data hold 70 samples"),
        (lambda m, x: prunefuse_ray.score(m, x, ids=[0] * 70), "several samples have the id 0;"),
        (lambda m, x: prunefuse_ray.score(m, x, ids=["a", *range(69)]), "ids: are not all of one type"),
        (lambda m, x: prunefuse_ray.score(m, x, "auto"), "'auto' decides in a run"),
        (lambda m, x: prunefuse_ray.score(m, x.permute(0, 2, 3, 1)), "cannot run on inputs of (64, 8, 8, 1), float32"),
        (lambda m, x: prunefuse_ray.score({}, x), "network: a dict; give an nn.Module"),
        (lambda m, x: prunefuse_ray.score(Mine(1), x), "needs one for each class, so two for yes and no"),
        (lambda m, x: prunefuse_ray.score(m, DataLoader(TensorDataset(x), shuffle=True)), "shuffles"),
        (lambda m, x: prunefuse_ray.score(m, drawn(x, sampler=SubsetRandomSampler(range(70)))), "has which score"),
        (lambda m, x: prunefuse_ray.score(m, drawn(x, sampler=WeightedRandomSampler([1.0] * 70, 70))), "sampler"),
        (lambda m, x: prunefuse_ray.score(m, drawn(x, sampler=DistributedSampler(x, 1, 0))), "which sample has which"),
        (
            lambda m, x: prunefuse_ray.score(m, drawn(x, batch_sampler=BatchSampler(RandomSampler(x), 4, False))),
            "which sample has which score",
        ),
        (
            lambda m, x: prunefuse_ray.score(m, DataLoader(Endless(x), batch_size=4, num_workers=2)),
            "several workers for an IterableDataset",
        ),
        (
            lambda m, x: prunefuse_ray.score(m, drawn(x, num_workers=2, in_order=False)),
            "with in_order=False, so nobody would know which sample has which score",
        ),
        (
            lambda m, x: prunefuse_ray.score(m, drawn(x, batch_sampler=Backwards(SequentialSampler(x), 4, False))),
            "which sample has which score",
        ),
        (lambda m, x: prunefuse_ray.score(m, Batches()), "give the ray.data.Dataset itself"),
        (lambda m, x: prunefuse_ray.score(m, {"image": x}), "give the samples alone"),
        (lambda m, x: prunefuse_ray.score(nn.Sequential(m, nn.Softmax(1)), x), "leave its softmax out"),
        (lambda m, x: prunefuse_ray.score(m, x, ids=torch.arange(70)[:, None]), "give a number or a string"),
        (lambda m, x: prunefuse_ray.score(m, x, ids=[None, *range(69)]), "ids: hold None"),
        (lambda m, x: prunefuse_ray.score(m, x, ids=[2**128, *range(69)]), "ids: are not all of one type"),
        (lambda m, x: prunefuse_ray.score(m, iter([np.array([b"a", b"bc"], object)])), "make no batch"),
        (lambda m, x: prunefuse_ray.score(m, x, prepare=lambda batch: batch.numpy()), "prepare: gives a ndarray"),
        (
            lambda m, x: prunefuse_ray.select(
                prunefuse_ray.score(prunefuse_ray.prune(m, x), x, "k_centers"),
                3,
                labeled=prunefuse_ray.score(m, x[:5], "k_centers", ids=range(100, 105)),
            ),
            "score both by the same network",
        ),
        (
            lambda m, x: prunefuse_ray.export(m, x, "never", classes=np.array(["a", "b"])),
            "2 names, but the network gives 3 logits",
        ),
        (lambda m, x: prunefuse_ray.export(Several(m, lambda y: (y, y)), x, "never"), "gives tuple for 1 input"),
        (lambda m, x: prunefuse_ray.score(m, OfRay(), ids=range(70)), "name it by id_column"),
        (
            lambda m, x: prunefuse_ray.score(m, drawn(x, batch_size=8, drop_last=True)),
            "70 samples, but 64 came out (drop_last",
        ),
        (lambda m, x: prunefuse_ray.score(m, drawn(x, collate_fn=without_the_third)), "70 samples, but 69 came out"),
        (lambda m, x: prunefuse_ray.score(m, x, prepare=lambda batch: batch[1:]), "70 samples, but 68 came out"),
        (lambda m, x: prunefuse_ray.score(m, 3), "a int; give a Dataset"),
        (lambda m, x: prunefuse_ray.score(m, []), "holds no sample"),
        (lambda m, x: prunefuse_ray.score(m, ["text"]), "give `prepare`"),
        (lambda m, x: prunefuse_ray.score(m.body, x, "badge"), "ends in an nn.Linear"),
        (lambda m, x: prunefuse_ray.score(m.body[0], x), "logits (N, C) are needed"),
        (lambda m, x: prunefuse_ray.select(prunefuse_ray.score(m, x), 71), "71 samples are wanted, but there are 70"),
        (lambda m, x: prunefuse_ray.select(prunefuse_ray.score(m, x), 0), "k: 0"),
        (lambda m, x: prunefuse_ray.select(prunefuse_ray.score(m, x), 0.1), "k: 0.1; give a whole number"),
        (lambda m, x: prunefuse_ray.select(m(x), 3), "scores: a Tensor; give what `score` gave"),
        (lambda m, x: prunefuse_ray.prune(prunefuse_ray.prune(m, x), x), "network: a Proxy; give its `network`"),
        (lambda m, x: prunefuse_ray.prune(m, x[0]), "example: the network cannot run on inputs of (1, 8, 8), float32"),
        (lambda m, x: prunefuse_ray.fuse(m, prunefuse_ray.prune(m, x).network), "proxy: a Mine; give the Proxy"),
        (lambda m, x: prunefuse_ray.fuse(Mine(), prunefuse_ray.prune(m, x)), "has other weights than the one"),
        (lambda m, x: prunefuse_ray.export(m, x, "never", classes=["a"]), "1 names, but the network gives 3 logits"),
        (lambda m, x: prunefuse_ray.prune(m, x[0, 0, 0]), "with the batch axis first"),
        (lambda m, x: prunefuse_ray.prune(m, x, ratio=1.5), "ratio: 1.5"),
        (
            lambda m, x: prunefuse_ray.score(nn.Conv2d(1, 1, 1), x, "entropy", task="segmentation"),
            "segmentation needs one for each class, so two for yes and no",
        ),
        (lambda m, x: prunefuse_ray.score(nn.Conv2d(1, 1, 1), x, task="segmentation"), "needs one for each class"),
        (
            lambda m, x: prunefuse_ray.score(nn.Sequential(nn.Conv2d(1, 3, 1), nn.Softmax(1)), x, task="segmentation"),
            "leave its softmax out",
        ),
        (
            lambda m, x: prunefuse_ray.score(m, DataLoader(TensorDataset(x), shuffle=True)),
            "Subset, with its indices as ids",
        ),
        (
            lambda m, x: prunefuse_ray.fuse(Mine(5), prunefuse_ray.prune(m, x)),
            "head.weight: the proxy's shape (3, 8) is not the kept shape (5, 8)",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_message(work, said, mine, images):
    with pytest.raises(PruneFuseError) as caught:
        work(mine, images)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "outputs", [lambda y: (y * 0, y), lambda y: (y,), lambda y: (y, y, y)], ids=["embedding", "one", "three"]
)
@pytest.mark.parametrize("strategy", ["margin", "badge"])
def test_a_network_that_returns_a_tuple_is_refused(outputs, strategy, mine, images):
    said = "gives tuple for 64 inputs" if strategy == "margin" else "whose last operation is an nn.Linear"
    with pytest.raises(NetworkError, match=said):
        prunefuse_ray.score(Several(mine, outputs), images, strategy)


def test_a_network_that_diverged_is_said(mine, images):
    mine.head.weight.data[0, 0] = float("nan")
    with pytest.raises(ScoreError, match="not finite, of the samples 0, 1"):
        prunefuse_ray.select(prunefuse_ray.score(mine, images), 3)


def test_a_network_is_exported_with_its_classes(mine, images, tmp_path):
    onnx = pytest.importorskip("onnx")
    prunefuse_ray.export(mine, images, tmp_path / "m.onnx", classes=["a", "b", "c"])
    model = onnx.load(tmp_path / "m.onnx")
    assert [i.name for i in model.graph.input] == ["input"]
    assert {p.key: p.value for p in model.metadata_props}["classes"] == '["a", "b", "c"]'


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, prunefuse_ray; dir(prunefuse_ray); sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_public_is_there_and_documented():
    for name in set(prunefuse_ray.__all__) - {"__version__"}:
        assert getattr(prunefuse_ray, name).__doc__, name


def test_a_score_is_what_the_task_makes_of_the_outputs():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x = torch.randn(6, 4)
    binary = prunefuse_ray.score(network, x, "entropy", task="multi_label").table["score"].to_numpy()
    p = network(x).sigmoid().detach().double().numpy()
    assert binary == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(1), rel=1e-5)
    pixels = torch.nn.Conv2d(1, 3, 1)
    images = torch.randn(5, 1, 4, 4)
    found = prunefuse_ray.score(pixels, images, "margin", task="segmentation").table["score"].to_numpy()
    top = pixels(images).softmax(1).detach().topk(2, 1).values
    assert found == pytest.approx((1 - (top[:, 0] - top[:, 1])).mean((1, 2)).numpy(), rel=1e-5)
    with pytest.raises(ConfigError, match="'margin' makes no sense for task 'regression'; use one of variance"):
        prunefuse_ray.score(network, x, "margin", task="regression")
    with pytest.raises(PruneFuseError, match=r"logits \(N, C, H, W\) are needed"):
        prunefuse_ray.score(network, x, "margin", task="segmentation")


def test_scoring_draws_nothing_from_the_users_generator(mine, images):
    before = torch.get_rng_state()
    prunefuse_ray.score(mine, TensorDataset(images))
    assert torch.equal(torch.get_rng_state(), before)


class Dna(nn.Module):
    """Reads sequences of a few kinds of tokens."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.head = nn.Embedding(5, 16), nn.Conv1d(16, 32, 5, padding=2), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.conv(self.embedding(x).transpose(1, 2)).relu().amax(2))


def test_a_network_of_few_tokens_is_pruned_and_fused():
    torch.manual_seed(0)
    network, x = Dna(), torch.randint(5, (4, 20))
    proxy = prunefuse_ray.prune(network, x)
    assert (proxy.network.embedding.embedding_dim, proxy.network.conv.out_channels) == (8, 16)
    fused = prunefuse_ray.fuse(network, proxy, "function_preserving")
    torch.testing.assert_close(fused.eval()(x), proxy.network.eval()(x))


def test_a_network_of_vectors_is_pruned_and_fused():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 6)
    proxy = prunefuse_ray.prune(network, x)
    assert proxy.network[0].out_features == 4
    fused = prunefuse_ray.fuse(network, proxy, "function_preserving")
    torch.testing.assert_close(fused.eval()(x), proxy.network.eval()(x))


def test_a_compiled_network_is_pruned_and_fused_as_it_was_written(mine, images):
    """Else each step would compile it again, which takes a minute."""
    compiled = torch.compile(mine, backend=lambda *_: pytest.fail("compiled"))
    proxy = prunefuse_ray.prune(compiled, images[:2])
    assert type(proxy.network) is Mine
    assert type(prunefuse_ray.fuse(compiled, proxy)) is Mine


def test_a_network_of_series_is_pruned_and_fused():
    network = nn.Sequential(
        nn.Conv1d(6, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()  # fmt: skip
    series = torch.randn(4, 6, 32)
    proxy = prunefuse_ray.prune(network, series, ratio=0.5)
    fused = prunefuse_ray.fuse(network, proxy, "function_preserving").eval()
    torch.testing.assert_close(fused(series), proxy.network.eval()(series), atol=1e-5, rtol=1e-5)


def test_the_norm_of_roots_is_pruned_with_its_layer():
    network = nn.Sequential(nn.Linear(8, 32), nn.RMSNorm(32), nn.ReLU(), nn.Linear(32, 3))
    proxy = prunefuse_ray.prune(network, torch.randn(2, 8), ratio=0.5)
    assert proxy.network[1].normalized_shape == (16,)
    assert prunefuse_ray.fuse(network, proxy, "keep")(torch.randn(2, 8)).shape == (2, 3)


class Keeping(nn.Module):
    """Keeps what it computed last, as networks with auxiliary losses do."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.kept = nn.Linear(8, 16), nn.Linear(16, 3), None

    def forward(self, x):
        self.kept = self.body(x)
        return self.head(self.kept.relu())


@pytest.mark.parametrize("kind", ["keeps a tensor", "lazy"])
def test_a_network_that_cannot_be_copied_is_said(kind):
    inputs = torch.randn(4, 8)
    network = Keeping() if kind == "keeps a tensor" else nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 3))
    if kind == "keeps a tensor":
        network(inputs).sum().backward()
    for work in (lambda: prunefuse_ray.score(network, inputs), lambda: prunefuse_ray.prune(network, inputs, ratio=0.5)):
        with pytest.raises(NetworkError, match=r"cannot be copied|run lazy layers on one input first"):
            work()


def test_a_precision_that_onnx_runtime_does_not_have_is_one_message(tmp_path):
    pytest.importorskip("onnxruntime")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).bfloat16()
    with pytest.raises(PlanError, match="onnx"):
        prunefuse_ray.export(network, torch.randn(2, 3, 2, 2).bfloat16(), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_network_of_several_labels_that_ends_in_a_sigmoid_is_told_of(caplog):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 5
    prunefuse_ray.score(network, x, task="multi_label")
    assert "sigmoid" not in caplog.text
    prunefuse_ray.score(nn.Sequential(network, nn.Sigmoid()), x, task="multi_label")
    assert caplog.text.count("if it ends in a sigmoid, leave that out") == 1


def test_what_makes_no_batch_comes_as_a_list_to_its_end(mine):
    kinds = []

    def prepare(batch):
        kinds.append(type(batch))
        return torch.stack([torch.as_tensor(one)[:, :8, :8] for one in batch])

    prunefuse_ray.score(mine, [np.zeros((1, 8, 8 + n % 2), np.float32) for n in range(65)], prepare=prepare)
    assert kinds == [list, list]


def test_a_loaded_network_of_numbers_is_scored_by_what_it_ends_in():
    spec = networks.NetworkSpec(architecture="mlp", classes=1, input_shape=(4, 1, 1))
    task = TASKS["regression"].with_units({"mean": [100.0], "std": [10.0], "edges": [1.0, 2.0, 3.0, 4.0]})
    network = networks.build(spec, seed=0)
    model, x = Predictor(network, task, VectorForm(length=4), ["price"]), torch.randn(20, 4, 1, 1)
    found = prunefuse_ray.score(model, x, "k_centers", task="regression").table
    assert found.equals(prunefuse_ray.score(network, x, "k_centers", task="regression").table)
