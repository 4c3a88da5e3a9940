"""What the phases of a run share."""

from prunefuse_ray.data.prepared import pool_name
from prunefuse_ray.method.steps import Step
from tests.support.runs import carried_out, tiny


def test_what_runs_label_is_kept_apart_from_their_pool(local_ray, tiny_pool, tmp_path):
    """The pool's is never removed for a run on it, and would grow with every one."""
    counts = []
    for name in ("a", "b"):
        config = tiny(
            tiny_pool, tmp_path, run={"name": name}, prepared={"format": "raw"}, selection={"budgets": [10, 18]}
        )
        carried_out(config, Step(1, "finetune"))
        kept = list((tmp_path / ".prepared").rglob("*.chunk"))
        pools = [file for file in kept if pool_name(config.pool) in file.parent.name]
        counts.append((len(pools), len({file.parent.name for file in kept if file not in pools})))
    (pool, beside), (after, both) = counts
    assert 0 < pool == after
    assert 0 < beside < both
