"""Everything that lies at a path is met once: links, loops, odd things and odd names."""

import os
from collections import Counter

import pytest

from prunefuse_ray.data.paths import locate
from prunefuse_ray.errors import PoolError
from tests.support.pools import elsewhere

PNG = (".png",)


@pytest.fixture
def fill(tmp_path):
    def filled(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")

    return filled


def reasons(found):
    return {out.name: out.reason for out in found.left_out}


def test_links_lead_to_files_once_and_loops_are_said(tmp_path, fill):
    fill("pool/a.png", "pool/b/c.png", "other/d.png", "other/deep/e.png", "store/f.png")
    links = {
        "pool/b/up": "..", "pool/b/self": ".", "pool/0.png": "a.png", "pool/f.png": "../store/f.png",
        "pool/f2.png": "../store/f.png", "pool/other": "../other", "pool/again": "../other", "pool/gone.png": "nowhere",
        "pool/knot.png": "knot.png", "other/deep/back": "../../pool",
    }  # fmt: skip
    for name, target in links.items():
        os.symlink(target, tmp_path / name)
    found = locate(str(tmp_path / "pool"), PNG, "pool.path")
    assert found.names == ("a.png", "again/d.png", "again/deep/e.png", "b/c.png", "f.png")
    assert tuple(found.real_paths()) == tuple(
        str(tmp_path / n) for n in ("pool/a.png", "other/d.png", "other/deep/e.png", "pool/b/c.png", "store/f.png")
    )
    already = "link to a folder that is there already"
    assert reasons(found) == {
        "b/up": "link to a folder that it lies in",
        "b/self": "link to a folder that it lies in",
        "other": already,
        "again/deep/back": already,
        "0.png": "link to a file that is there already",
        "f2.png": "link to a file that is there already",
        "gone.png": "dangling link",
        "knot.png": "dangling link",
    }


def test_a_link_to_what_is_hidden_or_unfit_itself_is_the_sample(tmp_path, fill):
    """As git-annex and the cache of the Hugging Face hub keep their files."""
    fill("pool/.git/annex/one.png", "pool/blobs/0f3a")
    os.symlink(".git/annex/one.png", tmp_path / "pool/one.png")
    os.symlink("blobs/0f3a", tmp_path / "pool/two.png")
    found = locate(str(tmp_path / "pool"), PNG, "pool.path")
    assert found.names == ("one.png", "two.png")
    assert reasons(found) == {".git/annex/one.png": "hidden", "blobs/0f3a": "no extension"}


def test_a_pool_that_is_a_link_is_what_it_leads_to(tmp_path, fill):
    fill("real/a.png", "real/b/c.png")
    os.symlink("real", tmp_path / "pool")
    assert locate(str(tmp_path / "pool"), PNG, "pool.path").names == ("a.png", "b/c.png")
    both = locate([str(tmp_path / "pool"), str(tmp_path / "real")], PNG, "pool.path")
    assert (both.names, both.left_out) == (("a.png", "b/c.png"), ())


def test_what_is_no_file_and_what_cannot_be_named_is_said(tmp_path, fill):
    fill("pool/a.png", "pool/closed/b.png")
    os.mkfifo(tmp_path / "pool" / "pipe.png")
    (tmp_path / "pool" / "void").mkdir()
    (tmp_path / "pool" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    found = locate(str(tmp_path / "pool"), PNG, "pool.path")
    assert found.names == ("a.png", "closed/b.png")
    assert reasons(found) == {
        "pipe.png": "neither file nor folder",
        "void/": "empty folder",
        "caf\ufffd.png": "name that is not UTF-8: rename it",
    }
    for out in found.left_out:
        out.name.encode()  # may stand in a table


def test_everything_that_lies_there_is_a_file_or_left_out(tmp_path, fill, monkeypatch):
    fill("a.png", "b/c.PNG", "b/d.txt", "b/e", ".f/g.png", "h/.i.png", "j/k/l/m.png", "n/o.jpeg")
    (tmp_path / "p").mkdir()
    os.symlink("nowhere", tmp_path / "q.png")
    found = locate(str(tmp_path), PNG, "pool.path")
    there = Counter()
    for folder, folders, files in os.walk(tmp_path):
        there.update(os.path.relpath(os.path.join(folder, f), tmp_path) for f in files)
        if not files and not folders:
            there[os.path.relpath(folder, tmp_path) + "/"] += 1
    assert Counter([*found.names, *(out.name for out in found.left_out)]) == there
    place = elsewhere(tmp_path)
    monkeypatch.setattr("prunefuse_ray.data.paths.Place.at", lambda path: type(place)(place.fs, path))
    assert locate(place.path, PNG, "pool.path").names == found.names


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*/img*.png", ["val/img3.png"]),
        ("*/*/img*.png", ["test/deep/img1.png"]),
        ("**/img*.png", ["test/deep/img1.png", "val/img3.png"]),
        ("t*", ["test/deep/img1.png", "test/x.png"]),
        ("**/deep", ["test/deep/img1.png"]),
        ("photos [v2]", ["a.png"]),  # the folder is called so
        ("photos [v2]/*.png", ["a.png"]),
        ("*/photos [v2]/*", ["more/photos [v2]/c.png"]),
        ("photos [vw]/*.png", ["photos v/b.png"]),
    ],
)
def test_patterns_stay_within_a_segment_and_take_whole_folders(tmp_path, fill, pattern, names):
    fill("test/deep/img1.png", "test/x.png", "val/img3.png", "photos v/b.png", "photos [v2]/a.png",
         "more/photos [v2]/c.png", "more/photos v/d.png")  # fmt: skip
    assert sorted(locate(str(tmp_path / pattern), PNG, "pool.path").names) == names


def test_other_filesystems_are_listed_alike(tmp_path, fill, monkeypatch):
    fill("pool/train/a.png", "pool/train/b/c.png", "pool/test/d.png", "pool/e.txt")
    place = elsewhere(tmp_path / "pool")
    monkeypatch.setattr("prunefuse_ray.data.paths.Place.at", lambda path: type(place)(place.fs, path))
    assert locate("pool", PNG, "pool.path").names == ("test/d.png", "train/a.png", "train/b/c.png")
    assert locate("pool", PNG, "pool.path").left_out == (("e.txt", "extension .txt"),)
    assert locate("pool/t*/*.png", PNG, "pool.path").names == ("test/d.png", "train/a.png")
    assert locate("pool/**/c.png", PNG, "pool.path").names == ("train/b/c.png",)


def test_nothing_there_is_said_with_what_there_is(tmp_path, fill):
    fill("pool/a.heic", "pool/b.txt")
    said = r"there are 1 extension \.heic: needs pillow-heif, which is not installed \(a\.heic\); 1 extension \.txt"
    with pytest.raises(PoolError, match=said):
        locate(str(tmp_path / "pool"), PNG, "pool.path", hints={".heic": "pillow-heif"})
    with pytest.raises(PoolError, match=r"\{a,b\} is no pattern here: give a list"):
        locate(str(tmp_path / "{pool,other}"), PNG, "pool.path")


def test_a_file_that_is_named_by_a_link_is_the_one_it_leads_to(tmp_path, fill):
    fill("v3/a.png")
    os.symlink("v3/a.png", tmp_path / "current.png")
    found = locate([str(tmp_path / "current.png"), str(tmp_path / "v3")], PNG, "pool.path")
    assert found.names == ("current.png",)
    assert list(found.real_paths()) == [str(tmp_path / "v3/a.png")]


def test_links_between_the_folders_that_a_pattern_fits_bring_nothing_twice(tmp_path, fill):
    fill("a/1.png", "b/2.png", "b/deep/3.png")
    os.symlink("../b", tmp_path / "a/link")
    os.symlink("../b/2.png", tmp_path / "a/4.png")
    found = locate(str(tmp_path / "*" / "**" / "*.png"), PNG, "pool.path")
    assert found.names == ("a/1.png", "b/2.png", "b/deep/3.png")


def test_a_link_to_a_folder_that_the_pattern_does_not_fit_is_followed(tmp_path, fill):
    fill("part1/other.png", "part2/images/1.png")
    os.symlink("../part2/images", tmp_path / "part1/train")
    assert locate(str(tmp_path / "part*/**/train/*.png"), PNG, "pool.path").names == ("part1/train/1.png",)
