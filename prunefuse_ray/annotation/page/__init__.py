"""Labels in the browser: a page on this machine alone, whose answers go into the label files of a round."""

from prunefuse_ray.annotation.page.desk import Desk
from prunefuse_ray.annotation.page.server import PageServer, Status

__all__ = ["Desk", "PageServer", "Status"]
