"""People for the tests: they label images by their brightness, or by a column that the run does not know."""

import csv
from pathlib import Path

CLASSES = ["dark", "light"]


def truth(id_: str) -> str:
    """The class of a sample of `conftest.write_pool`."""
    return CLASSES[int(id_.removeprefix("s").removesuffix(".png")) % 2]


def asked(to_label: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((to_label / "samples.csv").read_text(encoding="utf-8-sig").splitlines()))


def answer(to_label: Path, *, leave: int = 0, name: str = "labels.csv", wrong: int = 0) -> list[str]:
    """Label all but the last `leave` samples, the first `wrong` of them wrongly; returns the ids that were labeled."""
    rows = asked(to_label)[: len(asked(to_label)) - leave]
    lines = ["id,label"]
    for n, row in enumerate(rows):
        label = truth(row["id"])
        lines.append(f"{row['id']},{CLASSES[1 - CLASSES.index(label)] if n < wrong else label}")
    (to_label / name).write_text("\n".join(lines) + "\n")
    return [row["id"] for row in rows]
