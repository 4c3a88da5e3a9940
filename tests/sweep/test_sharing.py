"""When two runs' phases are the same, and that they then really are."""

import itertools

import pytest

from prunefuse_ray.config.files import config_from_tree, flatten, merge, to_tree
from prunefuse_ray.config.schema import Config
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.method.steps import Step, steps
from prunefuse_ray.run.ledger import EXECUTION_FIELDS, Ledger
from prunefuse_ray.sweep.sharing import inputs_keys
from tests.support.runs import carried_out, tiny

POOL = {"rows": 100, "id_digest": "a", "listing_digest": "b", "classes": ["0", "1"], "path": "/here"}
BASE = {"selection": {"budgets": [10, 20, 30]}, "fusion": {"evaluate": "every"}}


def keys(*changes, pool=POOL):
    tree = BASE
    for change in changes:
        tree = merge(tree, change)
    return inputs_keys(config_from_tree(tree), pool)


def common(a, b):
    return {f"{s.round}:{s.phase}" for s in a.keys() & b.keys() if a[s] == b[s]}


CROPPED = {"training": {"augment": ["resized_crop"]}}
SCRATCH = {"fusion": {"target": "scratch"}}
LEARNED = {"pretraining": {"method": "rotation"}}
MARGIN = {"selection": {"strategy": "margin"}}
TYPICAL = {"selection": {"initial": "typiclust"}}
AUTO = {"selection": {"strategy": "auto"}}
PREFIX = {"-1:init", "0:select", "0:label", "0:train"}
FUSED = {f"{r}:fuse" for r in range(3)}
CHOSEN = {f"{r}:{p}" for r in range(3) for p in ("select", "label", "train")} | {"-1:init", "0:score", "1:score"}


HARDEST = {"coreset": {"by": "el2n"}}
RANDOM_PART = {"coreset": {"by": "random"}}
BALD = {"selection": {"strategy": "bald", "dropout_masks": 10}}


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        ([], [MARGIN], PREFIX | {"0:fuse", "0:finetune"}),
        ([], [{"pruning": {"ratio": 0.8}}], {"0:select", "0:label"}),
        ([], [{"training": {"epochs": 31}}], {"-1:init", "0:select", "0:label"}),
        ([], [{"run": {"seed": 1}}], set()),
        ([], [RANDOM_PART], CHOSEN | FUSED),
        ([HARDEST], [HARDEST, {"coreset": {"by": "forgetting", "share": 0.3}}], CHOSEN | FUSED),
        ([], [HARDEST], {"-1:init", "0:select", "0:label"}),  # what is noted in the training goes with it
        ([SCRATCH, HARDEST], [SCRATCH, HARDEST, {"training": {"epochs": 31}}],
         {"-1:init", "0:select", "0:label", *FUSED}),
        ([], [LEARNED], {"-1:init", "0:select", "0:label"}),
        ([], [{"workers": {"count": [2, 2]}}], {"-1:init", "0:select", "0:label"}),
        ([LEARNED], [LEARNED, MARGIN], PREFIX | {"-1:pretrain", "0:fuse", "0:finetune"}),
        ([LEARNED], [LEARNED, {"training": {"epochs": 31}, "fusion": {"rule": "function_preserving"}}],
         {"-1:init", "-1:pretrain", "0:select", "0:label"}),
        ([LEARNED], [LEARNED, {"pruning": {"ratio": 0.8}}], {"0:select", "0:label"}),
        ([LEARNED], [LEARNED, {"pretraining": {"epochs": 9}}], {"-1:init", "0:select", "0:label"}),
        ([LEARNED, TYPICAL], [LEARNED, TYPICAL, {"pretraining": {"epochs": 9}}], {"-1:init"}),
        ([LEARNED], [LEARNED, {"training": {"augment": []}}], {"-1:init", "0:select", "0:label"}),
        ([LEARNED, CROPPED], [LEARNED, CROPPED, {"training": {"smallest_crop": 0.5}}],
         {"-1:init", "0:select", "0:label"}),
        ([LEARNED, SCRATCH], [SCRATCH],
         {"-1:init", "0:select", "0:label", "0:finetune", *(f"{r}:fuse" for r in range(3))}),
        ([], [{"pool": {"channels": 3}}], set()),
        ([], [{"distillation": {"weight": 0.1}}], CHOSEN | {"0:fuse", "1:fuse", "2:fuse"}),
        ([], [SCRATCH], CHOSEN),
        ([], [{"fusion": {"evaluate": "last"}}], CHOSEN | {"2:fuse", "2:finetune"}),
        ([], [{"selection": {"budgets": [10, 20, 40]}}],
         {s for s in CHOSEN if s[0] != "2"} | {"0:fuse", "0:finetune", "1:fuse", "1:finetune"}),
        ([], [{"selection": {"class_balance": 1.0}}], PREFIX | {"0:fuse", "0:finetune"}),
        ([], [{"selection": {"strategy": "auto"}}], PREFIX | {"0:fuse", "0:finetune"}),
        ([AUTO], [AUTO, {"selection": {"budgets": [10, 40, 80]}}], PREFIX | {"0:fuse", "0:finetune"}),
        ([AUTO], [AUTO, {"selection": {"budgets": [10, 20, 40]}}],
         {s for s in CHOSEN if s[0] != "2"} | {"0:fuse", "0:finetune", "1:fuse", "1:finetune"}),
        ([], [TYPICAL], {"-1:init"}),
        ([BALD], [BALD, {"selection": {"dropout_masks": 20}}], PREFIX | {"0:fuse", "0:finetune"}),
        ([TYPICAL], [TYPICAL, MARGIN], PREFIX | {"-1:score", "0:fuse", "0:finetune"}),
        # A scratch target depends on the labels alone, whoever chose them.
        ([SCRATCH, MARGIN], [SCRATCH, {"selection": {"selector": "dense"}}],
         {"0:select", "0:label", *(f"{r}:fuse" for r in range(3)), "0:finetune"}),
        # Chance chooses alike whatever the proxy is.
        ([SCRATCH, {"selection": {"strategy": "random"}}],
         [SCRATCH, {"selection": {"strategy": "random"}, "pruning": {"ratio": 0.8}}],
         {f"{r}:{p}" for r in range(3) for p in ("select", "label", "fuse", "finetune")}),
    ],
)  # fmt: skip
def test_what_is_shared(a, b, shared):
    # The baseline depends on the last labels alone.
    assert common(keys(*a), keys(*b)) == shared | ({"-1:baseline"} if "2:label" in shared else set())


def test_seeds_and_recipes_share_what_is_learned_from_the_pool():
    texts = {"pool": {"source": "csv", "path": "a", "test_path": "b", "text_column": "text"}}
    others = ({"run": {"seed": 1}}, {"training": {"epochs": 5}}, {"pruning": {"ratio": 0.8}}, MARGIN)
    assert all("-1:learn" in common(keys(texts), keys(texts, other)) for other in others)
    assert common(keys(texts), keys(texts, {"run": {"seed": 1}})) == {"-1:learn"}
    assert "-1:learn" not in common(keys(texts), keys(texts, {"pool": {"text_length": 99}}))


def test_another_pool_shares_nothing_and_another_path_to_it_everything():
    assert not common(keys(), keys(pool={**POOL, "id_digest": "c"}))
    assert common(keys(), keys(pool={**POOL, "path": "/there"})) == {f"{s.round}:{s.phase}" for s in keys()}


def test_the_report_is_never_shared():
    assert Step(-1, "report") not in keys()


def test_a_field_that_nobody_has_looked_at_separates_runs(monkeypatch):
    """A new field must not lead to sharing by omission."""
    fields = flatten(to_tree(Config()))
    monkeypatch.setattr("prunefuse_ray.sweep.sharing.flatten", lambda _: {**fields, "committee.members": 2})
    two = inputs_keys(config_from_tree(BASE), POOL)
    monkeypatch.setattr("prunefuse_ray.sweep.sharing.flatten", lambda _: {**fields, "committee.members": 3})
    three = inputs_keys(config_from_tree(BASE), POOL)
    assert not common(two, three)


def test_fields_of_execution_change_nothing():
    changed = [{"workers": {"cpus": 2}}, {"scoring": {"actors": [1, 3]}}, {"run": {"name": "b", "directory": "c"}}]
    assert {f.split(".")[0] for c in changed for f in c} <= {e.split(".")[0] for e in EXECUTION_FIELDS}
    assert keys() == keys(*changed)


VARIANTS = {
    "plain": {},
    "margin": {"selection": {"strategy": "margin"}},
    "scratch": {"selection": {"selector": "dense"}, "fusion": {"target": "scratch"}, "distillation": {"weight": 0.0}},
}


@pytest.fixture(scope="module")
def ran(local_ray, tiny_pool, tmp_path_factory):
    """Runs of their own, each from nothing."""
    where = tmp_path_factory.mktemp("ran")
    every = {"selection": {"budgets": [10, 18]}, "fusion": {"evaluate": "every"}, "scoring": {"actors": None}}
    configs = {n: tiny(tiny_pool, where, **merge(merge(every, v), {"run": {"name": n}})) for n, v in VARIANTS.items()}
    return {name: (config, carried_out(config, steps(config)[-2])) for name, config in configs.items()}


def digests(ledger, step):
    """Of the files that the driver writes; Ray names its own by chance and orders their rows as blocks come in."""
    files = ledger.committed(step).files
    return {name: f["sha256"] for name, f in files.items() if not {"samples", "scores"} & set(name.split("/"))}


def test_phases_with_the_same_key_wrote_the_same_files(ran):
    """The claim that sharing rests on, held against runs that shared nothing."""
    compared = 0
    for (a, left), (b, right) in itertools.combinations(ran.values(), 2):
        mine, theirs = inputs_keys(a, left.read_pool()), inputs_keys(b, right.read_pool())
        for step in mine.keys() & theirs.keys():
            if mine[step] == theirs[step]:
                files = [sorted(digests(ledger, step).items()) for ledger in (left, right)]
                assert files[0] == files[1], step
                compared += bool(files[0])
    assert compared >= 8


def test_a_run_that_takes_over_phases_ends_like_one_that_did_them(ran, tiny_pool, tmp_path):
    config, whole = ran["margin"]
    _, other = ran["plain"]
    pairs = inputs_keys(config, whole.read_pool()), inputs_keys(ran["plain"][0], other.read_pool())
    taken = []

    def adopt(ledger, step):
        if pairs[0].get(step) is None or pairs[0].get(step) != pairs[1].get(step):
            return None
        taken.append(step)
        return ledger.adopt(step, other, "plain")

    moved = config.model_copy(update={"run": config.run.model_copy(update={"directory": str(tmp_path)})})
    ledger = carried_out(moved, steps(config)[-2], adopt=adopt)
    assert [s.phase for s in taken] == ["init", "select", "label", "train", "fuse", "finetune"]
    for step in steps(config)[:-1]:
        assert digests(ledger, step) == digests(whole, step), step
        assert ledger.committed(step).metrics.get("shared_from") == ("plain" if step in taken else None)
    assert (tmp_path / "margin" / "rounds" / "000" / "metrics.json").exists()


def test_a_damaged_file_is_not_taken_over(ran, tmp_path):
    from prunefuse_ray.storage import Place

    _, other = ran["plain"]
    step = Step(0, "train")
    broken = Ledger(Place.at(str(tmp_path / "broken")))
    for s in (Step(-1, "init"), step):
        broken.adopt(s, other, "plain")
    file = tmp_path / "broken/rounds/000/proxies/0/weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LedgerError, match=r"it has \d+ bytes in place of"):
        Ledger(Place.at(str(tmp_path / "third"))).adopt(step, broken, "broken")
