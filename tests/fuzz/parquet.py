"""Parquet pools with schemas and rows of every kind, right and damaged."""

from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.inventory import take
from prunefuse_ray.data.survey import survey
from tests.fuzz.mutate import attempt, damaged, name

STRINGS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
INTEGERS = (pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64())


def case(rng: Random, where: Path) -> str:
    for part in ("pool", "test"):
        (where / part).mkdir()
    pq.write_table(_table(rng, 3, "held-out-", right=True), where / "test" / "t.parquet")
    count, right = rng.randint(1, 8), rng.random() < 0.4
    table = _table(rng, count, "", right=right)
    whole = where / "pool" / rng.choice(("a.parquet", "[a] *.PARQUET", "b c.pq"))
    pq.write_table(table, whole, row_group_size=rng.randint(1, 8), compression=rng.choice(("snappy", "gzip", "none")))
    if rng.random() < 0.3:
        right = False
        whole.write_bytes(damaged(rng, whole.read_bytes()))
    if rng.random() < 0.2:
        (where / "pool" / "notes.txt").write_bytes(b"x")
    pool = cfg.Pool.model_validate({
        "path": str(where / "pool"), "source": "parquet", "test_path": str(where / "test"), "classes": 2, "channels": 1,
        "id_column": rng.choice(("id", "id", "id", None)),
    })  # fmt: skip
    found, refused = attempt(survey, pool)
    assert not right or refused is None, refused
    if found is None:
        return "refused"
    taken, refused = attempt(take, found)
    assert not right or refused is None, refused
    if taken is None:
        return "refused"
    account = taken.inventory.sets["path"]
    assert not right or account.samples == count
    assert account.looked == account.samples
    assert sum(account.unreadable.values()) <= account.samples
    assert sum(account.left_out.values()) == (where / "pool" / "notes.txt").exists()
    return "counted" if account.unreadable or account.left_out else "right"


def _table(rng: Random, count: int, prefix: str, *, right: bool) -> pa.Table:
    used: set[str] = set()
    ids = [prefix + name(rng, used) for _ in range(count)]
    images = [encode_png(np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (8, 8), dtype=np.uint8))
              for _ in range(count)]  # fmt: skip
    labels = [rng.randrange(2) for _ in range(count)]
    columns = {
        "id": pa.array(ids, pa.string()).cast(rng.choice(STRINGS)),
        "image": pa.array(images, pa.binary()).cast(rng.choice((pa.binary(), pa.large_binary()))),
        "label": pa.array(labels, pa.int64()).cast(rng.choice(INTEGERS)),
    }
    for _ in () if right else range(rng.randint(0, 2)):
        column = rng.choice([*columns])
        columns[column] = rng.choice((
            pa.nulls(count), pa.array([None] * count, pa.string()), pa.array(["x"] * count), pa.array([7.5] * count),
            pa.array([[1, 2]] * count), pa.array([{"bytes": b"x", "path": "p"}] * count), pa.array([b"\0"] * count),
            pa.array([True] * count), pa.array([2**40] * count), pa.array([{"path": "p"}] * count),
            pa.array([[[0] * 8] * 8] * count), pa.array([-1] * count), pa.array(["e\u0301", "\u00e9"] * count)[:count],
        ))  # fmt: skip
    if not right and rng.random() < 0.2:
        columns.pop(rng.choice([*columns]), None)
    if not right and rng.random() < 0.1:
        columns = {name_: column[:0] for name_, column in columns.items()}
    return pa.table(columns)
