"""A small pool and test set of every source that there is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray import config as cfg
from prunefuse_ray.config.sources import POOL_SOURCES
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.survey import materialise
from prunefuse_ray.storage import Place
from tests.support.pools import huggingface, random_images, webdataset, write_pool

COUNT, TEST = 16, 900


def write_images(root, pixels, *, labeled=True, first=0):
    for i, image in enumerate(pixels, first):
        file = root / (["dark", "light"][i % 2] if labeled else "any") / f"{i:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(image))


def write_parquet(root, pixels, *, labeled=True, first=0):
    write_pool(root / str(first), pixels, files=2, first_id=first)
    for file in [] if labeled else root.rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["label"]), file)


def write_tars(root, pixels, *, labeled=True, first=0):
    webdataset(root / str(first), pixels, label=(lambda i: i % 2) if labeled else (lambda _: ""))


def write_dataset(root, pixels, *, labeled=True, first=0):
    table = huggingface(root / "more" if first else root, pixels)
    if not labeled:
        for file in root.glob("data-*.arrow"):
            with pa.ipc.new_stream(file, table.drop_columns(["label"]).schema) as out:
                out.write_table(table.drop_columns(["label"]).slice(0, len(pixels) // 2))


@dataclass(frozen=True)
class Form:
    """How a source's pools are written, and which ids they have."""

    write: Callable[..., Any]
    id_of: Callable[[int], str]
    fields: Mapping[str, Any]


FORMS = {
    "parquet": Form(write_parquet, lambda i: f"s{i:04d}", {"classes": 2}),
    "images": Form(write_images, lambda i: f"{['dark', 'light'][i % 2]}/{i:04d}.png", {}),
    "webdataset": Form(write_tars, lambda i: f"0/shard-{i // 8}/{i:04d}", {"classes": 2}),
    "huggingface": Form(write_dataset, lambda i: f"data-0000{i // 8}-of-00002.arrow:{i % 8}", {}),
}
WITH_FILES = [name for name in POOL_SOURCES if POOL_SOURCES[name].needs]


def pool_of(name, tmp_path, *, labeled=True, **more) -> cfg.Pool:
    """A pool of COUNT samples and a test set of 4; of the embedded example its own."""
    if name not in WITH_FILES:
        return cfg.Pool.model_validate({"source": name, **more})
    form = FORMS[name]  # a source that is new here has to be able to do all of this, too
    form.write(tmp_path / "pool", random_images(COUNT), labeled=labeled)
    # Only ids of a column have to differ from the pool's: those made of paths say nothing over all sets.
    form.write(tmp_path / "test", random_images(4, seed=1), first=TEST if name == "parquet" else 0)
    where = {"path": str(tmp_path / "pool"), "test_path": str(tmp_path / "test"), "channels": 1}
    return cfg.Pool.model_validate({"source": name, **where, **form.fields, **more})


def in_run(found, tmp_path) -> Place:
    root = Place.at(str(tmp_path / "run"))
    materialise(found, root)
    return root
