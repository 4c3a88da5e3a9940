"""One round on the labeling page: who is asked what next, and what they have answered; nothing of HTTP.

Every answer is in a file before the next sample is shown: `labels-page-NAME.csv` in the round's folder, written whole
(aside, synchronized, renamed), a file for each person. The run reads it as it reads any file of labels.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prunefuse_ray import owned
from prunefuse_ray.annotation.label_files import SAMPLES, read_answers
from prunefuse_ray.annotation.request import Answers, Asked, Id, Request, for_browsers
from prunefuse_ray.data.label_tables import csv_bytes, inert, inert_label
from prunefuse_ray.data.paths import normal
from prunefuse_ray.errors import LabelError, disk_trouble
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

PREFIX = "labels-page-"
"""Beginning of the names of the page's own files; it writes no others."""
LENT = 90.0
"""Seconds for which samples on one person's screen are kept from the others', as long as there are more."""
LONGEST_NAME = 40
IMAGE_SIZE = 1600
"""Longer side in pixels to which larger images are scaled down for the page."""


@dataclass(frozen=True)
class Answer:
    """What one person said of one sample."""

    label: int | None
    """As the task has it; None: cannot tell."""
    time: datetime


def page_file(person: str) -> str:
    """The name of a person's file; different names never give the same one."""
    written = re.sub(r"[^\w-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), person)
    return f"{PREFIX}{written}.csv"


def normal_name(person: str) -> str:
    """The same for every way of typing it."""
    return normal(" ".join(person.split()))


def checked_name(person: Any) -> str:
    """A name as it is recorded. LabelError where it is none."""
    name = normal_name(person) if isinstance(person, str) else ""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise LabelError(f"a name has 1 to {LONGEST_NAME} printable characters")
    return name


class Desk:
    """The samples of one round, before several people at once. Thread-safe."""

    def __init__(self, request: Request, *, labels_per_sample: int = 1) -> None:
        """Takes up what the round's files hold already: the page's own, and those of others."""
        self.task = TASKS[request.task]
        if not (self.task.one_class or self.task.several):
            raise LabelError(
                f"the page asks for classes of a whole sample, and task '{request.task}' has none: write labels.csv "
                f"beside {request.place.path}/{SAMPLES}"
            )
        self.request, self.wanted = request, labels_per_sample
        self.asked: list[Asked] = list(request.asked().values())
        self._number = {one.id: n for n, one in enumerate(self.asked)}
        self._lock = threading.Lock()
        self._files: dict[str, set[str | None]] = {}
        """File of the page -> the digests that it may have, as this process left it."""
        self._written: set[str] = set()
        """Those of them that this process has written: the others may be another command's, of this round, too."""
        self._given: dict[str, dict[int, Answer]] = defaultdict(dict)
        self._others: dict[str, dict[int, Answer]] = {}
        self._done: dict[str, list[dict[int, Answer | None]]] = {}
        """What each person has answered at once -> what was there before; the last at the end."""
        if faults := self.read_others():
            raise LabelError("labels of the page that were changed by hand:\n  " + "\n  ".join(faults))
        self._skipped: dict[str, list[int]] = defaultdict(list)
        self._lent: dict[int, tuple[str, float]] = {}
        self.last_answer = 0.0
        """When the last answer of this process came (`time.monotonic`)."""
        self.spool = Spool(request, self._number)

    def read_others(self) -> Sequence[str]:
        """Take in what files hold by now that others write: nobody is asked for that again. Returns what is wrong with
        those of pages."""
        found: dict[str, dict[int, Answer]] = defaultdict(dict)
        for number, person, answer in self._answers(read_answers(self.request, lambda n: not n.startswith(PREFIX))):
            found[person or "files"][number] = answer
        pages: dict[str, dict[int, Answer]] = defaultdict(dict)
        theirs = read_answers(self.request, lambda n: n.startswith(PREFIX) and n not in self._written)
        for number, person, answer in sorted(self._answers(theirs), key=lambda a: a[2].time):
            pages[person][number] = answer
        with self._lock:
            self._others = found
            for name in {*self._files, *theirs.files} - self._written:
                self._files[name] = {theirs.files.get(name)}
            for person in {*self._given, *pages}:
                if page_file(person) not in self._written:
                    self._given[person], self._done[person] = pages[person], [{n: None} for n in pages[person]]
        return theirs.faults

    def _answers(self, answers: Answers) -> list[tuple[int, str, Answer]]:
        labels = [
            (self._number[row["id"]], row["annotator"], Answer(row["label"], row["time"]))
            for row in answers.annotations.to_pylist()
        ]
        return labels + [(self._number[i], who, Answer(None, when)) for (i, who), when in answers.unsure.items()]

    # --- what is asked next ---

    def batch(self, person: str, count: int) -> list[dict[str, Any]]:
        """The next samples for a person, at most `count`: those with the same guess stand together, the surest first.
        Samples that have their labels, or that the person has answered, are left out; skipped ones come last."""
        with self._lock:
            now, people = time.monotonic(), self._people()
            counts = _answers_of(people)
            said, skipped = people.get(person, {}), {n: k for k, n in enumerate(self._skipped[person])}
            open_ = [n for n in range(len(self.asked)) if n not in said and counts[n] < self.wanted]
            lent = {n for n, (who, until) in self._lent.items() if who != person and until > now}
            free = [n for n in open_ if n not in lent and n not in skipped]
            # Where all others are on somebody's screen, two people see the same: better than that one of them waits.
            rest = sorted((n for n in open_ if n in skipped), key=lambda n: skipped[n]) + [
                n for n in open_ if n in lent and n not in skipped
            ]
            chosen = (sorted(free, key=self._place)[:count] + rest)[:count]
            self._lent |= dict.fromkeys(chosen, (person, now + LENT))
        return [self._shown(n) for n in chosen]

    def _place(self, number: int) -> tuple[Any, ...]:
        one = self.asked[number]
        return (one.guess is not None, one.guess or "", -(one.probability or 0.0), number)

    def _shown(self, number: int) -> dict[str, Any]:
        one = self.asked[number]
        shown = {"n": number, "id": str(one.id), "guess": one.guess, "names": one.names, "probability": one.probability}
        return shown | ({"text": self.spool.read(number).decode()} if self.request.texts else {})

    def image(self, number: int) -> tuple[str, bytes]:
        """(media type, image) of a sample. LookupError where there is none of this number."""
        if not 0 <= number < len(self.asked) or self.request.texts:
            raise LookupError(number)
        return for_browsers(self.spool.read(number), IMAGE_SIZE)

    # --- what is answered ---

    def answer(self, person: str, given_now: Sequence[tuple[int, int | Sequence[int] | None]]) -> None:
        """Record (number, class or None for 'cannot tell') of some samples; they are on disk when this returns. Where a
        label is a set, its classes are a list."""
        answers: list[tuple[int, Any]] = []
        for number, said in given_now:
            label = None if said is None or isinstance(said, int) is self.task.several else self._label(said)
            if not 0 <= number < len(self.asked) or (said is not None and label is None):
                raise LabelError(f"sample {number} of this round cannot be labeled {said}")
            answers.append((number, label))
        with self._lock:
            given, done = dict(self._given[person]), list(self._done.get(person, []))
            now = datetime.now(UTC)
            done.append({number: given.pop(number, None) for number, _ in answers})
            given |= {number: Answer(label, now) for number, label in answers}
            self._write(person, given)
            self._given[person], self._done[person] = given, done
            until = time.monotonic() + LENT  # whoever goes on keeps what is on the screen
            self._lent = {
                n: (who, until if who == person else before)
                for n, (who, before) in self._lent.items()
                if not (who == person and n in given)
            }

    def _label(self, said: int | Sequence[int]) -> Any:
        """The numbers of classes as a label of the task; None where it is none."""
        return self.task.label(said if isinstance(said, int) else list(said), self.request.classes)

    def _numbers(self, label: Any) -> Any:
        """A label as the page has it: the number of its class, or the list of them."""
        if label is None or not self.task.several:
            return label
        names = set(self.task.names(label, self.request.classes))
        return [n for n, name in enumerate(self.request.classes) if name in names]

    def skip(self, person: str, number: int) -> None:
        """Show the sample to this person again when nothing else is left."""
        with self._lock:
            self._skipped[person] = [*(n for n in self._skipped[person] if n != number), number]

    def undo(self, person: str) -> list[dict[str, Any]]:
        """Take back what a person answered last, all that was answered at once, and return its samples."""
        with self._lock:
            if not self._done.get(person):
                return []
            *done, before = self._done[person]
            given = {n: answer for n, answer in self._given[person].items() if n not in before}
            given |= {n: answer for n, answer in before.items() if answer is not None}
            self._write(person, given)
            self._given[person], self._done[person] = given, done
        return [self._shown(n) | ({} if a is None else {"label": self._numbers(a.label)}) for n, a in before.items()]

    def _write(self, person: str, given: dict[int, Answer]) -> None:
        rows = []
        classes, task = self.request.classes, self.task
        for number, answer in given.items():
            id_ = self.asked[number].id
            label = "" if answer.label is None else inert_label(task.named(answer.label, classes), classes, task)
            when = answer.time.isoformat()
            rows.append([_cell(id_), label, inert(person), when, "" if label else "yes"])
        name = page_file(person)
        place = self.request.place / name
        there = place.digest() if place.exists() else None
        if there not in self._files.get(name, {None}):
            raise LabelError(
                f"{name} was changed by another program, such as a second `prunefuse label`: end both, and start one "
                "again"
            )
        self.last_answer = time.monotonic()
        self._written.add(name)
        content = csv_bytes(["id", "label", "annotator", "time", "unsure"], rows)
        new = hashlib.sha256(content).hexdigest() if given else None
        self._files[name] = {there, new}  # a write that fails may have been carried out all the same
        if given:
            place.write_bytes(content)
        else:
            place.delete()
        self._files[name] = {new}

    # --- how far it is ---

    def _people(self) -> dict[str, dict[int, Answer]]:
        """What each person has said, on the page and in files: one answer a sample."""
        names = {*self._others, *self._given}
        return {who: {**self._others.get(who, {}), **self._given.get(who, {})} for who in names}

    def progress(self, person: str) -> dict[str, Any]:
        """How far the round is, and this person: plain values."""
        with self._lock:
            people = self._people()
            counts = _answers_of(people)
            labels: dict[int, list[int]] = defaultdict(list)
            for given in people.values():
                for n, answer in given.items():
                    if answer.label is not None:
                        labels[n].append(answer.label)
            twice = [said for said in labels.values() if len(said) > 1]
            mine = self._given[person] if person else {}
            own = [self._numbers(a.label) for a in mine.values() if a.label is not None]
            return {
                "total": len(self.asked),
                "done": sum(counts[n] >= self.wanted for n in range(len(self.asked))),
                "mine": len(mine),
                "unsure": sum(a.label is None for a in mine.values()),
                "by_class": dict(Counter(n for one in own for n in (one if self.task.several else [one]))),
                "people": [{"name": name, "labels": len(given)} for name, given in sorted(people.items()) if given],
                "both": len(twice),
                "alike": sum(all(one == said[0] for one in said) for said in twice),
            }

    def close(self) -> None:
        self.spool.close()


def _answers_of(people: Mapping[str, Mapping[int, Answer]]) -> Counter[int]:
    """How many people have answered each sample."""
    return Counter(n for given in people.values() for n in given)


def _cell(id_: Id) -> Id:
    return inert(id_) if isinstance(id_, str) else id_


class Spool:
    """The samples of a round in a temporary folder, one file each: their Parquet files are read once."""

    def __init__(self, request: Request, numbers: dict[Id, int]) -> None:
        self._path, self._lock = owned.make(tempfile.gettempdir(), "label-")
        self._there: set[int] = set()
        self._error: Exception | None = None
        self._closed = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._fill, args=(request, numbers), name="spool", daemon=True)
        self._thread.start()

    def _fill(self, request: Request, numbers: dict[Id, int]) -> None:
        try:
            for id_, value in request.values(set(numbers)):
                number = numbers[id_]
                (self._path / str(number)).write_bytes(value if isinstance(value, bytes) else value.encode())
                with self._news:
                    if self._closed:
                        return
                    self._there.add(number)
                    self._news.notify_all()
            missing: Exception | None = LookupError("the sample is not among those that were copied for this round")
        except Exception as error:  # told to whoever asks for a sample
            missing = error
            logger.warning("the page cannot show all samples: %s", disk_trouble(error) or error)
        with self._news:
            self._error = missing
            self._news.notify_all()

    def read(self, number: int) -> bytes:
        """A sample as bytes; waits until it has been copied."""
        with self._news:
            self._news.wait_for(lambda: number in self._there or self._error is not None)
            if number not in self._there:
                assert self._error is not None
                raise LookupError(str(self._error)) from self._error
        return (self._path / str(number)).read_bytes()

    def close(self) -> None:
        with self._news:
            self._closed = True
        self._thread.join()
        with self._news:  # whoever waits for a sample is told, and does not wait for ever
            self._error = LookupError("the samples are of a round that is over")
            self._there.clear()
            self._news.notify_all()
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock.close()
