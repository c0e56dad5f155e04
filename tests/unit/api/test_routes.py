"""Routes: both base paths, pages, health, and 404 for everything else."""

from __future__ import annotations

import html
import json
import re
import shlex
from datetime import timedelta

import pytest

from poiesis.api.server import serve
from poiesis.config import ApiSettings, ServiceSettings
from poiesis.domain.errors import ConfigurationError
from tests.unit.api.service import BASE, Site, assert_error


class TestOtherPaths:
    @pytest.mark.parametrize(
        "path",
        ["/tasks", "/service-info", "/v2/tasks", "/ga4gh/tes/v2/tasks", "/ga4gh/tes/v1", "/v1", "/ga4gh/tes/v1/nothing",
         "/v1/", "/v1/tasks/a/b", "/ga4gh/wes/v1/runs", "/poiesis/v1", "/poiesis/v1/nope", "/favicon.ico", "/v1x", "/%00"],
    )  # fmt: skip
    @pytest.mark.parametrize("auth", [(), ("basic",)])
    def test_is_404_with_or_without_credentials(
        self, path: str, auth: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        file = tmp_path_factory.mktemp("auth") / "users.json"
        file.write_text("[]")
        site = Site(api=ApiSettings(auth=auth, credentials_file=str(file)))
        message = assert_error(site.client.get(path), 404, "not_found")["message"]
        for base in re.findall(r"/\w+/\S*v1", message):
            assert site.client.get(f"{base}/openapi.json").status_code == 200
        assert "/ga4gh/tes/v1 and /poiesis/v1, each with its openapi.json" in message
        assert_error(site.client.post(path, json={}), 404, "not_found")

    @pytest.mark.parametrize("base", ["/ga4gh/tes/v1", "/v1"])
    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/tasks", "GET, POST, HEAD"),
            ("OPTIONS", "/tasks", "GET, POST, HEAD"),
            ("PATCH", "/tasks", "GET, POST, HEAD"),
            ("DELETE", "/tasks/x", "GET, HEAD"),
            ("POST", "/tasks/x", "GET, HEAD"),
            ("PUT", "/tasks/x:cancel", "POST"),
            ("POST", "/service-info", "GET, HEAD"),
        ],
    )
    def test_another_method_is_405_with_those_allowed(
        self, site: Site, base: str, method: str, path: str, allowed: str
    ) -> None:
        response = site.client.request(method, base + path)
        assert_error(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed


class TestBothBasePaths:
    @pytest.mark.parametrize("base", ["/ga4gh/tes/v1", "/v1"])
    def test_serve_the_same_operations(self, site: Site, base: str) -> None:
        document = {"executors": [{"image": "i", "command": ["c"]}]}
        task_id = site.client.post(f"{base}/tasks", json=document).json()["id"]
        assert site.client.get(f"{base}/tasks/{task_id}").json()["id"] == task_id
        assert site.client.get(f"{base}/tasks").json()["tasks"][0]["id"] == task_id
        assert site.client.post(f"{base}/tasks/{task_id}:cancel").json() == {}
        assert site.client.get(f"{base}/service-info").json()["type"]["artifact"] == "tes"

    @pytest.mark.parametrize("base", ["/ga4gh/tes/v1", "/v1"])
    def test_have_a_swagger_page_without_external_resources(self, site: Site, base: str) -> None:
        page = site.client.get(f"{base}/ui/")
        assert page.status_code == 200
        assert f'url: "{base}/openapi.json"' in page.text
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert loaded
        for name in loaded:
            assert "://" not in name
            assert site.client.get(f"{base}/ui/{name.removeprefix('./')}").status_code == 200
        assert site.client.get(f"{base}/ui", follow_redirects=False).headers["location"].endswith(f"{base}/ui/")

    @pytest.mark.parametrize("base", ["/ga4gh/tes/v1", "/v1"])
    def test_serve_the_document_for_themselves(self, site: Site, base: str) -> None:
        document = site.client.get(f"{base}/openapi.json").json()
        assert document["servers"] == [{"url": base}]
        assert set(document["paths"]) == {"/service-info", "/tasks", "/tasks/{id}", "/tasks/{id}:cancel"}
        answer = document["paths"]["/service-info"]["get"]["responses"]["200"]["content"]["application/json"]
        assert answer["schema"] == {"$ref": "#/components/schemas/tesServiceInfo"}, (
            "generators name models by references"
        )


class TestHealth:
    def test_liveness_needs_nothing(self, site: Site) -> None:
        site.repository.down = site.queue.down = True
        assert site.client.get("/healthz").json() == {"status": "ok"}

    def test_readiness_needs_store_and_queue(self, site: Site) -> None:
        assert site.client.get("/readyz").json() == {"status": "ok"}
        site.queue.down = True
        response = site.client.get("/readyz")
        assert_error(response, 503, "queue_unavailable")
        assert response.headers["retry-after"]
        site.queue.down, site.repository.down = False, True
        assert_error(site.client.get("/readyz"), 503, "repository_unavailable")

    def test_is_only_read(self, site: Site) -> None:
        assert_error(site.client.post("/healthz"), 405, "method_not_allowed")
        assert site.client.head("/readyz").status_code == 200


class TestTheStartPage:
    def test_has_a_command_that_works_when_copied(self, site: Site) -> None:
        page = site.client.get("/").text
        line = html.unescape(re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)[0])
        words = shlex.split(line)
        url = next(word for word in words if word.startswith("http"))
        assert url == "http://127.0.0.1:8000/ga4gh/tes/v1/tasks"
        response = site.client.request(
            words[words.index("-X") + 1],
            url,
            content=words[words.index("-d") + 1],
            headers=dict([words[words.index("-H") + 1].split(": ")]),
        )
        assert response.status_code == 200, response.text

    def test_has_links_that_work(self, site: Site) -> None:
        page = site.client.get("/").text
        for link in re.findall(r'href="(?!data:)([^"]+)"', page):
            assert site.client.get("/" + link).status_code == 200, link

    def test_escapes_settings(self) -> None:
        site = Site(service=ServiceSettings(name="<script>alert(1)</script>"))
        assert "<script>" not in site.client.get("/").text

    @pytest.mark.parametrize(
        ("auth", "words"), [("bearer", "Authorization: Bearer"), ("api_key", "X-API-Key"), ("basic", "-u ")]
    )
    def test_shows_how_to_send_credentials(
        self, auth: str, words: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        file = tmp_path_factory.mktemp("auth") / "users.json"
        file.write_text("[]")
        assert words in Site(api=ApiSettings(auth=(auth,), credentials_file=str(file))).client.get("/").text

    def test_refuses_large_bodies(self) -> None:
        site = Site(api=ApiSettings(max_body_bytes=10))
        assert_error(site.client.post("/", content=b"x" * 11), 413, "body_too_large")


class TestCors:
    def test_is_off_by_default(self, site: Site) -> None:
        headers = site.get("/service-info", headers={"Origin": "https://a.example"}).headers
        assert "access-control-allow-origin" not in headers

    def test_lets_configured_origins_call(self) -> None:
        site = Site(api=ApiSettings(cors_origins=("https://a.example",)))
        answer = site.get("/service-info", headers={"Origin": "https://a.example"})
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        wrong = site.get("/tasks?view=x", headers={"Origin": "https://a.example"})
        assert wrong.headers["access-control-allow-origin"] == "https://a.example"
        other = site.get("/service-info", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers

    def test_answers_preflights(self) -> None:
        site = Site(api=ApiSettings(cors_origins=("*",)))
        headers = {
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        answer = site.client.options(f"{BASE}/tasks", headers=headers)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "*"


def test_several_workers_require_an_import_string() -> None:
    with pytest.raises(ConfigurationError, match="import string"):
        serve(object(), ApiSettings(workers=2), timedelta(seconds=25))


def test_responses_are_compact(site: Site) -> None:
    text = site.get("/service-info").text
    assert text == json.dumps(json.loads(text), separators=(",", ":"))
