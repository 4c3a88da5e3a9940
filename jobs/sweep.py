"""A sweep of PruneFuse runs: `python jobs/sweep.py --help`. The same command again goes on with it."""

import sys

from prunefuse_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
