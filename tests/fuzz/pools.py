"""Whole pools of every source, looked at by `prunefuse inspect`: it ends with code 0 and sums that add up, or 2."""

import contextlib
import io
import json
from pathlib import Path
from random import Random

import yaml

from prunefuse_ray.cli import main
from tests.fuzz.mutate import damaged
from tests.support.sources import IN_FOLDERS, clutter, pool_of, there


def case(rng: Random, where: Path) -> str:
    source = rng.choice(IN_FOLDERS)
    pool = pool_of(source, where)
    if rng.random() < 0.5:
        clutter(where / "pool")
    count = there(where / "pool")
    broken = rng.random() < 0.5
    if broken:
        files = [f for f in sorted((where / "pool").rglob("*")) if f.is_file() and not f.is_symlink()]
        for file in rng.sample(files, min(len(files), rng.choice((1, 1, 3)))):
            file.write_bytes(damaged(rng, file.read_bytes()))
    tree = {"pool": pool.model_dump(mode="json", exclude_defaults=True)}
    (where / "run.yaml").write_text(yaml.safe_dump(tree))
    out, said = where / "out", io.StringIO()
    thorough = ["--thorough"] if rng.random() < 0.3 else []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main(["inspect", "--config", str(where / "run.yaml"), "--out", str(out), *thorough])
    if code == 2:
        assert broken, said.getvalue()
        assert said.getvalue().count("error: ") == 1
        return "refused"
    assert code == 0
    account = json.loads((out / "inventory.json").read_text())["sets"]["path"]
    if not broken:
        assert account["samples"] + sum(account["left_out"].values()) == count
        assert not account["unreadable"]
    return "counted" if account["left_out"] or account["unreadable"] else "right"
