"""A small client of any TES 1.x server, for the command line."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NoReturn
from urllib.parse import quote, unquote, urlsplit

import urllib3

from poiesis.cli.exits import MissingExtension
from poiesis.cli.logins import Logins
from poiesis.cli.profiles import Server
from poiesis.cli.text import printable
from poiesis.domain.errors import (
    ConfigurationError,
    Forbidden,
    InvalidTask,
    PoiesisError,
    Problem,
    Unauthenticated,
    Unavailable,
    UnknownTask,
)

PIECE_BYTES: Final = 64 * 1024
MAX_ERROR_BYTES: Final = 64 * 1024
MAX_BREAKS: Final = 8  # of a connection in succession
EXTENSIONS: Final = "/poiesis/v1"
HOW_TO_AUTHENTICATE: Final = " (run `poiesis login`, set POIESIS_TOKEN, or add user:password@ to the URL)"
PREFIXES: Final = ("/ga4gh/tes/v1", "/v1", "")
MAX_BODY_BYTES: Final = 256 * 1024 * 1024
MAX_RETRY_AFTER_S: Final = 30
QUICK_S: Final = 1.0
_CODE: Final = re.compile(r"[a-z]+(_[a-z]+)*")
_NOT_CONNECTED: Final = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)


class NotAccepted(Unavailable):
    """The request did not reach the server, or was refused for now: it has changed nothing."""


class TesClient:
    """`url` with or without the API's path, which the first request detects. Raises on construction: ConfigurationError for an invalid URL.

    Credentials: `user:password@` in the URL, or POIESIS_TOKEN / TES_TOKEN (bearer), or what `poiesis login` saved. All methods raise
    subclasses of PoiesisError. `quick`: no retries, and a second for each response.
    """

    def __init__(self, url: str, environ: Mapping[str, str] = os.environ, *, quick: bool = False) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigurationError(f"invalid server URL {url!r}: use one such as http://127.0.0.1:8000")
        self._base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._prefix: str | None = None
        self._missing: set[str] = set()
        self._headers = {"Accept": "application/json"}
        self._login: Callable[[], str | None] = lambda: None
        token = environ.get("POIESIS_TOKEN") or environ.get("TES_TOKEN")
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        elif token:
            self._headers["Authorization"] = f"Bearer {token}"
        else:
            self._login = partial(Logins(environ).access_token, self._base)
        retries = urllib3.Retry(
            3,
            backoff_factor=0.2,
            allowed_methods=["GET"],
            redirect=3,
            raise_on_status=False,  # the message of the last response is worth more
            retry_after_max=MAX_RETRY_AFTER_S,
        )
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=QUICK_S, read=QUICK_S) if quick else urllib3.Timeout(connect=10, read=60),
            maxsize=4,  # the streams of a log are followed at once
            retries=urllib3.Retry(0, redirect=1, respect_retry_after_header=False) if quick else retries,
        )

    @classmethod
    def of(cls, server: Server, environ: Mapping[str, str] = os.environ, *, quick: bool = False) -> TesClient:
        """Return a client with the credentials of the profile, if it has any: those of the environment may be for another server."""
        own = {"POIESIS_TOKEN": server.token} if server.token else {}
        return cls(server.url, {**environ, **own}, quick=quick)

    def service_info(self) -> dict[str, Any]:
        return self._call("GET", "/service-info")

    def create(self, task: Any) -> str:
        self._know_prefix()  # the requests for it create no task
        try:
            task_id = self._call("POST", "/tasks", body=task).get("id")
        except NotAccepted:
            raise
        except Unavailable as error:
            message = f"{error}; if the request arrived, the task exists: see `poiesis task list`"
            raise Unavailable(message) from error
        if not isinstance(task_id, str):
            raise PoiesisError(f"invalid response of {self._base}: missing id of the new task")
        return task_id

    def get(self, task_id: str, view: str = "FULL") -> dict[str, Any]:
        return self._call("GET", f"/tasks/{quote(task_id, safe='')}", {"view": view})

    def list(self, query: list[tuple[str, str]]) -> dict[str, Any]:
        return self._call("GET", "/tasks", query)

    def cancel(self, task_id: str) -> str:
        """Returns the id."""
        self._call("POST", f"/tasks/{quote(task_id, safe='')}:cancel")
        return task_id

    def extension(self, method: str, path: str, query: Any = None, body: Any = None) -> dict[str, Any]:
        """Call an operation that only Poiesis has (`specs/poiesis.openapi.yaml`).

        Raises: MissingExtension, if the server is another one; UnknownTask, PoiesisError."""
        status, document = self._request(method, self._root + EXTENSIONS + path, query, body)
        if status in (404, 405, 501):
            self._raise_not_found(document or {})
        if status < 300 and document is None:  # a page for any path
            self._raise_not_found({})
        return self._checked(status, document, path)

    def try_extension(
        self,
        method: str,
        path: str,
        query: Any = None,
        body: Any = None,
        *,
        instead: str | None,
        name: str | None = None,
    ) -> dict[str, Any] | None:
        """Like `extension`, but return None if the server lacks the operation or refuses it, which is reported once on stderr with what
        is done `instead`, unless the user notices no difference (None).

        Raises: UnknownTask, PoiesisError."""
        operation = name or (path.rpartition("/")[2] if path.count("/") > 1 else path[1:])
        if operation in self._missing:
            return None
        try:
            return self.extension(method, path, query, body)
        except (MissingExtension, Unauthenticated, Forbidden) as error:
            why = "does not have" if isinstance(error, MissingExtension) else "refuses"
            if instead is not None:
                self.state_missing(operation, f"{why} /poiesis/v1 {operation!r}, an extension of Poiesis: {instead}")
            return None

    def state_missing(self, operation: str, sentence: str) -> None:
        if operation not in self._missing:
            self._missing.add(operation)
            print(f"poiesis: {printable(f'{self._root} {sentence}')}", file=sys.stderr, flush=True)

    def follow_log(self, task_id: str, executor: int, stream: str) -> Iterator[bytes]:
        """The bytes of a log from its beginning until the executor has ended; a broken connection is continued where it broke.

        Raises: MissingExtension, also where the site keeps no whole logs; PoiesisError."""
        offset = failures = 0
        url = f"{self._root}{EXTENSIONS}/tasks/{quote(task_id, safe='')}/logs/{executor}/{stream}"
        while True:
            query = {"follow": "true", "offset": str(offset)}
            headers = {**self._authorized(), "Accept": "text/plain"}
            try:
                with self._http.request("GET", url, fields=query, headers=headers, preload_content=False) as response:
                    if response.status != 200:
                        document = _json_object(response.read(MAX_ERROR_BYTES)) or {}
                        if response.status in (404, 405, 501):
                            self._raise_not_found(document)
                        message = _message(document, response.status)
                        raise MissingExtension(message) if response.status == 400 else PoiesisError(message)
                    while piece := response.read1(PIECE_BYTES):
                        offset, failures = offset + len(piece), 0
                        yield piece
                    return
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failures += 1
                if failures > MAX_BREAKS:
                    raise Unavailable(f"the connection to {self._base} broke {failures} times: {error}") from error
                time.sleep(min(0.2 * 2**failures, 5.0))

    @property
    def _root(self) -> str:
        """The URL without the path of the API."""
        return next((self._base.removesuffix(p) for p in PREFIXES if p and self._base.endswith(p)), self._base)

    def _raise_not_found(self, error: Mapping[str, Any]) -> NoReturn:
        """Raises: MissingExtension; UnknownTask, PoiesisError, for a 404 about an object of the user."""
        code = _code(error)
        if code in (None, "not_found", "method_not_allowed", "not_implemented"):
            raise MissingExtension(
                f"the server {self._root} does not have this operation, which is an extension of Poiesis"
            )
        found = UnknownTask("") if code == "unknown_task" else PoiesisError()
        found.args = (_message(error, 404),)
        raise found

    def _call(self, method: str, path: str, query: Any = None, body: Any = None) -> dict[str, Any]:
        return self._checked(*self._request(method, self._base + self._know_prefix() + path, query, body), path)

    def _know_prefix(self) -> str:
        if self._prefix is None:
            self._prefix = self._find_prefix()
        return self._prefix

    def _checked(self, status: int, document: dict[str, Any] | None, path: str) -> dict[str, Any]:
        if status < 300:
            if document is None:
                raise PoiesisError(f"invalid response of {self._base}: not a JSON object")
            return document
        error = document or {}
        message = _message(error, status)
        if status == 400:
            problems = [p for p in error.get("problems") or [] if isinstance(p, dict)]
            found = [Problem(str(p.get("path")), str(p.get("message"))) for p in problems]
            raise InvalidTask(found or [Problem("$", message)])
        if status == 401:
            raise Unauthenticated(message + HOW_TO_AUTHENTICATE)
        if status == 404 and _code(error) in (None, "not_found", "unknown_task"):
            raise UnknownTask(unquote(path.split("/")[-1].removesuffix(":cancel")))
        raise {403: Forbidden, 429: NotAccepted, 503: Unavailable}.get(status, PoiesisError)(message)

    def _find_prefix(self) -> str:
        if any(prefix and self._base.endswith(prefix) for prefix in PREFIXES):
            return ""
        for prefix in PREFIXES:
            status, document = self._request("GET", f"{self._base}{prefix}/service-info")
            if status != 404 and (status >= 300 or document is not None):
                return prefix
        raise Unavailable(f"no TES server at {self._base}: tried {', '.join(p or '/' for p in PREFIXES)}")

    def _authorized(self) -> dict[str, str]:
        token = self._login()  # of a saved login, which may have been refreshed
        return {**self._headers, "Authorization": f"Bearer {token}"} if token else self._headers

    def _request(self, method: str, url: str, query: Any = None, body: Any = None) -> tuple[int, dict[str, Any] | None]:
        """The status, and the JSON object, if it is one. Raises: Unavailable, PoiesisError."""
        headers, data = self._authorized(), None
        if body is not None:
            headers, data = {**headers, "Content-Type": "application/json"}, json.dumps(body).encode()
        try:
            with self._http.request(
                method, url, fields=query, body=data, headers=headers, preload_content=False
            ) as response:
                content = response.read(MAX_BODY_BYTES + 1, decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            unsent = isinstance(getattr(error, "reason", error), _NOT_CONNECTED)
            raise (NotAccepted if unsent else Unavailable)(
                f"no response from {self._base}: {_reason(error)}"
            ) from error
        if len(content) > MAX_BODY_BYTES:
            raise PoiesisError(f"the response of {self._base} has more than {MAX_BODY_BYTES} bytes")
        return response.status, _json_object(content)


def _reason(error: Exception) -> str:
    """In words, without the classes and addresses of the library."""
    cause = getattr(error, "reason", error) or error
    if isinstance(cause, urllib3.exceptions.ProtocolError):  # its text is a tuple
        return str(cause.args[-1])
    reason = str(cause).split(">: ")[-1].split("): ")[-1]
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        detail = reason.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "it cannot be verified"
        return f"invalid certificate: {detail}; for a private CA set SSL_CERT_FILE to its certificate"
    if "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason:
        return "the server does not use TLS at this port: try http://"
    return reason


def _code(error: Mapping[str, Any]) -> str | None:
    """Poiesis's error code; None for the error of another server, which has a sentence there, such as Funnel's, or nothing."""
    code = error.get("error")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None


def _message(error: Mapping[str, Any], status: int) -> str:
    """Of Poiesis, of RFC 9457 and frameworks that are like it, or of Funnel."""
    texts = (error.get(field) for field in ("message", "detail", "title", "error"))
    return next((text for text in texts if isinstance(text, str) and text), f"HTTP status {status}")


def _json_object(content: bytes) -> dict[str, Any] | None:
    """None for anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
