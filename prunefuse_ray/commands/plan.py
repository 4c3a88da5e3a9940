"""`prunefuse plan`: what a run will take, before money is spent on it; and what it took, beside the estimate."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from prunefuse_ray.commands.options import parse_run
from prunefuse_ray.commands.terminal import TRUSTED_CODE_HELP, console, quiet, si
from prunefuse_ray.config.pool import check_scaled
from prunefuse_ray.distributed.security import secure
from prunefuse_ray.errors import ConfigError, PlanError
from prunefuse_ray.registry import check_trusted, trust

if TYPE_CHECKING:
    from pyarrow import ChunkedArray

    from prunefuse_ray.config.schema import Config
    from prunefuse_ray.data.pool import PoolInfo
    from prunefuse_ray.distributed.resources import ScoringPlan
    from prunefuse_ray.run.estimate import Costs, Estimate

SAMPLES = 64
"""Samples of the pool whose decoding is measured."""


def main(argv: Sequence[str]) -> int:
    """What a run will take: labels, samples, MACs, seconds, machines, memory, bytes. Takes every option of `run`."""
    parser = argparse.ArgumentParser(prog="prunefuse plan", description=main.__doc__, allow_abbrev=False)
    parser.add_argument(
        "--within", type=float, metavar="HOURS", help="also print how many machines finish the run in this time"
    )
    parser.add_argument(
        "--node-cpus", type=int, metavar="N", help="CPUs of each of these machines (default: as many as this one has)"
    )
    parser.add_argument(
        "--node-gpus", type=int, metavar="N", help="GPUs of each of these machines (default: what one actor takes)"
    )
    parser.add_argument("--scoring-rate", type=float, metavar="R", help="samples a second of one actor (else measured)")
    parser.add_argument("--training-rate", type=float, metavar="R", help="training MACs a second (else measured here)")
    parser.add_argument("--against", metavar="RUN_DIR", help="compare the estimate of a run with what it took")
    trusted_help = f"with --against: {TRUSTED_CODE_HELP}"
    parser.add_argument("--trusted", metavar="NAME", action="append", default=[], help=trusted_help)
    parser.add_argument("--json", action="store_true", help="the estimate as one JSON object")
    mine, rest = parser.parse_known_args(list(argv))
    for name in ("within", "node_cpus", "node_gpus", "scoring_rate", "training_rate"):
        if (value := getattr(mine, name)) is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: give a number above zero")
    for option in ("node-cpus", "node-gpus"):
        if getattr(mine, option.replace("-", "_")) is not None and mine.within is None:
            raise ConfigError(f"--{option}: is of the machines that --within counts; give --within HOURS, too")
    if mine.against:
        if mine.within is not None:
            raise ConfigError("--within: --against compares a run with what it took; leave it out")
        if rest:
            raise ConfigError(f"{rest[0]}: --against takes the configuration of the run directory; leave it out")
        return _against(mine)
    secure()
    config = parse_run(rest)
    check_scaled(config.pool)
    if mine.node_gpus and not config.scoring.gpus:
        raise ConfigError("--node-gpus: scoring.gpus is 0, so that no actor takes one; leave it out")
    quiet()
    import torch

    from prunefuse_ray.data.index import first_samples
    from prunefuse_ray.data.known_labels import check_known_labels, known_count
    from prunefuse_ray.data.survey import survey
    from prunefuse_ray.distributed.resources import (
        MACS_WORTH_AN_ACTOR,
        as_asked,
        observe,
        plan_scoring,
        plan_training,
        start_ray,
    )
    from prunefuse_ray.method.steps import check_budget
    from prunefuse_ray.run.estimate import caveats, estimate, labels_asked, nodes_for

    start_ray()
    surveyed = survey(config.pool, labeled=config.annotation.kind == "oracle", task=config.task)
    info, index = surveyed.info, surveyed.indexes["path"]
    known = check_known_labels(config.pool, config.task, info, index)
    given = known_count(known, surveyed.drawn)
    check_budget(config, info.rows, given)
    asked = labels_asked(config, known=given, known_test=0 if known is None else known.table.num_rows - given)
    costs = _costs(config, info, next(first_samples(index, SAMPLES)), mine)
    macs = info.rows * costs.proxy_macs * config.selection.passes
    has, notes = observe(), list[str]()
    try:
        scoring = plan_scoring(config.scoring, has, macs, info.rows)
    except PlanError as error:  # the figures are good for the machines of another place
        scoring = as_asked(config.scoring)
        notes.append(f"Here the run would be refused: {error}")
    _, at_once = scoring.at_once
    tested, validated = _held_out(config, {setting: index.rows for setting, index in surveyed.indexes.items()})
    found = estimate(config, info, costs, at_once, asked, tested=tested, validated=validated)
    notes += caveats(
        config, gpu=torch.cuda.is_available(), scoring=mine.scoring_rate is None, training=mine.training_rate is None
    )
    try:
        notes += filter(None, [plan_training(config.workers, has).waits])
    except PlanError as error:  # the figures are good for the machines of another place
        notes.append(f"Here the run would be refused: {error}")
    if mine.json:
        print(json.dumps({**_tree(found, scoring, mine), "notes": notes}))
        return 0
    console.print(_table(found))
    console.print(f"labels: {asked.words()}")
    who = f"scoring actors: {at_once}, each with {scoring.cpus} CPU{'s' * (scoring.cpus > 1)} and"
    if scoring.here:
        who = f"scored by the driver itself, in {at_once} thread{'s' * (at_once > 1)}, with"
    console.print(
        f"{who} about {si(found.actor_bytes)}B of memory; "
        f"{si(found.bytes_read)}B read from the pool, {si(found.bytes_stored)}B stored; MACs {si(_macs(found))}"
    )
    if found.prepared_bytes:
        console.print(f"prepared pool: up to {si(found.prepared_bytes)}B beside the run directories")
    if scoring.waits:
        console.print(scoring.waits)
    if mine.within:
        actors, (cpus, gpus) = found.actors_within(mine.within * 3600), _machine(mine, scoring)
        if actors is None:
            raise ConfigError(
                f"--within {mine.within:g}: training alone takes {_hours(found.seconds() - found.seconds('score'))}; "
                "allow more time, or give the --training-rate of more workers or GPUs"
            )
        if not (nodes := nodes_for(actors, scoring.cpus, cpus, scoring.gpus, gpus)):
            few = f"--node-cpus {cpus}: a scoring actor takes scoring.cpus {scoring.cpus}"
            if cpus >= scoring.cpus:
                few = f"--node-gpus {gpus}: a scoring actor takes scoring.gpus {scoring.gpus:g}"
            raise ConfigError(f"{few}; name larger machines")
        each = f"{cpus} CPUs" + (f" and {gpus} GPU{'s' * (gpus > 1)}" if scoring.gpus else "")
        console.print(f"within {mine.within:g} h: {actors} scoring actors, {nodes} machines of {each}")
        most = config.scoring.actors[1] if config.scoring.actors else math.ceil(macs / MACS_WORTH_AN_ACTOR)
        if actors > most:
            console.print(f"the run would start {most} at most: set scoring.actors to [1, {actors}]", markup=False)
    for line in notes:
        console.print(line, markup=False)
    console.print("Seconds cover the work itself; starting Ray's workers and waiting for machines take extra time.")
    return 0


def _held_out(config: Config, rows: Mapping[str, int]) -> tuple[int, int]:
    """Samples of the test set and of the validation set.

    Args:
        rows: samples by setting of the pool.
    """
    return config.pool.test_samples or rows.get("test_path", 0), rows.get("validation_path", 0)


def _costs(config: Config, info: PoolInfo, column: ChunkedArray, mine: argparse.Namespace) -> Costs:
    """What the parts of the work cost on this machine, measured on some samples of the pool."""
    from prunefuse_ray import networks
    from prunefuse_ray.data.images import sample_values
    from prunefuse_ray.data.sample_format import form_of
    from prunefuse_ray.method.selector import check_outputs, make_selector, network_spec
    from prunefuse_ray.run.estimate import measured_costs

    spec = network_spec(config, info)
    dense = networks.Dense(network=networks.build(spec, seed=config.run.seed), spec=spec)
    check_outputs(config, dense, "network.architecture")
    selector = make_selector(config, dense)
    samples = [v for v in sample_values(column.slice(0, SAMPLES)) if isinstance(v, bytes | str)]
    costs = measured_costs(config, dense, selector, form_of(config.pool, info), samples, info.rows)
    if mine.scoring_rate:
        costs = dataclasses.replace(costs, scored_per_second=mine.scoring_rate, again_per_second=None)
    if mine.training_rate:
        costs = dataclasses.replace(
            costs,
            proxy_trained_per_second=mine.training_rate / (3 * costs.proxy_macs),
            dense_trained_per_second=mine.training_rate / (3 * costs.dense_macs),
        )
    return costs


def _tree(found: Estimate, scoring: ScoringPlan, mine: argparse.Namespace) -> dict[str, Any]:
    from prunefuse_ray.run.estimate import nodes_for

    actors = found.actors_within(mine.within * 3600) if mine.within else None
    cpus, gpus = _machine(mine, scoring)
    return {
        "phases": [dataclasses.asdict(phase) for phase in found.phases],
        "labels": {
            **dataclasses.asdict(found.labels),
            "samples": found.labels.samples,
            "answers": found.labels.answers,
        },
        "seconds": found.seconds(),
        "macs": _macs(found),
        "actors": 0 if scoring.here else found.actors,
        "threads": found.actors if scoring.here else 0,  # of the driver, which scores by itself
        "actors_within": actors,
        "nodes_within": (nodes_for(actors, scoring.cpus, cpus, scoring.gpus, gpus) or None) if actors else None,
        "actor_bytes": found.actor_bytes,
        "bytes_read": found.bytes_read,
        "bytes_stored": found.bytes_stored,
        "prepared_bytes": found.prepared_bytes,
    }


def _machine(mine: argparse.Namespace, scoring: ScoringPlan) -> tuple[int, int]:
    """CPUs and GPUs of each of the machines that --within counts."""
    from prunefuse_ray.distributed.machine import cores

    return mine.node_cpus or cores(), mine.node_gpus or math.ceil(scoring.gpus)


def _table(found: Estimate) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("phase", "rounds", "samples", "MACs", "seconds"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase in dict.fromkeys(p.phase for p in found.phases):
        rows = [p for p in found.phases if p.phase == phase]
        if samples := sum(p.samples for p in rows):
            table.add_row(phase, str(len(rows)), f"{samples:,}", si(sum(p.macs for p in rows)),
                          f"{found.seconds(phase):.1f}")  # fmt: skip
    table.add_row("all", "", "", si(_macs(found)), f"{found.seconds():.1f}")
    return table


def _against(mine: argparse.Namespace) -> int:
    """A run's estimate, made on this machine from its own configuration, beside what its commits say."""
    from prunefuse_ray.data.inventory import INVENTORY
    from prunefuse_ray.data.pool import PoolInfo
    from prunefuse_ray.data.reading import head
    from prunefuse_ray.data.survey import source_of
    from prunefuse_ray.method.selector import trusted
    from prunefuse_ray.method.steps import steps
    from prunefuse_ray.networks.architectures import is_custom
    from prunefuse_ray.run.estimate import estimate
    from prunefuse_ray.run.ledger import Ledger
    from prunefuse_ray.storage import Place

    ledger = Ledger(Place.at(mine.against))
    trust(mine.trusted)
    config = ledger.read_config()
    for name in filter(is_custom, trusted(config)):
        check_trusted(name, "network")
    info = PoolInfo.from_json(ledger.read_pool())
    commits = {step: ledger.committed(step) for step in steps(config)}
    actors = [c.metrics["actors"][1] for c in commits.values() if c is not None and "actors" in c.metrics]
    samples = head(source_of(config.pool, ledger.root, "path"), SAMPLES)["sample"]
    account = ledger.root / INVENTORY
    sets = account.read_json()["sets"] if account.exists() else {}  # earlier versions took none
    tested, validated = _held_out(config, {setting: one["samples"] for setting, one in sets.items()})
    costs = _costs(config, info, samples, mine)
    found = estimate(config, info, costs, actors[0] if actors else 1, tested=tested, validated=validated)
    table = Table(box=box.SIMPLE)
    compared: list[dict[str, Any]] = []
    for name in ("phase", "MACs", "took", "seconds", "took", "ratio"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase in dict.fromkeys(p.phase for p in found.phases):
        done = [c for s, c in commits.items() if s.phase == phase and c is not None]
        ours = [p for p in found.phases if p.phase == phase and any((c.step.round == p.round) for c in done)]
        planned, took = sum(p.seconds for p in ours), sum(c.metrics["seconds"] for c in done)
        macs = sum(c.metrics.get("macs", 0) for c in done)
        ratio = f"{took / planned:.2f}" if planned else ""
        compared.append(
            {
                "phase": phase,
                "macs": sum(p.macs for p in ours),
                "took_macs": macs,
                "seconds": planned,
                "took_seconds": took,
            }
        )
        table.add_row(phase, si(sum(p.macs for p in ours)), si(macs), f"{planned:.1f}", f"{took:.1f}", ratio)
    if mine.json:
        print(json.dumps(compared))
    else:
        console.print(table)
    return 0


def _macs(found: Estimate) -> int:
    return sum(p.macs for p in found.phases)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
