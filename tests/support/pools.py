"""Small pools for the tests, in every form that people have them in."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.pool import Source
from prunefuse_ray.storage import Place


def random_images(n: int, *, size: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    """n random images (n, size, size, channels), whose brightness tells their class (i mod 2)."""
    rng = np.random.default_rng(seed)
    base = np.where(np.arange(n) % 2, 170, 60)[:, None, None, None]
    return np.clip(base + rng.normal(0, 25, (n, size, size, channels)), 0, 255).astype(np.uint8)


def write_pool(directory, pixels, *, files: int = 1, first_id: int = 0, label=None, **columns) -> list[str]:
    """A Parquet pool of PNGs with ids s0000, s0001, ... and labels i mod 2; returns the ids."""
    directory.mkdir(parents=True, exist_ok=True)
    n = len(pixels)
    ids = [f"s{first_id + i:04d}" for i in range(n)]
    table = pa.table(
        {
            "id": columns.get("id", ids),
            "image": columns.get("image", pa.array([encode_png(p) for p in pixels], pa.binary())),
            "label": pa.array([i % 2 for i in range(n)] if label is None else label, pa.int64()),
        }
    )
    step = -(-n // files)
    for f in range(files):
        pq.write_table(table.slice(f * step, step), directory / f"part-{f}.parquet")
    return ids


def source(directory) -> Source:
    """The Parquet files of a directory, as a training reads them."""
    files = [f for f in Place.at(str(directory)).files() if f.path.endswith(".parquet")]
    return Source(fs=Place.at("/").fs, files=tuple(f.path for f in files), sizes=tuple(f.size for f in files))


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(key, pixels, label):
    return [(f"{key}.png", encode_png(pixels)), (f"{key}.cls", str(label).encode()), (f"{key}.json", b"{}")]


def webdataset(root, pixels, shards=2, label=lambda i: i % 2):
    each = -(-len(pixels) // shards)
    for s in range(shards):
        mine = range(s * each, min((s + 1) * each, len(pixels)))
        write_tar(root / f"shard-{s}.tar", [m for i in mine for m in sample(f"{i:04d}", pixels[i], label(i))])


def huggingface(root, pixels, shards=2, batch=3, names=("dark", "light"), **options):
    """What `datasets.Dataset.save_to_disk` writes: Arrow stream files, and the list of them."""
    root.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(
        {
            "label": pa.array([i % 2 for i in range(len(pixels))], pa.int64()),
            "image": pa.array([{"bytes": encode_png(p), "path": None} for p in pixels]),
        }
    ).replace_schema_metadata(metadata)
    each = -(-len(pixels) // shards)
    files = []
    for s in range(shards):
        files.append(f"data-{s:05d}-of-{shards:05d}.arrow")
        with pa.ipc.new_stream(root / files[-1], table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream_:
            stream_.write_table(table.slice(s * each, each), max_chunksize=batch)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": f} for f in files]}))
    (root / "cache-0123.arrow").write_bytes((root / files[0]).read_bytes())  # datasets leaves such files there
    return table


def image_folder(root, classes=("cat", "dog"), each=3):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(encode_png(random_images(each, seed=c)[i]))


def parquet_pool(tmp_path, **more) -> cfg.Pool:
    return cfg.Pool(
        source="parquet", path=str(tmp_path / "pool"), test_path=str(tmp_path / "test"), classes=2, channels=1, **more
    )


def rows(dataset) -> dict:
    table = pa.concat_tables(list(dataset.iter_batches(batch_format="pyarrow", batch_size=None)))
    return {r["id"]: r for r in table.to_pylist()}


def elsewhere(path):
    """The same file on a filesystem that is not the local one, as an object store's is not."""
    return Place(pafs.SubTreeFileSystem(str(path.parent), pafs.LocalFileSystem()), path.name)


def here(path):
    return Place.at(str(path))
