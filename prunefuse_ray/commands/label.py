"""`prunefuse label`: people label a run in the browser, and the run goes on by itself."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunefuse_ray import interrupts, progress
from prunefuse_ray.commands.terminal import TRUSTED_CODE_HELP, console
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.registry import check_trusted, trust

if TYPE_CHECKING:
    from prunefuse_ray.config import Config
    from prunefuse_ray.run.ledger import Ledger


def main(argv: Sequence[str]) -> int:
    """Label the samples of a run in the browser, on this machine; the run goes on whenever a round has its labels.

    Labels are saved as they are given, in the run directory. Several people may label at once, each in a browser.
    """
    parser = argparse.ArgumentParser(
        prog="prunefuse label",
        description=main.__doc__,
        allow_abbrev=False,
        epilog="Without RUN: the options of `prunefuse run` (--config my.yaml, ...) begin a run, or go on with it.",
    )
    configured = any(
        a.startswith(("--config", "--preset")) or "." in a.partition("=")[0] for a in argv if a[:2] == "--"
    )
    if not configured:  # else the value of a field would be taken for it
        parser.add_argument("run", nargs="?", metavar="RUN", help="the directory of a run (a path or URI)")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port of the page (default: any free one)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser of this machine")
    parser.add_argument("--no-run", action="store_true", help="only take labels; another command carries out the run")
    parser.add_argument("--trusted", metavar="NAME", action="append", default=[], help=TRUSTED_CODE_HELP)
    mine, rest = parser.parse_known_args(list(argv))
    trust(mine.trusted)
    ledger, config = _run(None if configured else mine.run, rest)
    from prunefuse_ray.annotation.page import PageServer
    from prunefuse_ray.run.browser import LOOKS_EVERY, Follower, starter
    from prunefuse_ray.tasks import TASKS

    if config.annotation.kind != "files":
        raise ConfigError(
            f"annotation.kind is '{config.annotation.kind}': the page writes label files; begin a run with "
            "--annotation.kind files"
        )
    if not (TASKS[config.task].one_class or TASKS[config.task].several):
        raise ConfigError(
            f"the page asks for classes of a whole sample, and task '{config.task}' has none: `prunefuse run` says "
            "where to write labels.csv"
        )
    if config.annotation.accept_partial:
        console.print(
            "annotation.accept_partial has no effect on the page, which waits for every sample of a round. To go on "
            "without some, end this command and give `prunefuse run ... --accept-partial --annotation.wait 0`"
        )
    if ledger.exists and ledger.complete(config):
        console.print(
            f"this run is complete already; report: {ledger.root.uri}/report.html. More budgets go on with it, "
            "--run.name OTHER starts another",
            markup=False,
        )
        return 0
    page = PageServer(config.run.name, port=mine.port)
    console.print(f"label in the browser: {page.address}")
    console.print("(only from this machine; whoever has the address may label. Ctrl-C ends it: labels are saved)")
    if mine.open:
        page.open()
    progress.tell(doing="while people were labeling")
    with tempfile.TemporaryDirectory(prefix="prunefuse-label-", ignore_cleanup_errors=True) as folder:
        start = None if mine.no_run else starter(config, Path(folder))
        follower = Follower(ledger, config, page, start)
        page.again = follower.again
        try:
            while follower.look() != "finish":
                interrupts.check()  # a signal that came where its exception was lost, as in a callback of an import
                time.sleep(LOOKS_EVERY)
            time.sleep(3.0)  # open pages ask once more, and say that the run is finished
        finally:
            follower.end()
            page.close()
    return 0


def _run(directory: str | None, rest: list[str]) -> tuple[Ledger, Config]:
    """The run that was named: by its directory, or by its configuration."""
    from prunefuse_ray.method.selector import trusted
    from prunefuse_ray.networks.architectures import is_custom
    from prunefuse_ray.run.ledger import Ledger
    from prunefuse_ray.run.loop import run_place
    from prunefuse_ray.storage import Place, be_patient, parted

    if directory is None:
        from prunefuse_ray.commands.options import parse_run

        if not rest:
            raise ConfigError("label: name the directory of a run, or a configuration with --config FILE")
        config = parse_run(rest)
        be_patient(config.run.store_patience)
        ledger = Ledger(run_place(config))
        if ledger.exists:
            ledger.check_config(config)  # before anybody labels
        return ledger, config
    if rest:
        raise ConfigError(f"{rest[0]}: is no option of `label RUN`; the directory has its own configuration")
    ledger = Ledger(Place.at(directory))
    if not ledger.exists:
        raise ConfigError(f"{directory}: is no run directory (it has no config.yaml); `prunefuse run` begins one")
    config = ledger.read_config()
    for name in filter(is_custom, trusted(config)):
        check_trusted(name, "network")
    be_patient(config.run.store_patience)
    ledger = Ledger(Place.at(directory))
    parent, name = parted(ledger.root.path if ledger.root.local else directory)
    run = config.run.model_copy(update={"directory": parent, "name": name})  # wherever it lies by now
    return ledger, config.model_copy(update={"run": run})
