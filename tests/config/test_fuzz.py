"""Configurations that nobody meant: one message that names the field, or a run that can be planned; never a traceback.

FUZZ=2000: so many mutations of every preset.
"""

import copy
import datetime
import os
import random
import re

import pytest
import yaml

from prunefuse_ray.cli import main
from prunefuse_ray.config.files import PRESETS, config_from_tree, flatten, load_config, to_tree
from prunefuse_ray.config.schema import Config
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.method.steps import round_seed, steps
from prunefuse_ray.sweep.config import Sweep, load_sweep, trials

FUZZ = int(os.environ.get("FUZZ", "10"))

NUMBERS = [0, -1, 1, 2, 3, 10**6, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.0, -0.0, 0.5, 1.5, 1e-300, 1e308]
NUMBERS += [float("nan"), float("inf"), float("-inf"), True, False]
WORDS = ["", " ", "null", "auto", "0", "1e3", "0x10", "nan", "true", "yes", "\x00", "é", "日本", "\U0001f600", "\ud800"]
WORDS += [
    "a" * 100_000,
    "../..",
    "/",
    "s3://",
    "s3://bucket/\x00",
    "://",
    "file:///x",
    "~",
    "%s{}{0}",
    "$HOME",
    "*",
    "[",
]
WORDS += ["[", "mod:name", ":", "os:system", "no.such:thing"]
LISTS = [[], [[]], [None], [0], [-1], [1, 0], [5, 3], ["a"], [1.5], [True], [10**30], list(range(1000)), [{"a": [{}]}]]
OTHERS = [None, {}, {"a": 1}, {1: 2}, {None: None}, {True: False}, b"bytes", {"x", "y"}, (1, 2)]
OTHERS += [datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, 12)]
VALUES = [*NUMBERS, *WORDS, *LISTS, *OTHERS]
FIELD = re.compile(r"[\w.\-]+( [^:]+)?: ")
"""A message that begins with another field than the one that was changed, which fits it no more."""
KEYS = ["", "__class__", "a" * 5000, 5, None, True, "é"]
TEXTS = {
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-32": lambda text: text.encode("utf-32"),
    "latin-1": lambda text: ("# Größe\n" + text).encode("latin-1"),
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "NUL": lambda text: text.encode().replace(b":", b"\x00:", 1),
    "cut": lambda text: text.encode()[: len(text) // 2],
    "tabs": lambda text: text.replace("  ", "\t").encode(),
    "object": lambda text: b"run: !!python/object/apply:os.system ['exit 1']\n" + text.encode(),
    "recursive": lambda text: b"run: &a\n  name: *a\n",
    "recursive list": lambda text: b"selection:\n  budgets: &a [*a]\n",
    "two documents": lambda text: text.encode() + b"\n---\nrun: {}\n",
    "same key twice": lambda text: text.encode() + b"\nrun: {seed: 1}\nrun: {seed: 2}\n",
    "a list": lambda text: b"- run\n- pool\n",
    "a word": lambda text: b"run",
    "deep": lambda text: b"run: " + b"[" * 5000 + b"]" * 5000,
    "bytes": lambda text: bytes(range(256)) * 20,
    "empty": lambda text: b"",
}
BOMB = b"a: &a0 [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &a%d [%s]\n" % (97 + n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)
)


class Dumper(yaml.SafeDumper):
    pass


Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(list(value)))


def leaves(tree, path=()):
    """The paths of all values, sections and elements of lists included."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def mutated(tree, rng):
    """(the tree with one to three changes, the names of which a message must hold one)"""
    tree, names = copy.deepcopy(tree), set()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(sorted(leaves(tree), key=str))
        owner = tree
        for key in path[:-1]:
            owner = owner[key]
        names |= {str(key) for key in path if not isinstance(key, int)}
        match rng.randrange(6):
            case 0:
                del owner[path[-1]]
            case 1 if isinstance(owner, dict):
                key = rng.choice(
                    [f"{path[-1]}s", str(path[-1]).upper(), "", "__class__", "a" * 5000, 5, None, True, "é"]
                )
                owner[key] = owner.pop(path[-1])
                names.add(str(key))
            case 2 if isinstance(owner, dict):
                owner[path[-1]] = {path[-1]: owner[path[-1]]}
            case 3:
                owner[path[-1]] = [owner[path[-1]]]
            case _:
                owner[path[-1]] = copy.deepcopy(rng.choice(VALUES))  # later changes may go into it
    return tree, names


def full(preset):
    """The preset with every field spelled out, so that each is reached."""
    tree = yaml.safe_load(preset.read_text()) or {}
    return tree if "base" in tree else to_tree(config_from_tree(tree))


def planned(config: Config) -> None:
    plan = steps(config)
    assert plan[-1].phase == "report"
    assert all(round_seed(config, s.round, s.phase) >= 0 for s in plan if s.round >= 0)
    again = config_from_tree(yaml.safe_load(yaml.safe_dump(to_tree(config))))
    assert to_tree(again) == to_tree(config) or any(v != v for v in flatten(to_tree(config)).values())


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_mutated_preset_is_a_plan_or_one_message(preset, tmp_path):
    rng, tree = random.Random(preset.stem), full(preset)
    file = tmp_path / "config.yaml"
    refused = 0
    for n in range(FUZZ):
        changed, names = mutated(tree, rng)
        try:
            file.write_text(yaml.dump(changed, Dumper=Dumper, allow_unicode=bool(n % 2)), encoding="utf-8")
        except UnicodeEncodeError:
            continue  # no file can hold it
        try:
            if "base" in tree:
                sweep = load_sweep(file, {}, {})
                if len(sweep.seeds) * (sweep.samples or 1) < 100:
                    one = sweep.model_copy(update={"seeds": sweep.seeds[:1]})  # the others differ in that number alone
                    for trial in trials(one)[:3]:
                        planned(trial.config)
            else:
                planned(load_config(file))
        except ConfigError as error:
            refused += 1
            said = str(error)
            assert len(said) < 20_000, f"{n}: a message of {len(said)} characters"
            assert any(name in said for name in names) or FIELD.match(said), f"{n} {names}: {said}"
        except Exception as error:
            raise AssertionError(f"{n}: {type(error).__name__}: {error}\n{file.read_text()[:400]}") from error
    assert refused > FUZZ / 4, "most mutations make no sense"


@pytest.mark.parametrize("how", TEXTS)
@pytest.mark.parametrize("sweep", [False, True])
def test_a_file_in_another_form_is_read_or_one_message(how, sweep, tmp_path):
    preset = PRESETS / ("digits_sweep.yaml" if sweep else "digits.yaml")
    file = tmp_path / "config.yaml"
    file.write_bytes(TEXTS[how](preset.read_text()))
    said = ""
    try:
        assert isinstance(load_sweep(file, {}, {}) if sweep else load_config(file), Sweep if sweep else Config)
    except ConfigError as error:
        said = str(error)
    assert len(said) < 2000


@pytest.mark.timeout(60)
@pytest.mark.parametrize("before", [b"", b"selection:\n  budgets: *a11\n"])
def test_a_file_of_references_to_references_is_refused_at_once(before, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(BOMB + before)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize("value", ["[1,", "{", '{"a":', "\x00", "é" * 1000, "[[[[", "a=b", "-x", "\udcff"])
@pytest.mark.parametrize("field", ["run.seed", "selection.budgets", "pool.mean", "run.name", "training.lr"])
def test_options_that_make_no_sense_are_one_message(field, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prunefuse_ray.run.loop.run", lambda *_, **__: pytest.fail(f"{field}={value} was taken"))
    try:
        code = main(["run", f"--{field}={value}"])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    assert field.partition(".")[0] in error
