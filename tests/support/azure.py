"""An Azure Blob Storage of the tests' own: Azurite, Microsoft's emulator (`npm install azurite`, its folder of programs
in PATH)."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs as pafs

PROGRAM = shutil.which("azurite-blob")
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the emulator, and public: learn.microsoft.com/azure/storage/common/storage-use-azurite."""


@contextmanager
def azure_server(container: str = "samples") -> Iterator[pafs.FileSystem]:
    """The file system of an account with a container."""
    assert PROGRAM is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [PROGRAM, "--silent", "--location", folder, "--blobPort", str(port), "--skipApiVersionCheck"]
        server = subprocess.Popen(
            [*command, "--disableTelemetry"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        at = {f"{kind}_storage_{part}": value for kind in ("blob", "dfs")
              for part, value in (("authority", f"127.0.0.1:{port}"), ("scheme", "http"))}  # fmt: skip
        fs = pafs.AzureFileSystem(ACCOUNT, account_key=KEY, **at)
        fs.create_dir(container)
        try:
            yield fs
        finally:
            server.kill()
            server.wait()
