"""Every file of a run directory, damaged: named and refused, or made anew; never another selection without a word."""

import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prunefuse_ray import networks
from prunefuse_ray.errors import PruneFuseError
from prunefuse_ray.inference.predictor import load
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import loop
from prunefuse_ray.training import checkpoints
from tests.support.disturbed import counted
from tests.support.runs import tiny

HERE = {"scoring": {"batch_size": 8}, "selection": {"budgets": [10, 18, 26]}}
BESIDE = re.compile(
    r"\.lock|scoring\.json|events\.jsonl|result\.json|report\.html|commits/report\.json|(rounds/\d+/)?metrics\.json"
)
"""Files that nothing of a selection is read from: their loss may pass without a word."""
OVER = re.compile(r"rounds/000/(proxies|scores)/.*")
"""Files that a run which has come to its second round reads no more before it ends."""
UNDONE = re.compile(r"(rounds/\d+/)?commits/\w+\.json|rounds/001/training/.*")
"""Files without which a phase is one that was not done, or not as far; of commits the last."""


def missing(file: Path, other: Path, rng: random.Random) -> None:
    file.unlink()


def empty(file: Path, other: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def cut(file: Path, other: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


def swapped(file: Path, other: Path, rng: random.Random) -> None:
    file.write_bytes(other.read_bytes())


DAMAGES = (missing, empty, cut, flipped, swapped)


class Ended(Exception):
    pass


def stop_at(monkeypatch, config, round_, phase, inside=False):
    """A run that ends there: before the phase, or (in a training) after its second epoch."""

    def listen(event, step, commit):
        if not inside and (event, step) == ("start", Step(round_, phase)):
            raise Ended

    persist = checkpoints._persist

    def persist_and_end(local, where, name):
        persist(local, where, name)
        if inside and f"rounds/{round_:03d}/" in where.path and name.startswith("epoch-0002"):
            raise Ended

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_persist", persist_and_end)
        with pytest.raises(Ended):
            loop.run(config, listen)


@pytest.fixture(scope="module")
def runs(local_ray, tiny_pool, tmp_path_factory):
    """A run that stopped before its second selection, in its second training, and one that finished: one run, copied on
    its way; and those of another seed beside them."""
    where = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for seed in (0, 1):
            for name, before in (("selecting", None), ("training", "selecting"), ("finished", "training")):
                if before is not None:
                    shutil.copytree(where / before / str(seed), where / name / str(seed))
                config = tiny(tiny_pool, where / name / str(seed), run={"seed": seed}, **HERE)
                if name == "finished":
                    loop.run(config)
                elif name == "selecting":
                    stop_at(monkeypatch, config, 1, "select")
                else:
                    stop_at(monkeypatch, config, 1, "train", inside=True)
    return where


def selected(root: Path):
    return [pq.read_table(root / f"rounds/{r:03d}/selected.parquet").to_pylist() for r in range(3)]


def counterpart(file: Path, root: Path, other: Path) -> Path:
    """The file of the other run that has the same place; where names are made up, the first of its directory."""
    found = other / file.relative_to(root)
    return found if found.exists() else next(iter(sorted(p for p in found.parent.iterdir() if p.is_file())), found)


def outcome(config, root: Path, damaged: Path, expected, said) -> str:
    try:
        loop.run(config)
    except PruneFuseError as error:
        named = damaged.name in str(error) or damaged.parent.name in str(error) or str(root) in str(error)
        return "refused by name" if named else f"refused without its name: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    if selected(root) != expected:
        return "another selection"
    if damaged.name in said() or damaged.parent.name in said():
        return "made anew, and said"
    return "not noticed"


@pytest.mark.parametrize("name", ["finished", "selecting", "training"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
@pytest.mark.parametrize(
    "share", [pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(3600)]), 0.03]
)
def test_a_damaged_file_never_changes_what_is_selected(
    runs, tiny_pool, tmp_path, caplog, monkeypatch, name, damage, share, record_property
):
    if share < 1:  # pages are drawn from what has been read by then; `make test-faults` draws them
        monkeypatch.setattr("prunefuse_ray.run.phases.report.render", lambda _: "")
    source, other = runs / name / "0" / "tiny", runs / name / "1" / "tiny"
    expected = selected(runs / "finished" / "0" / "tiny")
    rng = random.Random(f"{name} {damage.__name__}")
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    found: Counter = Counter()
    bad = []
    for n, file in enumerate(files if share == 1 else sorted(rng.sample(files, 3))):
        root = tmp_path / str(n) / "tiny"
        shutil.copytree(source, root)
        config = tiny(tiny_pool, root.parent, **HERE)
        before = (root / file).read_bytes()
        damage(root / file, counterpart(root / file, root, other), rng)
        if (root / file).exists() and (root / file).read_bytes() == before:
            continue
        caplog.clear()
        what = outcome(config, root, root / file, expected, lambda: caplog.text)
        harmless = (BESIDE, *([OVER] if name != "finished" else []), *([UNDONE] if damage is missing else []))
        if what == "not noticed" and any(one.fullmatch(str(file)) for one in harmless):
            what = "no matter"
        found[what.partition(":")[0]] += 1
        if not what.startswith(("refused by name", "made anew", "no matter")):
            bad.append(f"{file}: {what}")
        shutil.rmtree(root.parent)
    record_property("outcomes", counted(found))
    print(f"{name} {damage.__name__}\n{counted(found)}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_network_is_refused_by_name(runs, tmp_path, damage):
    source, other = (runs / "finished" / seed / "tiny/fused" for seed in ("0", "1"))
    for file in sorted(p.name for p in source.iterdir()):
        copy = tmp_path / file.partition(".")[0]
        shutil.copytree(source, copy)
        before = (copy / file).read_bytes()
        damage(copy / file, other / file, random.Random(file))
        if (copy / file).exists() and (copy / file).read_bytes() == before:
            continue
        with pytest.raises((PruneFuseError, networks.NetworkError)):
            load(str(copy), trusted="tests.support.nets:tiny")
