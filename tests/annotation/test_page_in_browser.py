"""The labeling page in a real Chromium: what people do with keys and see, and that names from a pool stay text."""

import shutil
import time

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from prunefuse_ray.annotation import Files
from prunefuse_ray.annotation.page import Desk, PageServer, Status
from prunefuse_ray.data.images import encode_png
from tests.annotation.test_files import place, request_at
from tests.annotation.test_page import given
from tests.support.pools import random_images

pytestmark = pytest.mark.browser
EVIL = "<img src=x onerror=\"document.title='evil'\">"


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Window:
    """One person before the page."""

    def __init__(self, driver, page, name):
        self.driver, self.wait = driver, WebDriverWait(driver, 20, 0.05)
        driver.get(page.address)
        driver.execute_script("sessionStorage.clear(); localStorage.clear()")
        driver.get(page.address)
        self.until(lambda: driver.find_element(By.ID, "name").is_displayed())
        driver.find_element(By.ID, "name").send_keys(name, Keys.ENTER)
        self.until(lambda: self.texts("#samples li"))

    def until(self, what):
        return self.wait.until(lambda _: what())

    def keys(self, *keys):
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent).map(e => e.innerText)"
        return self.driver.execute_script(script, selector)

    def here(self):
        return self.driver.execute_script("return document.querySelector('#samples li.here .id').title")

    def complaints(self):
        return [line["message"] for line in self.driver.get_log("browser")]


@pytest.fixture
def opened(tmp_path, chromium):
    """Makes a page of a request's samples, with a person before it: (window, request, page)."""
    closing = []

    def open_(samples, name="anna", wanted=1, **more):
        request = request_at(place(tmp_path, "local"), samples, **more)
        desk, page = Desk(request, labels_per_sample=wanted), PageServer("birds")
        closing.extend((page.close, desk.close))
        page.show(desk, Status(state="asking"))
        return Window(chromium, page, name), request, page

    yield open_
    for close in closing:
        close()


def images(count):
    return {f"{n}.png": encode_png(p) for n, p in enumerate(random_images(count))}


def test_keys_label_move_and_undo(opened):
    window, request, _ = opened(images(4), classes=["cat", "dog", "hen"])
    assert window.here() == "0.png"
    window.keys("1")
    window.until(lambda: given(request) == {("0.png", "anna"): "cat"})
    assert window.here() == "1.png"
    window.keys(Keys.ARROW_RIGHT, "3", "u")
    window.until(lambda: given(request) == {("0.png", "anna"): "cat"})
    window.until(lambda: window.here() == "2.png")
    window.keys(Keys.ARROW_LEFT, "2", "0")
    window.until(lambda: "3 of 4 done, 3 by you (1 not sure)" in window.texts("#count"))
    assert window.here() == "3.png"
    window.keys("s")  # nothing else is left: it comes again
    window.until(lambda: window.texts("#samples li") and window.here() == "3.png")
    window.keys("1")
    window.until(lambda: "Every sample has its label" in "".join(window.texts("#message")))
    assert given(request) == {("0.png", "anna"): "cat", ("1.png", "anna"): "dog", ("3.png", "anna"): "cat"}
    window.keys("u")
    window.until(lambda: ("3.png", "anna") not in given(request))
    assert window.complaints() == []


def test_guesses_are_taken_one_by_one_or_all_at_once_and_back(opened):
    window, request, _ = opened(images(4), guesses=[1, 0, 1, 0])
    assert window.here() == "1.png"
    window.keys(Keys.ENTER)
    window.until(lambda: given(request) == {("1.png", "anna"): "cat"})
    window.keys("a")
    window.until(lambda: len(given(request)) == 4)
    assert given(request)["0.png", "anna"] == "dog"
    window.keys("u")
    window.until(lambda: given(request) == {("1.png", "anna"): "cat"})


def test_one_at_a_time_and_a_class_found_by_its_name(opened):
    window, request, _ = opened(images(2), classes=[f"class {n}" for n in range(40)])
    window.keys("v")
    window.until(
        lambda: sum(item.is_displayed() for item in window.driver.find_elements(By.CSS_SELECTOR, "li img")) == 1
    )
    window.keys("/")
    window.keys("s 37", Keys.ENTER)
    window.until(lambda: given(request) == {("0.png", "anna"): "class 37"})
    window.keys("2")
    window.until(lambda: given(request).get(("1.png", "anna")) == "class 1")


def test_two_people_in_two_windows_and_how_they_agree(opened):
    anna, request, page = opened(images(3), wanted=2)
    anna.keys("1", "1", "1")
    anna.until(lambda: len(given(request)) == 3)
    ben = Window(anna.driver, page, "ben")
    ben.keys("1", "1", "2")
    ben.until(lambda: len(given(request)) == 6)
    ben.until(lambda: "2 of 3 labeled twice or more agree (67 %)" in ben.texts("#agreement"))
    assert "anna: 3" in ben.texts("#people")


def test_names_and_texts_of_the_pool_stay_text(opened):
    samples = {EVIL: f"{EVIL} review", "b": "second"}
    window, request, _ = opened(samples, name=EVIL[:40], texts=True, classes=[EVIL, "good"], guesses=[0, 1])
    assert window.texts(".text") == [f"{EVIL} review", "second"]
    assert window.texts("#classes .name") == [EVIL, "good"]
    window.keys("1")
    window.until(lambda: given(request) == {(EVIL, EVIL[:40]): EVIL})
    time.sleep(0.3)
    assert window.driver.title == "birds: labels"
    assert window.driver.execute_script("return document.querySelectorAll('main img, aside img').length") == 0
    assert window.complaints() == []


def test_an_image_that_cannot_be_shown_says_so(opened):
    window, _, _ = opened({"a": b"no image", "b": encode_png(random_images(1)[0])})
    window.until(lambda: window.texts(".broken") == ["cannot be shown"])


def test_a_new_round_comes_by_itself(opened, tmp_path):
    window, _, page = opened(images(2))
    page.show(None, Status(state="running", message="training the proxy"))
    window.until(lambda: "training the proxy" in "".join(window.texts("#message")))
    desk = Desk(request_at(place(tmp_path / "next", "local"), {"new.png": images(1)["0.png"]}, round=2))
    page.show(desk, Status(state="asking"))
    window.until(lambda: window.texts("#samples li") and window.here() == "new.png")
    desk.close()


def test_several_classes_are_put_in_and_taken_out_by_keys(opened):
    window, request, _ = opened(images(4), classes=["cat", "dog", "cow"], task="multi_label")
    window.complaints()  # of the pages before
    window.keys("1", "3", "2", "2")
    window.until(lambda: "cat, cow" in "".join(window.texts("#samples li.here .guess")))
    window.keys(Keys.ENTER)
    window.until(lambda: window.texts("#samples li.given b") == ["cat, cow"])
    window.keys("n")
    window.until(lambda: window.texts("#samples li.given b") == ["cat, cow", "none of them"])
    window.keys("0")
    window.until(lambda: "3 of 4 done, 3 by you (1 not sure)" in window.texts("#count"))
    found = Files().collect(request).annotations.to_pylist()
    assert {row["id"]: row["label"] for row in found} == {"0.png": [0, 2], "1.png": []}
    window.keys("u", "u")
    window.until(lambda: window.texts("#samples li.given b") == ["cat, cow"])
    assert window.complaints() == []


def slowly(desk, what, seconds=1.0):
    done = getattr(desk, what)
    setattr(desk, what, lambda *given: (time.sleep(seconds), done(*given))[1])


def test_all_guesses_are_those_that_are_seen(opened):
    window, request, _ = opened({**images(3), "x.png": b"no image"}, guesses=[0, 0, 0, 0])
    window.until(lambda: window.texts(".broken"))
    window.keys("v")
    loaded = "return [...document.querySelectorAll('#samples img')].filter(i => i.complete && i.naturalWidth).length"
    window.until(lambda: window.driver.execute_script(loaded) == 3)
    window.keys("a")
    window.until(lambda: len(given(request)) == 1)
    time.sleep(0.5)
    assert len(given(request)) == 1, "of those that are shown one at a time the others are not seen"
    window.keys("v", "a")
    window.until(lambda: len(given(request)) == 3)
    time.sleep(0.5)
    assert ("x.png", "anna") not in given(request)


@pytest.mark.parametrize("key", ["1", "Enter", "a", "u"])
def test_a_key_that_is_held_down_gives_nothing_more(opened, key):
    window, request, _ = opened(images(4), guesses=[0, 0, 0, 0])
    window.keys("1")
    window.until(lambda: len(given(request)) == 1)
    held = "new KeyboardEvent('keydown', {key: arguments[0], repeat: true, bubbles: true})"
    for _ in range(5):
        window.driver.execute_script(f"document.body.dispatchEvent({held})", key)
    time.sleep(0.5)
    assert len(given(request)) == 1


def test_an_answer_is_of_the_name_under_which_it_was_given(opened):
    window, request, page = opened(images(4))
    slowly(page.desk, "answer", 1.5)
    window.keys("1", "1")  # the second one waits in the page
    window.driver.find_element(By.ID, "who").click()
    window.driver.find_element(By.ID, "name").clear()
    window.driver.find_element(By.ID, "name").send_keys("ben", Keys.ENTER)
    window.until(lambda: len(given(request)) == 2)
    assert {who for _, who in given(request)} == {"anna"}


def test_a_key_after_undo_is_not_for_the_next_sample(opened):
    window, request, page = opened(images(3))
    window.keys("1")
    window.until(lambda: len(given(request)) == 1)
    slowly(page.desk, "undo")
    window.keys("u", "2")
    window.until(lambda: window.here() == "0.png")
    time.sleep(1.0)
    assert given(request) == {}


def test_enter_after_the_last_of_a_batch_changes_no_label(opened):
    window, request, page = opened(images(2), guesses=[0, 0])
    slowly(page.desk, "answer")
    window.keys(Keys.ENTER, "2", Keys.ENTER)
    window.until(lambda: "Every sample has its label" in "".join(window.texts("#message")))
    assert given(request) == {("0.png", "anna"): "cat", ("1.png", "anna"): "dog"}


def test_the_class_of_that_name_comes_before_those_that_contain_it(opened):
    window, request, _ = opened(images(2), classes=["bobcat", "cat", *(f"class {n}" for n in range(20))])
    window.keys("/")
    window.keys("cat", Keys.ENTER)
    window.until(lambda: given(request) == {("0.png", "anna"): "cat"})
    window.keys("/")
    window.keys(Keys.ENTER)
    time.sleep(0.5)
    assert len(given(request)) == 1, "nothing was looked for"


def test_a_class_button_is_pressed_by_enter(opened):
    window, request, _ = opened(images(2), guesses=[0, 0])
    window.driver.execute_script("document.querySelectorAll('#classes button')[1].focus()")
    window.keys(Keys.ENTER)
    window.until(lambda: given(request) == {("0.png", "anna"): "dog"})


def test_what_could_not_be_saved_bears_no_tick(opened):
    window, _, page = opened(images(3))

    def full(*_):
        raise OSError(28, "No space left on device")

    page.desk.answer = full
    window.keys("1")
    window.until(lambda: "not saved" in "".join(window.texts("#message")))
    time.sleep(2.5)  # after the page has looked again
    assert window.texts("#samples li.given") == []
    assert "not saved" in "".join(window.texts("#message"))


def test_digits_are_the_keys_of_classes_that_are_called_so(opened):
    window, request, _ = opened(images(3), classes=[str(n) for n in range(10)])
    window.keys("5", "0", "?")
    window.until(lambda: "3 of 3 done, 3 by you (1 not sure)" in window.texts("#count"))
    assert given(request) == {("0.png", "anna"): "5", ("1.png", "anna"): "0"}


def test_escape_keeps_the_name(opened):
    window, request, _ = opened(images(2))
    window.driver.find_element(By.ID, "who").click()
    window.keys("1", "1", Keys.ESCAPE)
    window.until(lambda: not window.driver.execute_script("return document.getElementById('hello').open"))
    window.keys("1")
    window.until(lambda: given(request) == {("0.png", "anna"): "cat"})


def test_keys_switch_the_classes_of_a_guess(opened):
    window, _, _ = opened(images(1), classes=["cat", "dog", "cow"], task="multi_label", guesses=[[0, 1]])
    window.keys("2", "3")
    window.until(lambda: "cat, cow" in "".join(window.texts("#samples li.here .guess")))
