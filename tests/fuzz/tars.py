"""WebDataset shards with members of every kind, right and damaged."""

import io
import json
import tarfile
from pathlib import Path
from random import Random

from prunefuse_ray.data.left_out import LeftOut
from prunefuse_ray.data.sources.webdataset import Sample, scan_tar
from prunefuse_ray.storage import Place
from tests.fuzz.mutate import attempt, damaged, name

EXTENSIONS = ("png", "jpg", "JPG", "png", "mask.png", "cls", "json", "txt", "")


def case(rng: Random, where: Path) -> str:
    file, contents = where / "s.tar", {}
    with tarfile.open(
        file, "w", format=rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    ) as tar:
        for _ in range(rng.randint(0, 10)):
            stem = rng.choice(("", "a/", "a/b/", "./")) + rng.choice(("", "", "", ".")) + name(rng)[:50]
            for extension in rng.sample(EXTENSIONS, rng.randint(1, 3)):
                _add(rng, tar, f"{stem}.{extension}" if extension else stem, contents)
    broken = rng.random() < 0.4
    if broken:
        file.write_bytes(damaged(rng, file.read_bytes()))
    label, key = rng.choice((None, "cls", "json:label")), rng.choice(("first_dot", "last_dot"))
    place = Place.at(str(file))
    found, _ = attempt(lambda: list(scan_tar(place, label, key_ends=key)))
    if found is None:
        return "refused"
    samples, left_out = ([one for one in found if isinstance(one, kind)] for kind in (Sample, LeftOut))
    assert len({s.key for s in samples}) == len(samples)
    data = file.read_bytes()
    taken = [data[s.offset : s.offset + s.bytes] for s in samples]
    assert all(len(content) == s.bytes for content, s in zip(taken, samples, strict=True))
    if not broken:
        images = [n for n, content in contents.items() if n.lower().endswith((".png", ".jpg"))]
        assert set(taken) <= set(contents.values()), "what is read is a member"
        named = sum(one.name.lower().endswith((".png", ".jpg")) for one in left_out)
        assert len(samples) + named == len(images), (samples, left_out, sorted(contents))
    return "counted" if left_out else "right"


def _add(rng: Random, tar: tarfile.TarFile, name_: str, contents: dict[str, bytes]) -> None:
    if name_ in contents:
        return
    info = tarfile.TarInfo(name_)
    content = rng.choice((b"", json.dumps({"label": 1}).encode(), b"1", f"content of {name_}".encode() * 3))
    if rng.random() < 0.05:
        info.type, info.linkname = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "elsewhere.png"
        content = b""
    if rng.random() < 0.03:
        info.type, content = tarfile.DIRTYPE, b""
    else:
        contents[name_] = content
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
