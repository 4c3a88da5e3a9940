"""What Ray is told before it is imported, where it is started on this machine."""

from __future__ import annotations

import os
import secrets
import sys


def secure() -> None:
    """Give a Ray that this command starts itself a token of its own, and let its processes listen on the loopback
    interface alone. Ray reads these when it is imported; else it would leave a token file in the home directory. Nobody
    is told of what is done here: neither Ray's makers nor those of a tracker count it, unless the user lets them."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # read by MLflow
    # What died is replaced, and what it did is done again, or this command says what was lost. Ray prints it all the
    # same, with pieces of its log, among the results on standard output. Of memory that runs out people shall hear.
    recovered = (
        r"A worker died or was killed", r"Raylet is terminated", r"The node with node id: .* has been marked dead",
        r"Task \S+ failed(?!.*low on memory)",
    )  # fmt: skip
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", f"(?s)^({'|'.join(recovered)})")
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A Ray that is imported already has read the others. It makes a token by its own default; with half of these its
    # processes would not understand each other.
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        # Not for clusters of several machines: the nodes of Ray are then at 127.0.0.1, as on Windows and macOS.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
