"""Folders as they grow: whatever lies there is a file that is taken, or left out with a reason."""

import os
from pathlib import Path
from random import Random

from prunefuse_ray.data.paths import check_names, locate
from prunefuse_ray.data.patterns import is_pattern
from prunefuse_ray.storage import Place
from tests.fuzz.mutate import attempt, name

SUFFIXES = (".png", ".jpg")


def case(rng: Random, where: Path) -> str:
    root = where / rng.choice(("photos", "photos [v2]", "st*r", "q?", "M\u00fcll"))
    root.mkdir()
    folders = [root]
    if rng.random() < 0.8:
        (root / "first.png").write_bytes(b"x")
    for _ in range(rng.randint(0, 12)):
        _add(rng, folders)
    there = _count(root)
    listing, refused = attempt(locate, str(root), SUFFIXES, "pool.path", empty=rng.random() < 0.5)
    if listing is None:
        assert "holds no files that end in" in refused
    else:
        assert len(listing.names) + len(listing.left_out) == there, (listing, sorted(root.rglob("*")))
        assert len(set(listing.real_paths())) == len(listing.names)
        assert all(os.path.exists(path) for path in listing.paths)
        attempt(check_names, listing, "pool.path")
    taken = sorted(listing.names) if listing is not None else []
    pattern = str(root / rng.choice(("*", "**", "*/*", "**/*.png", "[a-z]*", "?", "{a,b}", "[", "*/", "a/../*", "//")))
    found, _ = attempt(locate, pattern, SUFFIXES, "pool.path")
    if found is not None and is_pattern(Place.at(pattern)):
        assert len(set(found.real_paths())) == len(found.names)
    for one in taken[:3]:
        alone, refused = attempt(locate, os.path.join(root, one), SUFFIXES, "pool.path")
        assert refused is None, refused
        assert len(alone.names) == 1, "a path that exists is meant itself"
    return "refused" if listing is None else "counted" if listing.left_out else "right"


def _add(rng: Random, folders: list[Path]) -> None:
    parent = rng.choice(folders)
    made = parent / (name(rng)[:60].replace("/", "_") + rng.choice((".png", ".png", ".JPG", ".txt", "", ".png.bak")))
    if os.path.lexists(made):
        return
    match rng.randrange(12):
        case 0 | 1 | 2:
            made.mkdir()
            folders.append(made)
        case 3:
            os.symlink("nowhere", made)
        case 4:
            os.symlink(rng.choice(folders), made)
        case 5:
            made.write_bytes(b"")
        case 6:
            (parent / f".{made.name}").write_bytes(b"x")
        case 7:
            os.mkfifo(made)
        case 8:
            target = next((f for f in folders[0].rglob("*") if f.is_file() and not f.is_symlink()), None)
            if target is not None:
                os.symlink(target, made)
        case 9:
            with open(os.fsencode(parent) + b"/caf\xe9.png", "wb") as file:
                file.write(b"x")
        case _:
            made.write_bytes(b"x")


def _count(root: Path) -> int:
    """Files, links and empty folders, counted by other means."""
    count = 0
    for folder, folders, files in os.walk(os.fsencode(root)):
        count += len(files) + sum(os.path.islink(os.path.join(folder, f)) for f in folders)
        count += not files and not folders and folder != os.fsencode(root)
    return count
