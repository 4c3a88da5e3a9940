"""Every code block of the documents is right; `make test-documents` carries them out as they stand.

What is read only, and where it is carried out: installations (tests/test_wheel.py), `make` targets (.ci/run), clusters
(`make test-multinode`), labeling pages (`make test-browser`, `make test-labelstudio`), benchmarks
(tests/benchmarks), trainings of an hour (docs/explanation/results.md).
"""

import csv
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import prunefuse_ray
from prunefuse_ray.cli import main
from prunefuse_ray.commands import COMMANDS
from prunefuse_ray.config.files import load_config
from prunefuse_ray.sweep.config import ends, load_sweep, trials
from tests.docs.blocks import FOLDERS, Block, blocks
from tests.support import ROOT

ALL = blocks()
YAML = [b for b in ALL if b.language == "yaml"]
PYTHON = [b for b in ALL if b.language == "python"]
COMMAND_LINES = [
    (b, c) for b in ALL if b.language in ("", "bash", "sh")
    for c in b.commands if re.match(r"(prunefuse|make|pip|ray|python|\.venv/bin/\S+) ", c)
]  # fmt: skip
SWEEP = {"base", "arms", "space"}


def place(found: Block | tuple[Block, str]) -> str:
    block, rest = found if isinstance(found, tuple) else (found, "")
    return f"{block.page}:{block.line}" + (f" {' '.join(rest.split()[:3])}" if rest else "")


def test_blocks_are_found():
    assert len(ALL) > 35
    assert min(len(YAML), len(PYTHON), len(COMMAND_LINES)) > 5
    assert {"README.md", "getting-started.md", "how-to/labels.md"} <= {b.page for b in ALL}


@pytest.mark.parametrize("block", YAML, ids=place)
def test_a_configuration_is_valid(block, tmp_path):
    file, tree = tmp_path / "block.yaml", yaml.safe_load(block.text)
    file.write_text(block.text)
    if SWEEP & tree.keys():
        sweep = load_sweep(file, {}, {})
        assert trials(sweep, ends(sweep) if sweep.search != "random" else None)
    else:
        part = "pool" in tree and "source" not in tree["pool"]  # of a file that says elsewhere where the pool is
        load_config(file, {"pool": {"source": "images", "path": "a", "test_path": "b"}} if part else {})


@pytest.mark.parametrize("block", PYTHON, ids=place)
def test_python_is_python_and_names_what_there_is(block):
    compile(block.text, place(block), "exec")
    assert not [name for name in re.findall(r"prunefuse_ray\.(\w+)", block.text) if not hasattr(prunefuse_ray, name)]


@pytest.mark.parametrize(("block", "line"), COMMAND_LINES, ids=map(place, COMMAND_LINES))
def test_a_command_line_names_what_there_is(block, line, capsys):
    words = shlex.split(line)
    if "--" in words:
        words = words[words.index("--") + 1 :]  # what `ray job submit` runs
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", package]:
            name, _, extra = package.rstrip("]").partition("[")
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert (name, not extra or extra in project["optional-dependencies"]) == (project["name"], True)
        case ["pip", "install", "--constraint", file, package]:
            assert (ROOT / file).is_file()
            checkout, _, extra = package.rstrip("]").partition("[")
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert (checkout, not extra or extra in project["optional-dependencies"]) == (".", True)
        case ["python", script, *arguments] if script == "jobs/benchmark.py":
            benchmark = importlib.import_module("prunefuse_ray.benchmarks." + arguments[0])
            assert benchmark.__doc__
        case ["python", script] if script in {b.name for b in of(block.page)}:
            pass
        case ["python", script, *arguments]:
            assert (ROOT / script).exists()
            known(Path(script).stem, arguments, block, capsys)
        case ["prunefuse", command, *arguments]:
            known(command, arguments, block, capsys)


def known(command, arguments, block, capsys):
    assert command in COMMANDS
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    if command == "plan":  # takes all of another
        with pytest.raises(SystemExit):
            main(["run", "--help"])
        told += capsys.readouterr().out
    assert not [a for a in arguments if a.startswith("--") and not re.search(rf"{re.escape(a)}\b", told)]
    if "--config" in arguments:
        named = {b.name for b in ALL if b.page == block.page} | {"my.yaml", "prunefuse.yaml"}
        assert arguments[arguments.index("--config") + 1] in named


# --- carried out ----------------------------------------------------------------------------------------------------

SHORT = (
    "--selection.budgets", "[20,30]",
    *(f"--{part}.{field}={value}" for part in ("training", "finetuning")
      for field, value in (("epochs", 1), ("min_steps", 0), ("warmup_epochs", 0))),
)  # fmt: skip
ENDS = {
    "prunefuse run --config prunefuse.yaml": 3,
    "prunefuse run --config birds.yaml": 3,
    "prunefuse run --config photos.yaml": 3,
}
"""Exit codes but 0: people are asked for labels."""
STAYS = re.compile(r"prunefuse (label|sweep|report \S+ --serve)\b|pip |make |ray |python jobs/")
"""What is read only."""


def carry_out(line: str, where: Path, *more: str, code: int | None = None) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    words = shlex.split(line)
    start = ["-m", "prunefuse_ray", *words[1:], *more] if words[0] == "prunefuse" else words[1:]
    done = subprocess.run(
        [sys.executable, *start], cwd=where, env={**clean, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == (ENDS.get(line, 0) if code is None else code), (
        f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


def python(block: Block, where: Path, given: str = "") -> str:
    (where / "block.py").write_text(given + block.text)
    return carry_out("python block.py", where).stdout


def of(page: str) -> list[Block]:
    return [b for b in ALL if b.page == page]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", ["getting-started.md", "how-to/labels.md", "how-to/pools.md"])
def test_the_commands_of_a_page_run_one_after_the_other(page, tmp_path):
    FOLDERS[page](tmp_path)
    for block in of(page):
        if block.name:
            (tmp_path / block.name).write_text(block.text)
            carry_out(f"prunefuse run --config {block.name}", tmp_path)
        elif block.text.startswith("runs/"):  # a listing: everything that it names is there
            root, *names = re.findall(r"^ *(\S+)", block.text, re.MULTILINE)
            assert not [name for name in names if not (tmp_path / root / name).exists()]
        for line in () if block.language else block.commands:
            if not STAYS.match(line) and not line.startswith("runs/") and line.startswith("prunefuse "):
                carry_out(line, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", ["photographs", "long-tail", "texts", "own-network", "sweep"])
def test_a_tutorial_can_be_followed(page, tmp_path):
    whole = ""
    for block in of(f"tutorials/{page}.md"):
        if block.name:
            (tmp_path / block.name).write_text(block.text)
        elif block.language == "python":  # the pieces of one script
            whole += block.text
        for line in () if block.language else block.commands:
            if line.startswith("prunefuse label"):
                labeled_by_truth(tmp_path)
            else:
                carry_out(line, tmp_path)
    if whole:
        (tmp_path / "whole.py").write_text(whole)
        carry_out("python whole.py", tmp_path)
    assert page == "own-network" or list((tmp_path / "runs").glob("*/report.html"))


def labeled_by_truth(where: Path) -> None:
    """What someone at the labeling page does, by files: every sample of every round gets its label."""
    with (where / "truth.csv").open() as file:
        truth = {row["id"]: row["label"] for row in csv.DictReader(file)}
    command = "prunefuse run --config prunefuse.yaml"
    while True:
        asked = sorted((where / "runs").glob("*/rounds/*/to_label/samples.csv"))
        for samples in asked:
            with samples.open(encoding="utf-8-sig") as file:
                ids = [row["id"] for row in csv.DictReader(file)]
            if not (labels := samples.with_name("labels.csv")).exists():
                labels.write_text("id,label\n" + "".join(f"{i},{truth[i]}\n" for i in ids))
        if (where / "runs" / "photos" / "result.json").exists():
            return
        carry_out(command, where, code=0 if len(asked) == 3 else 3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_finished_run_is_used_as_the_page_says(tmp_path):
    FOLDERS["how-to/results.md"](tmp_path)
    carry_out("prunefuse run --preset digits", tmp_path)
    for block in of("how-to/results.md"):
        if block.language == "python":
            assert python(block, tmp_path).strip() in {str(digit) for digit in range(10)}
        for line in () if block.language else block.commands:
            if not STAYS.match(line):
                carry_out(line, tmp_path)
    assert (tmp_path / "runs" / "scores").exists()


PAGES_OF_TASKS = {"multi_label": "scenes", "regression": "flats", "segmentation": "street"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("task", "name"), PAGES_OF_TASKS.items())
def test_a_task_runs_and_predicts_as_its_page_says(task, name, tmp_path):
    FOLDERS[name](tmp_path)
    FOLDERS["how-to/results.md"](tmp_path)
    mine = [b for b in of("how-to/tasks.md") if b.text.startswith(f"task: {task}") or f"runs/{name}" in b.text]
    (configured,) = [b for b in mine if b.language == "yaml"]
    (tmp_path / f"{name}.yaml").write_text(configured.text)
    carry_out(f"prunefuse run --config {name}.yaml", tmp_path, *SHORT, "--run.name", name)
    (used,) = [b for b in mine if b.language == "python"]
    given = "from pathlib import Path\nimport prunefuse_ray\n"
    if task == "regression":  # ten figures a patient, where the page has three a flat
        used = Block(
            page=used.page,
            line=used.line,
            language="python",
            text=used.text.replace("[[72.0, 3, 1965]]", "[[0.01] * 10]"),
        )
    assert python(used, tmp_path, given).strip()
    assert task != "segmentation" or (tmp_path / "street.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("column", "name"), [("text_column", "reviews"), ("vector_column", "embeddings")])
def test_texts_and_vectors_run_as_their_page_says(column, name, tmp_path):
    FOLDERS[name](tmp_path)
    mine = [b for b in of("how-to/texts-and-vectors.md") if column in b.text and b.language == "yaml"]
    (block,) = [b for b in mine if "transformers:" not in b.text]  # tests/run/test_encoders.py makes an encoder
    (tmp_path / "block.yaml").write_text(block.text)
    carry_out("prunefuse run --config block.yaml", tmp_path, *SHORT)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_on_python_runs(tmp_path):
    FOLDERS["how-to/python.md"](tmp_path)
    own, whole = of("how-to/python.md")
    python(own, tmp_path, "from given import *\n")
    assert (tmp_path / "fused.onnx").exists()
    python(whole, tmp_path, "import prunefuse_ray\n")
    assert (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_networks_are_measured_as_their_page_says(tmp_path):
    for block in of("how-to/networks.md"):
        for line in () if block.language else block.commands:
            carry_out(line, tmp_path)
