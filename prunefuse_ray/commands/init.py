"""`prunefuse init`: looks at a pool and the machine, and writes a configuration to begin with."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunefuse_ray.commands.terminal import account, console, quiet
from prunefuse_ray.distributed.security import secure
from prunefuse_ray.errors import ConfigError, PoolError, few

if TYPE_CHECKING:
    from prunefuse_ray.data.recognize import Recognized
    from prunefuse_ray.run.proposal import Facts


def main(argv: Sequence[str]) -> int:
    """Look at a pool (its kind, sizes, classes, labels, test set) and at this machine, and write a commented
    configuration to begin with. It says what it guessed; read the file before you run it."""
    parser = argparse.ArgumentParser(prog="prunefuse init", description=main.__doc__, allow_abbrev=False)
    parser.add_argument(
        "pool",
        metavar="POOL",
        help="a folder: images, Parquet, CSV, JSON Lines, WebDataset tars, Hugging Face datasets",
    )
    parser.add_argument("--test", metavar="PATH", help="the test set, if it lies elsewhere (with labels)")
    parser.add_argument("--classes", metavar="A,B,...", help="the names of the classes, where the pool has no labels")
    parser.add_argument("--labels", type=int, metavar="N", help="labels that people will give in all")
    parser.add_argument("--out", metavar="FILE", default="prunefuse.yaml", help="default: prunefuse.yaml")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    arguments = parser.parse_args(list(argv))
    if "://" in arguments.out:
        raise ConfigError(f"--out {arguments.out}: a configuration is read from a local file; name one")
    if not os.path.lexists(arguments.out):  # else something is called so
        arguments.out = os.path.expanduser(arguments.out)  # the shell leaves it in --out=~/my.yaml
    if os.path.exists(arguments.out) and not arguments.force:
        raise ConfigError(f"--out {arguments.out}: is there already; name another file, or overwrite it with --force")
    if arguments.labels is not None and arguments.labels < 2:
        raise ConfigError(f"--labels {arguments.labels}: give two or more")
    secure()
    quiet()
    from prunefuse_ray.config.files import config_from_tree
    from prunefuse_ray.data.recognize import recognize
    from prunefuse_ray.run import proposal
    from prunefuse_ray.storage import Place

    found = recognize(arguments.pool, arguments.test)
    if arguments.classes is not None:
        found.fields["classes"] = [name.strip() for name in arguments.classes.split(",")]
        found.why["classes"] = "--classes"
        if found.folders and found.folders.isdisjoint(found.fields["classes"]):
            found.labeled = False
            found.why["labeled"] = f"its sub-folders ({few(sorted(found.folders), 3)}) are none of --classes"
    facts = _facts(found, arguments.labels)
    choices = [*proposal.propose(facts), *_directory(found, arguments.pool)]
    if not found.labeled:
        how = "people label: `prunefuse label`"
        if facts.numbers:  # the page asks for classes
            how = "people write labels.csv: `prunefuse run` says where"
        choices.insert(0, proposal.Choice(field="annotation.kind", value="files", why=how))
    if not facts.classes:
        found.fields["classes"] = None
        found.why["classes"] = "MISSING: the names that people choose from, such as [cat, dog]"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Place.at(arguments.pool).name).strip("-._") or "run"
    plan, command = (
        shlex.join(["prunefuse", verb, "--config", arguments.out])
        for verb in ("plan", "run" if found.labeled or facts.numbers else "label")
    )
    what = "labels are numbers" if facts.numbers else f"{facts.classes or 'unnamed'} classes"
    head = [
        f"{facts.samples:,} samples, {what}; written by `prunefuse init` for this machine.",
        f"Labels: {found.why['labeled']}."
        + (" Their labels are used as if people gave them: a benchmark." * found.labeled),
        f"What it costs: {plan}. Then: {command}",
        "All fields and their defaults: prunefuse run --help",
    ]
    text = proposal.write(name, found.fields, found.why, choices, head)
    import yaml

    config_from_tree(yaml.safe_load(text))  # a fault in it would be ours
    Place.at(arguments.out).write_bytes(text.encode())
    console.print(f"\n{text}", markup=False)
    console.print(f"written: {arguments.out}", markup=False)
    if not facts.classes:
        force = [] if arguments.force else ["--force"]
        again = shlex.join(["prunefuse", "init", *argv, "--classes", "cat,dog", *force])
        console.print(f"Name the classes first: in {arguments.out}, or by {again}", markup=False)
    console.print(f"What it costs: {plan}\nThen:          {command}", markup=False)
    each = proposal.budgets(facts)[-1] / max(facts.classes, 1)
    if facts.holds == "images" and not facts.labeled and facts.classes and each < proposal.FEW_A_CLASS:
        console.print(
            f"Few labels: from {each:.0f} per class, a network with random weights learns little. More labels, "
            "trained weights (network.weights) or the unlabeled pool (pretraining, training.unlabeled) help most.",
            markup=False,
        )
    return 0


def _directory(found: Recognized, pool: str) -> list[Any]:
    """Where runs are kept, if the usual place is in the pool itself: a run refuses that."""
    from prunefuse_ray import config as cfg
    from prunefuse_ray.data.folders import root_of
    from prunefuse_ray.data.leaks import check_outside
    from prunefuse_ray.run.proposal import Choice
    from prunefuse_ray.storage import Place

    usual = Place.at(cfg.Run().directory)
    try:
        check_outside(cfg.UntestedPool.model_construct(**found.fields), usual, "run.directory")
    except ConfigError:
        beside = root_of(Place.at(pool)).parent / usual.name
        return [Choice(field="run.directory", value=beside.path, why="beside the pool's folder")]
    return []


def _facts(found: Recognized, budget: int | None) -> Facts:
    """What a survey of the pool says, told as `inspect` tells it, and the machine."""
    from prunefuse_ray import config as cfg
    from prunefuse_ray.config.files import validated
    from prunefuse_ray.config.following import with_following
    from prunefuse_ray.data import inventory
    from prunefuse_ray.data.account import lines
    from prunefuse_ray.data.survey import survey_guessed
    from prunefuse_ray.distributed.machine import cores
    from prunefuse_ray.distributed.resources import observe, start_ray
    from prunefuse_ray.run.proposal import Facts
    from prunefuse_ray.tasks import TASKS
    from prunefuse_ray.tasks.regression import CLUSTERS

    pool: Any = validated(cfg.UntestedPool, with_following({"pool": found.fields}, ["pool"])["pool"])
    start_ray()
    try:
        seen, why = survey_guessed(pool, labeled=found.labeled, task=found.task)
    except PoolError as error:
        raise PoolError(
            f"{error}\n(this was guessed: {', '.join(f'{k} {v}' for k, v in found.fields.items())})"
        ) from error
    if why:
        pool, found.fields["id_column"], found.why["id_column"] = seen.pool, None, why
    taken = inventory.take(seen)
    taken = inventory.checked(taken, _bearing(found, pool, taken.inventory.sets["path"]), account)
    account(lines(taken.inventory.to_json()))
    sizes = taken.inventory.sets["path"].sizes
    return Facts(
        samples=seen.info.rows,
        classes=CLUSTERS if TASKS[found.task].numbers else len(seen.info.classes),
        numbers=TASKS[found.task].numbers,
        labeled=found.labeled,
        holds="texts" if "text_column" in found.fields else "vectors" if "vector_column" in found.fields else "images",
        size=sizes.get("median"),
        mixed_sizes=bool(sizes) and sizes["smallest"] != sizes["largest"],
        channels=1 if _all_gray(taken.inventory.sets["path"]) else 3,
        cores=cores(),
        gpus=int(observe().gpus),
        budget=budget,
        tested="test_path" in found.fields,
    )


def _bearing(found: Recognized, pool: Any, seen: Any) -> Any:
    """The pool with the `max_rejected` that a run on it needs; the file has it then, since here nobody could raise it.
    Where most samples cannot be read another column is meant, and that is refused."""
    bad = sum(seen.unreadable.values())
    if bad <= pool.max_rejected * seen.looked or 2 * bad >= seen.looked:
        return pool
    share, most = (100 * bad // seen.looked + 1) / 100, max(seen.unreadable, key=seen.unreadable.__getitem__)
    found.fields["max_rejected"] = share
    found.why["max_rejected"] = f"{bad:,} of {seen.looked:,} samples cannot be read (most: {most}); never selected"
    return pool.model_copy(update={"max_rejected": share})


def _all_gray(account_: Any) -> bool:
    gray = sum(n for kind, n in account_.conversions.items() if kind.startswith("gray"))
    return account_.looked > 0 and gray == account_.looked
