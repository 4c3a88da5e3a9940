"""One module per command; each has `main(argv) -> exit code`. `cli.py` finds them by name."""

GROUPS = {
    "Begin": {
        "init": "look at a folder, and write a configuration to begin with",
        "inspect": "account for a pool: samples, conversions, duplicates, classes, leaks",
        "plan": "estimate labels, time, memory and machines of a run",
        "presets": "the configurations that come with the package",
        "doctor": "what this machine or cluster can do, and what would make it faster",
    },
    "Run": {
        "run": "start or resume a run",
        "label": "label a run's samples in the browser; the run goes on by itself",
        "sweep": "many runs on Ray Tune, sharing what they have in common",
        "score": "score a pool with a saved network",
    },
    "Use": {
        "report": "write the report of a run or a sweep again, or serve it",
        "export": "write a trained network, or the selected samples, in another format",
        "networks": "what pruning leaves of a network",
        "list": "what can be named in a configuration",
        "completion": "completion for bash, zsh or fish",
    },
}
"""Group -> command -> what it does, in a line."""
COMMANDS = tuple(name for commands in GROUPS.values() for name in commands)
EXIT_CODES = {
    0: "done",
    1: "a bug, too many crashes of Ray, or failed trials of a sweep",
    2: "something to correct; one message names it",
    3: "samples wait for labels; the same command resumes",
    130: "interrupted (Ctrl-C; 143: SIGTERM); the same command resumes",
}
