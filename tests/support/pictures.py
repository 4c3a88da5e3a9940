"""The pictures of the documents: diagrams, and the report of the embedded digits (`make pictures`)."""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.support import ROOT

ASSETS = ROOT / "docs" / "assets"
WIDTH, HEIGHT = 1180, 900
"""CSS pixels: the head of the page, the curve of the accuracy and the table of rounds."""
COLORS = 200
"""What a page of flat colors needs: a third of the bytes."""


def draw(diagram: Path) -> None:
    subprocess.run(["dot", "-Tsvg", str(diagram), "-o", str(diagram.with_suffix(".svg"))], check=True)


def photograph(page: Path, to: Path) -> None:
    """The top of an HTML page, as Chromium shows it."""
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={to}", page.as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip
    Image.open(to).convert("RGB").quantize(COLORS).save(to, optimize=True)


def main() -> None:
    for diagram in sorted(ASSETS.glob("*.dot")):
        draw(diagram)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "prunefuse_ray", "run", "--preset", "digits"]
        subprocess.run(command, cwd=directory, check=True)
        page = Path(directory) / "runs" / "digits" / "report.html"
        page.write_text(page.read_text().replace(directory, "/home/ada"))
        photograph(page, ASSETS / "report.png")


if __name__ == "__main__":
    main()
