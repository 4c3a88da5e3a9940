"""PruneFuse from Python: the steps by themselves, on networks and data of one's own, and whole runs.

What is named in `prunefuse_ray.__all__` is stable; it is imported when it is first asked for.
"""
