"""The client of any TES server."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from poiesis.cli.client import TesClient
from poiesis.cli.exits import MissingExtension
from poiesis.domain.errors import (
    ConfigurationError,
    Forbidden,
    InvalidTask,
    PoiesisError,
    Unauthenticated,
    Unavailable,
    UnknownTask,
)
from tests.unit.cli.conftest import Answer, Asked, TesServer


@pytest.mark.parametrize("prefix", ["/ga4gh/tes/v1", "/v1", ""])
def test_the_apis_path_is_found_once(server: TesServer, prefix: str) -> None:
    server.serve({"GET /tasks/x": (200, {"id": "x"})}, prefix)
    client = TesClient(server.url, {})
    for _ in range(2):
        assert client.get("x") == {"id": "x"}
    paths = [a.path.partition("?")[0] for a in server.asked]
    assert paths[-2:] == [f"{prefix}/tasks/x"] * 2
    assert paths.count(f"{prefix}/service-info") == 1


@pytest.mark.parametrize("suffix", ["/ga4gh/tes/v1", "/ga4gh/tes/v1/", "/v1"])
def test_a_given_path_is_used_without_a_request(server: TesServer, suffix: str) -> None:
    server.serve({"GET /tasks/x": (200, {"id": "x"})}, suffix.rstrip("/"))
    assert TesClient(server.url + suffix, {}).get("x") == {"id": "x"}
    assert len(server.asked) == 1


def test_a_path_prefix_is_kept(server: TesServer) -> None:
    server.serve({"GET /tasks/x": (200, {"id": "x"})}, "/site/ga4gh/tes/v1")
    assert TesClient(f"{server.url}/site", {}).get("x") == {"id": "x"}


def test_ids_are_quoted(server: TesServer) -> None:
    server.serve({"GET /tasks/a%2F..%2Fb%3Fc": (200, {"id": "y"})})
    assert TesClient(server.url, {}).get("a/../b?c") == {"id": "y"}


@pytest.mark.parametrize(
    ("user", "environ", "header"),
    [
        ("", {}, None),
        ("", {"TES_TOKEN": "t"}, "Bearer t"),
        ("", {"TES_TOKEN": "t", "POIESIS_TOKEN": "p"}, "Bearer p"),
        ("ada:secret@", {"POIESIS_TOKEN": "p"}, "Basic " + base64.b64encode(b"ada:secret").decode()),
        ("ada@", {}, "Basic " + base64.b64encode(b"ada:").decode()),
        ("a%40b:s%2Fx@", {}, "Basic " + base64.b64encode(b"a@b:s/x").decode()),
    ],
)
def test_credentials_are_sent(server: TesServer, user: str, environ: dict[str, str], header: str | None) -> None:
    server.serve({})
    TesClient(server.url.replace("//", f"//{user}"), environ).service_info()
    assert [a.headers.get("Authorization") for a in server.asked] == [header] * len(server.asked)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (
            (400, {"message": "m", "problems": [{"path": "$.x", "message": "is wrong"}]}),
            InvalidTask,
            r"\$\.x: is wrong",
        ),
        ((400, {"detail": "no good"}), InvalidTask, "no good"),
        ((400, b"<html>"), InvalidTask, "HTTP status 400"),
        ((401, {}), Unauthenticated, "POIESIS_TOKEN"),
        ((403, {"title": "not yours"}), Forbidden, "not yours"),
        ((404, {}), UnknownTask, "x"),
        ((429, {}), Unavailable, "429"),
        ((503, {"message": "later"}), Unavailable, "later"),
        ((500, b""), PoiesisError, "HTTP status 500"),
        ((200, b"<html>"), PoiesisError, "not a JSON object"),
        ((200, []), PoiesisError, "not a JSON object"),
    ],
)
def test_an_error_response_is_raised_as_our_error(
    server: TesServer, answer: Answer, error: type[PoiesisError], text: str
) -> None:
    server.serve({"GET /tasks/x": answer})
    with pytest.raises(error, match=text):
        TesClient(server.url, {}).get("x")


def test_a_response_without_an_id_is_an_error(server: TesServer) -> None:
    server.serve({"POST /tasks": (200, {})})
    with pytest.raises(PoiesisError, match="missing id"):
        TesClient(server.url, {}).create({})


@pytest.mark.parametrize("answer", [(200, b"<html>"), (404, b"<html>"), (200, [])])
def test_another_server_is_not_a_tes_server(server: TesServer, answer: Answer) -> None:
    server.answer = lambda asked: answer
    with pytest.raises(Unavailable, match="no TES server"):
        TesClient(server.url, {}).service_info()


OTHER_SERVERS = [
    {"error": "Not Found"},
    {"detail": "Not Found"},
    {"status": 404, "error": "Not Found", "message": "No message available", "path": "/x"},
    {"code": 5, "message": "Not Found", "details": []},
    {"error": {"code": 404}},
    {},
]
"""Bodies of a 404 as Funnel, FastAPI, Spring, grpc-gateway and others send them."""


@pytest.mark.parametrize("document", OTHER_SERVERS)
def test_another_tes_server_lacks_the_extensions(server: TesServer, document: dict[str, Any]) -> None:
    server.answer = lambda asked: (404, document)
    with pytest.raises(MissingExtension):
        TesClient(server.url, {}).extension("GET", "/tasks/a/why")
    with pytest.raises(MissingExtension):
        list(TesClient(server.url, {}).follow_log("a", 0, "stdout"))


@pytest.mark.parametrize("document", [*OTHER_SERVERS, {"error": "task not found: taskID: a"}])
def test_another_tes_server_does_not_know_a_task(server: TesServer, document: dict[str, Any]) -> None:
    server.serve({"GET /tasks/a": (404, document)})
    with pytest.raises(UnknownTask, match="no such task: 'a'"):
        TesClient(server.url, {}).get("a")


@pytest.mark.parametrize("field", ["message", "detail", "title", "error"])
def test_the_reason_of_another_tes_server_is_shown(server: TesServer, field: str) -> None:
    server.serve({"POST /tasks": (400, {field: "unknown field x"}), "GET /tasks": (500, {field: "the disk is full"})})
    with pytest.raises(InvalidTask, match="unknown field x"):
        TesClient(server.url, {}).create({})
    with pytest.raises(PoiesisError, match="the disk is full"):
        TesClient(server.url, {}).list([])


def test_an_unreachable_server_is_reported_without_the_password() -> None:
    with pytest.raises(Unavailable, match="no response from") as caught:
        TesClient("http://ada:secret@127.0.0.1:1", {}).service_info()
    assert "secret" not in str(caught.value)


def test_a_task_that_was_not_accepted_is_not_reported_as_possibly_created(server: TesServer) -> None:
    with pytest.raises(Unavailable, match=r"refused$"):
        TesClient("http://127.0.0.1:1/v1", {}).create({})
    server.serve({"POST /tasks": (429, {"message": "too many requests"})})
    with pytest.raises(Unavailable, match=r"^too many requests$"):
        TesClient(server.url, {}).create({})


def test_a_server_that_breaks_before_the_task_is_posted_has_no_task(server: TesServer) -> None:
    def broken(asked: Asked) -> Answer:
        raise ConnectionResetError

    server.answer = broken
    with pytest.raises(Unavailable, match=r"without response$"):
        TesClient(server.url, {}, quick=True).create({})


@pytest.mark.parametrize(
    "url", ["", "http://", "ftp://h", "http://[::1", "http://h:port", "http://h:99999", "http:///x", "file:///x"]
)
def test_an_invalid_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="invalid server URL"):
        TesClient(url, {})


def test_a_connection_that_breaks_is_explained_in_words(server: TesServer) -> None:
    def broken(asked: Asked) -> Answer:
        raise ConnectionResetError

    server.answer = broken
    with pytest.raises(Unavailable) as caught:
        TesClient(server.url, {}, quick=True).service_info()
    assert str(caught.value) == f"no response from {server.url}: Remote end closed connection without response"
