"""The configuration: defaults, overrides, and one clear error for whatever is wrong."""

import subprocess
import sys

import pytest
import yaml

from prunefuse_ray.commands.options import parse_run
from prunefuse_ray.config.files import (
    PRESETS,
    config_from_tree,
    differences,
    flatten,
    load_config,
    merge,
    overlay,
    preset_path,
    read_tree,
    to_tree,
    validated,
)
from prunefuse_ray.config.schema import Config
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.networks.importance import IMPORTANCES


def test_the_empty_configuration_is_the_digits_example():
    config = config_from_tree({})
    assert config.pool.source == "digits"
    assert config.network.architecture == "resnet20"
    assert config.pruning.ratio == 0.5
    assert config.selection.strategy == "least_confidence"
    assert (config.selection.budgets[0], config.selection.budgets[-1]) == (50, 250)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"pool": {"sorce": "digits"}}, ["pool.sorce", "unknown key", "'source'"]),
        ({"pol": {}}, ["pol", "unknown key", "'pool'"]),
        ({"run": {"seed": "a"}}, ["run.seed", "'a'", "integer"]),
        ({"run": {"name": "../x"}}, ["run.name", "'../x'"]),
        ({"run": 3}, ["run", "3"]),
        ({"selection": {"budgets": [50, 50]}}, ["selection.budgets", "[50, 50]", "does not rise"]),
        ({"selection": {"budgets": []}}, ["selection.budgets", "at least 1"]),
        ({"selection": {"budgets": [0, 5]}}, ["selection.budgets.0", "greater than or equal to 1"]),
        ({"selection": {"strategy": "margn"}}, ["selection.strategy", "'margn'", "did you mean 'margin'"]),
        ({"pool": {"source": "parquet", "classes": 2}}, ["pool", "path is missing", "set pool.path"]),
        ({"pool": {"mean": [1, 2]}}, ["mean has 2 values", "give one for all channels"]),
        (
            {"scoring": {"backend": "opnvino"}},
            ["scoring.backend", "'opnvino'", "did you mean 'openvino'", "auto, eager"],
        ),
        ({"scoring": {"backend": "aut"}}, ["scoring.backend", "did you mean 'auto'"]),
        ({"fusion": {"rule": "kep"}}, ["fusion.rule", "'kep'", "did you mean 'keep'", "function_preserving, scaled"]),
        (
            {"fusion": {"rule": "positional"}, "pruning": {"committee": 2}},
            ["fusion.rule 'positional' takes no committee", "keep", "pruning.committee"],
        ),
        ({"pruning": {"ratio": 1.0}}, ["pruning.ratio", "1.0", "less than 1"]),
        ({"pruning": {"ratio": float("nan")}}, ["pruning.ratio", "nan", "finite"]),
        ({"training": {"epochs": 3, "warmup_epochs": 3}}, ["training", "warmup_epochs 3", "lower it below epochs"]),
        ({"training": {"schedule": "step", "epochs": 5, "milestones": [7]}}, ["training", "milestones [7]"]),
        ({"scoring": {"actors": [3, 1]}}, ["scoring.actors", "[3, 1]"]),
        ({"scoring": {"gpus": 1.5}}, ["scoring.gpus", "1.5", "whole"]),
        ({"pool": {"text_column": "text"}}, ["pool: text_column is for", "parquet", "leave it out"]),
        ({"workers": {"count": [1, 64]}}, ["training.batch_size 32", "64 workers", "lower workers.count"]),
        (
            {"selection": {"selector": "dense"}, "fusion": {"target": "fused"}},
            ["fusion.target", "set fusion.target to scratch"],
        ),
        ({"annotation": {"kind": "label_studio"}}, ["annotation", "url is missing", "set annotation.url"]),
        ({"annotation": {"url": "http://me:secret@host"}}, ["annotation.url", "credentials"]),
        ({"annotation": {"image_url": "http://host/x"}}, ["image_url 'http://host/x'", "put {id}"]),
        ({"pool": {"allow_growth": True}}, ["pool", "allow_growth", "pool.source"]),
        ({"run": {"directory": "s3://key:secret@bucket/x"}}, ["run.directory", "credentials"]),
        ({"run": {"directory": "s3://key:sec/ret@bucket/x"}}, ["run.directory", "credentials"]),
    ],
)
def test_each_fault_is_said_with_field_value_and_remedy(tree, said):
    with pytest.raises(ConfigError) as caught:
        config_from_tree(tree)
    for part in said:
        assert part in str(caught.value)


def test_all_faults_are_said_at_once():
    with pytest.raises(ConfigError) as caught:
        config_from_tree({"run": {"seed": -1}, "pruning": {"ratio": 2}})
    assert str(caught.value).count("\n") == 1


def test_the_command_line_lies_over_the_file(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("run: {name: a, seed: 3}\nselection: {budgets: [10, 20]}\n")
    config = parse_run(
        (
            f"--config {file} --run.name b --scoring.actors 1,2 --training.augment [] --pool.channels 1 "
            "--pool.image_size null --pruning.ratio .8"
        ).split()
    )
    assert (config.run.name, config.run.seed, config.selection.budgets) == ("b", 3, [10, 20])
    assert (config.scoring.actors, config.training.augment, config.pool.channels) == ((1, 2), [], 1)
    assert config.pruning.ratio == 0.8


def test_accepting_partial_labels_has_a_flag_of_its_own():
    assert parse_run(["--accept-partial"]).annotation.accept_partial
    assert not parse_run([]).annotation.accept_partial
    assert parse_run(["--annotation.accept_partial", "true"]).annotation.accept_partial


@pytest.mark.parametrize(("given", "path"), [("a.tar", "a.tar"), ("[a.tar]", "a.tar"), ("a,b/*.tar", ["a", "b/*.tar"])])
def test_one_path_is_the_same_in_a_file_and_on_the_command_line(tmp_path, given, path):
    more = ["--pool.source", "webdataset", "--pool.test_path", "t", "--pool.classes", "2"]
    config = parse_run([*more, "--pool.path", given])
    assert (config.pool.path, config.pool.classes, config.pool.label_column) == (path, 2, "cls")
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump({"pool": {"source": "webdataset", "path": path, "test_path": "t", "classes": 2}}))
    assert load_config(file) == config


VECTORS = {"source": "csv", "path": "a", "test_path": "b", "classes": 2, "vector_column": "v"}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"pool": {"validation_path": "v"}}, "leave it out and use validation_share"),
        (
            {"training": {"patience": 3}, "pool": {"validation_share": 0}},
            "training.patience 3 needs a validation set",
        ),
        ({"training": {"augment": ["crop", "resized_crop"]}}, "both crop and resized_crop"),
        ({"pool": {"crop_ratio": 0.9, "other_sizes": "reject"}}, "crop_ratio crops scaled images"),
        ({"training": {"milestones": [10]}}, "are of schedule 'step'"),
        ({"annotation": {"labels_per_sample": 3}}, "is for labels of people"),
        ({"annotation": {"kind": "files", "url": "https://host"}}, "url is for kind 'label_studio'"),
        ({"pool": {"text_length": 64}}, "pool.text_length is for texts"),
        ({"pool": VECTORS | {"mean": [0.4]}}, "pool.mean is for images"),
        ({"pool": VECTORS | {"text_length": 64}}, "pool.text_length is for texts"),
        ({"pool": VECTORS | {"mask_folder": "masks"}}, "mask_folder is for pool.source"),
        (
            {"pool": {"source": "delta", "path": "a", "test_samples": 9, "classes": 2, "test_version": 3}},
            "is of the table of test_path",
        ),
        ({"pool": VECTORS | {"path": ["a", ""]}}, "is empty; name a file"),
        ({"pool": {"source": "lance", "path": "a", "test_path": "b", "classes": 2, "version": 1.0}}, "in quotes"),
    ],
)
def test_settings_that_contradict_each_other_are_said(tree, said):
    with pytest.raises(ConfigError) as caught:
        config_from_tree(tree)
    assert said in str(caught.value)


def test_unreadable_files_and_presets_are_said(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml"):
        load_config(tmp_path / "no.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("run: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(bad)
    bad.write_text("3")
    with pytest.raises(ConfigError, match="sections"):
        load_config(bad)
    with pytest.raises(ConfigError, match=r"did you mean 'cifar10_small'"):
        preset_path("cifar10_smal")


# Those with a `base` are sweeps: tests/sweep/test_config.py.
RUNS = sorted(p for p in PRESETS.glob("*.yaml") if "base" not in yaml.safe_load(p.read_text()))


@pytest.mark.parametrize("preset", RUNS, ids=lambda p: p.stem)
def test_presets_are_valid(preset):
    assert isinstance(load_config(preset), Config)


def test_a_committee_given_over_a_file_has_its_own_ratio():
    config = parse_run(["--preset", "cifar10_small", "--pruning.committee", "4"])
    assert (config.pruning.committee, config.pruning.ratio) == (4, 0.75)
    with pytest.raises(ConfigError, match=r"ratio 0\.6 does not make 4 disjoint proxies: leave it out"):
        parse_run(["--preset", "cifar10_small", "--pruning.committee", "4", "--pruning.ratio", "0.6"])


def test_help_lists_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_run(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, value in flatten(to_tree(config_from_tree({}))).items():
        assert f"--{name} " in text
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert f"(default: {value})" in text


def test_help_describes_every_field():
    assert Config.model_fields["task"].description
    for section in (f for f in Config.model_fields.values() if f.annotation is not str):
        for name, field in section.annotation.model_fields.items():
            assert field.description, name


def test_a_configuration_survives_yaml():
    config = config_from_tree({"pool": {"image_size": [4, 5]}, "scoring": {"actors": [1, 3]}})
    assert config_from_tree(yaml.safe_load(yaml.safe_dump(to_tree(config)))) == config


def test_merge_and_differences():
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merge(base, {"a": {"y": 5}, "c": 6}) == {"a": {"x": 1, "y": 5}, "b": 3, "c": 6}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}
    assert differences(base, {"a": {"x": 1, "y": 5}}) == ["a.y: 2 -> 5", "b: 3 -> '(not set)'"]


@pytest.mark.parametrize("section", ["training", "finetuning"])
def test_digits_are_flipped_in_no_training(section):
    with pytest.raises(ConfigError, match=rf"{section}\.augment 'flip' turns digits"):
        config_from_tree({section: {"augment": ["flip"]}})


def test_every_importance_that_the_networks_know_is_taken_and_no_other():
    for name in IMPORTANCES:
        assert config_from_tree({"pruning": {"importance": name}}).pruning.importance == name
    with pytest.raises(ConfigError, match=r"importance: unknown importance .magnitud. .did you mean .magnitude."):
        config_from_tree({"pruning": {"importance": "magnitud"}})


def test_a_configuration_is_checked_without_torch():
    named = {"pruning": {"committee": 2}, "fusion": {"rule": "scaled"}, "scoring": {"backend": "openvino"}}
    code = f"""
import contextlib, io, sys
from prunefuse_ray.config import Config
from prunefuse_ray.commands.options import parse_run
Config()
Config(**{named})
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
    parse_run(["--help"])
assert "openvino" in text.getvalue()
sys.exit('torch' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_field_of_an_earlier_version_is_read_under_its_name_of_now(caplog):
    tree = {"annotation": {"kind": "label_studio", "url": "http://host", "picture_size": 300}}
    assert config_from_tree(tree).annotation.image_size == 300
    assert "'picture_size' is now called 'image_size'" in caplog.text


def test_a_section_that_stands_twice_is_refused(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("selection: {budgets: [10, 20]}\nrun: {name: a}\nselection: {strategy: margin}\n")
    with pytest.raises(ConfigError, match=r"'selection' is given twice[\s\S]*line 3"):
        load_config(file)
    file.write_text("pool: &p {classes: 2}\nrun: {name: a}\nscoring: {<<: {cpus: 1}, cpus: 2}\n")
    assert read_tree(file)["scoring"] == {"cpus": 2}, "merged keys may be laid over"


def test_what_was_recorded_and_never_read_is_no_fault():
    """Earlier versions took it; a run that has it goes on, and can be looked at."""
    recorded = validated(Config, {"training": {"milestones": [10]}, "annotation": {"labels_per_sample": 3},
                                  "pool": {"text_length": 64}}, recorded=True)  # fmt: skip
    assert recorded.training.milestones == []
    assert recorded.annotation.labels_per_sample == 1
    assert recorded.pool == Config().pool
    several = {"kind": "files", "url": "https://host", "image_url": "https://host/{id}"}
    told = validated(Config, {"annotation": several}, recorded=True).annotation
    assert (told.url, told.image_url) == (None, None)


def test_another_schedule_leaves_the_milestones_of_what_it_is_laid_over():
    tree = overlay({"training": {"schedule": "step", "milestones": [1, 2]}}, {"training": {"schedule": "cosine"}})
    assert config_from_tree(tree).training.milestones == []
    again = overlay({"training": {"milestones": [1]}}, {"training": {"schedule": "step", "milestones": [2]}})
    assert config_from_tree(again).training.milestones == [2]


def test_a_class_has_a_name():
    """An empty cell of a table would be its label."""
    with pytest.raises(ConfigError, match="or one by an empty name"):
        config_from_tree({"pool": VECTORS | {"classes": ["cat", "dog", " "]}})
    given = ["--pool.source", "csv", "--pool.path", "a", "--pool.test_path", "b", "--pool.vector_column", "v"]
    with pytest.raises(ConfigError, match="or one by an empty name"):
        parse_run([*given, "--pool.classes", "cat,dog,"])


@pytest.mark.parametrize("url", ["https://cdn/pool/{id}?size=l", "http://h:8080/data/local-files/?d={id}"])
def test_browsers_may_find_images_by_a_query(url):
    studio = {"kind": "label_studio", "url": "http://h", "image_url": url}
    assert config_from_tree({"annotation": studio}).annotation.image_url == url
    with pytest.raises(ConfigError, match="holds credentials"):
        config_from_tree({"annotation": studio | {"image_url": f"{url}&token=abc"}})


def test_workers_need_samples_of_a_pre_training_where_there_is_one():
    recipe = {"batch_size": 512}
    many = {
        "workers": {"count": [100, 160]},
        "selection": {"budgets": [1000]},
        "training": recipe,
        "finetuning": recipe,
    }
    assert config_from_tree(many).workers.count == (100, 160)
    with pytest.raises(ConfigError, match=r"pretraining\.batch_size 128"):
        config_from_tree(many | {"pretraining": {"method": "rotation"}})


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("pruning", "committee", True),
        ("pool", "test_samples", True),
        ("training", "epochs", True),
        ("workers", "count", [True, 4]),
        ("selection", "budgets", [True, 50]),
        ("pool", "mean", [True]),
    ],
)
def test_a_word_that_yaml_reads_as_true_is_no_number(section, field, value):
    with pytest.raises(ConfigError, match=f"{field} is true"):
        config_from_tree({section: {field: value}})
