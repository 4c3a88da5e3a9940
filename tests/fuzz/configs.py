"""Configurations as people write them, right and misspelt."""

from pathlib import Path
from random import Random

import yaml

from prunefuse_ray.config.files import load_config, to_tree
from prunefuse_ray.config.schema import Config
from tests.fuzz.mutate import attempt, damaged

JUNK = (
    *(
        None,
        True,
        "",
        "x",
        "yes",
        0,
        -1,
        1e400,
        float("nan"),
        10**30,
        0.5,
        [],
        {},
        [1, "a", None],
        {"a": {"b": 1}},
        [[[]]],
    ),
    *(
        "a:b",
        "no.such:thing",
        "null",
        "2026-01-31",
        "\u00fc" * 300,
        "${HOME}",
        "!!python/object",
        "1_000",
        "0x10",
        "1e3",
    ),
    *("s3://user:secret@bucket/x", "https://host/?token=secret"),
)


def case(rng: Random, where: Path) -> str:
    tree = to_tree(Config())
    for _ in range(rng.randint(0, 3)):
        section = rng.choice([*tree])
        if isinstance(tree[section], dict) and rng.random() < 0.9:
            field = rng.choice([*tree[section], "unknown", "epoch"])
            tree[section][field] = rng.choice(JUNK)
        else:
            tree[section] = rng.choice(JUNK)
    text = yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5, default_flow_style=rng.choice((None, True, False)))
    if rng.random() < 0.1:
        laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(9))
        text = rng.choice(
            (laughs + "run: *a8\n", text.replace(": ", ":\t", 3), f"{text}---\n{text}", f"- {text}", text + text)
        )
    data = text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))
    file = where / "run.yaml"
    file.write_bytes(damaged(rng, data) if rng.random() < 0.3 else data)
    config, refused = attempt(load_config, str(file))
    if refused is not None:
        assert "secret" not in refused, f"a secret in a message: {refused}"
        return "refused"
    assert isinstance(config, Config)
    assert to_tree(config)
    return "right"
