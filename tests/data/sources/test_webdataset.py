"""WebDataset: the bytes in the index are the images, labels are classes, and what is no sample is named."""

import io
import json
import tarfile

import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.sources.webdataset import Sample, scan_tar
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import elsewhere, here, random_images, rows, sample, write_tar
from tests.support.surveys import opened

PNGS = [encode_png(p) for p in random_images(7)]


@pytest.mark.parametrize("place", [here, elsewhere])
def test_ranges_of_a_tar_hold_its_images(tmp_path, place):
    members = [
        m for i, p in enumerate(random_images(7)) for m in sample(f"sub/{i}.v1" if i == 3 else f"sub/{i}", p, i % 2)
    ]
    write_tar(tmp_path / "s.tar", [("README", b"no sample"), (".hidden.png", b"x"), *members])
    content = (tmp_path / "s.tar").read_bytes()
    scanned = list(scan_tar(place(tmp_path / "s.tar"), "cls"))
    found = [s for s in scanned if isinstance(s, Sample)]
    assert [content[r.offset : r.offset + r.bytes] for r in found] == PNGS
    assert [r.key for r in found] == [f"sub/{i}" for i in range(7)], "a key ends at the first dot"
    reason = "hidden, or without an extension"
    assert [s for s in scanned if s not in found] == [("README", reason), (".hidden.png", reason)]


def test_members_that_give_no_sample_are_named(tmp_path, local_ray):
    pixels = random_images(3)
    members = [*sample("a", pixels[0], 0), ("a.mask.png", encode_png(pixels[1])), *sample("b", pixels[2], 1)]
    write_tar(tmp_path / "s.tar", members)
    with tarfile.open(tmp_path / "s.tar", "a") as tar:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    where = str(tmp_path / "s.tar")
    index = survey(cfg.Pool(source="webdataset", path=where, test_path=where, classes=2, channels=1)).indexes["path"]
    assert index.rows == 2
    assert index.left_out == (("s.tar/a.mask.png", "a second image of its key"), ("s.tar/c.png", "a link"))


@pytest.mark.parametrize(
    ("members", "more", "said"),
    [
        (sample("a", random_images(1)[0], 7), {}, r"labels that are none of the 2 classes, e\.g\. '7' \(id 's/a'\)"),
        (sample("a", random_images(1)[0], "cow"), {"classes": ["cat", "dog"]}, "'cow'"),
        ([("a.png", b"x")], {}, "None"),
        (
            [*sample("a", random_images(1)[0], 1), *sample("b", random_images(1)[0], 1), ("a.txt", b"")],
            {},
            "'a' comes twice",
        ),
    ],
)
def test_tars_that_are_not_what_was_said_are_refused(tmp_path, local_ray, members, more, said):
    write_tar(tmp_path / "s.tar", members)
    where = str(tmp_path / "s.tar")
    pool = cfg.Pool(**{"source": "webdataset", "path": where, "test_path": where, "classes": 2, "channels": 1, **more})
    with pytest.raises(PoolError, match=said) as caught:
        survey(pool)
    assert "Traceback" not in str(caught.value)


def test_compressed_tars_are_refused(tmp_path, local_ray):
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    where = str(tmp_path / "s.tar")
    with pytest.raises(PoolError, match=r"s\.tar: not an uncompressed tar file .*; unpack it"):
        survey(cfg.Pool(source="webdataset", path=where, test_path=where, classes=2))


def test_class_names_and_json_fields_label_tars(tmp_path, local_ray):
    members = []
    for i, pixels in enumerate(random_images(4)):
        members.append((f"{i}.png", encode_png(pixels)))
        members.append((f"{i}.json", json.dumps({"kind": ["cat", "dog"][i // 2]}).encode()))
    write_tar(tmp_path / "s.tar", members)
    where = str(tmp_path / "s.tar")
    pool = cfg.Pool(
        source="webdataset", path=where, test_path=where, classes=["cat", "dog"], channels=1, label_column="json:kind"
    )
    _, source, _ = opened(pool, Place.at(str(tmp_path / "run")))
    found = {i: r["label"] for i, r in rows(stream(source, label=True)).items()}
    assert found == {"s/0": 0, "s/1": 0, "s/2": 1, "s/3": 1}
