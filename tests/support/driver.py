"""A run in a process of its own that ends itself with SIGKILL at a named moment; prints each finished step.

    python -m tests.support.driver CONFIG.yaml [MOMENT ROUND PHASE]

Moments: `start` (before the phase), `inside` (in the middle of its work), `commit` (its work is done, its commit is
not written), `done` (right after the commit).
"""

import os
import signal
import sys
import threading
import time

from prunefuse_ray import storage
from prunefuse_ray.config.files import load_config
from prunefuse_ray.run import ledger, loop
from prunefuse_ray.scoring import scorer
from prunefuse_ray.training import checkpoints


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, round_: int, phase: str, root: str, end=die, patch=setattr) -> None:
    """Patch what the moment needs; `start` and `done` are handled by the listener.

    Args:
        end: what ends the run at the moment.
        patch: sets an attribute, as `setattr` does.
    """
    if moment == "commit":
        put = ledger.Ledger._put

        def put_or_end(mine, place, data):
            name = ledger.Step(round_, phase).directory + f"/commits/{phase}.json"
            if place.path.endswith(name if round_ >= 0 else f"/commits/{phase}.json"):
                end()
            put(mine, place, data)

        patch(ledger.Ledger, "_put", put_or_end)
    if moment == "inside" and phase in ("train", "finetune"):
        persist = checkpoints._persist

        def persist_and_die(local, where, name):
            persist(local, where, name)
            if (
                f"rounds/{round_:03d}/" in where.path
                and phase.startswith(where.name[:4])
                and name.startswith("epoch-0002")
            ):
                end()

        patch(checkpoints, "_persist", persist_and_die)
    if moment == "inside" and phase == "label":  # the images for annotators are written, their table is not
        write_bytes = storage.Place.write_bytes

        def write_and_die(place, data):
            if place.name == "samples.csv":
                end()
            write_bytes(place, data)

        patch(storage.Place, "write_bytes", write_and_die)
    if moment == "inside" and phase == "score":
        watched = f"{root}/rounds/{round_:03d}/scores-checkpoint"

        def watch():
            while not (os.path.isdir(watched) and any("pending" not in n for n in os.listdir(watched))):
                time.sleep(0.002)
            end()

        threading.Thread(target=watch, daemon=True).start()


def main(path: str, moment: str = "", round_: str = "0", phase: str = "") -> None:
    scorer.cpus_now = lambda: 1.0  # so many tasks read the pool, each in a process that has to start
    config = load_config(path)
    target = ledger.Step(int(round_), phase)
    arm(moment, int(round_), phase, loop.run_place(config).path)

    def listen(event, step, commit):
        if event == "done":
            print(f"DONE {step.round} {step.phase}", flush=True)
        if (moment, target) == (event, step):
            die()

    loop.run(config, listen)
    print("COMPLETE", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
