"""Score a pool with a saved network: `python jobs/score.py --help`. The same command again resumes it."""

import sys

from prunefuse_ray.cli import entry

if __name__ == "__main__":
    sys.exit(entry(["score", *sys.argv[1:]]))
