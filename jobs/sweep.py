"""A sweep of PruneFuse runs: `python jobs/sweep.py --help`. The same command again goes on with it."""

import sys

from prunefuse_ray.cli import entry

if __name__ == "__main__":
    sys.exit(entry(["sweep", *sys.argv[1:]]))
