"""Benchmarks that anyone can run: `python jobs/benchmark.py NAME --help`. One module each, with `main(argv)`."""

NAMES = (
    "scoring",
    "wide",
    "photographs",
    "sharing",
    "survey",
    "topk",
    "centers",
    "coverage",
    "memory",
    "training",
    "overhead",
    "scaling",
    "gpu",
    "paper",
)
