"""One file a source of samples: how it is listed, indexed and read. What all have in common: `base.py`."""
