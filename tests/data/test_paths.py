"""Files by path, directory and pattern: which count, and what is left out and why."""

from dataclasses import replace

from prunefuse_ray.data.paths import locate

SUFFIXES = (".png", ".jpg")


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))


def test_files_and_what_is_left_out_are_all_that_lies_there(tmp_path):
    fill(tmp_path, "a.png", "b/c.JPG", "b/readme.txt", ".hidden/d.png", "b/.e.png")
    found = locate(str(tmp_path), SUFFIXES, "pool.path")
    assert found.names == ("a.png", "b/c.JPG")
    assert sorted(found.left_out) == [
        (".hidden/d.png", "hidden"),
        ("b/.e.png", "hidden"),
        ("b/readme.txt", "extension .txt"),
    ]
    assert found.paths == (str(tmp_path / "a.png"), str(tmp_path / "b/c.JPG"))


def test_a_file_that_another_path_names_is_not_left_out(tmp_path):
    fill(tmp_path, "a.png", ".hidden/d.png")
    found = locate([str(tmp_path), str(tmp_path / ".hidden"), str(tmp_path / "*.png")], SUFFIXES, "pool.path")
    assert (found.names, found.left_out) == (("a.png", "d.png"), ())


def test_records_know_files_by_names_or_by_paths(tmp_path):
    fill(tmp_path, "x/a.png", "y/a.png")
    found = locate([str(tmp_path / "x"), str(tmp_path / "y")], SUFFIXES, "pool.path")
    assert found.recorded == ("a.png", "a.png")
    whole = replace(found, whole_paths=True)
    assert whole.only([str(tmp_path / "y/a.png")]).paths == (str(tmp_path / "y/a.png"),)
    assert whole.table["file"].to_pylist() == [str(tmp_path / "x/a.png"), str(tmp_path / "y/a.png")]
    assert whole.digest == found.digest


def test_what_systems_keep_in_folders_of_their_own_is_no_image_of_the_pool(tmp_path):
    fill(tmp_path, "cat/a.png", "cat/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/cat/b.png", "#recycle/old.png")
    fill(tmp_path, ".ipynb_checkpoints/a-checkpoint.png", "train station/B.PNG")
    found = locate(str(tmp_path), SUFFIXES, "pool.path")
    assert found.names == ("cat/a.png", "train station/B.PNG")
    reason = "in a folder of the system (thumbnails, recycle bin, unfinished output)"
    kept = [out.name for out in found.left_out if out.reason == reason]
    assert sorted(kept) == ["#recycle/old.png", "__MACOSX/cat/b.png", "cat/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg"]
    assert (".ipynb_checkpoints/a-checkpoint.png", "hidden") in found.left_out
    itself = locate(str(tmp_path / "cat" / "@eaDir"), SUFFIXES, "pool.path")
    assert itself.names == ("a.png/SYNOPHOTO_THUMB_M.jpg",), "a path that is given is meant itself"


def test_what_a_killed_job_of_spark_left_is_no_part_of_the_pool(tmp_path):
    fill(tmp_path, "part-0.parquet", "_temporary/0/_temporary/attempt_1/part-0.parquet", "_kept/part-1.parquet")
    found = locate(str(tmp_path), (".parquet",), "pool.path")
    assert found.names == ("_kept/part-1.parquet", "part-0.parquet")
    assert [out.name for out in found.left_out] == ["_temporary/0/_temporary/attempt_1/part-0.parquet"]
