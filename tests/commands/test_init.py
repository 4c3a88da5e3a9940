"""`prunefuse init`: a configuration from a look at a folder, which `plan` and `run` take as it is."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from prunefuse_ray.cli import main
from prunefuse_ray.config.files import config_from_tree, load_config
from prunefuse_ray.data.folders import Lying
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.leaks import check_outside
from prunefuse_ray.data.recognize import _parts, recognize
from prunefuse_ray.errors import PoolError
from prunefuse_ray.networks import NetworkSpec, build
from prunefuse_ray.run.proposal import MOST_LINES, Facts, budgets, propose, write
from prunefuse_ray.storage import Place
from tests.support.pools import huggingface, image_folder, random_images, webdataset, write_pool, write_tar


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(folder, name, count, word="a", **columns):
    folder.mkdir(exist_ok=True)
    table = {"review": [f"{word} text number {n}" for n in range(count)], "number": list(range(count)), **columns}
    pq.write_table(pa.table(table), folder / name)


def written(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def unlabeled(folder):
    (folder / "unlabeled").mkdir(parents=True)
    for n in range(12):
        image = Image.fromarray(random_images(12, size=80 + n, channels=3)[n])
        image.save(folder / "unlabeled" / f"IMG_{n}.jpg")
    image_folder(folder / "test")


def make(kind, root):
    match kind:
        case "photographs without labels":
            unlabeled(root)
        case "image folder with labels":
            image_folder(root / "train", each=8)
            image_folder(root / "val", each=2)
            for n, file in enumerate(sorted((root / "val").rglob("*.png"))):
                file.write_bytes(encode_png(random_images(4, seed=9)[n]))
        case "parquet":
            write_pool(root, random_images(20), files=2)
            for n in range(2):
                (root / f"part-{n}.parquet").rename(root / f"train-{n}.parquet")
            write_pool(root, random_images(6, seed=1), first_id=900)
            (root / "part-0.parquet").rename(root / "test.parquet")
        case "webdataset":
            webdataset(root / "train", random_images(20))
            webdataset(root / "test", random_images(6, seed=1))
        case "texts":
            texts(root, "train-0.parquet", 20)
            texts(root, "test-0.parquet", 6, "another", sentiment=[0] * 6, label=[0, 1] * 3)
        case "csv":
            for part, count in (("train", 20), ("test", 6)):
                words = [f'{part}-{n},"fine, {part} {n}",{("good", "bad")[n % 2]}\n' for n in range(count)]
                written(root / f"{part}.csv", "key,review,category\n" + "".join(words))
        case "json lines":
            written(root / "pool.jsonl", "".join(f'{{"text": "pool {n}"}}\n' for n in range(20)))
            written(root / "test.jsonl", "".join(f'{{"text": "test {n}", "label": {n % 2}}}\n' for n in range(6)))
        case "vectors":
            root.mkdir()
            for part, count in (("train", 20), ("test", 6)):
                vectors = np.random.default_rng(count).normal(size=(count, 3)).tolist()
                ids, labels = [f"{part}-{n}" for n in range(count)], [n % 2 for n in range(count)]
                pq.write_table(pa.table({"id": ids, "embedding": vectors, "label": labels}), root / f"{part}.parquet")
        case "huggingface":
            root.mkdir()
            huggingface(root / "train", random_images(20))
            huggingface(root / "test", random_images(6, seed=1))


@pytest.mark.parametrize(
    ("kind", "pool", "more"),
    [
        (
            "photographs without labels",
            {"source": "images", "path": "data/unlabeled", "test_path": "data/test", "image_size": [64, 64],
             "crop_ratio": 0.875},
            {"annotation": {"kind": "files"}, "network": {"architecture": "resnet20"}},
        ),
        (
            "image folder with labels",
            {"source": "images", "path": "data/train", "test_path": "data/val", "channels": 1},
            {"network": {"architecture": "resnet20"}, "selection": {"strategy": "auto", "budgets": [2, 4]}},
        ),
        (
            "parquet",
            {"source": "parquet", "path": "data/train*.parquet", "test_path": "data/test.parquet", "classes": 2,
             "channels": 1},
            {},
        ),
        (
            "webdataset",
            {"source": "webdataset", "path": "data/train", "test_path": "data/test", "classes": 2, "channels": 1},
            {},
        ),
        (
            "texts",
            {"source": "parquet", "path": "data/train-*.parquet", "test_path": "data/test-0.parquet",
             "text_column": "review", "id_column": None, "classes": 2},
            {"annotation": {"kind": "files"}, "network": {"architecture": "textngrams"}},
        ),
        (
            "csv",
            {"source": "csv", "path": "data/train.csv", "test_path": "data/test.csv", "text_column": "review",
             "id_column": "key", "label_column": "category", "classes": ["bad", "good"]},
            {"network": {"architecture": "textngrams"}},
        ),
        (
            "json lines",
            {"source": "jsonl", "path": "data/pool.jsonl", "test_path": "data/test.jsonl", "text_column": "text",
             "classes": 2},
            {"annotation": {"kind": "files"}},
        ),
        (
            "vectors",
            {"source": "parquet", "path": "data/train.parquet", "test_path": "data/test.parquet",
             "vector_column": "embedding", "classes": 2},
            {"network": {"architecture": "mlp"}},
        ),
        ("huggingface", {"source": "huggingface", "path": "data/train", "test_path": "data/test", "channels": 1}, {}),
    ],
)  # fmt: skip
def test_each_kind_of_pool_gives_a_configuration_with_reasons(kind, pool, more, here, local_ray, capsys):
    make(kind, here / "data")
    assert main(["init", "data"]) == 0
    text = (here / "prunefuse.yaml").read_text()
    tree = yaml.safe_load(text)
    told = capsys.readouterr().out
    expected = dict(pool)
    if kind == "texts":
        expected["path"] = "data/train-0.parquet"
    assert tree["pool"] == expected
    for section, fields in more.items():
        assert tree[section].items() >= fields.items()
    assert text.count("\n") <= MOST_LINES
    config = config_from_tree(tree)
    assert all(
        "#" in line for line in text.splitlines() if any(w in line for w in ("architecture", "ratio", "budgets"))
    )
    assert text in told
    if kind == "parquet":  # as it lies there it can be planned with
        assert main(["plan", "--config", "prunefuse.yaml", "--training-rate", "1e9", "--scoring-rate", "1000"]) == 0
        assert "MACs" in capsys.readouterr().out
    assert config.run.name == "data"
    assert {p.name for p in here.iterdir()} == {"data", "prunefuse.yaml"}


def test_a_missing_test_set_is_drawn_from_the_pool_and_missing_classes_are_asked_for(here, local_ray, capsys):
    (here / "photos").mkdir()
    for n, pixels in enumerate(random_images(100, size=16, channels=3)):
        Image.fromarray(pixels).save(here / "photos" / f"{n}.png")
    assert main(["init", "photos"]) == 0
    tree = yaml.safe_load((here / "prunefuse.yaml").read_text())
    assert tree["pool"].items() >= {"test_samples": 20, "classes": None}.items()
    told = " ".join(capsys.readouterr().out.split())
    assert "known to ± 18 points" in told, "1.96 standard errors of a share of 0.8"
    assert "prunefuse init photos --classes cat,dog --force" in told
    assert main(["run", "--config", "prunefuse.yaml"]) == 2
    assert "pool.classes is missing" in capsys.readouterr().err
    assert not (here / "runs").exists()
    assert main(["init", "photos", "--classes", "bright, dark", "--labels", "50", "--force"]) == 0
    tree = yaml.safe_load((here / "prunefuse.yaml").read_text())
    assert tree["pool"].items() >= {"test_samples": 20, "classes": ["bright", "dark"]}.items()
    assert tree["selection"]["budgets"] == [6, 15, 30], "people give 50 in all"
    assert "Name the classes" not in capsys.readouterr().out


def test_the_command_that_is_told_is_the_one_that_was_given(here, local_ray, capsys):
    """Without --out it would overwrite another file."""
    (here / "my photos").mkdir()
    for n, pixels in enumerate(random_images(10, size=16, channels=3)):
        Image.fromarray(pixels).save(here / "my photos" / f"{n}.png")
    (here / "prunefuse.yaml").write_text("mine")
    assert main(["init", "my photos", "--labels", "5", "--out", "a b.yaml"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "prunefuse init 'my photos' --labels 5 --out 'a b.yaml' --classes cat,dog --force" in told
    assert "What it costs: prunefuse plan --config 'a b.yaml' Then: prunefuse label --config 'a b.yaml'" in told
    assert main(["init", "my photos", "--labels", "5", "--out", "a b.yaml", "--classes", "cat,dog", "--force"]) == 0
    assert (here / "prunefuse.yaml").read_text() == "mine"


def test_a_file_is_not_overwritten_and_a_test_set_in_the_pool_is_refused(here, local_ray, capsys):
    image_folder(here / "birds", each=8)
    assert main(["init", "birds", "--labels", "10"]) == 0
    tree = yaml.safe_load((here / "prunefuse.yaml").read_text())
    assert (tree["selection"]["budgets"], tree["pool"]["test_samples"]) == ([2, 5, 10], 3)
    assert main(["init", "birds"]) == 2
    assert "prunefuse.yaml: is there already" in capsys.readouterr().err
    image_folder(here / "elsewhere", each=2)
    (here / "elsewhere" / "cat" / "0.png").write_bytes(encode_png(random_images(9)[8]))
    assert main(["init", "birds", "--test", "elsewhere", "--force"]) == 2, "the test set is in the pool"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["init", "nothing"], "nothing"),
        (["init", "empty"], "holds no images"),
        (["init", "x", "--labels", "1"], "--labels 1"),
    ],
)
def test_what_cannot_be_looked_at_is_said(argv, said, here, capsys):
    (here / "empty").mkdir()
    (here / "empty" / "notes.txt").write_text("x")
    assert main(argv) == 2
    assert said in capsys.readouterr().err
    assert not (here / "prunefuse.yaml").exists()


# --- what is seen by what ---


def test_sub_folders_that_cannot_be_classes_are_no_labels(here):
    for n in range(9):  # dates, one image each
        (here / "p" / f"2024-01-{n}").mkdir(parents=True)
        (here / "p" / f"2024-01-{n}" / "a.png").write_bytes(encode_png(random_images(1)[0]))
    found = recognize("p")
    assert not found.labeled
    assert "9 sub-folders can hardly be classes" in found.why["labeled"]
    image_folder(here / "q" / "train", classes=("monday", "tuesday"))
    image_folder(here / "q" / "test")
    assert "not those of the test set (monday, tuesday)" in recognize("q").why["labeled"]


def test_columns_are_known_by_name_and_type(here):
    png = encode_png(random_images(1)[0])
    table = pa.table({"uuid": ["a"], "target": [4], "picture": [{"bytes": png, "path": "x"}], "site": ["s"]})
    pq.write_table(table, "t.parquet")
    found = recognize("t.parquet")
    assert found.fields == {
        "source": "parquet", "path": "t.parquet", "image_column": "picture", "id_column": "uuid",
        "label_column": "target", "classes": 5,
    }  # fmt: skip
    assert found.labeled
    words = pa.array(["dog", "cat", "cat", "dog"]).dictionary_encode()
    pq.write_table(pa.table({"label": words, "image": [png] * 4}), "s.parquet")
    named = recognize("s.parquet")
    assert (named.labeled, named.fields["classes"]) == (True, ["cat", "dog"])
    pq.write_table(pa.table({"label": [{"x": 1}], "image": [png]}), "s.parquet")
    named = recognize("s.parquet")
    assert not named.labeled
    assert "'label' is of type struct<x: int64>: labels are integers" in named.why["labeled"]
    pq.write_table(pa.table({"a": [1.5]}), "n.parquet")
    with pytest.raises(PoolError, match=r"no column holds images, texts or vectors; the columns are a"):
        recognize("n.parquet")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("id,embedding,label\na,0.5 1 2,1\nb,1 2 3.5,0\n",
         {"vector_column": "embedding", "id_column": "id", "classes": 2}),
        ("id,title,x\na,10 20,1\nb,all 20,2\n", {"text_column": "title", "id_column": "id"}),
        ("note,label\nfine,\ngood,yes\n", {"text_column": "note", "classes": ["yes"]}),
        ("text,embedding,score\nfine,1;2,0.5\n", {"vector_column": "embedding"}),
        ("beschreibung;preis\nhell;1234,50\ngross;980,00\n", {"text_column": "beschreibung"}),
        ("text,boxes,score\nfine,1;2,0.5\n", {"text_column": "text"}),
    ],
)  # fmt: skip
def test_columns_of_a_csv_are_known_by_what_stands_in_them(text, fields, here):
    (here / "t.csv").write_text(text)
    assert recognize("t.csv").fields == {"source": "csv", "path": "t.csv", **fields}


def test_ids_are_no_texts_and_a_table_beside_images_is_not_the_pool(here):
    (here / "t.csv").write_text("id,label\na,good\n")
    with pytest.raises(PoolError, match=r"no column holds images, texts or vectors; the columns are id, label"):
        recognize("t.csv")
    image_folder(here / "birds", each=2)
    (here / "birds" / "labels.csv").write_text("id,label\n" + "a,1\n" * 10_000)
    found = recognize("birds")
    assert (found.fields["source"], "left aside: 1 of csv" in found.why["source"]) == ("images", True)


def test_lists_of_labels_are_told_with_their_task(here):
    texts(here / "pool", "a.parquet", 4, label=[[0, 2], [], [1], [2]])
    found = recognize(str(here / "pool"))
    assert not found.labeled
    assert found.why["labeled"].endswith("and lists of them with `task: multi_label`")
    assert found.fields["classes"] == 3


def test_labels_of_a_webdataset_may_stand_in_json(here):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(buffer, "PNG")
    write_tar(here / "w.tar", [("0.png", buffer.getvalue()), ("0.json", b'{"label": 3}')])
    found = recognize("w.tar")
    assert (found.labeled, found.fields["label_column"], found.fields["classes"]) == (True, "json:label", 4)


FACTS = {
    "samples": 10_000, "classes": 10, "labeled": False, "holds": "images", "size": (480, 640), "mixed_sizes": True,
    "channels": 3, "cores": 8, "gpus": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        ({}, {"pool.image_size": [64, 64], "network.architecture": "resnet20", "pruning.ratio": 0.5}),
        (
            {"gpus": 1},
            {"pool.image_size": [224, 224], "network.architecture": "torchvision:resnet50", "workers.gpu": True},
        ),
        ({"size": (32, 32), "mixed_sizes": False, "gpus": 1}, {"network.architecture": "resnet56"}),
        ({"size": (128, 640), "mixed_sizes": False}, {"pool.image_size": [64, 320]}),
        ({"size": (64, 6_000), "mixed_sizes": False}, {"pool.image_size": [19, 1_753]}),
        ({"samples": 300_000}, {"pruning.ratio": 0.7, "selection.strategy": "auto"}),
        ({"samples": 2_000_000}, {"selection.strategy": "margin"}),
        ({"holds": "texts", "size": None}, {"network.architecture": "textngrams"}),
        ({"holds": "vectors", "size": None}, {"network.architecture": "mlp"}),
        ({"budget": 500}, {"selection.budgets": [100, 250, 500]}),
        ({"budget": 30}, {"selection.budgets": [10, 15, 30]}),
        ({"budget": 50, "tested": False}, {"selection.budgets": [10, 15, 30], "pool.test_samples": 20}),
        ({"labeled": True, "tested": False}, {"pool.test_samples": 2_000}),
    ],
)
def test_what_fits_follows_from_the_facts(change, chosen):
    found = {c.field: c.value for c in propose(Facts(**FACTS | change))}
    assert found.items() >= chosen.items()
    pool = {"source": "images", "path": "p", "test_path": "t", **dict.fromkeys(("a", "b", "c", "d", "e"), 1)}
    text = write("x", pool, {}, propose(Facts(**FACTS | change)), ["one", "two", "three", "four"])
    assert text.count("\n") <= MOST_LINES


@pytest.mark.parametrize(("size", "gpus", "channels"), [((480, 640), 1, 3), ((480, 640), 0, 1), ((28, 28), 1, 1)])
def test_the_network_takes_the_channels_of_gray_images(size, gpus, channels):
    facts = Facts(**FACTS | {"channels": 1, "size": size, "mixed_sizes": False, "gpus": gpus})
    found = {c.field: c.value for c in propose(facts)}
    assert found.get("pool.channels", 3) == channels
    spec = NetworkSpec(
        architecture=found["network.architecture"],
        classes=10,
        input_shape=(channels, *found.get("pool.image_size", size)),
    )
    with torch.device("meta"):
        build(spec, seed=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "20 labels a class in the end; --labels gives another number"),
        ({"budget": 50}, "3 labels a class in the end, as you said; 20 more are of the test set"),
        ({"budget": 500, "samples": 400}, "32 labels a class in the end; the pool has no room for 500; 80 more are of"),
        ({"budget": 500, "samples": 400, "numbers": True}, "a fifth at random; the pool has no room for 500"),
    ],
)
def test_labels_that_the_pool_has_no_room_for_are_not_said_to_be_as_wanted(change, said):
    (why,) = [
        c.why for c in propose(Facts(**FACTS | {"tested": not change} | change)) if c.field == "selection.budgets"
    ]
    assert why.startswith(said)


@pytest.mark.parametrize("samples", [2, 3, 5, 50, 10**6])
def test_budgets_rise_and_fit_the_pool(samples):
    for budget in (None, 2, 40):
        found = budgets(Facts(**FACTS | {"samples": samples, "budget": budget}))
        assert found == sorted(set(found))
        assert 0 < found[-1] <= samples


def test_lists_of_labels_are_no_traceback(here):
    (here / "p.jsonl").write_text('{"text": "fine", "label": [0, 2]}\n{"text": "good", "label": []}\n')
    assert recognize("p.jsonl").fields["source"] == "jsonl"
    texts(here / "names", "a.parquet", 2, label=[["cat"], ["cat", "dog"]])
    assert recognize(str(here / "names")).fields["source"] == "parquet"


def test_a_part_may_stand_at_the_end_of_a_files_name(here):
    (here / "r").mkdir()
    for part in ("train", "test"):
        (here / "r" / f"reviews_{part}.csv").write_text("text,label\nfine,a\nbad,b\n")
    found = recognize("r").fields
    assert (found["path"], found["test_path"]) == ("r/reviews_train.csv", "r/reviews_test.csv")


def test_a_class_may_be_called_as_a_part_is(here):
    image_folder(here / "scenes", classes=("beach", "pool", "forest"), each=4)
    found = recognize("scenes")
    assert (found.fields["path"], found.labeled) == ("scenes", True)


def test_folders_that_are_none_of_the_named_classes_are_no_labels(here, local_ray):
    image_folder(here / "photos", classes=("2023", "2024"), each=20)
    assert main(["init", "photos", "--classes", "cat,dog", "--labels", "10"]) == 0
    assert yaml.safe_load((here / "prunefuse.yaml").read_text())["annotation"]["kind"] == "files"


def test_the_folder_of_the_file_is_made(here, local_ray):
    make("parquet", here / "data")
    assert main(["init", "data", "--out", "configs/a.yaml"]) == 0
    assert (here / "configs" / "a.yaml").exists()


def test_files_that_are_not_what_they_are_called_are_said(here):
    for name in ("p/a.parquet", "h/a.arrow"):
        written(here / name, "version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(PoolError, match="a Git LFS pointer in place of the file"):
            recognize(name[0])


def test_a_test_set_without_labels_is_no_traceback(here):
    write_pool(here / "d", random_images(8))
    (here / "d/part-0.parquet").rename(here / "d/train.parquet")
    pq.write_table(pq.read_table("d/train.parquet").drop_columns(["label"]), "d/test.parquet")
    assert recognize("d").fields["classes"] == 2


def test_names_of_a_pool_do_not_become_configuration():
    """A column may be called so that the comment about it would end there."""
    hostile = "Labels: none, but there is x\nscoring: {backend: 'evil:X'}\x1b\u2028prepared: {max_gb: 1}"
    text = write("n", {"source": "csv"}, {"source": hostile}, [], [hostile])
    assert yaml.safe_load(text) == {"run": {"name": "n"}, "pool": {"source": "csv"}}


def test_a_configuration_is_a_local_file(here, capsys):
    assert main(["init", "pool", "--out", "s3://bucket/c.yaml"]) == 2
    assert "--out s3://bucket/c.yaml: a configuration is read from a local file" in capsys.readouterr().err


def test_a_pool_with_empty_texts_gets_a_share_that_lets_it_run(here, local_ray):
    texts_ = ["" if n % 20 == 0 else f"text {n}" for n in range(100)]
    rows_ = [f"{text},{('good', 'bad')[n % 2]}\n" for n, text in enumerate(texts_)]
    (here / "t.csv").write_text("text,label\n" + "".join(rows_))
    assert main(["init", "t.csv"]) == 0
    text = (here / "prunefuse.yaml").read_text()
    assert yaml.safe_load(text)["pool"]["max_rejected"] == 0.06
    assert "5 of 100 samples cannot be read" in text


def test_labels_with_gaps_are_given_by_people(here, local_ray):
    labels = ["dog", None, "cat", "dog"] * 10
    table = {"id": [f"s{n}" for n in range(40)], "text": [f"text {n}" for n in range(40)], "label": labels}
    pq.write_table(pa.table(table), "t.parquet")
    assert main(["init", "t.parquet"]) == 0
    tree = yaml.safe_load((here / "prunefuse.yaml").read_text())
    assert (tree["annotation"]["kind"], tree["pool"]["classes"]) == ("files", ["cat", "dog"])


def test_lists_of_words_are_told_with_their_task_and_their_classes(here):
    texts(here / "names", "a.parquet", 2, label=[["cat"], ["cat", "dog"]])
    found = recognize(str(here / "names"))
    assert found.why["labeled"].endswith("or names, and lists of them with `task: multi_label`")
    assert found.fields["classes"] == ["cat", "dog"]


def test_what_lies_beside_the_part_that_is_taken_is_told(here):
    for folder, count in (("Training/2021", 2), ("Ausflug/2020", 5)):
        (here / "photos" / folder).mkdir(parents=True)
        for n in range(count):
            (here / "photos" / folder / f"{n}.png").write_bytes(encode_png(random_images(1)[0]))
    found = recognize("photos")
    assert found.fields["path"] == "photos/Training"
    assert "LEFT ASIDE: 5 others" in found.why["path"]


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ([f"t{n}" for n in range(2000)], "files", None),
        (pa.nulls(40, pa.string()), "files", None),
        (["dog", "", "cat"] * 10, "files", ["cat", "dog"]),
        ([0.5, None, 1.5] * 10, "files", None),
    ],
)
def test_columns_that_are_hardly_labels_of_all_samples_leave_labeling_to_people(
    here, local_ray, capsys, labels, kind, classes
):
    count = len(labels)
    ids, texts_ = [f"s{n}" for n in range(count)], [f"text {n}" for n in range(count)]
    pq.write_table(pa.table({"id": ids, "text": texts_, "label": labels}), "t.parquet")
    assert main(["init", "t.parquet"]) == 0
    written = (here / "prunefuse.yaml").read_text()
    tree = yaml.safe_load(written)
    assert tree["annotation"]["kind"] == kind
    told, numbers = " ".join(capsys.readouterr().out.split()), tree.get("task") == "regression"
    verb = "label" if kind == "files" and not numbers else "run"
    assert f"Then: prunefuse {verb} --config prunefuse.yaml" in told
    assert numbers != ("accuracy of 80 %" in written)
    assert tree["pool"].get("classes") == classes


@pytest.mark.parametrize("cells", [("1,5", "2,0"), ('"0,2"', '"1"')])
def test_numbers_with_a_comma_are_no_labels(here, local_ray, cells):
    rows_ = "".join(f"text {n};{cells[n % 2]}\n" for n in range(40))
    (here / "t.csv").write_text("text;y\n" + rows_)
    assert main(["init", "t.csv"]) == 0
    assert yaml.safe_load((here / "prunefuse.yaml").read_text())["annotation"]["kind"] == "files"


@pytest.mark.parametrize(("third", "labeled"), [("cat ", True), ("NA", False), ("nan", False)])
def test_blanks_make_no_class_and_words_for_nothing_are_gaps(here, third, labeled):
    (here / "t.csv").write_text(f"text,label\na,cat\nb,dog\nc,{third}\n")
    found = recognize("t.csv")
    assert (found.labeled, found.fields["classes"]) == (labeled, ["cat", "dog"])


def test_parts_of_a_store_keep_its_options_at_their_end():
    files = [Lying("train/cat/0.png", 1, ""), Lying("test/cat/0.png", 1, "")]
    assert _parts("s3://b/data?region=eu", files, folders=True)[0] == {
        "path": "s3://b/data/train?region=eu",
        "test_path": "s3://b/data/test?region=eu",
    }


def test_a_home_folder_that_the_shell_leaves_is_found(here, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(here))
    (here / "mine.yaml").write_text("mine")
    assert main(["init", "birds", "--out=~/mine.yaml"]) == 2
    assert (here / "mine.yaml").read_text() == "mine"


def test_texts_without_a_word_count_as_the_run_counts_them(here, local_ray):
    rows_ = [f"{'...' if n % 20 == 0 else f'text {n}'},{('good', 'bad')[n % 2]}\n" for n in range(100)]
    (here / "t.csv").write_text("text,label\n" + "".join(rows_))
    assert main(["init", "t.csv"]) == 0
    assert yaml.safe_load((here / "prunefuse.yaml").read_text())["pool"]["max_rejected"] == 0.06


def test_masks_beside_images_are_no_class(here, local_ray, capsys):
    image_folder(here / "street", classes=("images", "masks"), each=8)
    assert main(["init", "street"]) == 2
    assert "set task to segmentation and pool.mask_folder to masks" in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "path"), [("d/train", "d/train"), ("d/archive/train", "d/archive/train")])
def test_a_folder_around_all_others_is_no_class(here, folder, path):
    image_folder(here / folder, each=8)
    found = recognize("d")
    assert (found.labeled, found.fields["path"]) == (True, path)


def test_a_pool_that_is_the_working_directory_has_its_runs_elsewhere(here, monkeypatch, local_ray):
    image_folder(here / "birds", each=8)
    monkeypatch.chdir(here / "birds")
    assert main(["init", "."]) == 0
    config = load_config("prunefuse.yaml")
    assert config.run.directory == str(here / "runs")
    check_outside(config.pool, Place.at(config.run.directory), "run.directory")


def test_photographs_may_begin_with_an_underscore(here):
    (here / "p").mkdir()
    for n, pixels in enumerate(random_images(4)):
        (here / "p" / f"_DSC000{n}.png").write_bytes(encode_png(pixels))
    assert recognize("p").fields == {"source": "images", "path": "p"}


def test_ids_that_begin_anew_in_the_test_set_are_not_taken(here, local_ray):
    (here / "d").mkdir()
    for part, count in (("train", 40), ("test", 10)):
        rows = "".join(f"{n},{part} text {n},{('good', 'bad')[n % 2]}\n" for n in range(count))
        (here / "d" / f"{part}.csv").write_text("id,text,label\n" + rows)
    assert main(["init", "d"]) == 0
    pool = yaml.safe_load((here / "prunefuse.yaml").read_text())["pool"]
    assert pool.get("id_column", "none is named") is None


@pytest.mark.parametrize("numbers", [(-1, 1), (250_000, 310_000), (0, 9_999)])
def test_whole_numbers_that_number_no_classes_are_said(here, local_ray, numbers):
    (here / "t.csv").write_text("text,y\n" + "".join(f"text {n},{numbers[n % 2]}\n" for n in range(40)))
    assert main(["init", "t.csv"]) == 0
    text = (here / "prunefuse.yaml").read_text()
    assert yaml.safe_load(text)["annotation"]["kind"] == "files"
    assert "set task to regression" in text


def test_a_class_label_of_minus_one_is_a_gap(here):
    features = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b", "c"], "label": [0, 1, -1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), "t.parquet")
    assert not recognize("t.parquet").labeled


def test_a_test_set_that_lies_elsewhere_says_what_the_labels_are(here, local_ray):
    (here / "pool.csv").write_text("text\n" + "".join(f"pool {n}\n" for n in range(40)))
    (here / "held.csv").write_text("text,category\n" + "".join(f"held {n},{n % 2}\n" for n in range(6)))
    assert main(["init", "pool.csv", "--test", "held.csv"]) == 0
    pool = yaml.safe_load((here / "prunefuse.yaml").read_text())["pool"]
    assert pool.items() >= {"test_path": "held.csv", "label_column": "category", "classes": 2}.items()


def test_a_test_set_may_be_a_pattern_and_what_lies_beside_is_told(here):
    image_folder(here / "p/train", each=8)
    image_folder(here / "p/test", each=4)
    assert recognize("p/train", "p/test/*/*.png").labeled
    image_folder(here / "d/images", each=8)
    (here / "d/labels.csv").write_text("id,label\na,b\n")
    assert "1 of csv" in recognize("d").why["source"]


def test_many_classes_may_be_numbered_where_most_numbers_are_seen(here):
    (here / "t.csv").write_text("text,y\n" + "".join(f"text {n},{n}\n" for n in range(2_000)))
    assert recognize("t.csv").fields["classes"] == 2_000


def test_masks_are_no_samples_where_people_label(here, capsys):
    image_folder(here / "street", classes=("images", "masks"), each=8)
    assert main(["init", "street", "--classes", "road,sky"]) == 2
    assert "pool.mask_folder to masks" in capsys.readouterr().err


def test_masks_may_be_a_class(here):
    image_folder(here / "faces", classes=("Mask", "Non Mask"), each=8)
    assert recognize("faces").labeled


def test_a_line_of_pixels_keeps_a_pixel(here):
    """A spectrum, say; and what is shrunk is not said to be as it is."""
    facts = Facts(
        samples=100, classes=2, numbers=False, labeled=True, holds="images", size=(1, 100), mixed_sizes=False,
        channels=1, cores=2, gpus=0, budget=None, tested=True,
    )  # fmt: skip
    (size,) = [c for c in propose(facts) if c.field == "pool.image_size"]
    assert min(size.value) == 1
    assert "as they are" not in size.why
