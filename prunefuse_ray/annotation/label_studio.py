"""Labels from a Label Studio server, by its HTTP API: one project a run, one task a sample.

Plain HTTP, not Label Studio's own SDK: that brings OpenCV, pandas, NLTK and a generator of data models for the six
requests that are made here.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from prunefuse_ray.annotation.request import Answers, Asked, Away, Id, Request, for_browsers
from prunefuse_ray.errors import LabelError
from prunefuse_ray.schemas import annotations_schema
from prunefuse_ray.tasks import TASKS

TOKEN = "LABEL_STUDIO_API_KEY"
"""Environment variable that holds the token; it is written nowhere."""
IMPORT_TASKS = 50
IMPORT_BYTES = 20_000_000  # of one request's body; stock servers take 250 MB
PAGE = 100
MODEL = "PruneFuse proxy"
"""The one model version of all guesses: a project shows the guesses of one version."""
SECONDS = 60.0
BUSY = (408, 429)
"""Statuses by which a server, or what stands before it, says that it has no time now."""


class Client:
    """The part of Label Studio's API that is needed. Every failure is one LabelError, without the token."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._session = requests.Session()
        # Reading may be repeated at will; an import may not: what became of it is looked up instead.
        retry = Retry(total=4, backoff_factor=0.5, status_forcelist=(502, 503, 504), allowed_methods=("GET",))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))
        # A personal access token (a JWT) buys short-lived ones; a legacy token is used as it is.
        self._personal = token.count(".") == 2
        if not self._personal:
            self._session.headers["Authorization"] = f"Token {token}"

    def call(self, method: str, path: str, **more: Any) -> Any:
        """The JSON answer to a request below /api."""
        if self._personal and "Authorization" not in self._session.headers:
            self._refresh()
        answer = self._send(method, path, **more)
        if answer.status_code == 401 and self._personal:
            self._refresh()
            answer = self._send(method, path, **more)
        if answer.status_code in (401, 403):
            raise LabelError(
                f"annotation.url: {self.url} does not accept the token of {TOKEN} for {path} (HTTP "
                f"{answer.status_code}); give the token of an account that may create projects"
            )
        if not answer.ok:
            raise LabelError(
                f"annotation.url: {self.url}/api{path} answered HTTP {answer.status_code}: {answer.text[:300]}"
            )
        return _json(answer)

    def pages(self, path: str, key: str, **params: Any) -> Iterator[dict[str, Any]]:
        """The items of a listing, page by page."""
        page, seen = 1, 0
        while True:
            listing = self.call("GET", path, params=params | {"page": page, "page_size": PAGE})
            items = self.field(listing, key, path, list)
            yield from items
            seen += len(items)
            if not items or seen >= listing.get("total", listing.get("count", 0)):
                return
            page += 1

    def _refresh(self) -> None:
        self._session.headers.pop("Authorization", None)
        answer = self._send("POST", "/token/refresh", json={"refresh": self._token})
        if not answer.ok:
            raise LabelError(
                f"annotation.url: {self.url} does not accept the personal access token of {TOKEN} (HTTP "
                f"{answer.status_code}); make a new one in the account's settings"
            )
        access = self.field(_json(answer), "access", "/token/refresh", str)
        self._session.headers["Authorization"] = f"Bearer {access}"

    def field(self, answer: Any, key: str, path: str, kind: type) -> Any:
        """One field of an answer; LabelError where it is not there: another service, or another version."""
        found = answer.get(key) if isinstance(answer, dict) else None
        if not isinstance(found, kind):
            raise LabelError(
                f"annotation.url: {self.url}/api{path} does not answer as Label Studio does (no '{key}'); fix the "
                "address, or update the server"
            )
        return found

    def _send(self, method: str, path: str, **more: Any) -> requests.Response:
        try:
            answer = self._session.request(method, f"{self.url}/api{path}", timeout=SECONDS, **more)
        except requests.RequestException as error:
            raise Away(
                f"annotation.url: {self.url} cannot be reached ({type(error).__name__}); start the server or fix "
                "the address, then run the same command again"
            ) from error
        if answer.status_code >= 500 or answer.status_code in BUSY:
            raise Away(f"annotation.url: {self.url}/api{path} answered HTTP {answer.status_code}: {answer.text[:300]}")
        return answer


def _json(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise LabelError(
            f"annotation.url: {answer.url.partition('?')[0]} does not answer as Label Studio does (no JSON); fix it"
        ) from error


@dataclass(frozen=True, kw_only=True)
class LabelStudio:
    """An annotator behind a Label Studio server."""

    client: Client
    labels_per_sample: int = 1
    image_url: str | None = None
    image_size: int = 1024

    def ask(self, request: Request) -> None:
        """Make the project and import those samples that have no task yet, whatever became of earlier imports."""
        project = self._project(request) or self._create(request)
        there = {task["data"].get("id") for task in self._tasks(project)}
        missing = {i for i in request.ids if str(i) not in there}
        if not missing:
            return
        asked, size = request.asked(), 0
        batch: list[dict[str, Any]] = []
        for task in self._new_tasks(request, asked, missing):
            weight = sum(len(v) for v in task["data"].values() if isinstance(v, str))
            if batch and (len(batch) == IMPORT_TASKS or size + weight > IMPORT_BYTES):
                self._import(project, batch)
                batch, size = [], 0
            batch.append(task)
            size += weight
        self._import(project, batch)

    def collect(self, request: Request) -> Answers:
        """The submitted annotations of the round's tasks; skipped ones and drafts do not count."""
        schema = annotations_schema(request.id_type, TASKS[request.task].label_type)
        project = self._project(request)
        if project is None:
            return Answers(annotations=schema.empty_table())
        known = {str(i): i for i in request.ids}
        people: dict[int, str] | None = None
        rows: dict[tuple[Id, str], dict[str, Any]] = {}
        faults = []
        asked_task, numbers = TASKS[request.task], {name: n for n, name in enumerate(request.classes)}
        for task in self._tasks(project):
            id_ = known.get(task["data"].get("id"))
            if id_ is None:
                continue
            for annotation in task.get("annotations") or []:
                if annotation.get("was_cancelled"):
                    continue
                where = f"{self.client.url}/projects/{project}/data?task={task['id']} (id '{id_}')"
                chosen = _choices(annotation)
                unknown = [name for name in chosen if name not in numbers]
                if unknown or (len(chosen) != 1 and not asked_task.several):
                    several = f"several choices ({', '.join(chosen)}), and a sample has one class"
                    said = f"'{unknown[0]}', which is not a class" if unknown else several if chosen else "no choice"
                    faults.append(f"{where}: its annotation has {said}; fix or delete it there")
                    continue
                chosen_numbers = [numbers[name] for name in chosen]
                label = asked_task.label(chosen_numbers if asked_task.several else chosen_numbers[0], request.classes)
                people = self._people() if people is None else people
                person = annotation.get("completed_by")
                name = people.get(person, str(person))
                row: dict[str, Any] = {"id": id_, "label": label, "annotator": name, "source": "label_studio"}
                row["time"] = datetime.fromisoformat(annotation.get("updated_at") or annotation["created_at"])
                # Of several by one person the newest counts.
                if (id_, name) not in rows or rows[id_, name]["time"] < row["time"]:
                    rows[id_, name] = row
        table = pa.Table.from_pylist(list(rows.values()), schema)
        return Answers(
            annotations=table.sort_by([("id", "ascending"), ("annotator", "ascending")]), faults=tuple(faults)
        )

    def remedy(self, request: Request) -> str:
        try:
            where = f"{self.client.url}/projects/{self._project(request)}/data"
        except Away:  # at the end of a wait; that labels are missing is known all the same
            where = self.client.url
        return (
            f"in {where}. Label and submit them there, then run the same command "
            "again (annotation.wait lets it wait by itself)"
        )

    # --- the project ---

    def _project(self, request: Request) -> int | None:
        """The run's project, known by the marker in its description; of several the oldest."""
        listing = self.client.pages("/projects", "results", include="id,description")
        mine = [p for p in listing if isinstance(p, dict) and _marker(request) in (p.get("description") or "")]
        numbers: list[int] = [self.client.field(p, "id", "/projects", int) for p in mine]
        return min(numbers, default=None)

    def _create(self, request: Request) -> int:
        made = self.client.call(
            "POST",
            "/projects",
            json={
                "title": f"PruneFuse {request.run}"[:50],
                "description": f"Samples chosen by run '{request.run}'. {_marker(request)}",
                "label_config": label_config(request.classes, request.texts, TASKS[request.task].several),
                "maximum_annotations": self.labels_per_sample,
                "show_collab_predictions": True,
                "model_version": MODEL,
            },
        )
        number: int = self.client.field(made, "id", "/projects", int)
        return number

    def _tasks(self, project: int) -> Iterator[dict[str, Any]]:
        return self.client.pages("/tasks", "tasks", project=project, fields="all")

    def _import(self, project: int, tasks: list[dict[str, Any]]) -> None:
        self.client.call("POST", f"/projects/{project}/import", json=tasks)

    def _people(self) -> dict[int, str]:
        listed = self.client.call("GET", "/users")
        listed = self.client.field({"list of users": listed}, "list of users", "/users", list)
        numbers = [self.client.field(user, "id", "/users", int) for user in listed]
        return {n: u.get("email") or u.get("username") or str(n) for n, u in zip(numbers, listed, strict=True)}

    # --- the tasks ---

    def _new_tasks(self, request: Request, asked: dict[Id, Asked], ids: set[Id]) -> Iterator[dict[str, Any]]:
        if self.image_url is not None and not request.texts:
            values: Iterator[tuple[Id, str]] = (
                (i, self.image_url.replace("{id}", requests.utils.quote(str(i)))) for i in request.ids if i in ids
            )
        else:
            values = ((i, self._value(v)) for i, v in request.values(ids))
        for id_, value in values:
            one = asked[id_]
            data = {"text" if request.texts else "image": value, "id": str(id_), "round": request.round}
            task: dict[str, Any] = {"data": data | ({} if one.score is None else {"score": round(one.score, 6)})}
            if one.guess is not None:
                task["predictions"] = [prediction(one.names, one.probability)]
            yield task

    def _value(self, value: bytes | str) -> str:
        return value if isinstance(value, str) else data_uri(value, self.image_size)


def _marker(request: Request) -> str:
    return f"[prunefuse:{request.marker}]"


def _choices(annotation: dict[str, Any]) -> list[str]:
    for result in annotation.get("result") or []:
        choices = result.get("value", {}).get("choices")
        if result.get("type") == "choices" and choices:
            return list(dict.fromkeys(choices))
    return []


def label_config(classes: Sequence[str], texts: bool, several: bool = False) -> str:
    """The labeling interface: one choice among the classes, or any number of them, also none."""
    shown = '<Text name="sample" value="$text"/>' if texts else '<Image name="sample" value="$image"/>'
    choices = "".join(f"<Choice value={quoteattr(name)}/>" for name in classes)
    kind = 'choice="multiple"' if several else 'choice="single-radio" required="true"'
    asked = f'<Choices name="class" toName="sample" {kind}>{choices}</Choices>'
    return f"<View>{shown}{asked}</View>"


def prediction(guess: Sequence[str], probability: float | None) -> dict[str, Any]:
    """The proxy's guess, the names of classes, as a pre-annotation."""
    result = {"from_name": "class", "to_name": "sample", "type": "choices", "value": {"choices": list(guess)}}
    return {"model_version": MODEL, "score": probability, "result": [result]}


def data_uri(data: bytes, longest: int) -> str:
    """An image inside an address, as browsers show it; scaled down and as PNG where that is needed."""
    media, data = for_browsers(data, longest)
    return f"data:{media.replace('application', 'image')};base64,{base64.b64encode(data).decode()}"


def connect(
    url: str, *, labels_per_sample: int = 1, image_url: str | None = None, image_size: int = 1024
) -> LabelStudio:
    """The annotator behind the server at `url`. LabelError where the environment holds no token."""
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise LabelError(f"{TOKEN}: annotation.kind label_studio needs a token; set this environment variable to it")
    return LabelStudio(
        client=Client(url, token),
        labels_per_sample=labels_per_sample,
        image_url=image_url,
        image_size=image_size,
    )
