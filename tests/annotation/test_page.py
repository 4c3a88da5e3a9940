"""The labeling page: what is asked next, that no answer is lost, and who may ask it, over real HTTP."""

import errno
import http.client
import json
import tempfile
import threading
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from prunefuse_ray import loopback
from prunefuse_ray.annotation import Files, Take, Wait, decide
from prunefuse_ray.annotation.page import Desk, PageServer, Status
from prunefuse_ray.annotation.page.desk import Spool, checked_name, page_file
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.errors import LabelError
from prunefuse_ray.loopback import Refused
from tests.annotation.test_files import CLASSES, place, request_at
from tests.support.pools import random_images

IDS = ["a", "b", "c", "=d,e"]


@pytest.fixture
def request_(tmp_path):
    samples = {i: encode_png(p) for i, p in zip(IDS, random_images(4), strict=True)}
    return request_at(place(tmp_path, "local"), samples, guesses=[1, 0, 1, 0])


def given(request) -> dict:
    answers = Files().collect(request)
    assert not answers.faults
    assert not answers.notes
    return {(r["id"], r["annotator"]): request.classes[r["label"]] for r in answers.annotations.to_pylist()}


def numbers(batch) -> list[int]:
    return [one["n"] for one in batch]


# --- the desk ---


def test_every_answer_is_in_a_file_that_the_run_reads(request_):
    desk = Desk(request_)
    desk.answer("anna b.", [(0, 1)])
    desk.answer("anna b.", [(3, 2)])
    assert given(request_) == {("a", "anna b."): "dog", ("=d,e", "anna b."): "Tench, old"}
    desk.answer("anna b.", [(0, 0)])  # another thought
    assert given(request_)["a", "anna b."] == "cat"
    assert "'=d,e" in (request_.place / page_file("anna b.")).read_bytes().decode(), "a spreadsheet would run it"
    # Another process, after a kill, knows it all, and can take it back.
    desk.close()
    again = Desk(request_)
    assert numbers(again.batch("anna b.", 9)) == [1, 2]
    assert numbers(again.undo("anna b.")) == [0]
    assert numbers(again.undo("anna b.")) == [3]
    assert again.undo("anna b.") == []
    assert given(request_) == {}
    again.close()


@pytest.mark.parametrize("name", ["@ben", "-ben-", "=ben", "'=ben", "'ben"])
def test_people_whose_names_begin_as_formulas_do_keep_their_labels(request_, name):
    """Read back as somebody else's, they would be overwritten by what the person answers next."""
    desk = Desk(request_)
    desk.answer(name, [(0, 1)])
    desk.close()
    again = Desk(request_)
    again.answer(name, [(1, 1)])
    assert given(request_) == {("a", name): "dog", ("b", name): "dog"}
    again.close()


def test_classes_that_begin_as_formulas_do_are_read_back(tmp_path):
    request = request_at(place(tmp_path, "local"), {"a": b"", "b": b"", "c": b""}, classes=["=1+1", "=2", "'=2"])
    desk = Desk(request)
    desk.answer("anna", [(0, 0), (1, 1), (2, 2)])
    assert given(request) == {("a", "anna"): "=1+1", ("b", "anna"): "=2", ("c", "anna"): "'=2"}
    desk.close()


def test_what_was_answered_at_once_is_taken_back_at_once(request_):
    desk = Desk(request_)
    desk.answer("anna", [(1, 0)])
    desk.answer("anna", [(0, 1), (1, 1), (2, 1)])
    assert {one["n"]: one.get("label") for one in desk.undo("anna")} == {0: None, 1: 0, 2: None}
    assert given(request_) == {("b", "anna"): "cat"}
    desk.close()


def test_samples_of_one_guess_stand_together_and_skipped_ones_come_last(request_):
    desk = Desk(request_)
    assert [one["guess"] for one in desk.batch("anna", 9)] == ["cat", "cat", "dog", "dog"]
    desk.skip("anna", 1)
    assert numbers(desk.batch("anna", 9)) == [3, 0, 2, 1]
    assert numbers(desk.batch("anna", 2)) == [3, 0]
    desk.close()


def test_two_people_share_the_samples(request_):
    desk = Desk(request_)
    assert numbers(desk.batch("anna", 2)) == [1, 3]
    assert numbers(desk.batch("ben", 2)) == [0, 2]
    desk.answer("ben", [(0, 1), (2, 1)])
    assert numbers(desk.batch("ben", 2)) == [1, 3], "better the same twice than nothing"
    desk.answer("anna", [(1, 0), (3, 0)])
    assert desk.batch("ben", 2) == []
    assert desk.progress("ben") | {"people": None} == {
        "total": 4, "done": 4, "mine": 2, "unsure": 0, "by_class": {1: 2}, "people": None, "both": 0, "alike": 0,
    }  # fmt: skip
    desk.close()


def test_two_labels_a_sample_and_how_they_agree(request_):
    (request_.place / "labels-cyd.csv").write_bytes(b"id,label\na,cat\nb,dog\n")  # from a spreadsheet
    desk = Desk(request_, labels_per_sample=2)
    desk.answer("anna", [(0, 0), (1, 0), (2, 0)])
    told = desk.progress("anna")
    assert (told["done"], told["both"], told["alike"]) == (2, 2, 1)
    assert told["people"] == [{"name": "anna", "labels": 3}, {"name": "cyd", "labels": 2}]
    assert numbers(desk.batch("ben", 9)) == [3, 2], "the others have two labels"
    desk.close()


def test_not_sure_is_an_answer_and_the_sample_returns_to_the_pool(request_):
    desk = Desk(request_)
    desk.answer("anna", [(0, None), (1, 0), (2, 1)])
    assert isinstance(decide(request_.ids, Files().collect(request_), labels_per_sample=1, accept_partial=False), Wait)
    desk.answer("anna", [(3, None)])
    taken = decide(request_.ids, Files().collect(request_), labels_per_sample=1, accept_partial=False)
    assert isinstance(taken, Take)
    assert (taken.annotations.num_rows, taken.missing) == (2, 2)
    assert "2 samples (a, =d,e)" in taken.notes[-1]
    desk.undo("anna")
    desk.answer("anna", [(0, 0)])
    assert given(request_)["a", "anna"] == "cat", "a label that comes later counts"
    desk.answer("anna", [(0, None), (1, None), (2, None), (3, None)])
    nothing = decide(request_.ids, Files().collect(request_), labels_per_sample=1, accept_partial=True)
    assert isinstance(nothing, Wait), "a round needs one label at least"
    desk.close()


def test_many_answers_at_the_same_time_are_all_kept(tmp_path):
    count = 60
    samples = dict.fromkeys(range(count), "text")
    request = request_at(place(tmp_path, "local"), samples, texts=True, id_type=pa.int64())
    desk = Desk(request, labels_per_sample=3)

    def work(person):
        for n in range(count):
            desk.answer(person, [(n, n % 3)])

    threads = [threading.Thread(target=work, args=(person,)) for person in ("a", "b", "B")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert given(request) == {(n, person): CLASSES[n % 3] for n in range(count) for person in ("a", "b", "B")}
    desk.close()


def test_names_make_files_of_their_own():
    names = ["anna", "Anna", "an/na", "an%2Fna", "an na", "../anna", "ännä", "a.n"]
    files = {page_file(name) for name in names}
    assert len(files) == len(names)
    assert not [file for file in files if "/" in file or file.startswith(".")]
    assert checked_name("  a   b ") == "a b"
    for name in ("", "  ", "x" * 41, "a\x1bb", None, 3):
        with pytest.raises(LabelError, match="1 to 40 printable characters"):
            checked_name(name)


def test_an_answer_that_cannot_be_is_refused_and_nothing_is_written(request_):
    desk = Desk(request_)
    for answer in ((4, 0), (-1, 0), (0, 3), (0, -1)):
        with pytest.raises(LabelError, match="cannot be labeled"):
            desk.answer("anna", [(1, 1), answer])
    assert given(request_) == {}
    desk.close()


# --- over HTTP ---


class Client:
    """A browser, as far as these tests need one."""

    def __init__(self, page: PageServer, cookie: bool = True) -> None:
        self.page = page
        self.headers = {"Cookie": f"{page.cookie}={page.token}"} if cookie else {}

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.page.port, timeout=20)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        mine = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{self.page.port}"} if data else {}
        sent = mine | self.headers | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.request(method, path, data, {k: v for k, v in sent.items() if v is not None})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def get(self, path, **headers):
        answer, content = self.ask("GET", path, **headers)
        return answer.status, json.loads(content) if answer.getheader("Content-Type") == "application/json" else content

    def post(self, path, body, **headers):
        answer, content = self.ask("POST", path, body, **headers)
        return answer.status, json.loads(content)


@pytest.fixture
def page(request_):
    server, desk = PageServer("birds"), Desk(request_)
    server.show(desk, Status(state="asking"))
    yield server
    server.close()
    desk.close()


def test_the_token_opens_the_page_and_leaves_its_address(page):
    stranger = Client(page, cookie=False)
    for path in ("/", "/state", "/image?desk=m-1&n=0", "/page.js"):
        assert stranger.get(path)[0] == 401
    assert stranger.get("/?token=wrong")[0] == stranger.get("/?token=%C3%A9")[0] == 403
    url = urllib.parse.urlsplit(page.address)
    answer, _ = stranger.ask("GET", f"{url.path}?{url.query}")
    assert (answer.status, answer.getheader("Location")) == (303, "/")
    cookie = answer.getheader("Set-Cookie")
    assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in cookie.split(";")}
    assert stranger.get("/", Cookie=cookie.partition(";")[0])[0] == 200
    assert stranger.get("/", Cookie=f"{page.cookie}=wrong")[0] == 401


@pytest.mark.parametrize("other", ['theme={"mode":"dark"}', "alone", "version=1; path=/"])
def test_cookies_of_other_programs_on_this_machine_do_no_harm(page, other):
    """Ports share them."""
    client = Client(page, cookie=False)
    assert client.get("/state", Cookie=f"{other}; {page.cookie}={page.token}")[0] == 200
    assert client.get("/state", Cookie=f"{other}; {page.cookie}=wrong")[0] == 401


def test_the_address_that_a_browser_is_opened_with_is_good_for_one_visit(page, monkeypatch):
    """It stands in the list of processes, which everybody on the machine can read."""
    opened = []
    monkeypatch.setattr(loopback.webbrowser, "open", opened.append)
    page.open()
    assert page.token not in opened[0]
    first, other = Client(page, cookie=False), Client(page, cookie=False)
    path = opened[0].removeprefix(f"http://127.0.0.1:{page.port}")
    answer, _ = first.ask("GET", path)
    assert answer.status == 303
    cookie = answer.getheader("Set-Cookie").partition(";")[0]
    assert first.get("/", Cookie=cookie)[0] == 200
    assert first.ask("GET", path, Cookie=cookie)[0].status == 303, "a browser that asks twice"
    assert other.get(path)[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "0.0.0.0"])
def test_another_host_name_is_refused(page, host):
    assert Client(page).get("/", Host=host)[0] == 403


def test_a_forwarded_port_is_no_other_host(page):
    assert Client(page).get("/state", Host="localhost:9999")[0] == 200
    assert Client(page).get("/state", Host="[::1]:9999")[0] == 200
    body = {"desk": "m-1", "name": "anna", "answers": [{"n": 0, "label": 1}]}
    assert Client(page).post("/answer", body, Host="localhost:9999", Origin="http://localhost:9999")[0] == 200


def test_another_page_cannot_label(page, request_):
    body = {"desk": "m-1", "name": "anna", "answers": [{"n": 0, "label": 1}]}
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": None}, {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"}, {"Content_Type": "text/plain"},
    ):  # fmt: skip
        assert Client(page).post("/answer", body, **headers)[0] in (403, 415)
    assert Client(page, cookie=False).post("/answer", body)[0] == 401
    assert given(request_) == {}


def test_nothing_but_its_own_files_runs_in_the_page(page):
    answer, content = Client(page).ask("GET", "/")
    policy = answer.getheader("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'")
    assert "unsafe" not in policy
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Cache-Control") == "no-store"
    assert b"http" not in content, "an asset from elsewhere"
    script = Client(page).get("/page.js")[1].decode()
    assert not [word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write") if word in script]


def test_a_round_is_labeled_over_http(page, request_):
    browser = Client(page)
    assert browser.get("/state?name=anna")[1]["classes"] == list(CLASSES)
    (first, *_) = browser.get("/batch?desk=m-1&count=9&name=anna")[1]["samples"]
    assert first == {"n": 1, "id": "b", "guess": "cat", "names": ["cat"], "probability": 0.75}
    status, image = browser.get("/image?desk=m-1&n=1")
    assert (status, image) == (200, encode_png(random_images(4)[1]))
    said = browser.post("/answer", {"desk": "m-1", "name": "anna", "answers": [{"n": 1, "label": 0}]})[1]
    assert (said["done"], said["total"]) == (1, 4)
    assert given(request_) == {("b", "anna"): "cat"}
    assert browser.post("/skip", {"desk": "m-1", "name": "anna", "n": 3})[0] == 200
    undone = browser.post("/undo", {"desk": "m-1", "name": "anna"})[1]
    assert ([one["id"] for one in undone["undone"]], undone["done"]) == (["b"], 0)
    page.show(None, Status(state="running"))
    late = browser.post("/answer", {"desk": "m-1", "name": "anna", "answers": [{"n": 1, "label": 0}]})
    assert late[0] == 409, "of a round that is over"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/answer", b"{", 400),
        ("/answer", b"[]", 400),
        ("/answer", {"answers": 3}, 400),
        ("/answer", {"answers": [{"n": "x", "label": 0}]}, 400),
        ("/answer", {"answers": [{"n": 9, "label": 0}]}, 400),
        ("/answer", {"answers": [{"n": 0}]}, 400),
        ("/answer", {"answers": [], "name": ""}, 400),
        ("/answer", b" " * 1_000_001, 413),
        ("/skip", {"n": None}, 400),
        ("/elsewhere", {}, 404),
    ],
)
def test_what_the_page_would_not_send_is_refused(page, request_, path, body, status):
    sent = {"desk": "m-1", "name": "anna"} | body if isinstance(body, dict) else body
    assert Client(page).post(path, sent)[0] == status
    assert given(request_) == {}


@pytest.mark.parametrize(
    "path", ["/image?desk=m-1&n=4", "/image?desk=m-1&n=-1", "/image?desk=m-1&n=../x", "/batch?desk=m-1"]
)
def test_there_is_nothing_else_to_be_had(page, path):
    assert Client(page).get(path)[0] == 400
    assert Client(page).get("/../server.py")[0] == 404


def test_an_image_that_cannot_be_decoded_is_not_sent(tmp_path):
    request = request_at(place(tmp_path, "local"), {"a": b"<script>alert(1)</script>"})
    desk, server = Desk(request), PageServer("x")
    server.show(desk, Status(state="asking"))
    assert Client(server).get("/image?desk=m-1&n=0")[0] == 422
    server.close()
    desk.close()


def test_who_waits_for_a_sample_is_told_when_its_round_is_over():
    """Its browser would wait for ever, in a thread of the page."""
    asked, over = threading.Event(), threading.Event()
    told = []

    def values(_):
        yield "a", b"first"
        asked.wait(10)
        yield "b", b"second"

    def ask():
        over.set()
        try:
            spool.read(2)
        except LookupError as error:
            told.append(str(error))

    spool = Spool(SimpleNamespace(values=values), {"a": 0, "b": 1, "c": 2})
    assert spool.read(0) == b"first"
    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    over.wait(10)
    threading.Timer(0.2, asked.set).start()
    spool.close()
    waiting.join(5)
    assert told == ["the samples are of a round that is over"]
    with pytest.raises(LookupError):
        spool.read(0)


def test_a_name_is_the_same_however_it_is_typed(page):
    composed, apart = "M\u00fcller", "Mu\u0308ller"
    Client(page).post("/answer", {"desk": "m-1", "name": composed, "answers": [{"n": 0, "label": 1}]})
    assert Client(page).get(f"/state?name={urllib.parse.quote(apart)}")[1]["mine"] == 1


def test_a_round_that_ends_during_a_request_is_said_to_be_over(page):
    """`show` comes from another thread, between any two steps of it."""

    class Ending(PageServer):
        looks = 0

        @property
        def _desk(self):
            self.looks += 1
            return page.desk if self.looks == 1 else None

        @_desk.setter
        def _desk(self, _):
            pass

    server = Ending("birds")
    try:
        server.looks = 0
        assert server._current({"desk": "m-1"}) is page.desk
        with pytest.raises(Refused, match="is over"):
            server._current({"desk": "m-1"})
    finally:
        server.close()


def test_samples_of_another_command_on_this_port_cannot_be_labeled(page, request_, tmp_path):
    old = Client(page).get("/state")[1]["desk"]
    request = request_at(place(tmp_path / "other", "local"), {"x": b"", "y": b""}, marker="another run")
    desk, server = Desk(request), PageServer("other")
    server.show(desk, Status(state="asking"))
    body = {"desk": old, "name": "anna", "answers": [{"n": 0, "label": 1}]}
    assert Client(server).post("/answer", body)[0] == 409
    server.close()
    desk.close()


def test_a_second_command_does_not_write_over_the_labels_of_the_first(request_):
    first, second = Desk(request_), Desk(request_)
    second.answer("anna", [(0, 1)])
    with pytest.raises(LabelError, match="changed by another program"):
        first.answer("anna", [(1, 1)])
    assert given(request_) == {("a", "anna"): "dog"}
    second.undo("anna")
    second.answer("anna", [(1, 1)])
    assert given(request_) == {("b", "anna"): "dog"}
    first.close()
    second.close()


def test_somebody_with_a_file_is_one_person_on_the_page(request_):
    (request_.place / "labels-anna.csv").write_bytes(b"id,label\na,cat\n")
    desk = Desk(request_, labels_per_sample=2)
    assert 0 not in numbers(desk.batch("anna", 9))
    desk.answer("anna", [(0, 0)])
    assert desk.progress("anna")["done"] == 0
    assert 0 in numbers(desk.batch("ben", 9))
    desk.close()


def test_who_goes_on_labeling_keeps_what_is_on_the_screen(request_, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("prunefuse_ray.annotation.page.desk.time", SimpleNamespace(monotonic=lambda: now[0]))
    desk = Desk(request_)
    assert numbers(desk.batch("anna", 2)) == [1, 3]
    now[0] = 60.0
    desk.answer("anna", [(1, 0)])
    now[0] = 120.0
    assert numbers(desk.batch("ben", 2)) == [0, 2]
    desk.close()


def test_ids_with_a_carriage_return_are_read_back(tmp_path):
    request = request_at(place(tmp_path, "local"), {"a\r": b"", "b\rc": b""})
    desk = Desk(request)
    desk.answer("anna", [(0, 0), (1, 1)])
    desk.close()
    assert given(request) == {("a\r", "anna"): "cat", ("b\rc", "anna"): "dog"}


def test_what_another_command_has_taken_is_not_asked_again(request_):
    """Anna and Ben each have a page of their own of one round on a shared store."""
    anna, ben = Desk(request_), Desk(request_)
    anna.answer("anna", [(0, 1), (1, 1)])
    ben.answer("ben", [(3, 1)])
    ben.read_others()
    assert sorted(numbers(ben.batch("ben", 9))) == [2]
    anna.undo("anna")
    anna.answer("anna", [(0, 1)])
    ben.read_others()
    assert sorted(numbers(ben.batch("ben", 9))) == [1, 2]
    assert ben.progress("ben")["mine"] == 1
    later = Desk(request_)
    assert sorted(numbers(later.batch("ben", 9))) == [1, 2]
    later.answer("ben", [(2, 0)])
    assert given(request_) == {("a", "anna"): "dog", ("=d,e", "ben"): "dog", ("c", "ben"): "cat"}
    for desk in (anna, ben, later):
        desk.close()


def test_the_samples_of_a_command_that_was_killed_go_with_the_next_one(request_, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    killed, living = Desk(request_), Desk(request_)
    killed.spool.read(len(IDS) - 1)  # its thread, which a kill would end, writes nothing more
    killed.spool._lock.close()  # what a kill does
    last = Desk(request_)
    assert not killed.spool._path.exists()
    assert living.spool._path.exists()
    for desk in (living, last):
        desk.close()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_who_goes_on_at_another_page_of_the_round_may_answer_there(request_):
    """And who then goes on at the first one, that has not looked meanwhile, is refused, and nothing is lost."""
    here, there = Desk(request_), Desk(request_)
    here.answer("anna", [(0, 1)])
    there.read_others()
    there.answer("anna", [(1, 1)])
    with pytest.raises(LabelError, match="was changed by another program"):
        here.answer("anna", [(2, 1)])
    assert given(request_) == {("a", "anna"): "dog", ("b", "anna"): "dog"}
    assert numbers(there.undo("anna")) == [1]
    assert numbers(there.undo("anna")) == [0]
    here.close()
    there.close()


def test_a_full_disk_under_the_page_is_said(monkeypatch, caplog):
    def full(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    spool = Spool(SimpleNamespace(values=lambda _: iter([("a", b"first")])), {"a": 0})
    with pytest.raises(LookupError):
        spool.read(0)
    assert "the page cannot show all samples" in caplog.text
    assert "free some space" in caplog.text
    spool.close()
