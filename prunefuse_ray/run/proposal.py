"""A first configuration for a pool: network, ratio, recipe and strategy that fit what lies there and the machine.

Rules as people would give them, each with its reason, and no search: nnU-Net's fingerprint -> plan (Isensee et al.
2021, Nature Methods 18, 203-211) in small. Figures are the README's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from prunefuse_ray.config.following import TEXTS, VECTORS

MOST_LINES = 40
FEW_A_CLASS = 10
"""Labels of a class from which a network without trained weights learns little."""
LARGE_POOL = 200_000
"""Samples from which scoring is what takes the time."""
MOST_TESTED = 10_000
"""Of a labeled pool: ± 0.8 points."""
HUGE_POOL = 1_000_000
"""Samples from which a strategy that looks at sets takes long."""
MOST_SQUARES = 8
"""Long images are proposed with no more pixels than so many squares."""
WIDTH = 140


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the proposal rests on."""

    samples: int
    classes: int
    """0: nobody has named them yet."""
    labeled: bool
    holds: Literal["images", "texts", "vectors"]
    size: tuple[int, int] | None
    """Median height and width of the images in pixels; None of texts and vectors."""
    mixed_sizes: bool
    channels: int
    cores: int
    gpus: int
    numbers: bool = False
    """Whether labels are numbers (task regression)."""
    budget: int | None = None
    """Labels that people will give in all, if they have said."""
    tested: bool = True
    """Whether there is a test set; else one is drawn from the pool."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One field and why it has its value."""

    field: str
    value: Any
    why: str


def propose(facts: Facts) -> list[Choice]:
    """The fields that are worth a thought; all others keep their defaults."""
    task = [Choice(field="task", value="regression", why="labels are numbers")] if facts.numbers else []
    return [
        *task,
        *_test_set(facts),
        *_input(facts),
        *_network(facts),
        *_selection(facts),
        *_training(facts),
        *_machine(facts),
    ]


def _test_set(facts: Facts) -> list[Choice]:
    if not (drawn := test_samples(facts)):
        return []
    known = "" if facts.numbers else f"; an accuracy of 80 % is then known to ± {points(drawn):.0f} points"
    why = f"drawn from the pool, never selected{known}"
    return [Choice(field="pool.test_samples", value=drawn, why=why)]


def side(facts: Facts) -> int:
    """The side in pixels to which images are scaled: what the machine can afford, and no more than they have."""
    assert facts.size is not None
    smaller = min(facts.size)
    most = 224 if facts.gpus else 64
    return smaller if smaller <= 64 else min(most, smaller // 32 * 32)


def photographs(facts: Facts) -> bool:
    """Whether images are scaled to a size for one of torchvision's networks, which take three channels."""
    return facts.size is not None and side(facts) > 64


def _input(facts: Facts) -> list[Choice]:
    if facts.size is None:
        return []
    gray: list[Choice] = []
    if facts.channels == 1 and not photographs(facts):
        gray = [Choice(field="pool.channels", value=1, why="all images that were looked at are gray")]
    return [*gray, *_size(facts, facts.size)]


def _size(facts: Facts, size: tuple[int, int]) -> list[Choice]:
    pixels, (height, width) = side(facts), size
    long = max(size) >= 2 * min(size)  # of which a center square leaves half or less
    scale = min(pixels / min(size), pixels * math.sqrt(MOST_SQUARES / (height * width)))
    shape = [max(1, round(height * scale)), max(1, round(width * scale))] if long else [pixels, pixels]
    if [height, width] == shape and not facts.mixed_sizes:
        return []
    why = f"the median image is {height} x {width}; "
    fits = f"{pixels} is what {_machine_name(facts)} can train in reasonable time"
    whole = f"no more pixels than {MOST_SQUARES} squares of {pixels}" if scale < 1 else "as they are"
    why += fits if pixels < min(size) else whole if long else "square"
    found = [Choice(field="pool.image_size", value=shape, why=why)]
    if facts.mixed_sizes and pixels >= 64 and not long:
        found.append(Choice(field="pool.crop_ratio", value=0.875, why="photographs: the center, as torchvision has it"))
    return found


def _machine_name(facts: Facts) -> str:
    return f"{facts.gpus} GPU{'s' * (facts.gpus > 1)}" if facts.gpus else f"{facts.cores} CPU cores"


def _network(facts: Facts) -> list[Choice]:
    if facts.holds == "texts":
        name, why = TEXTS, "texts: their words and pairs of words, and what the pool says of these"
    elif facts.holds == "vectors":
        name, why = VECTORS, "vectors: a perceptron"
    elif photographs(facts):
        name, why = "torchvision:resnet50", f"photographs, on {_machine_name(facts)}"
        why += "; gray ones are read as RGB" * (facts.channels == 1)
    else:
        name = "resnet56" if facts.gpus else "resnet20"
        why = f"small images, on {_machine_name(facts)}"
    if facts.numbers:
        ratio, why_ratio = 0.5, "two proxies, whose predictions may lie apart"
    elif facts.samples >= LARGE_POOL and not facts.gpus:
        ratio, why_ratio = (
            0.7,
            f"{facts.samples:,} samples to score on CPUs (0.5 selects a little better)",
        )
    elif facts.holds != "images":
        ratio, why_ratio = 0.5, "a quarter to a half of the work of scoring"
    else:
        ratio, why_ratio = 0.5, "a quarter of the work of scoring; 0.8: a twenty-fifth, a little worse"
    return [
        Choice(field="network.architecture", value=name, why=why),
        Choice(field="pruning.ratio", value=ratio, why=why_ratio),
    ]


def test_samples(facts: Facts) -> int:
    """How many samples of the pool become its test set: of labeled ones a fifth; where people label, two fifths of the
    labels that they will give, or 50 at least, of a fifth of the pool at most. 0 where there is a test set."""
    if facts.tested:
        return 0
    fifth = max(1, facts.samples // 5)
    if facts.labeled:
        return min(fifth, MOST_TESTED)
    wanted = max(50, 5 * facts.classes) if facts.budget is None else max(1, facts.budget * 2 // 5)
    return min(wanted, fifth)


def points(samples: int) -> float:
    """Half of the 95 % interval of an accuracy of 80 % that is measured on so many samples, in percentage points."""
    return 196 * math.sqrt(0.8 * 0.2 / samples)


def budgets(facts: Facts) -> list[int]:
    """Label budgets: a fifth at random, or a label a class if there can be two of each, then up to the half,
    then all, as far as these are different."""
    drawn = test_samples(facts)
    most = max(2, facts.samples - drawn - 1)
    whole = facts.budget or min(max(20 * facts.classes, 50), max(facts.samples // 4, 2))
    if facts.budget and not facts.labeled:
        whole = max(1, whole - drawn)
    whole = min(whole, most)
    first = max(1, whole // 5, facts.classes if whole >= 2 * facts.classes else 0)
    return sorted({first, max(first, whole // 2), whole})


def _selection(facts: Facts) -> list[Choice]:
    found = budgets(facts)
    asked = _asked(facts, found[-1])
    if facts.numbers:
        why = f"a fifth at random{asked}"
        return [Choice(field="selection.budgets", value=found, why=why)]
    each = found[-1] / max(facts.classes, 1)
    why = f"{each:.0f} labels a class in the end" if each >= 1 else "fewer labels than classes"
    why = why if facts.classes else "labels in the end"
    why += asked
    if not facts.labeled and (drawn := test_samples(facts)):
        why += f"; {drawn} more are of the test set"
    if facts.samples > HUGE_POOL:
        strategy, why_strategy = "margin", "two likely classes; quick for a pool of this size"
    else:
        strategy, why_strategy = "auto", "decides in each round by labels a class, and says why"
    return [
        Choice(field="selection.strategy", value=strategy, why=why_strategy),
        Choice(field="selection.budgets", value=found, why=why),
    ]


def _asked(facts: Facts, last: int) -> str:
    """What `--labels` had to do with it."""
    if facts.budget is None:
        return "; --labels gives another number"
    whole = last + (0 if facts.labeled else test_samples(facts))
    return ", as you said" if whole == facts.budget else f"; the pool has no room for {facts.budget:,}"


def _training(facts: Facts) -> list[Choice]:
    if facts.holds != "images":
        return []  # the recipe follows from the kind of pool
    why, recipe = "add flip where left and right mean the same", {"epochs": 30, "augment": ["crop"]}
    return [Choice(field=section, value=recipe, why=why) for section in ("training", "finetuning")]


def _machine(facts: Facts) -> list[Choice]:
    if not facts.gpus:
        return []
    return [
        Choice(field="workers.gpu", value=True, why=_machine_name(facts)),
        Choice(field="scoring.gpus", value=1, why="one GPU an actor"),
    ]


def write(name: str, pool: Mapping[str, Any], why: Mapping[str, str], choices: list[Choice], head: list[str]) -> str:
    """The configuration as commented YAML of at most MOST_LINES lines.

    Args:
        pool: fields of `pool`.
        why: 'section.field' -> the reason, of these.
        head: lines of the comment at its top.
    """
    tree: dict[str, Any] = {"run": {"name": name}, "pool": dict(pool)}
    reasons = {f"pool.{field}": reason for field, reason in why.items()}
    for choice in choices:
        section, _, field = choice.field.partition(".")
        if field:
            tree.setdefault(section, {})[field] = choice.value
        else:
            tree[section] = choice.value
        reasons[choice.field] = choice.why
    lines = [f"# {_in_a_line(line)}" for line in head]
    for section, fields in tree.items():
        if section in reasons:
            lines.append(_commented(f"{section}: {_flow(fields)}", reasons[section]))
            continue
        lines.append(f"{section}:")
        lines += [_commented(f"  {f}: {_flow(v)}", reasons.get(f"{section}.{f}", "")) for f, v in fields.items()]
    assert len(lines) <= MOST_LINES, "the rules above give fewer"
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _in_a_line(text: str) -> str:
    """As a comment of YAML can hold it. It may name columns and folders of a pool, which hold anything: after the end
    of a line it would be configuration."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _commented(line: str, why: str) -> str:
    why = _in_a_line(why)
    if not why:
        return line
    written = f"{line.ljust(44)}  # {why}"
    if len(written) <= WIDTH:
        return written
    return written[: WIDTH - 4].rstrip() + " ..." if len(line) < WIDTH // 2 else line
