"""`prunefuse completion`: what a shell completes, from the parsers themselves."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
from collections.abc import Sequence

from prunefuse_ray.commands import GROUPS
from prunefuse_ray.config.files import presets

SHELLS = ("bash", "zsh", "fish")
WORDS = {"list": ("strategies", "sources", "backends", "fusion-rules", "tasks", "trackers"), "completion": SHELLS}
"""Command -> what its first argument may be."""


def main(argv: Sequence[str]) -> int:
    """Completion of commands, options and presets. For bash: eval "$(prunefuse completion bash)" in ~/.bashrc; for zsh
    likewise; for fish: prunefuse completion fish > ~/.config/fish/completions/prunefuse.fish"""
    parser = argparse.ArgumentParser(prog="prunefuse completion", description=main.__doc__)
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(list(argv)).shell
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]())
    return 0


def options(command: str) -> list[str]:
    """The options of a command, as its own help names them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(f"prunefuse_ray.commands.{command}").main(["--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*\w", text.getvalue())))


def _commands() -> dict[str, str]:
    return {name: about for commands in GROUPS.values() for name, about in commands.items()}


def _bash() -> str:
    cases = "\n".join(
        f"    {name}) words='{' '.join([*WORDS.get(name, ()), *options(name)])}' ;;" for name in _commands()
    )
    return f"""_prunefuse() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=''
  if [[ $COMP_CWORD == 1 ]]; then
    words='{" ".join(_commands())}'
  elif [[ $before == --preset ]]; then
    words='{" ".join(presets())}'
  else case ${{COMP_WORDS[1]}} in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _prunefuse prunefuse"""


def _zsh() -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    lines = ["complete -c prunefuse -n __fish_use_subcommand -f"]
    for name, about in _commands().items():
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines.append(f"complete -c prunefuse -n __fish_use_subcommand -a {name} -d {_quoted(about)}")
        lines += [f"complete -c prunefuse {seen} -l {option.removeprefix('--')}" for option in options(name)]
        lines += [f"complete -c prunefuse {seen} -f -a {word}" for word in WORDS.get(name, ())]
    lines.append(f"complete -c prunefuse -l preset -x -a '{' '.join(presets())}'")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
