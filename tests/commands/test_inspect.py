"""`prunefuse inspect`: the account that a run would print first, without a run."""

import json

import pytest
from PIL import Image

from prunefuse_ray.cli import main
from prunefuse_ray.commands.inspect import _guessed
from prunefuse_ray.data import recognize
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.recognize import Recognized
from prunefuse_ray.storage import Place
from tests.support.pools import image_folder, random_images


@pytest.fixture
def photos(tmp_path):
    image_folder(tmp_path / "photos")
    (tmp_path / "photos" / "cat" / "note [1].txt").write_text("x")
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20), "red").save(tmp_path / "photos" / "dog" / "9.jpg", exif=exif)
    return tmp_path


def test_a_folder_alone_is_enough_and_nothing_is_written(photos, local_ray, capsys):
    before = sorted(p.name for p in photos.rglob("*"))
    assert main(["inspect", str(photos / "photos"), "--pool.source", "images", "--pool.channels", "1"]) == 0
    told = capsys.readouterr().out
    assert "pool: 7 samples in 7 files, 8 x 8 to 30 x 20 pixels (median 8 x 8)" in told
    assert "left out: 1 extension .txt (cat/note [1].txt)" in told
    assert "converted: 1 turned by EXIF orientation (dog/9.jpg); 1 RGB to gray (dog/9.jpg)" in told
    assert "classes: 0 cat, 1 dog" in told
    assert sorted(p.name for p in photos.rglob("*")) == before


def test_of_a_path_without_a_source_the_kind_is_guessed_and_told(photos, local_ray, capsys):
    assert main(["inspect", str(photos / "photos"), "--pool.channels", "1"]) == 0
    told = capsys.readouterr().out
    assert "guessed: pool.source images" in told
    assert "pool: 7 samples in 7 files" in told
    (photos / "a.csv").write_text("text\nfine\ngood\n")
    (photos / "test.csv").write_text("text,label\nbad,0\nnone,1\n")
    held_out = ["--pool.test_path", str(photos / "test.csv"), "--pool.classes", "2", "--json"]
    assert main(["inspect", str(photos / "a*.csv"), *held_out]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["sets"]["path"]["samples"], account["sets"]["test_path"]["samples"]) == (2, 2)


def test_json_of_a_pool_that_is_refused_is_json_alone(photos, local_ray, capsys):
    image_folder(photos / "test")
    command = ["inspect", str(photos / "photos"), "--pool.source", "images", "--pool.test_path", str(photos / "test")]
    assert main([*command, "--pool.max_overlap", ".5", "--json"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["overlaps"]["test_path"]["held_out"] == 6
    assert "pool.max_overlap: the pool holds the very bytes of 6 of the 6 samples" in told.err


def test_the_file_of_a_run_is_understood_and_the_lists_are_written_on_request(photos, local_ray, capsys):
    (photos / "run.yaml").write_text(
        f"run: {{name: x}}\npool: {{source: images, path: {photos}/photos, test_path: {photos}/photos/dog}}\n"
        "annotation: {kind: files}\nselection: {budgets: [2, 4]}\n"
    )
    assert main(["inspect", "--config", str(photos / "run.yaml")]) == 2
    assert "contains" in capsys.readouterr().err
    image_folder(photos / "test")
    out = str(photos / "account")
    more = ["--pool.test_path", str(photos / "test"), "--pool.max_overlap", ".99", "--thorough", "--out", out]
    assert main(["inspect", "--config", str(photos / "run.yaml"), *more]) == 2, "the test set is the pool's own content"
    assert "pool.max_overlap: the pool holds the very bytes of 6 of the 6 samples" in capsys.readouterr().err
    (photos / "test" / "cat" / "0.png").write_bytes((photos / "photos" / "dog" / "9.jpg").read_bytes()[:-9])
    more += ["--pool.image_size", "8,8"]
    assert main(["inspect", "--config", str(photos / "run.yaml"), *more]) == 2
    assert "pool.test_path: 1 of 6 samples cannot be read, e.g. 'cat/0.png'" in capsys.readouterr().err
    (photos / "test" / "cat" / "0.png").write_bytes(encode_png(random_images(1, seed=9)[0]))
    assert main(["inspect", "--config", str(photos / "run.yaml"), *more]) == 0
    assert f"all of them: {out}/left_out.parquet" in capsys.readouterr().out
    account = json.loads(Place.at(f"{out}/inventory.json").read_bytes())
    assert account["sets"]["path"]["decoded"]
    assert Place.at(f"{out}/left_out.parquet").exists()
    inside = ["inspect", "--config", str(photos / "run.yaml"), *more, "--out", str(photos / "photos" / "x")]
    assert main(inside) == 2
    assert "--out: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [["inspect"], ["score", "network", "--out", "scores"]])
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pol: {source: images, path: photos}", "unknown section 'pol' (did you mean 'pool'?)"),
        ("base: digits\narms: {a: {}}", "is the file of a sweep"),
    ],
)
def test_a_file_that_is_not_a_runs_is_refused_and_not_taken_for_the_example(tmp_path, capsys, command, file, said):
    (tmp_path / "my.yaml").write_text(file)
    assert main([*command, "--config", str(tmp_path / "my.yaml")]) == 2
    assert said in capsys.readouterr().err


def test_a_guess_says_what_the_labels_are(tmp_path, capsys):
    """As `prunefuse init` guesses: of numbers they are no classes."""
    (tmp_path / "flats.csv").write_text("vector,label\n" + "".join(f'"[{n}, 2]",{n + 0.5}\n' for n in range(20)))
    given = _guessed(str(tmp_path), {"pool": {"path": str(tmp_path)}}, tell=True)
    assert given["task"] == "regression"
    assert "task regression" in capsys.readouterr().out
    assert _guessed(str(tmp_path), {"task": "classification", "pool": {}}, tell=False)["task"] == "classification"


def test_a_pool_is_named_once(capsys):
    assert main(["inspect", "a", "--pool.path", "b"]) == 2
    assert "--pool.path: POOL names the pool already" in capsys.readouterr().err


def test_texts_are_looked_at_as_the_run_reads_them(tmp_path, local_ray, capsys):
    (tmp_path / "a.csv").write_text("text,label\n...,0\n" + "".join(f"text {n},{n % 2}\n" for n in range(199)))
    given = ["--pool.source", "csv", "--pool.text_column", "text", "--pool.classes", "2", "--json"]
    assert main(["inspect", str(tmp_path / "a.csv"), *given]) == 0
    assert json.loads(capsys.readouterr().out)["sets"]["path"]["unreadable"] == {"no words": 1}


def test_a_server_alone_says_that_people_label(photos, local_ray):
    (photos / "run.yaml").write_text(
        f"pool: {{source: images, path: {photos}/photos}}\nannotation: {{url: 'http://localhost:8080'}}\n"
    )
    assert main(["inspect", "--config", str(photos / "run.yaml")]) == 0


@pytest.mark.parametrize(
    ("columns", "given", "said"),
    [
        ("text,mood", ["--pool.label_column", "mood", "--pool.classes", "bad,good"], "bad 20, good 20"),
        ("text,mood", ["--pool.label_column", "mood"], "40 samples"),
        ("text,label", ["--pool.label_column", "label"], "bad 20, good 20"),
    ],
)
def test_labels_in_a_column_that_was_named_are_counted(tmp_path, local_ray, capsys, columns, given, said):
    rows = "".join(f"text {n},{('good', 'bad')[n % 2]}\n" for n in range(40))
    (tmp_path / "a.csv").write_text(f"{columns}\n" + rows)
    assert main(["inspect", str(tmp_path / "a.csv"), *given]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_guess_of_the_task_is_of_the_labels_that_were_guessed():
    """A column of numbers called y says nothing of the one that was named."""
    found = Recognized(
        fields={"source": "csv", "label_column": "y"}, labeled=True, task="regression", why={"labeled": ""}
    )
    given = {"pool": {"label_column": "mood", "classes": ["bad", "good"]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognize, "recognize", lambda path: found)
        assert "task" not in _guessed("a.csv", given, tell=False)


def test_numbers_in_a_column_that_was_named_are_labels():
    found = Recognized(fields={"source": "csv"}, labeled=False, why={"labeled": ""})
    given = {"task": "regression", "pool": {"label_column": "price"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognize, "recognize", lambda path: found)
        assert _guessed("a.csv", given, tell=False)["annotation"] == {}


def test_ids_that_begin_anew_are_left_aside_as_init_does(tmp_path, local_ray, capsys):
    for part, count in (("train", 40), ("test", 10)):
        rows = "".join(f"{n},{part} text {n},{('good', 'bad')[n % 2]}\n" for n in range(count))
        (tmp_path / f"{part}.csv").write_text("id,text,label\n" + rows)
    assert main(["inspect", str(tmp_path)]) == 0
    assert "file name and row are the ids" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(tmp_path), "--pool.id_column", "id"]) == 2
