"""Completion is what the parsers say, and the shell takes it."""

import shutil
import subprocess

import pytest

from prunefuse_ray.cli import main
from prunefuse_ray.commands import COMMANDS
from prunefuse_ray.commands.completion import SHELLS
from prunefuse_ray.config.files import flatten, to_tree
from prunefuse_ray.config.schema import Config


@pytest.fixture(scope="module")
def scripts():
    import contextlib
    import io

    found = {}
    for shell in SHELLS:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            assert main(["completion", shell]) == 0
        found[shell] = text.getvalue()
    return found


def completed(script, *words):
    ask = f"{script}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _prunefuse; echo ${{COMPREPLY[@]}}"
    return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_presets(scripts):
    assert completed(scripts["bash"], "prunefuse", "''") == list(COMMANDS)
    assert completed(scripts["bash"], "prunefuse", "ru") == ["run"]
    assert completed(scripts["bash"], "prunefuse", "run", "--selection.str") == ["--selection.strategy"]
    assert "digits" in completed(scripts["bash"], "prunefuse", "run", "--preset", "dig")
    assert completed(scripts["bash"], "prunefuse", "list", "str") == ["strategies"]
    assert completed(scripts["bash"], "prunefuse", "label", "--no") == ["--no-run"]


def test_every_field_and_every_command_is_completed_in_every_shell(scripts):
    for field in flatten(to_tree(Config())):
        assert f"--{field}" in scripts["bash"]
        assert f"--{field}" in scripts["zsh"]
        assert f"-l {field}" in scripts["fish"]
    for command in COMMANDS:
        assert f"-a {command} " in scripts["fish"]
