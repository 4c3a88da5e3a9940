"""`python -m prunefuse_ray` is `prunefuse`."""

import sys

from prunefuse_ray.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
