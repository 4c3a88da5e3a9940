"""Mutated inputs, as people's programs, copies and disks make them. `make fuzz`; a short version is in `make test`.

A case is drawn from (seed, number) alone, so each can be repeated by itself: `python -m tests.fuzz --seed S --only N`.
It ends right, or counted and named, or refused in one message; never otherwise.
"""
