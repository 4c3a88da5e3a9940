"""An announced preemption: a checkpoint at once, and training that goes on from it on the nodes that are left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.preempted import BATCH, EPOCHS, SAMPLES


@pytest.mark.slow
@pytest.mark.faults
def test_an_announced_preemption_costs_the_steps_after_its_checkpoint_only(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.preempted", str(tmp_path)],
        cwd=ROOT,
        env={
            # Not what a run on a Ray of its own has set in this process: nobody takes its machine away.
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_TRAIN_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PREEMPTION_STEPS_LOG": str(tmp_path / "steps.log"),
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    told = json.loads(run.stdout.splitlines()[-1])
    midway = [c for c in told["checkpoints"] if not c.endswith("step-000000")]
    assert len(midway) == 1, f"no checkpoint when the preemption was announced: {told['checkpoints']}"
    epoch, step = (int(part) for part in midway[0].split("-")[1::2])
    # Two workers until the deadline, then one that takes up the work exactly where the checkpoint was made.
    whole = EPOCHS * SAMPLES // BATCH
    assert min(told["steps"]) < whole
    assert whole - (epoch * SAMPLES // BATCH + step) in told["steps"]
    assert len(told["steps"]) == 3
    assert told["workers"] == [2, 1]
    assert "2, then 1 workers" in run.stderr
    assert "a training lost a machine (its end was announced); its workers start again" in run.stderr
    assert told["epochs"] == EPOCHS == len(told["losses"])
