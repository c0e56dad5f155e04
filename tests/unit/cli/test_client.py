"""The client of any TES server."""

from __future__ import annotations

import base64

import pytest

from poiesis.cli.client import TesClient
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


def test_an_unreachable_server_is_reported_without_the_password() -> None:
    with pytest.raises(Unavailable, match="no response from") as caught:
        TesClient("http://ada:secret@127.0.0.1:1", {}).service_info()
    assert "secret" not in str(caught.value)


def test_a_task_that_was_not_accepted_is_not_said_to_exist_perhaps(server: TesServer) -> None:
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
