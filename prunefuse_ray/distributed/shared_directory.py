"""Whether every node of a cluster sees the run directory: asked of the nodes, not guessed from paths."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import ray

from prunefuse_ray.errors import LedgerError
from prunefuse_ray.storage import Place

WORKING_DIRECTORIES = "working_dir_files"
"""In the path of every copy of a working directory that Ray makes on a node."""
ANSWER_WITHIN = 60.0
"""Seconds that a node has to answer; one that is too busy for it is asked again before the next phase."""


def check_lasting(root: Place) -> None:
    """LedgerError where the directory lies in the copy of the working directory that Ray makes for a job: one for each
    version of its files, so that after an edit the same command would begin again and ask for all labels anew."""
    if root.local and WORKING_DIRECTORIES in Path(root.path).parts:
        raise LedgerError(
            f"run.directory: '{root.path}' lies in the copy of the working directory that Ray made for this job, which "
            "another version of your files does not share, and which Ray removes: give an absolute path or a URI"
        )


class SharedDirectory:
    """Checks a local run directory against the nodes as they come; on an object store there is nothing to check.

    A path on a shared mount (NFS, a volume of the pods) passes, as do several Ray nodes on one machine.
    """

    def __init__(self, root: Place) -> None:
        check_lasting(root)
        self.root = root
        self._seen = {ray.get_runtime_context().get_node_id()}

    def check(self) -> None:
        """LedgerError where a node that may do work does not see what this process writes. Leaves nothing behind."""
        nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0}
        new = nodes.keys() - self._seen
        if not self.root.local or not new:
            return
        blind, answered = _ask(Path(self.root.path), sorted(new))
        if blind:
            raise LedgerError(
                f"run.directory: '{self.root.path}' is on this machine's disk only: "
                f"{nodes[blind[0]]['NodeManagerAddress']} and {len(blind) - 1} more of {len(nodes)} nodes do not see "
                "it. Give storage that every node reaches: a URI (s3://, gs://) or a path that is mounted on all"
            )
        self._seen |= answered


def _ask(root: Path, nodes: list[str]) -> tuple[list[str], set[str]]:
    """(nodes that do not see a file which is written below `root` for the purpose, nodes that answered)."""
    made = [p for p in (root, *root.parents) if not p.exists()]
    root.mkdir(parents=True, exist_ok=True)
    probe, nonce = root / f".probe-{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        probe.write_text(nonce, encoding="utf-8")
        task = ray.remote(num_cpus=0, max_retries=0)(_reads)
        asked = {
            task.options(label_selector={"ray.io/node-id": node}).remote(str(probe), nonce): node for node in nodes
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_WITHIN)
        answers = {}
        for ref in done:
            with contextlib.suppress(ray.exceptions.RayError):  # the node has gone meanwhile
                answers[asked[ref]] = ray.get(ref)
        return [node for node, sees in answers.items() if not sees], set(answers)
    finally:
        probe.unlink(missing_ok=True)
        for directory in made:
            with contextlib.suppress(OSError):  # not empty: another process has begun to use it
                os.rmdir(directory)


def _reads(path: str, nonce: str) -> bool:
    try:
        return Path(path).read_text(encoding="utf-8") == nonce
    except OSError:
        return False
