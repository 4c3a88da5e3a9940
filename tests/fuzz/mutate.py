"""What happens to names and bytes on their way; and how a case tries something out."""

import unicodedata
from collections.abc import Callable
from random import Random
from typing import Any

from prunefuse_ray.errors import PruneFuseError, Rejected

STEMS = (
    *(
        "a",
        "IMG 0001",
        "M\u00fcll",
        "Mu\u0308ll",
        "\u732b",
        "x.y.z",
        "007",
        "1.0",
        "nan",
        "NULL",
        "semi;colon",
        "com,ma",
    ),
    *("ta\tb", 'quo"te', "pi|pe", "[v2]", "{a,b}", "sta*r", "que?stion", "per%20cent", "hash#", "\U0001f600", "-dash"),
    *("~tilde", "a" * 120, "back\\slash", "single'quote", "$HOME", "equals=1", "=1+1", "tr.ue", "CON"),
)


def name(rng: Random, used: set[str] | None = None) -> str:
    """A name as people give them; one that differs from those used in every Unicode form."""
    while True:
        made = rng.choice(STEMS) + rng.choice(("", "", "-1", "_2", " copy", ".v3"))
        if used is None:
            return made
        if (key := unicodedata.normalize("NFC", made)) not in used:
            used.add(key)
            return made


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes as broken copies, disks and programs leave them."""
    kind = rng.randrange(8)
    if not data or kind == 0:
        return b""
    at = rng.randrange(len(data))
    some = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    match kind:
        case 1:
            return data[:at]
        case 2:
            return data[at:]
        case 3:
            return data[:at] + some + data[at + len(some) :]
        case 4:
            return data[:at] + some + data[at:]
        case 5:
            return data[:at] + bytes(len(data) - at)
        case 6:
            flipped = bytearray(data)
            for _ in range(rng.randint(1, 20)):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
    others = (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", b"<!DOCTYPE html><html>", b"\0" * 64)
    return rng.choice(
        (*others, b"PK\x03\x04" + some, b"\x1f\x8b\x08" + some, data + data, data.replace(b"\n", b"\r\n"))
    )


def attempt(call: Callable[..., Any], *args: Any, **more: Any) -> tuple[Any, str | None]:
    """(what it returns, None), or (None, the message by which it refuses). Any other error is a violation."""
    try:
        return call(*args, **more), None
    except (PruneFuseError, Rejected) as error:
        said = str(error)
        assert said.strip(), "a refusal without a word"
        assert len(said) < 20_000, f"a message of {len(said)} characters"
        assert "Traceback" not in said
        return None, said
