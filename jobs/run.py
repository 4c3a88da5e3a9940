"""One PruneFuse run: `python jobs/run.py --help`. The same command again resumes it."""

import sys

from prunefuse_ray.cli import entry

if __name__ == "__main__":
    sys.exit(entry(["run", *sys.argv[1:]]))
