"""One module per command; each has `main(argv) -> exit code`. `cli.py` finds them by name."""
