"""Dense networks by name, their pruned proxies, and fusion: plain torch, nothing of Ray.

What is public stands in `__init__.pyi`. It is loaded when it is used: a configuration is checked without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
