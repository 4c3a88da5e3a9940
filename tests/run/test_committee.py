"""A committee in the loop: disjoint proxies trained side by side, asked together, fused into one network."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.acquisition.quotas import round_robin
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.method.steps import Step, round_seed
from prunefuse_ray.networks import NetworkError
from prunefuse_ray.run import loop
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.rank import Ranking, rank
from prunefuse_ray.storage import Place
from prunefuse_ray.training.trainer import train
from tests.run.test_loop import expected_steps, kill_at_each, scores_of
from tests.run.test_select_phase import choose, matrix
from tests.selection.test_set_selection import apart
from tests.support.nets import OWN
from tests.support.pools import random_images
from tests.support.runs import carried_out
from tests.support.runs import tiny as in_the_driver
from tests.training.test_trainer import IN_PROCESS, SPEC, data, job

assert data  # the fixture

BALD = {
    "pruning": {"committee": 2},
    "selection": {"strategy": "bald", "budgets": [10, 18]},
    "fusion": {"rule": "function_preserving"},
}


def tiny(where, directory, **more):
    return in_the_driver(where, directory, **{**BALD, **more})


def inputs(numbers):
    return (torch.tensor(random_images(120)[numbers]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25


def load(directory) -> networks.Selector:
    return networks.from_files(network_files(Place.at(str(directory))), OWN)


@pytest.fixture(scope="module")
def undisturbed(local_ray, tiny_pool, tmp_path_factory):
    directory = tmp_path_factory.mktemp("committee")
    loop.run(tiny(tiny_pool, directory))
    return directory / "tiny"


# --- scores ---


def test_scores_are_those_of_the_saved_committee(undisturbed):
    """Recomputed here from the files with plain torch."""
    committee = load(undisturbed / "rounds/000/proxies")
    assert isinstance(committee, networks.Committee)
    found = dict(scores_of(undisturbed, 0))
    numbers = [int(i[1:]) for i in found]
    with torch.no_grad():
        p = committee.network.eval()(inputs(numbers)).double().softmax(2)
    entropy = torch.special.entr(p).sum(2)
    expected = torch.special.entr(p.mean(0)).sum(1) - entropy.mean(0)
    np.testing.assert_allclose(list(found.values()), expected.numpy(), atol=1e-5)
    best = sorted(found, key=lambda i: (-found[i], i))
    selected = pq.read_table(undisturbed / "rounds/001/selected.parquet")
    assert selected["id"].to_pylist() == best[:8]


def test_dropout_masks_make_a_committee_of_one_network(local_ray, tiny_pool, tmp_path):
    config = in_the_driver(
        tiny_pool, tmp_path, network={"architecture": "tests.support.nets:dropping"},
        selection={"strategy": "bald", "budgets": [10, 18, 20], "dropout_masks": 3},
    )  # fmt: skip
    assert config.pruning.committee == 1
    ledger = carried_out(config, Step(2, "select"))
    bought = [set(pq.read_table(tmp_path / f"tiny/rounds/{r:03d}/selected.parquet")["id"].to_pylist()) for r in (1, 2)]
    assert not bought[0] & bought[1]
    for round_ in (0, 1):
        proxy = load(tmp_path / f"tiny/rounds/{round_:03d}/proxies/0")
        found = dict(scores_of(tmp_path / "tiny", round_))
        x = inputs([int(i[1:]) for i in found])
        seed = round_seed(config, round_, "score")
        with torch.no_grad():
            p = networks.under_masks(proxy.network, 3, seed, x)(x).double().softmax(2)
        expected = torch.special.entr(p.mean(0)).sum(1) - torch.special.entr(p).sum(2).mean(0)
        assert expected.max() > 1e-4, "the masks differ"
        np.testing.assert_allclose(list(found.values()), expected.numpy(), atol=1e-5)
        macs = ledger.require(Step(-1, "init")).metrics["macs_per_sample"]["proxy"]
        scored = ledger.require(Step(round_, "score")).metrics
        assert scored["macs"] == 3 * macs * scored["samples"]
        one = ledger.require(Step(-1, "init")).metrics["macs_per_sample"]
        assert scored["macs"] / scored["dense_macs"] == pytest.approx(one["proxy"] / one["dense"])


def test_dropout_masks_are_refused_where_nothing_is_dropped(local_ray, tiny_pool, tmp_path):
    config = in_the_driver(tiny_pool, tmp_path, selection={"strategy": "bald", "dropout_masks": 3, "budgets": [10, 18]})
    with pytest.raises(NetworkError, match="has no dropout layer"):
        loop.run(config)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("selection", "more", "said"),
    [
        ({"strategy": "margin", "dropout_masks": 3}, {}, "which 'margin' does not: use one of bald, vote_entropy"),
        ({"strategy": "bald", "dropout_masks": 1}, {}, "dropout_masks 1 makes no committee"),
        ({"strategy": "bald", "dropout_masks": 3}, {"pruning": {"committee": 2}}, "are two committees"),
        ({"strategy": "bald", "dropout_masks": 3, "hold_back": 2}, {}, "cannot be combined with min_distance"),
        ({"strategy": "bald", "dropout_masks": 3}, {"scoring": {"features": True}}, "gives no features"),
        ({"strategy": "bald"}, {"pruning": {"committee": 1}}, "or selection.dropout_masks to 10, say"),
    ],
    ids=str,
)
def test_what_contradicts_dropout_masks_is_refused(selection, more, said):
    with pytest.raises(ConfigError, match=said):
        config_from_tree({"selection": selection, **more})


# --- training and fusion ---


@pytest.mark.parametrize("architecture", ["tests.support.nets:tiny", "tests.support.nets:dropping"])
def test_members_are_trained_as_if_each_were_alone(data, tmp_path, architecture):
    """Where the network draws random numbers of its own, too."""
    spec = dataclasses.replace(SPEC, architecture=architecture)
    dense = networks.build(spec, seed=0)
    members = networks.split(dense, spec, networks.PruningSpec(ratio=0.5), 2)
    recipe = {"label_smoothing": 0.1}
    alone = [train(job(data, m, recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / f"t{i}")))
             for i, m in enumerate(members)]  # fmt: skip
    both = train(job(data, networks.Committee(members), recipe=recipe), IN_PROCESS, Place.at(str(tmp_path / "both")))
    for i, result in enumerate(alone):
        mine = networks.from_files(both.network, OWN).members[i].network.state_dict()
        for name, tensor in networks.from_files(result.network, OWN).network.state_dict().items():
            torch.testing.assert_close(mine[name], tensor, msg=name)
    assert both.metrics["members_test_accuracy"] == pytest.approx([r.metrics["test_accuracy"] for r in alone])
    assert both.metrics["macs"] == sum(r.metrics["macs"] for r in alone)
    means = np.mean([r.metrics["train_loss"] for r in alone], axis=0)
    np.testing.assert_allclose(both.metrics["train_loss"], means, rtol=1e-4)


def test_the_run_saves_a_partition_and_fuses_it_into_its_mean(undisturbed):
    committee = load(undisturbed / "rounds/001/proxies")
    networks.check_partition(committee.members)
    start = networks.from_files(
        {f.name: f.read_bytes() for f in (undisturbed / "rounds/001/fused-initial").iterdir()}, OWN
    ).network.eval()
    x = inputs(range(20))
    with torch.no_grad():
        torch.testing.assert_close(start(x), committee.network.eval()(x).mean(0), atol=1e-4, rtol=0)
    commit = Ledger(Place.at(str(undisturbed))).committed(Step(1, "train"))
    assert len(commit.metrics["members_test_accuracy"]) == 2
    init = Ledger(Place.at(str(undisturbed))).committed(Step(-1, "init")).metrics["macs_per_sample"]
    assert init["proxy"] == sum(networks.macs(m.network, (1, 8, 8)) for m in committee.members)
    assert (undisturbed / "fused/weights.safetensors").is_file()


@pytest.mark.faults
def test_a_killed_committee_ends_the_same(undisturbed, tiny_pool, tmp_path):
    config = tiny(tiny_pool, tmp_path)
    steps = kill_at_each([("inside", 0, "train"), ("commit", 0, "score"), ("inside", 1, "finetune")], config, tmp_path)
    assert steps == expected_steps(config)
    for name in (
        "rounds/001/selected.parquet",
        "rounds/001/proxies/1/weights.safetensors",
        "fused/weights.safetensors",
    ):
        assert (tmp_path / "tiny" / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.slow
def test_sync_and_sets_work_with_a_committee(local_ray, tiny_pool, tmp_path):
    """Features of all members side by side; the fused network is split again."""
    more = {"selection": {"strategy": "badge", "budgets": [10, 18]}, "fusion": {"rule": "keep", "sync_every": 1}}
    loop.run(tiny(tiny_pool, tmp_path, **more))
    root = tmp_path / "tiny"
    committee = load(root / "rounds/000/proxies")
    scores = pq.read_table(root / "rounds/000/scores").sort_by("id")
    x = inputs([int(i[1:]) for i in scores["id"].to_pylist()])
    with torch.no_grad():
        expected = [networks.features_and_logits(m.network.eval(), x)[0] for m in committee.members]
    np.testing.assert_allclose(np.stack(scores["feature"].to_numpy()), torch.cat(expected, 1).numpy(), atol=1e-5)
    fused, following = load(root / "rounds/000/fused"), load(root / "rounds/000/next")
    networks.check_partition(following.members)
    for member in following.members:
        kept = networks.gather(fused.network.state_dict(), member.kept)
        assert all((tensor == kept[name]).all() for name, tensor in member.network.state_dict().items())


SHARED_OUT, APART = {"per_group": "predicted"}, {"min_distance": 0.01}
EVERY_OTHER = [("bald", APART), ("vote_entropy", SHARED_OUT), ("consensus_kl", SHARED_OUT), ("consensus_kl", APART)]


@pytest.mark.parametrize(
    ("strategy", "change"),
    [("bald", SHARED_OUT), ("vote_entropy", APART), *(pytest.param(*o, marks=pytest.mark.slow) for o in EVERY_OTHER)],
    ids=str,
)
def test_what_members_disagree_about_may_be_shared_out_and_kept_apart(local_ray, tiny_pool, tmp_path, strategy, change):
    config = tiny(tiny_pool, tmp_path, selection={"strategy": strategy, "budgets": [10, 18], **change})
    root = choose(config)
    scores = pq.read_table(f"{root}/rounds/000/scores").sort_by("id")
    chosen = pq.read_table(f"{root}/rounds/001/selected.parquet")["id"].to_pylist()
    if "per_group" in change:
        rows = scores.to_pylist()
        groups = [
            sorted((r for r in rows if r["predicted"] == g), key=lambda r: (-r["score"], r["id"])) for g in (0, 1)
        ]
        quotas = round_robin([len(g) for g in groups], 8)
        assert set(chosen) == {r["id"] for g, quota in zip(groups, quotas, strict=True) for r in g[:quota]}
    else:
        x, known = (
            matrix(pq.read_table(f"{root}/rounds/000/{n}").sort_by("id"), "feature") for n in ("scores", "labeled")
        )
        assert chosen == scores["id"].take(apart(x, scores["score"].to_numpy(), known, 8, 0.01)).to_pylist()


def test_a_saved_committee_ranks_a_pool(undisturbed, tiny_pool, tmp_path):
    def ranked(name: str, **scoring) -> tuple[Ranking, dict[str, float]]:
        config = Ranking.model_validate(
            {"pool": {"source": "parquet", "path": str(tiny_pool / "pool"), "channels": 1},
             "selection": {"strategy": "bald"}, "scoring": scoring}
        )  # fmt: skip
        rank(config, str(undisturbed / "rounds/000/proxies"), str(tmp_path / name), 5, OWN[0])
        return config, {r["id"]: r["score"] for r in pq.read_table(tmp_path / name / "scores").to_pylist()}

    config, again = ranked("out", batch_size=8)  # the run's own: what fixes a score to its last bit (`Arithmetic`)
    assert len(again) == 120
    assert all(again[i] == score for i, score in scores_of(undisturbed, 0))
    _, otherwise = ranked("otherwise")
    assert all(otherwise[i] == pytest.approx(score, abs=1e-5) for i, score in again.items())
    with pytest.raises(ConfigError, match="asks the members of a committee"):
        rank(config, str(undisturbed / "fused"), str(tmp_path / "other"), 5, OWN[0])


# --- what cannot be ---


def test_a_committee_that_lost_a_member_is_refused(undisturbed):
    files = network_files(Place.at(str(undisturbed / "rounds/000/proxies")))
    with pytest.raises(networks.NetworkError, match="the other members are missing"):
        networks.from_files({n: f for n, f in files.items() if not n.startswith("1/")}, OWN)


def test_the_ratio_follows_from_the_members():
    assert config_from_tree({"pruning": {"committee": 4}}).pruning.ratio == 0.75
    assert config_from_tree({"pruning": {"committee": "2"}}).pruning.ratio == 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pruning": {"committee": 4, "ratio": 0.5}}, "ratio 0.5 does not make 4 disjoint proxies"),
        ({"pruning": {"committee": 2, "steps": 5}}, "in one step"),
        ({"selection": {"strategy": "bald"}, "pruning": {"committee": 1}}, "set pruning.committee to 2 or more"),
        (
            {"pruning": {"committee": 2}, "selection": {"selector": "dense"}, "fusion": {"target": "scratch"}},
            "is of proxies",
        ),
        ({"pruning": {"committee": 2}, "fusion": {"rule": "positional"}}, "takes no committee"),
    ],
)
def test_what_cannot_be_combined_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        config_from_tree(change)


def test_widths_that_cannot_be_shared_are_refused(local_ray, tiny_pool, tmp_path):
    with pytest.raises(networks.NetworkError, match="3 members cannot share the 16 channels"):
        loop.run(tiny(tiny_pool, tmp_path, pruning={"committee": 3}))
    assert not list(tmp_path.iterdir())
