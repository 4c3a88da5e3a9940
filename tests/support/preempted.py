"""Trains on two nodes of a small cluster and announces the preemption of one of them.

    python -m tests.support.preempted DIR

Prints one JSON object: the checkpoints that were seen, and the steps that each process trained.
"""

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from prunefuse_ray import networks
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.distributed.resources import TrainingPlan, configure_data
from prunefuse_ray.storage import Place
from prunefuse_ray.training.trainer import TrainingJob, train
from tests.support.nets import OWN, STEPS_LOG
from tests.support.pools import random_images, source, write_pool

SAMPLES, BATCH, EPOCHS = 1600, 4, 2


def main(directory: Path) -> None:
    ids = write_pool(directory / "samples", random_images(SAMPLES))
    write_pool(directory / "test", random_images(40, seed=1), first_id=5000)
    spec = networks.NetworkSpec(architecture="tests.support.nets:slow", classes=2, input_shape=(1, 8, 8))
    job = TrainingJob(
        network=networks.to_files(networks.Dense(network=networks.build(spec, seed=0), spec=spec)),
        recipe=Recipe(epochs=EPOCHS, min_steps=0, batch_size=BATCH, warmup_epochs=0, augment=[]),
        samples=source(directory / "samples"),
        labels=pa.table({"id": ids, "label": [i % 2 for i in range(SAMPLES)]}),
        test=source(directory / "test"),
        form=ImageForm(height=8, width=8, channels=1),
        seed=0,
        trusted=OWN,
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    spot = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)][1]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    configure_data()
    checkpoints: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        announced = False
        while not done.is_set():
            if (directory / "training").exists():
                checkpoints.update(p.parent.name for p in directory.glob("training/**/state.safetensors"))
            if not announced and STEPS_LOG.exists() and STEPS_LOG.stat().st_size:
                # As `ray drain-node` does, which takes seconds to start: on a busy machine the training would be over.
                # On such a machine sixteen steps, from one look for a notice to the next, take seconds.
                deadline = int(1000 * (time.time() + 20))
                announced, why = ray._raylet.GcsClient(address=cluster.address).drain_node(
                    spot.node_id, autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, "reclaimed", deadline
                )
                assert announced, why
            time.sleep(0.02)
        assert announced

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        plan = TrainingPlan(workers=(1, 2), cpus=1, gpu=False, max_failures=0)
        result = train(job, plan, Place.at(str(directory / "training")))
    finally:
        done.set()
        thread.join()
    trained = Counter(STEPS_LOG.read_text().split())
    print(
        json.dumps(
            {
                "checkpoints": sorted(checkpoints),
                "steps": list(trained.values()),
                "epochs": result.metrics["epochs"],
                "losses": result.metrics["train_loss"],
                "workers": result.metrics["workers"],
            }
        )
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
