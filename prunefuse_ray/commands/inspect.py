"""`prunefuse inspect`: the account of a pool before anything is bought. Nothing is written unless asked for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from prunefuse_ray import config as cfg
from prunefuse_ray.commands.options import given_options
from prunefuse_ray.commands.terminal import account, console, quiet
from prunefuse_ray.config.files import merge, preset_path, read_sections, validated
from prunefuse_ray.config.following import with_following
from prunefuse_ray.config.sources import source_defaults
from prunefuse_ray.distributed.security import secure
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tasks.classification import CLASSIFICATION


class Inspection(cfg.Section):
    """The sections of a run's configuration that say what its samples are."""

    task: str = CLASSIFICATION.name
    """What labels are."""
    pool: cfg.UntestedPool = cfg.UntestedPool.model_validate({})
    annotation: cfg.Annotation = cfg.Annotation()
    """Where people give the labels (`kind`), the pool's samples need none."""


def main(argv: Sequence[str]) -> int:
    """Report what a pool contains, as a run does: samples, what is left out and why, conversions, sizes, duplicates,
    classes, what pool and held-out sets share. Takes the options and the file of a run; a test set may be missing.
    Without pool.source the format of a POOL is guessed, as `prunefuse init` does, and the guess is shown."""
    parser = argparse.ArgumentParser(prog="prunefuse inspect", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("path", nargs="?", metavar="POOL", help="a folder, a file or a pattern: --pool.path POOL")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", help="a YAML file with a section `pool`; a run's own will do")
    where.add_argument("--preset", metavar="NAME", help="a configuration that comes with the package, by name")
    parser.add_argument("--thorough", action="store_true", help="look at every sample, and decode it")
    parser.add_argument(
        "--json", action="store_true", help="print the inventory as one JSON object, as in inventory.json"
    )
    parser.add_argument("--out", metavar="DIRECTORY", help="write inventory.json and left_out.parquet there")
    secure()
    arguments, given = given_options(parser, argv, Inspection)
    file = arguments.config if arguments.preset is None else preset_path(arguments.preset)
    tree = {} if file is None else read_sections(file, cfg.Config.model_fields)
    id_guessed = False
    if arguments.path is not None:
        if "path" in given.get("pool", {}):
            raise ConfigError("--pool.path: POOL names the pool already; give one of them")
        given["pool"] = {"path": arguments.path, **given.get("pool", {})}
        if file is None and "source" not in given["pool"]:
            id_guessed = not {"id_column", "known_labels"} & given["pool"].keys()
            given = _guessed(arguments.path, given, tell=not arguments.json)
    # What follows from the other sections of a run says how it reads its samples, and who labels them.
    whole = with_following(merge(tree, given), Inspection.model_fields)
    config = validated(Inspection, {name: whole[name] for name in Inspection.model_fields if name in whole})
    quiet()
    from prunefuse_ray.data import inventory
    from prunefuse_ray.data.account import lines
    from prunefuse_ray.data.known_labels import check_known_labels
    from prunefuse_ray.data.leaks import check_outside
    from prunefuse_ray.data.survey import survey, survey_guessed
    from prunefuse_ray.distributed.resources import start_ray
    from prunefuse_ray.storage import Place

    out = Place.at(arguments.out) if arguments.out else None
    if out is not None:
        check_outside(config.pool, out, "--out")
    start_ray()
    labeled = config.annotation.kind == "oracle"
    if id_guessed:
        found, why = survey_guessed(config.pool, labeled=labeled, task=config.task)
        config = config.model_copy(update={"pool": found.pool})
        if why and not arguments.json:
            console.print(f"{why} (pool.id_column null)", markup=False)
    else:
        found = survey(config.pool, labeled=labeled, task=config.task)
    known = check_known_labels(config.pool, config.task, found.info, found.indexes["path"])
    taken = inventory.take(found, known, thorough=arguments.thorough)
    if arguments.json:  # also of a pool that is refused
        print(json.dumps(taken.inventory.to_json()))
    inventory.checked(taken, config.pool, (lambda _: None) if arguments.json else account)
    if not arguments.json:
        account(lines(taken.inventory.to_json(), out.uri if out else None))
    if out is not None:
        inventory.write(taken, out)
        if not arguments.json:
            console.print(f"written: {out.uri}", markup=False)
    return 0


def _guessed(path: str, given: dict[str, Any], tell: bool) -> dict[str, Any]:
    """The options with what the pool seems to be below them."""
    from prunefuse_ray.data.recognize import recognize

    found = recognize(path)
    fields = {name: value for name, value in found.fields.items() if name not in given["pool"] or name == "path"}
    usual = source_defaults(found.fields["source"]).get("label_column", "label")
    named = given["pool"].get("label_column")
    named = named[0] if isinstance(named, list) and len(named) == 1 else named
    other = "mask_folder" in given["pool"] or named not in (None, found.fields.get("label_column", usual))
    if other:  # the guess is of other labels
        fields.pop("classes", None)
    name = str(given.get("task", CLASSIFICATION.name))
    numbers = name in TASKS and TASKS[name].numbers  # which need no classes
    labeled = "classes" in given["pool"] or numbers if other else found.labeled
    kind = {} if labeled else {"kind": "files"}
    task = {} if other or "task" in given or found.task == CLASSIFICATION.name else {"task": found.task}
    if tell:
        told = [f"pool.{name} {value}" for name, value in fields.items()]
        told += [*(["annotation.kind files"] * bool(kind)), *(f"task {name}" for name in task.values())]
        path_ = f"; path: {found.why['path']}" if "path" in found.why else ""
        console.print(f"guessed: {', '.join(told)}; labels: {found.why['labeled']}{path_}", markup=False)
    return task | given | {"pool": given["pool"] | fields, "annotation": kind | given.get("annotation", {})}
