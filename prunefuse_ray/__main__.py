"""`python -m prunefuse_ray` is `prunefuse`."""

import sys

from prunefuse_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
