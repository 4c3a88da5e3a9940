"""A pool as a run finds it and reads it."""

from prunefuse_ray import config as cfg
from prunefuse_ray.data.pool import PoolInfo, Source
from prunefuse_ray.data.survey import materialize, sources, survey
from prunefuse_ray.storage import Place


def opened(pool: cfg.Pool, root: Place) -> tuple[PoolInfo, Source, Source]:
    """What a survey finds, and pool and test set as a run in `root` reads them."""
    found = survey(pool)
    materialize(found, root)
    return found.info, *sources(pool, root)
