"""Hugging Face's Arrow streams, right and damaged."""

from pathlib import Path
from random import Random

import pyarrow as pa

from prunefuse_ray.data.sources.huggingface import arrow_schema, ends, scan_arrow
from prunefuse_ray.storage import Place
from tests.fuzz.mutate import attempt, damaged


def case(rng: Random, where: Path) -> str:
    file, count = where / "data.arrow", rng.randint(0, 12)
    values = [rng.choice((None, b"", b"x" * rng.randint(1, 50))) for _ in range(count)]
    kind = rng.choice((pa.binary(), pa.large_binary()))
    column = pa.array(values, kind)
    if rng.random() < 0.5:
        column = pa.StructArray.from_arrays([column, pa.nulls(count, pa.string())], ["bytes", "path"])
    table = pa.table({"label": pa.array(range(count)), "image": column})
    compression = rng.choice((None, None, None, "lz4"))
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as out:
        out.write_table(table, max_chunksize=rng.randint(1, 6))
    broken = rng.random() < 0.5
    if broken:
        file.write_bytes(damaged(rng, file.read_bytes()))
    place = Place.at(str(file))
    schema, refused = attempt(arrow_schema, place)
    if schema is None or not {"image", "label"} <= set(schema.names):
        assert broken, refused
        return "refused"
    found, refused = attempt(lambda: list(scan_arrow(place, "image", "label")))
    if found is None:
        assert broken or compression, refused
        return "refused"
    ends(place)
    data = file.read_bytes()
    taken = [
        data[o : o + s] for offsets, sizes, _ in found for o, s in zip(offsets.tolist(), sizes.tolist(), strict=True)
    ]
    if not broken and not compression:
        assert taken == [v or b"" for v in values]
    return "right"
