"""The page New task: a form that is checked as CreateTask would, shows the task as JSON and as commands, and creates it once.

Everything is a form that is sent to this page and shown again, so it works without JavaScript; htmx replaces only its part of the page.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import flask
import msgspec

from poiesis.api.errors import NotJson
from poiesis.api.extensions.rerun import RERUN_OF
from poiesis.api.extensions.validate import dry_run
from poiesis.api.normalize import normalize, parse
from poiesis.api.pages import SAMPLE, curl_credentials, first_method
from poiesis.api.ui.site import Ui, current_request, current_user, page
from poiesis.api.ui.task_form import (
    MAX_JSON_BYTES,
    Document,
    Form,
    cli_command,
    curl_command,
    how_to_authenticate,
    pretty,
    reason_against,
)
from poiesis.api.users import User
from poiesis.domain.errors import Conflict, InvalidTask, Problem
from poiesis.domain.task import Task, TaskSpec, View
from poiesis.ports.idempotency import IdempotencyKey

_KEY: Final = re.compile(r"[0-9a-f]{32}")
_PLACES: Final = re.compile(r"(\$\.(?:\w+\[\d+\]\.)?\w+(?:\.\w+)?)")

EXAMPLES: Final[Mapping[str, tuple[str, Document]]] = {
    "hello": ("Hello", SAMPLE),
    "s3": (
        "Copy from S3 and back",
        {
            "name": "count lines",
            "inputs": [{"url": "s3://my-bucket/input.txt", "path": "/data/input.txt"}],
            "outputs": [{"path": "/data/count.txt", "url": "s3://my-bucket/count.txt"}],
            "executors": [
                {
                    "image": "docker.io/library/alpine:3.20",
                    "command": ["wc", "-l", "/data/input.txt"],
                    "stdout": "/data/count.txt",
                }
            ],
            "resources": {"cpu_cores": 1, "ram_gb": 1, "disk_gb": 1},
        },
    ),
    "steps": (
        "Several commands",
        {
            "name": "two steps",
            "volumes": ["/shared"],
            "executors": [
                {
                    "image": "docker.io/library/alpine:3.20",
                    "command": ["sh", "-c", "seq 1 100 > /shared/numbers"],
                },
                {
                    "image": "docker.io/library/python:3.12-slim",
                    "command": ["python", "-c", "print(sum(map(int, open('/shared/numbers'))))"],
                },
            ],
            "resources": {"cpu_cores": 1, "ram_gb": 1},
        },
    ),
    "gpu": (
        "A GPU",
        {
            "name": "list GPUs",
            "executors": [{"image": "docker.io/nvidia/cuda:12.4.1-base-ubuntu22.04", "command": ["nvidia-smi"]}],
            "resources": {"cpu_cores": 2, "ram_gb": 8, "backend_parameters": {"gpu": "1"}},
        },
    ),
}


@dataclass
class Draft:
    """What the page shows. `form` None: it is edited as JSON, in `text`. `focus`: the field to go on with."""

    key: str
    form: Form | None
    text: str = ""
    document: Document = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    message: str = ""
    focus: str = ""
    checked: Mapping[str, Any] | None = None
    original: str = ""

    @property
    def by_field(self) -> dict[str, list[str]]:
        """Problems beside their fields; those of an item of a field are beside the field."""
        places = self.form.places() if self.form else {}
        found: dict[str, list[str]] = {}
        for problem in self.problems:
            match = _PLACES.match(problem.path)
            place = places.get(problem.path) or places.get(match[1] if match else "")
            if place is None and match:  # `$.resources.backend_parameters.gpu`
                place = places.get(match[1].rpartition(".")[0])
            if place is not None:
                found.setdefault(place, []).append(problem.message)
        return found


def register(ui: Ui) -> None:
    ui.add_link("New task", "/ui/new", order=30)
    pages = _Pages(ui)
    ui.get("/new")(pages.new)
    ui.post("/new")(pages.submit)


class _Pages:
    def __init__(self, ui: Ui) -> None:
        self._context = ui.context
        self._services = ui.services
        has_gpu = "gpu" in ui.services.policy.backend_parameters
        self._examples = {name: title for name, (title, _) in EXAMPLES.items() if name != "gpu" or has_gpu}

    def new(self) -> Any:
        asked = flask.request.args
        if not (original := asked.get("from", "")):
            return self._show(_draft(EXAMPLES.get(asked.get("example", ""), EXAMPLES["hello"])[1]))
        task = self._services.tasks.get(original, View.FULL, access=current_user().access)
        assert isinstance(task, Task)
        document = _document_of(task.spec)
        document["tags"] = {**document.get("tags", {}), RERUN_OF: task.id}
        return self._show(_draft(document, task.id))

    def submit(self) -> Any:
        fields, user = flask.request.form, current_user()
        action = fields.get("action", "check")
        current_request().only_reads = action != "create"
        draft = _read(fields)
        if draft.form is not None and (focus := draft.form.change_rows(action)):
            draft.focus = focus
            draft.document, _ = draft.form.document()
            return self._show(draft)
        if action in ("json", "form") and not draft.problems:
            return self._show(_switched(draft, to_json=action == "json"))
        if not draft.problems and action != "preview":
            self._check(draft, user)
        if action == "create" and not draft.problems:
            try:
                return self._create(draft, user)
            except InvalidTask as error:
                draft.problems = list(error.problems)
            except Conflict:
                draft.key = secrets.token_hex(16)
                draft.message = "This form has already created a task, and was changed afterwards. Press Create again for another task."
                return self._show(draft, 409)
        draft.focus = "problems" if draft.problems else "checked" if action == "check" else ""
        return self._show(draft)

    def _show(self, draft: Draft, status: int = 200) -> Any:
        api, policy = self._services.api, self._services.policy
        method = current_user().method or first_method(api)
        base = (api.dashboard.url or flask.request.url_root.rstrip("/")) + "/ga4gh/tes/v1"
        return page(
            "new_task.html",
            status=status,
            draft=draft,
            form=draft.form,
            examples=self._examples,
            by_field=draft.by_field,
            preview=pretty(draft.document),
            curl=curl_command(draft.document, base, curl_credentials(method).strip()),
            cli=cli_command(draft.document, base, method),
            before=how_to_authenticate(base, method, "api_key" in api.auth),
            parameters=sorted(policy.backend_parameters),
            schemes=sorted(policy.url_schemes_in),
        )

    def _check(self, draft: Draft, user: User) -> None:
        result = dry_run(self._context, draft.document, user)
        draft.problems = [Problem(each["path"], each["message"]) for each in result["problems"]]
        draft.checked = result if result["valid"] else None

    def _create(self, draft: Draft, user: User) -> Any:
        spec = self._context.tasks.read(draft.document)
        digest = hashlib.sha256(json.dumps(["dashboard", draft.document], sort_keys=True).encode()).hexdigest()
        key = IdempotencyKey(f"dashboard-{draft.key}", digest)
        task_id = self._services.tasks.create(spec, owner=user.name, groups=user.groups, key=key)
        current_request().task = task_id
        return flask.redirect(f"/ui/tasks/{task_id}", 303)


def _draft(document: Document, original: str = "") -> Draft:
    """Return the draft for a document, edited as JSON where a form cannot show it."""
    key = secrets.token_hex(16)
    reason = reason_against(document)
    if reason is None:
        return Draft(key, Form.of_document(document), document=document, original=original)
    text = pretty(document)
    if len(text) > MAX_JSON_BYTES:
        message = (
            f"This task is too large for this page ({len(text):,} bytes). Use `poiesis task rerun {original}` instead."
        )
        return Draft(key, None, "{}", message=message)
    return Draft(key, None, text, document, message=f"Shown as JSON, because {reason}.", original=original)


def _read(fields: Mapping[str, str]) -> Draft:
    key = fields.get("key", "")
    draft = Draft(
        key if _KEY.fullmatch(key) else secrets.token_hex(16), None, original=fields.get("original", "")[:100]
    )
    if fields.get("mode") != "json":
        draft.form = Form.of_fields(fields)
        draft.document, draft.problems = draft.form.document()
        return draft
    draft.text = fields.get("json", "")
    try:
        found = normalize(parse(draft.text.encode()))
    except NotJson as error:
        draft.problems = [Problem("$", str(error))]
        return draft
    except UnicodeEncodeError:
        draft.problems = [Problem("$", "invalid text: contains an unpaired surrogate; must be valid Unicode")]
        return draft
    if not isinstance(found, dict):
        draft.problems = [Problem("$", "must be an object")]
        return draft
    draft.document = found
    return draft


def _switched(draft: Draft, *, to_json: bool) -> Draft:
    if to_json:
        return Draft(draft.key, None, pretty(draft.document), draft.document, focus="json", original=draft.original)
    reason = reason_against(draft.document)
    if reason is not None:
        draft.message = f"The form cannot show this task: {reason}."
        return draft
    form = Form.of_document(draft.document)
    return Draft(draft.key, form, document=draft.document, focus="name", original=draft.original)


def _document_of(spec: TaskSpec) -> Document:
    """The request, without what is empty."""
    found: Document = normalize(parse(msgspec.json.encode(spec)))
    for name in ("executors", "inputs", "outputs"):
        found[name] = [_without_empty(item) for item in found.get(name, ())]
    if "resources" in found:
        found["resources"] = _without_empty(found["resources"])
    return _without_empty(found)


def _without_empty(part: Document) -> Document:
    """Without what is the same as being left out."""
    return {
        key: value
        for key, value in part.items()
        if value not in ([], {}) and not (key == "ignore_error" and value is False)
    }
