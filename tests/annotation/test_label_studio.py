"""Labels from Label Studio: against recorded exchanges with a real server, and (marked) against that server."""

import base64
import dataclasses
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from prunefuse_ray.annotation.label_studio import TOKEN as VARIABLE
from prunefuse_ray.annotation.label_studio import Client, LabelStudio, connect, data_uri, label_config
from prunefuse_ray.annotation.request import Away
from prunefuse_ray.errors import LabelError, LabelsWaiting
from prunefuse_ray.run import loop
from tests.annotation.test_files import place, request_at
from tests.support.annotators import CLASSES as BRIGHTNESS
from tests.support.annotators import truth
from tests.support.label_studio import RECORDING, TOKEN, Person, Recorder, real, replay
from tests.support.pools import random_images, write_pool
from tests.support.runs import tiny

CLASSES = ["cat & <dog>", 'a "tench"', "c"]
DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def conversation(studio, root) -> None:
    """Two rounds with one server, as the run has them with kills between: what it asks, and what it learns."""
    person = Person(studio.client)
    first = request_at(root / "0", dict.fromkeys("abc", DOT), classes=CLASSES, round=0)
    assert studio.collect(first).annotations.num_rows == 0
    studio.ask(first)
    assert studio.remedy(first).startswith(f"in {studio.client.url}/projects/")
    studio.ask(first)
    tasks = person.tasks()
    assert sorted(tasks) == ["a", "b", "c"]
    assert tasks["a"]["data"]["image"] == "data:image/png;base64," + base64.b64encode(DOT).decode()
    assert not tasks["a"]["predictions"]

    person.label(tasks["a"], CLASSES[0])
    person.label(tasks["b"], None, skip=True)
    answers = studio.collect(first)
    (row,) = answers.annotations.to_pylist()
    assert (row["id"], row["label"], row["source"]) == ("a", 0, "label_studio")
    assert row["annotator"].endswith("@example.com")
    person.label(tasks["a"], CLASSES[1])  # once more, by the same person: the newest counts
    person.label(tasks["b"], None)
    answers = studio.collect(first)
    assert [r["label"] for r in answers.annotations.to_pylist()] == [1]
    (fault,) = answers.faults
    assert "(id 'b'): its annotation has no choice; fix or delete it there" in fault

    # The next round chooses b once more (it went back to the pool), and was killed after a part of its import.
    second = request_at(root / "1", dict.fromkeys("bde", DOT), guesses=[2, 1, 0], classes=CLASSES, round=1)
    killed = dataclasses.replace(second, rows=second.rows.slice(1, 1))
    studio.ask(killed)
    studio.ask(second)
    tasks = person.tasks()
    assert sorted(tasks) == ["a", "b", "c", "d", "e"]
    (guess,) = tasks["d"]["predictions"]
    assert (guess["result"][0]["value"], guess["score"]) == ({"choices": [CLASSES[1]]}, 0.75)
    other = dataclasses.replace(second, marker="another run")
    assert studio.collect(other).annotations.num_rows == 0


def test_a_conversation_with_a_recorded_server(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, TOKEN)
    with replay(json.loads(RECORDING.read_text())) as (url, complaints):
        conversation(connect(url), place(tmp_path, "local"))
    assert not complaints


def test_the_recording_holds_no_token():
    assert "eyJ" not in RECORDING.read_text()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not accept the token"),
        (403, "does not accept the token"),
        (500, "answered HTTP 500"),
    ],
)
def test_a_server_that_refuses_is_one_clear_error_without_the_token(status, said):
    answer = {
        "method": "GET",
        "path": "/api/projects?page=1",
        "sent": None,
        "status": status,
        "answer": {"detail": "x"},
    }
    with replay([answer]) as (url, _):
        client = Client(url, "secret0token")
        with pytest.raises(LabelError) as caught:
            client.call("GET", "/projects", params={"page": 1})
    assert said in str(caught.value)
    assert "secret0token" not in str(caught.value)


def test_a_server_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr("urllib3.util.Retry.sleep", lambda *_: None)
    client = Client("http://127.0.0.1:9", "secret0token")
    with pytest.raises(LabelError, match=r"annotation\.url: http://127\.0\.0\.1:9 cannot be reached"):
        client.call("POST", "/projects")


def test_a_personal_token_buys_short_lived_ones_and_renews_them(monkeypatch):
    def exchange(method, path, status, answer):
        return {"method": method, "path": f"/api{path}", "sent": None, "status": status, "answer": answer}

    refresh = exchange("POST", "/token/refresh", 200, {"access": "short"})
    exchanges = [
        refresh, exchange("GET", "/users", 200, [1]), exchange("GET", "/users", 401, {}), refresh,
        exchange("GET", "/users", 200, [2]),
    ]  # fmt: skip
    with replay(exchanges) as (url, complaints):
        client = Client(url, "a.b.c")
        assert client.call("GET", "/users") == [1]
        assert client.call("GET", "/users") == [2], "the short-lived token had run out"
        assert client._session.headers["Authorization"] == "Bearer short"
    assert not complaints
    with replay([refresh | {"status": 401}]) as (url, _), pytest.raises(LabelError, match="make a new one"):
        Client(url, "a.b.c").call("GET", "/users")


def test_no_token_no_start(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(LabelError, match="LABEL_STUDIO_API_KEY"):
        connect("http://localhost")


def test_large_and_unusual_images_are_made_fit_for_browsers():
    def decoded(uri):
        media, _, data = uri.partition(";base64,")
        return media, Image.open(io.BytesIO(base64.b64decode(data)))

    def encoded(kind, size, mode="RGB"):
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, kind)
        return buffer.getvalue()

    media, image = decoded(data_uri(encoded("JPEG", (2000, 1000)), 512))
    assert (media, image.size, image.format) == ("data:image/jpeg", (512, 256), "JPEG")
    media, image = decoded(data_uri(encoded("TIFF", (20, 10)), 512))
    assert (media, image.size, image.format) == ("data:image/png", (20, 10), "PNG")
    assert decoded(data_uri(encoded("WEBP", (9, 9)), 9))[0] == "data:image/webp"
    assert data_uri(b"broken", 9).endswith(base64.b64encode(b"broken").decode())


def test_images_by_address_and_texts(tmp_path):
    sent: list = []

    class Server:
        url, field = "http://s", Client.field

        def pages(self, path, *_, **__):
            return iter([{"id": 4, "description": "[prunefuse:m]"}] if path == "/projects" else [])

        def call(self, method, path, json):
            sent.extend(json)

    from prunefuse_ray.annotation.label_studio import LabelStudio

    studio = LabelStudio(client=Server(), image_url="https://cdn/pool/{id}?size=l")
    studio.ask(request_at(place(tmp_path / "a", "local"), {"x y/ü.jpg": DOT}))
    studio.ask(request_at(place(tmp_path / "b", "local"), {"t": "some words"}, texts=True))
    assert sent[0]["data"]["image"] == "https://cdn/pool/x%20y/%C3%BC.jpg?size=l"
    assert sent[1]["data"]["text"] == "some words"
    assert '<Text name="sample" value="$text"/>' in label_config(CLASSES, texts=True)


# --- the real server ---


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with real(tmp_path_factory.mktemp("label-studio")) as (url, token):
        yield url, token


@pytest.mark.labelstudio
def test_the_same_conversation_with_a_real_server(server, tmp_path, monkeypatch):
    url, token = server
    monkeypatch.setenv(VARIABLE, token)
    studio = connect(url)
    recorder = Recorder(studio.client)
    conversation(studio, place(tmp_path, "local"))
    if target := os.environ.get("RECORD_LABEL_STUDIO"):
        recorder.write(Path(target))


@pytest.mark.labelstudio
def test_a_run_with_labels_from_a_real_server(local_ray, server, tmp_path, monkeypatch):
    """Two rounds; in the second one sample is skipped, and the run goes on without it on request."""
    url, token = server
    monkeypatch.setenv(VARIABLE, token)
    write_pool(tmp_path / "pool", random_images(40), files=2)
    write_pool(tmp_path / "test", random_images(20, seed=1), first_id=900)
    change = {
        "annotation": {"kind": "label_studio", "url": url}, "pool": {"classes": BRIGHTNESS},
        "selection": {"budgets": [8, 14]},
    }  # fmt: skip
    config = tiny(tmp_path, tmp_path / "runs", **change)
    with pytest.raises(LabelsWaiting, match=r"8 samples of round 0 wait for labels in http"):
        loop.run(config)
    person = Person(connect(url).client)
    project = max(p["id"] for p in person.client.call("GET", "/projects")["results"])
    for id_, task in person.tasks(project).items():
        person.label(task, truth(id_))
    with pytest.raises(LabelsWaiting, match=r"6 samples of round 1"):
        loop.run(config)
    tasks = {i: t for i, t in person.tasks(project).items() if t["data"]["round"] == 1}
    assert len(tasks) == 6
    assert all(t["predictions"][0]["result"][0]["value"]["choices"][0] in BRIGHTNESS for t in tasks.values())
    skipped, *others = tasks
    person.label(tasks[skipped], None, skip=True)
    for id_ in others:
        person.label(tasks[id_], truth(id_))
    with pytest.raises(LabelsWaiting, match=rf"1 of 6 samples.*Missing: {skipped}"):
        loop.run(config)
    partial = config.annotation.model_copy(update={"accept_partial": True})
    ledger = loop.run(config.model_copy(update={"annotation": partial}))
    assert (ledger.root / "result.json").read_json()["rounds"][1]["labels"] == 13
    for file in (tmp_path / "runs").rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes(), f"the token stands in {file}"


class Server:
    """A client that gives what a server with these annotations gives."""

    url, field = "http://studio", Client.field

    def __init__(self, request, chosen):
        self.request, self.chosen = request, chosen

    def pages(self, path, *_, **__):
        if path == "/projects":
            return iter([{"id": 1, "description": f"[prunefuse:{self.request.marker}]"}])
        when = {"completed_by": 1, "created_at": "2026-01-01T00:00:00+00:00"}
        return iter([{"id": n, "data": {"id": str(id_)}, "annotations": [when | {"result": [
            {"type": "choices", "value": {"choices": found}}] if found else []}]}
            for n, (id_, found) in enumerate(self.chosen.items())])  # fmt: skip

    def call(self, *_, **__):
        return [{"id": 1, "email": "ann@example.com"}]


def test_several_choices_where_a_sample_has_one_class_are_refused(tmp_path):
    """The project's interface can be changed on the server."""
    request = request_at(place(tmp_path, "local"), dict.fromkeys("ab", DOT), classes=CLASSES, round=0)
    answers = LabelStudio(client=Server(request, {"a": CLASSES[1::-1], "b": [CLASSES[1]]})).collect(request)
    assert [(row["id"], row["label"]) for row in answers.annotations.to_pylist()] == [("b", 1)]
    (fault,) = answers.faults
    assert f"(id 'a'): its annotation has several choices ({CLASSES[1]}, {CLASSES[0]}), and a sample has one" in fault


def test_several_choices_are_a_set_of_classes_and_none_is_the_empty_set(tmp_path):
    request = request_at(place(tmp_path, "local"), dict.fromkeys("abc", DOT), classes=CLASSES, round=0)
    several = dataclasses.replace(request, task="multi_label")
    chosen = {"a": [CLASSES[2], CLASSES[0]], "b": [], "c": ["what"]}
    answers = LabelStudio(client=Server(several, chosen)).collect(several)
    assert [(row["id"], row["label"]) for row in answers.annotations.to_pylist()] == [("a", [0, 2]), ("b", [])]
    (fault,) = answers.faults
    assert "(id 'c'): its annotation has 'what', which is not a class" in fault
    assert 'choice="multiple"' in label_config(CLASSES, False, True)
    assert "required" not in label_config(CLASSES, False, True), "or nobody could say that there is none"


def test_a_listing_is_read_to_its_last_page(monkeypatch):
    client, asked = Client("http://s", "token"), []

    def call(method, path, params):
        asked.append(params["page"])
        first = (params["page"] - 1) * params["page_size"]
        return {"total": 250, "tasks": [{"id": n} for n in range(first, min(first + params["page_size"], 250))]}

    monkeypatch.setattr(client, "call", call)
    assert [t["id"] for t in client.pages("/tasks", "tasks", project=1)] == list(range(250))
    assert asked == [1, 2, 3]


def test_samples_of_many_requests_are_each_imported_once_into_the_oldest_project(tmp_path):
    sent, into = [], set()

    class Server:
        url, field = "http://s", Client.field

        def pages(self, path, *_, **__):
            mine = [{"id": n, "description": "[prunefuse:m]"} for n in (9, 4)]
            return iter(mine if path == "/projects" else [])

        def call(self, method, path, json):
            into.add(path)
            sent.append([task["data"]["id"] for task in json])

    ids = [f"s{n:03d}" for n in range(120)]
    LabelStudio(client=Server()).ask(request_at(place(tmp_path, "local"), dict.fromkeys(ids, "words"), texts=True))
    assert sorted(i for batch in sent for i in batch) == ids
    assert max(map(len, sent)) <= 50
    assert {path.split("/")[2] for path in into} == {"4"}


def test_an_import_is_not_sent_twice(monkeypatch):
    monkeypatch.setattr("urllib3.util.Retry.sleep", lambda *_: None)
    refused = {"method": "POST", "path": "/api/projects/1/import", "sent": [], "status": 503, "answer": {}}
    with replay([refused]) as (url, complaints), pytest.raises(LabelError, match="HTTP 503"):
        Client(url, "token").call("POST", "/projects/1/import", json=[])
    assert not complaints


@pytest.mark.parametrize("status", [408, 429, 500])
def test_a_server_that_is_busy_is_away_and_ends_no_wait(status):
    answer = {"method": "GET", "path": "/api/users", "sent": None, "status": status, "answer": {}}
    with replay([answer]) as (url, _), pytest.raises(Away):
        Client(url, "secret0token").call("GET", "/users")


def test_a_wait_ends_as_a_wait_where_the_server_is_away(tmp_path):
    class Gone:
        url = "http://studio"

        def pages(self, *_, **__):
            raise Away("cannot be reached")

    request = request_at(place(tmp_path, "local"), dict.fromkeys("ab", DOT))
    assert LabelStudio(client=Gone()).remedy(request).startswith("in http://studio. Label and submit")


@pytest.mark.parametrize("answer", [[], {"items": []}, None])
def test_a_server_that_lists_otherwise_is_one_clear_error(monkeypatch, answer):
    client = Client("http://s", "token")
    monkeypatch.setattr(client, "call", lambda *_, **__: answer)
    with pytest.raises(LabelError, match=r"annotation\.url: http://s/api/tasks does not answer as Label Studio"):
        list(client.pages("/tasks", "tasks"))


@pytest.mark.parametrize("answer", [{}, [], None])
def test_a_project_without_a_number_is_one_clear_error(tmp_path, monkeypatch, answer):
    client = Client("http://s", "token")
    monkeypatch.setattr(client, "call", lambda *_, **__: answer)
    with pytest.raises(LabelError, match="does not answer as Label Studio"):
        LabelStudio(client=client)._create(request_at(place(tmp_path, "local"), dict.fromkeys("ab", DOT)))
