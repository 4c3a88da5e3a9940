"""A small pool and test set of every source that there is."""

import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from prunefuse_ray import config as cfg
from prunefuse_ray.config.sources import POOL_SOURCES
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.survey import materialize
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


def table_of(pixels, *, labeled=True, first=0):
    """Samples as rows of a data lake's table."""
    numbers = range(first, first + len(pixels))
    columns = {"id": [f"s{i:04d}" for i in numbers], "image": [encode_png(p) for p in pixels]}
    return pa.table(columns | ({"label": [i % 2 for i in numbers]} if labeled else {}))


def halves(pixels, **more):
    """Two tables: what is written by two commits lies in two files."""
    first = more.pop("first", 0)
    middle = len(pixels) // 2
    return [table_of(pixels[:middle], first=first, **more), table_of(pixels[middle:], first=first + middle, **more)]


def write_tables(name, root, tables):
    """Append to a table of this format, a commit and a file each."""
    if name == "delta":
        for table in tables:
            write_deltalake(root, table, mode="append")
        return
    root.parent.mkdir(parents=True, exist_ok=True)  # of a catalog beside the table
    catalog = SqlCatalog("x", uri=f"sqlite:///{root.parent}/{root.name}.db", warehouse=root.parent.as_uri())
    catalog.create_namespace_if_not_exists("db")
    written = catalog.create_table_if_not_exists("db.t", tables[0].schema, location=root.as_uri())
    for table in tables:
        written.append(table)
    hint_version(written, root)


def write_delta(root, pixels, **more):
    write_tables("delta", root, halves(pixels, **more))


def write_lance(root, pixels, **more):
    for table in halves(pixels, **more):
        lance.write_dataset(table, root, mode="append")


def write_iceberg(root, pixels, **more):
    write_tables("iceberg", root, halves(pixels, **more))


def hint_version(table, root):
    """Name the newest version of a table beside it, as Hadoop's tables do."""
    name = table.metadata_location.rpartition("/")[2]
    (root / "metadata/version-hint.text").write_text(name)


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
    "lance": Form(write_lance, lambda i: f"s{i:04d}", {"classes": 2}),
    "delta": Form(write_delta, lambda i: f"s{i:04d}", {"classes": 2}),
    "iceberg": Form(write_iceberg, lambda i: f"s{i:04d}", {"classes": 2}),
    "huggingface": Form(write_dataset, lambda i: f"data-0000{i // 8}-of-00002.arrow:{i % 8}", {}),
}
WITH_FILES = [name for name in POOL_SOURCES if POOL_SOURCES[name].needs and name not in ("csv", "jsonl")]
"""Sources of images in files; those of tables have tests of their own (test_tables.py)."""
OF_IMAGES = ["digits", *WITH_FILES]
IN_FOLDERS = [name for name in WITH_FILES if name not in ("lance", "delta", "iceberg")]
"""Those that are whatever lies in a folder. What a table has stands in its log."""


def pool_of(name, tmp_path, *, labeled=True, **more) -> cfg.Pool:
    """A pool of COUNT samples and a test set of 4; of the embedded example its own."""
    if name not in WITH_FILES:
        return cfg.Pool.model_validate({"source": name, **more})
    form = FORMS[name]  # a source that is new here has to be able to do all of this, too
    form.write(tmp_path / "pool", random_images(COUNT), labeled=labeled)
    # Only ids of a column have to differ from the pool's: those made of paths say nothing over all sets.
    form.write(
        tmp_path / "test", random_images(4, seed=1), first=TEST if "id_column" in POOL_SOURCES[name].fields else 0
    )
    where = {"path": str(tmp_path / "pool"), "test_path": str(tmp_path / "test"), "channels": 1}
    return cfg.Pool.model_validate({"source": name, **where, **form.fields, **more})


def in_run(found, tmp_path) -> Place:
    root = Place.at(str(tmp_path / "run"))
    materialize(found, root)
    return root


def clutter(root):
    """What gathers in every folder: five things that are no samples, and a link to everything."""
    (root / "notes.txt").write_bytes(b"x")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "void").mkdir()
    os.symlink("nowhere", root / "gone.png")
    os.symlink(".", root / "loop")


def there(root) -> int:
    """How many things lie in a pool, counted by other means than the package's."""
    count = 0
    for folder, folders, files in os.walk(root):
        count += sum(not os.path.islink(os.path.join(folder, f)) or not f.endswith(".png") for f in files)
        count += sum(f == "gone.png" for f in files) + sum(os.path.islink(os.path.join(folder, f)) for f in folders)
        count += not files and not folders
        for file in (os.path.join(folder, f) for f in files):
            if file.endswith(".parquet"):
                count += pq.read_metadata(file).num_rows - 1
            elif file.endswith(".tar"):
                with tarfile.open(file) as tar:
                    members = [m.name for m in tar]
                count += len({m.split(".")[0] for m in members if m[0] != "."}) + sum(m[0] == "." for m in members) - 1
            elif file.endswith(".arrow") and "cache" not in file:
                with pa.ipc.open_stream(file) as stream:
                    count += stream.read_all().num_rows - 1
            elif file.endswith("state.json"):
                count -= 1  # the list of the files itself
    return count
