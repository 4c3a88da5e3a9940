"""Tables of the documents that `prunefuse list` prints: between `<!-- prunefuse list KIND -->` and `<!-- end -->`.

`python -m tests.support.documents` (`make tables`) writes them anew.
"""

import re

from prunefuse_ray.commands.list import KINDS
from tests.support import ROOT

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
TABLE = re.compile(r"(<!-- prunefuse list (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    return TABLE.sub(lambda found: f"{found[1]}{KINDS[found[2]]().markdown()}\n{found[3]}", text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text(encoding="utf-8")), encoding="utf-8")
