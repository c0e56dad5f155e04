"""The second API stands behind the same gateway as the first, and a handler may answer with a stream."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import StreamingResponse

from poiesis.api.app import _Operation, load_specification
from poiesis.api.extensions import operations
from poiesis.api.parameters import read_parameters
from poiesis.config import ApiSettings
from poiesis.domain.errors import InvalidRequest
from tests.unit.api.service import Site, assert_error

BASE = "/poiesis/v1"
DOCUMENT = load_specification("poiesis.openapi.yaml")
OPERATIONS = [
    (method, path, item[method])
    for path, item in DOCUMENT["paths"].items()
    for method in item
    if method != "parameters"
]


def test_every_operation_has_a_handler_and_every_handler_an_operation(site: Site) -> None:
    context: Any = SimpleNamespace(services=site.services())
    found = operations(context)
    assert sorted(found) == sorted(operation["operationId"] for _, _, operation in OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path"), [(m, p) for m, p, o in OPERATIONS if o["operationId"] != "GetCapabilities"]
)
def test_every_operation_but_capabilities_requires_credentials(
    method: str, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("auth") / "users.json"
    file.write_text("[]")
    site = Site(api=ApiSettings(auth=("bearer",), credentials_file=str(file)))
    response = site.client.request(method, BASE + path.replace("{id}", "x"))
    assert_error(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"]


class TestTheGateway:
    def test_answers_in_json_with_the_headers_of_the_other_api(self, site: Site) -> None:
        response = site.client.get(f"{BASE}/capabilities")
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize("path", ["", "/", "/nothing", "/capabilities/x", "/tasks/a/b/c"])
    def test_unknown_paths_are_404(self, site: Site, path: str) -> None:
        assert_error(site.client.get(BASE + path), 404, "not_found")

    def test_another_method_is_405_with_those_allowed(self, site: Site) -> None:
        response = site.client.delete(f"{BASE}/capabilities")
        assert_error(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "GET, HEAD"

    def test_refuses_foreign_pages(self, site: Site) -> None:
        response = site.client.get(f"{BASE}/capabilities", headers={"Origin": "https://evil.example"})
        assert_error(response, 403, "forbidden")

    def test_has_a_swagger_page(self, site: Site) -> None:
        assert f'url: "{BASE}/openapi.json"' in site.client.get(f"{BASE}/ui/").text
        assert "/capabilities" in site.client.get(f"{BASE}/openapi.json").json()["paths"]


def test_a_handler_may_answer_with_a_stream() -> None:
    from starlette.testclient import TestClient

    async def handler(_: Any) -> StreamingResponse:
        return StreamingResponse(iter([b"a", b"b"]), media_type="text/event-stream")

    response = TestClient(_Operation(handler)).get("/")
    assert response.content == b"ab"
    assert response.headers["content-type"].startswith("text/event-stream")


def _parameter(name: str, schema: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, **more}


KNOWN = [
    _parameter("timeout", {"type": "integer", "minimum": 0, "maximum": 60, "default": 30}),
    _parameter("id", {"type": "array", "maxItems": 2, "items": {"type": "string"}}),
    _parameter("until", {"type": "string", "enum": ["END", "CHANGE"]}),
    _parameter("all", {"type": "boolean"}),
]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (b"", {"timeout": 30}),
        (b"timeout=", {"timeout": 30}),
        (b"timeout=1&timeout=2", {"timeout": 2}),
        (b"id=a&id=b&x=y", {"timeout": 30, "id": ["a", "b"]}),
        (b"until=end&all=TRUE", {"timeout": 30, "until": "END", "all": True}),
    ],
)
def test_parameters_are_read_by_their_types(query: bytes, found: Mapping[str, Any]) -> None:
    assert read_parameters(query, KNOWN) == found


@pytest.mark.parametrize(
    "query",
    [b"timeout=-1", b"timeout=61", b"timeout=1.5", b"timeout=\xd9\xa1", b"timeout=1_0", b"timeout=" + b"9" * 5000,
     b"id=a&id=b&id=c", b"until=x", b"all=2", b"&".join([b"x=1"] * 2000)],
)  # fmt: skip
def test_other_values_are_refused(query: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_parameters(query, KNOWN)


def test_a_required_parameter_may_not_be_missing() -> None:
    with pytest.raises(InvalidRequest, match="required"):
        read_parameters(b"a=", [_parameter("a", {"type": "string"}, required=True)])
