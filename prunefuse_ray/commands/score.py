"""`prunefuse score`, which is `python jobs/score.py`: score a pool with a saved network, without a loop."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from prunefuse_ray.commands.options import given_options
from prunefuse_ray.commands.terminal import TRUSTED_HELP, account, console, quiet
from prunefuse_ray.config.files import read_sections, validated
from prunefuse_ray.distributed.security import secure
from prunefuse_ray.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Score every sample of a pool with a saved network and rank the highest. The same command again resumes."""
    parser = argparse.ArgumentParser(prog="prunefuse score", description=main.__doc__, allow_abbrev=False)
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="a network's directory: RUN/fused, RUN/rounds/NNN/proxies/0, or a finished run",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIRECTORY", help="where scores go: one directory per pass (required)"
    )
    parser.add_argument("--top", type=int, default=1000, metavar="K", help="length of the ranked list (default: 1000)")
    parser.add_argument("--config", metavar="FILE", help="a YAML file with a section `pool`; a run's own will do")
    parser.add_argument(
        "--predictions", action="store_true", help="also write the network's prediction for every sample: predictions/"
    )
    parser.add_argument("--trusted", metavar="NAME", action="append", default=[], help=TRUSTED_HELP)
    secure()
    quiet()
    from prunefuse_ray.acquisition import AUTO, STRATEGIES
    from prunefuse_ray.run.rank import Ranking, Strategy, of_rounds, rank

    arguments, given = given_options(parser, argv, Ranking)
    if not arguments.out:
        raise ConfigError("--out: is empty; name a directory")
    if arguments.top < 1:
        raise ConfigError(f"--top {arguments.top}: give at least 1")
    # Of a run's file: what says how its pool is read and kept, and by what is ranked.
    kept = {} if arguments.config is None else read_sections(arguments.config, Ranking.model_fields)
    if isinstance(selection := kept.get("selection"), dict):
        kept["selection"] = {name: selection[name] for name in Strategy.model_fields if name in selection}
        strategy = kept["selection"].get("strategy")
        if strategy in (AUTO, *STRATEGIES) and of_rounds(strategy):
            del kept["selection"]["strategy"]
            if "strategy" not in given.get("selection", {}):
                told = (
                    f"selection.strategy '{strategy}' decides in the rounds of a run, and not here; the default is used"
                )
                console.print(f"{told}; --selection.strategy names another one", markup=False)
    config = validated(Ranking, kept, given)
    result = rank(
        config, arguments.network, arguments.out, arguments.top, arguments.trusted, account, arguments.predictions
    )
    console.print(f"{result.scored:,} scored, {result.rejected:,} could not be used, {result.ranked:,} ranked")
    if result.scored and not result.ranked:
        console.print("nothing is ranked: one network alone is not unsure of a number, a committee is", markup=False)
    if result.seconds:
        console.print(f"finished in {result.seconds:.0f} s: {result.root.uri}/ranked.parquet", markup=False)
    else:
        console.print(f"this was complete already: {result.root.uri}/ranked.parquet", markup=False)
    if arguments.predictions:
        console.print(f"predictions: {result.root.uri}/predictions/*.parquet", markup=False)
    return 0
