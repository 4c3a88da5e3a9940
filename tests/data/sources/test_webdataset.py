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


@pytest.fixture
def pool_of(tmp_path):
    """A pool of one shard s.tar, and a test set."""
    held_out = [m for i, p in enumerate(random_images(2, seed=1)) for m in sample(f"{i}", p, i)]

    def made(members=None, test=held_out, **more):
        write_tar(tmp_path / "test.tar", test)
        if members is not None:
            write_tar(tmp_path / "s.tar", members)
        fields = {"path": str(tmp_path / "s.tar"), "test_path": str(tmp_path / "test.tar"), "classes": 2, "channels": 1}
        return cfg.Pool.model_validate({"source": "webdataset", **fields, **more})

    return made


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
    assert [s for s in scanned if s not in found] == [("README", "no extension"), (".hidden.png", "hidden")]


def test_members_that_give_no_sample_are_named(tmp_path, local_ray, pool_of):
    pixels = random_images(3)
    members = [
        ("a.mask.png", encode_png(pixels[1])), *sample("a", pixels[0], 0), *sample("b", pixels[2], 1),
        ("d.cls", b"1"), ("e.png", b""),
    ]  # fmt: skip
    write_tar(tmp_path / "s.tar", members)
    with tarfile.open(tmp_path / "s.tar", "a") as tar:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    index = survey(pool_of()).indexes["path"]
    assert index.rows == 2
    names = dict(index.left_out.examples)
    assert names == {
        "another image of its sample": ("s.tar/a.mask.png",),
        "sample without an image": ("s.tar/d",),
        "empty": ("s.tar/e.png",),
        "link": ("s.tar/c.png",),
    }
    found = [s for s in scan_tar(here(tmp_path / "s.tar"), None) if isinstance(s, Sample)]
    content = (tmp_path / "s.tar").read_bytes()
    assert content[found[0].offset : found[0].offset + found[0].bytes] == encode_png(pixels[0]), "not the mask"


DOTTED = [("cat.v2.0001.jpg", 0), ("cat.v2.0002.jpg", 0), ("dog.v2.0001.jpg", 1), ("dog.v2.0002.jpg", 1)]


def test_dots_that_belong_to_the_names_are_refused_by_default_and_kept_on_request(tmp_path, local_ray, pool_of):
    """By WebDataset's own rule `cat.v2.0001.jpg` and `cat.v2.0002.jpg` are two members of one sample, `cat`."""
    members = []
    for i, (name, label) in enumerate(DOTTED):
        members += [(name, PNGS[i]), (name.replace("jpg", "cls"), str(label).encode())]
    said = r"2 samples with 4 images together, such as 'cat' with cat\.v2\.0001\.jpg, .*pool\.sample_key to last_dot"
    with pytest.raises(PoolError, match=said):
        survey(pool_of(members))
    _, source, _ = opened(pool_of(members, sample_key="last_dot"), Place.at(str(tmp_path / "run")))
    got = rows(stream(source, label=True))
    assert {i: r["label"] for i, r in got.items()} == {f"s/{n.removesuffix('.jpg')}": label for n, label in DOTTED}
    assert [got[f"s/{n.removesuffix('.jpg')}"]["sample"] for n, _ in DOTTED] == PNGS[:4]


def test_of_several_images_of_a_sample_the_one_that_is_named_counts(tmp_path, local_ray, pool_of):
    members = []
    for i in range(3):
        members += [(f"{i}.left.png", PNGS[2 * i]), (f"{i}.right.png", PNGS[2 * i + 1]), (f"{i}.cls", b"1")]
    with pytest.raises(PoolError, match=r"3 samples with 6 images together.*set pool\.image_column to the extension"):
        survey(pool_of(members))
    with pytest.raises(
        PoolError, match=r"pool\.test_path: holds no samples \(left out: 2 sample without a \.right\.png"
    ):
        survey(pool_of(members, image_column="right.png"))
    pool = pool_of(members, members[:3], image_column="right.png")
    _, source, _ = opened(pool, Place.at(str(tmp_path / "run")))
    got = rows(stream(source))
    assert [got[f"s/{i}"]["sample"] for i in range(3)] == PNGS[1:6:2]


@pytest.mark.parametrize(
    ("members", "more", "said"),
    [
        (sample("a", random_images(1)[0], 7), {}, r"labels that are none of the 2 classes, e\.g\. '7' \(id 's/a'\)"),
        (sample("a", random_images(1)[0], "cow"), {"classes": ["cat", "dog"]}, "'cow'"),
        ([("a.png", b"x")], {}, "None"),
        (
            [*sample("a", random_images(1)[0], 1), *sample("b", random_images(1)[0], 1), ("a.txt", b"")],
            {},
            "'a' comes twice.*last_dot",
        ),
        ([*sample("caf\u00e9", random_images(1)[0], 1), *sample("cafe\u0301", random_images(1)[0], 1)], {}, "twice"),
        ([("a.txt", b"1"), ("b.txt", b"1")], {}, r"holds no samples \(left out: 2 sample without an image \(s.tar/a"),
    ],
)
def test_tars_that_are_not_what_was_said_are_refused(local_ray, pool_of, members, more, said):
    with pytest.raises(PoolError, match=said) as caught:
        survey(pool_of(members, **more))
    assert "Traceback" not in str(caught.value)


def test_compressed_tars_are_refused(tmp_path, local_ray, pool_of):
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(PoolError, match=r"s\.tar: not an uncompressed tar file .*; unpack it"):
        survey(pool_of())
    (tmp_path / "s.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(PoolError, match=r"a Git LFS pointer in place of the file"):
        survey(pool_of())


def test_tars_that_were_cut_or_joined_are_noticed(tmp_path):
    members = [m for i in range(3) for m in sample(f"{i}", random_images(3)[i], 1)]
    write_tar(tmp_path / "s.tar", members)
    write_tar(tmp_path / "t.tar", [(f"{n}-{name}", content) for n, (name, content) in enumerate(members)])
    whole = (tmp_path / "s.tar").read_bytes()
    with tarfile.open(tmp_path / "s.tar") as tar:
        end = max(m.offset_data + -(-m.size // 512) * 512 for m in tar)
    (tmp_path / "cut.tar").write_bytes(whole[: end - 512])  # before the last member's block
    with pytest.raises(PoolError, match=r"cut\.tar: not an uncompressed tar file \(unexpected end of data\)"):
        list(scan_tar(here(tmp_path / "cut.tar"), "cls"))
    (tmp_path / "cut.tar").write_bytes(whole[:end])  # between two members
    *found, last = scan_tar(here(tmp_path / "cut.tar"), "cls")
    assert len(found) == 3
    assert last.reason == "tar without its end mark: more may have followed"
    (tmp_path / "joined.tar").write_bytes(whole + (tmp_path / "t.tar").read_bytes())
    with pytest.raises(PoolError, match=r"bytes follow the end of the archive, another tar perhaps"):
        list(scan_tar(here(tmp_path / "joined.tar"), "cls"))


def test_shards_whose_samples_would_have_the_same_ids_are_refused(tmp_path, local_ray, pool_of):
    """An id is SHARD/KEY, as if the shard were a folder: a folder beside it, with shards, may give the same."""
    (tmp_path / "pool/s").mkdir(parents=True)
    write_tar(tmp_path / "pool/s.tar", [("b/0.png", PNGS[0])])
    write_tar(tmp_path / "pool/s/b.tar", [("1.png", PNGS[1])])
    pool = pool_of(path=str(tmp_path / "pool"))
    assert survey(pool, labeled=False).info.rows == 2
    write_tar(tmp_path / "pool/s/b.tar", [("0.png", PNGS[1])])
    with pytest.raises(
        PoolError, match=r"pool\.path: two files have duplicate ids, e\.g\. 's/b/0'; rename or move one"
    ):
        survey(pool, labeled=False)


def test_class_names_and_json_fields_label_tars(tmp_path, local_ray, pool_of):
    members = []
    for i, pixels in enumerate(random_images(4)):
        members.append((f"{i}.png", encode_png(pixels)))
        members.append((f"{i}.json", json.dumps({"kind": ["cat", "dog"][i // 2]}).encode()))
    pool = pool_of(members, members[:2], classes=["cat", "dog"], label_column="json:kind")
    _, source, _ = opened(pool, Place.at(str(tmp_path / "run")))
    found = {i: r["label"] for i, r in rows(stream(source, label=True)).items()}
    assert found == {"s/0": 0, "s/1": 0, "s/2": 1, "s/3": 1}


def test_a_tar_made_on_a_mac_is_read_whole(tmp_path):
    """Its AppleDouble files (`._a.png`) stand between the members of a sample."""
    members = [(f"./{d}{i}.{e}", c) for i in range(2) for e, c in (("png", PNGS[i]), ("cls", b"1")) for d in ("._", "")]
    write_tar(tmp_path / "s.tar", members)
    found = list(scan_tar(here(tmp_path / "s.tar"), "cls"))
    assert [s.key for s in found if isinstance(s, Sample)] == ["./0", "./1"]
    assert [s.reason for s in found if not isinstance(s, Sample)] == ["hidden"] * 4


def test_folders_may_have_dots_in_their_names(tmp_path):
    members = [m for f in ("train.v1", "train.v2") for m in sample(f"{f}/0001", random_images(1)[0], 1)]
    write_tar(tmp_path / "s.tar", members)
    assert [s.key for s in scan_tar(here(tmp_path / "s.tar"), "cls")] == ["train.v1/0001", "train.v2/0001"]


def test_samples_whose_members_are_apart_are_refused(tmp_path):
    """As `tar` packs a folder, unless it is told to sort by name."""
    members = [*sample("a", random_images(1)[0], 0), *sample("b", random_images(1)[0], 0)]
    write_tar(tmp_path / "s.tar", sorted(members, key=lambda member: member[0].rpartition(".")[2]))
    with pytest.raises(PoolError, match="the key 'a' comes twice; keep the members of a sample together"):
        list(scan_tar(here(tmp_path / "s.tar"), "cls"))


def test_a_mask_is_no_other_image_of_its_sample(tmp_path):
    write_tar(tmp_path / "s.tar", [("0.png", PNGS[0]), ("0.seg.png", PNGS[1])])
    (found,) = scan_tar(here(tmp_path / "s.tar"), "seg.png")
    assert (found.key, found.label) == ("0", PNGS[1])
