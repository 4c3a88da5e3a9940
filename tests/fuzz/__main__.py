"""`python -m tests.fuzz`: many cases in a process beside this one, which may end or hang without taking this one along.

Prints how the cases of each kind ended and every violation; the exit code is 1 where there is one.
"""

import argparse
import collections
import json
import resource
import select
import subprocess
import sys
import time
import traceback

HANG = 60.0
"""Seconds after which a case counts as hanging."""
PEAK = 2**30
"""Bytes by which the memory of the process may rise above what it has when all is imported."""


def worker(seed: int, numbers: range, skip: tuple[str, ...]) -> None:
    """Run cases, a line of JSON before and after each."""
    from prunefuse_ray.distributed.security import secure

    secure()  # before anything imports Ray
    from tests.fuzz.cases import run_case

    before = _peak()
    for number in numbers:
        print(json.dumps({"begun": number}), flush=True)
        try:
            kind, outcome = run_case(seed, number, skip)
            violation = None if _peak() - before < PEAK else f"a memory peak of {_peak() / 2**30:.1f} GB"
        except BaseException:
            kind, outcome, violation = "?", "violation", traceback.format_exc()
        print(json.dumps({"done": number, "kind": kind, "outcome": outcome, "violation": violation}), flush=True)
        if violation and _peak() - before >= PEAK:
            return  # a fresh process: the peak of this one stays


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hunt(seed: int, numbers: range, *skip: str) -> tuple[collections.Counter, dict[int, str]]:
    """(how often cases of a kind ended how, violations by number); cases of the kinds in `skip` are passed over."""
    counts: collections.Counter = collections.Counter()
    violations: dict[int, str] = {}
    ahead = numbers.start
    while ahead < numbers.stop:
        args = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--seed",
            str(seed),
            "--worker",
            str(ahead),
            str(numbers.stop),
            "--skip",
            *skip,
        ]
        with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            begun = None
            while True:
                ready, _, _ = select.select([process.stdout], [], [], HANG if begun is not None else 300.0)
                line = process.stdout.readline() if ready else b""
                if not line:
                    why = "hangs" if not ready else "ended its process"
                    process.kill()
                    if begun is not None:
                        violations[begun] = f"{why} ({process.wait()})"
                        counts["?", "violation"] += 1
                        ahead = begun + 1
                    elif ahead < numbers.stop and process.wait() != 0:
                        raise RuntimeError("the worker does not start")
                    break
                told = json.loads(line)
                if "begun" in told:
                    begun = told["begun"]
                    continue
                ahead, begun = told["done"] + 1, None
                counts[told["kind"], told["outcome"]] += 1
                if told["violation"]:
                    violations[told["done"]] = told["violation"]
    return counts, violations


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--only", type=int, help="the number of one case, with its traceback")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--skip", nargs="*", default=[], metavar="KIND", help="kinds to pass over")
    given = parser.parse_args()
    if given.worker:
        worker(given.seed, range(*given.worker), tuple(given.skip))
        return 0
    if given.only is not None:
        from tests.fuzz.cases import run_case

        print(run_case(given.seed, given.only))
        return 0
    started = time.perf_counter()
    counts, violations = hunt(given.seed, range(given.cases), *given.skip)
    for kind in sorted({kind for kind, _ in counts}):
        ends = {end: n for (k, end), n in sorted(counts.items()) if k == kind}
        print(f"{kind:8} {sum(ends.values()):6}: " + ", ".join(f"{end} {n}" for end, n in ends.items()))
    for number, said in violations.items():
        print(f"violation: --seed {given.seed} --only {number}\n{said}")
    seconds = time.perf_counter() - started
    print(f"seed {given.seed}: {given.cases} cases in {seconds:.0f} s, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
