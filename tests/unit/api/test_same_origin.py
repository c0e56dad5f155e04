"""Which web pages may call the service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poiesis.api.credentials import hash_secret
from poiesis.config import ApiSettings
from tests.unit.api.service import BASE, HELLO, Site, assert_error

FOREIGN = {"Origin": "https://evil.example"}
CROSS_SITE = {"Sec-Fetch-Site": "cross-site"}
SAME_SITE = {"Sec-Fetch-Site": "same-site"}
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.fixture
def guarded(tmp_path: Path) -> Site:
    path = tmp_path / "users.json"
    path.write_text(json.dumps([{"name": "ada", "token_hash": hash_secret("token", "bearer")}]))
    return Site(api=ApiSettings(auth=("bearer",), credentials_file=str(path)))


TOKEN = {"Authorization": "Bearer token"}


class TestHost:
    @pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.7",
                                      "127.0.0.1@evil.example", "[::1]evil", "", "a b", "[::1"])  # fmt: skip
    def test_that_is_not_a_name_of_the_service_is_refused(self, site: Site, host: str) -> None:
        for path in (f"{BASE}/tasks", f"{BASE}/service-info", "/", f"{BASE}/ui/", f"{BASE}/openapi.json", "/nothing"):
            assert site.client.get(path, headers={"Host": host}).status_code in (400, 403)
        response = site.post("/tasks", HELLO, headers={"Host": host})
        assert_error(response, response.status_code)
        assert site.stored() == 0

    def test_that_is_unknown_is_answered_with_the_setting(self, site: Site) -> None:
        body = assert_error(site.get("/tasks", headers={"Host": "evil.example"}), 403, "forbidden")
        assert body["message"] == (
            "unknown host name 'evil.example': use a name of the service, or add this one to POIESIS_API__ALLOWED_HOSTS"
        )

    @pytest.mark.parametrize(
        "host",
        ["localhost", "LOCALHOST:8000", "localhost.:8000", "127.0.0.1:9", "127.8.0.1", "[::1]:8000", "tes.localhost"],
    )
    def test_that_is_a_loopback_name_is_allowed(self, site: Site, host: str) -> None:
        assert site.get("/tasks", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize("host", ["tes", "TES.ns.svc:8000", "a.tes.example.org"])
    def test_that_is_configured_is_allowed(self, host: str) -> None:
        site = Site(api=ApiSettings(allowed_hosts=("tes", "tes.ns.svc", "*.tes.example.org")))
        assert site.get("/tasks", headers={"Host": host}).status_code == 200
        assert_error(site.get("/tasks", headers={"Host": f"{host.split(':')[0]}.evil.example"}), 403)
        assert_error(site.get("/tasks", headers={"Host": "eviltes.example.org"}), 403)

    def test_may_be_any_name_where_configured(self) -> None:
        assert Site(api=ApiSettings(allowed_hosts=("*",))).get("/tasks", headers={"Host": "x"}).status_code == 200

    def test_may_be_any_address_unless_the_service_listens_on_loopback(self) -> None:
        site = Site(api=ApiSettings(host="0.0.0.0", allow_anonymous=True))
        assert site.get("/tasks", headers={"Host": "192.0.2.7:8000"}).status_code == 200
        assert site.get("/tasks", headers={"Host": "[2001:db8::7]"}).status_code == 200
        assert_error(site.get("/tasks", headers={"Host": "evil.example"}), 403)

    def test_may_be_the_name_that_the_service_listens_on(self) -> None:
        assert (
            Site(api=ApiSettings(host="tes.lan", allow_anonymous=True))
            .get("/tasks", headers={"Host": "tes.lan"})
            .status_code
            == 200
        )

    def test_does_not_matter_with_authentication(self, guarded: Site) -> None:
        assert guarded.get("/tasks", headers=TOKEN | {"Host": "any.example"}).status_code == 200

    def test_does_not_matter_for_health(self, site: Site) -> None:
        for path in ("/healthz", "/readyz"):
            assert site.client.get(path, headers={"Host": "10.0.0.7:8000"}).status_code == 200


class TestOrigin:
    @pytest.mark.parametrize("headers", [FOREIGN, CROSS_SITE, SAME_SITE, {"Origin": "null"}, {"Origin": "http://127.0.0.1:3000"},
                                         {"Origin": "http://127.0.0.1.evil.example:8000"}, {"Origin": "ftp://127.0.0.1:8000"},
                                         {"Origin": "http://["}])  # fmt: skip
    def test_that_is_foreign_is_refused(self, site: Site, headers: dict[str, str]) -> None:
        task_id = site.create()
        for response in (
            site.get("/tasks", headers=headers),
            site.post("/tasks", HELLO, headers=headers),
            site.post(f"/tasks/{task_id}:cancel", headers=headers),
            site.client.get("/", headers=headers),
            site.client.options(f"{BASE}/tasks", headers=headers),
        ):
            assert "POIESIS_API__CORS_ORIGINS" in assert_error(response, 403, "forbidden")["message"]
        assert site.stored() == 1

    @pytest.mark.parametrize(
        "headers",
        [{}, {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}],
    )
    def test_that_is_its_own_or_none_is_allowed(self, site: Site, headers: dict[str, str]) -> None:
        assert site.get("/tasks", headers=headers).status_code == 200
        assert site.post("/tasks", HELLO, headers=headers).status_code == 200

    def test_behind_a_proxy_that_ends_tls_is_its_own(self) -> None:
        site = Site(api=ApiSettings(allowed_hosts=("tes.example.org",)))
        headers = {"Host": "tes.example.org", "Origin": "https://tes.example.org"}
        assert site.post("/tasks", HELLO, headers=headers).status_code == 200

    def test_that_is_configured_is_allowed(self) -> None:
        site = Site(api=ApiSettings(cors_origins=("https://Portal.example/",)))
        headers = {"Origin": "https://portal.example", **CROSS_SITE}
        assert site.post("/tasks", HELLO, headers=headers).status_code == 200
        assert_error(site.post("/tasks", HELLO, headers=FOREIGN | CROSS_SITE), 403)

    def test_a_link_leads_to_pages_and_not_to_the_api(self, site: Site) -> None:
        assert site.client.get("/", headers=CROSS_SITE | LINK).status_code == 200
        assert_error(site.get("/tasks", headers=CROSS_SITE | LINK), 403)
        assert_error(site.client.get("/", headers=CROSS_SITE | LINK | {"Sec-Fetch-Dest": "iframe"}), 403)
        assert_error(site.client.post("/", headers=CROSS_SITE | LINK), 403)

    def test_with_authentication_only_reading_is_allowed(self, guarded: Site) -> None:
        task_id = guarded.create(headers=TOKEN)
        for headers in (FOREIGN, CROSS_SITE, SAME_SITE):
            assert guarded.get("/tasks", headers=TOKEN | headers).status_code == 200
            assert_error(guarded.post("/tasks", HELLO, headers=TOKEN | headers), 403)
            assert_error(guarded.post(f"/tasks/{task_id}:cancel", headers=TOKEN | headers), 403)
        assert guarded.stored() == 1


class TestContentType:
    @pytest.mark.parametrize(
        "headers", [{"Referer": "http://127.0.0.1:8000/"}, {"Cookie": "a=b"}, {"Sec-Fetch-Mode": "no-cors"}]
    )
    def test_may_not_be_left_out_by_a_browser(self, site: Site, headers: dict[str, str]) -> None:
        body = json.dumps(HELLO).encode()
        assert_error(site.client.post(f"{BASE}/tasks", content=body, headers=headers), 415)
        assert site.client.post(f"{BASE}/tasks", content=body).status_code == 200

    @pytest.mark.parametrize(
        "value", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"]
    )
    def test_of_a_form_is_refused(self, site: Site, value: str) -> None:
        assert_error(site.post("/tasks", HELLO, headers={"Content-Type": value}), 415)
        assert site.stored() == 0


@pytest.mark.parametrize("path", ["/", BASE + "/ui/", BASE + "/tasks", BASE + "/tasks/x", "/nothing", "/healthz"])
def test_no_page_can_frame_a_response_or_read_it_as_another_type(site: Site, path: str) -> None:
    headers = site.client.get(path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["referrer-policy"] == "no-referrer"  # a query may hold an API key
    assert headers.get("cache-control") == ("no-store" if headers["content-type"] == "application/json" else None)
