"""GET /service-info: the operator and the abilities of the service."""

from __future__ import annotations

from poiesis import __version__
from poiesis.config import ServiceSettings
from poiesis.domain.policy import Policy
from tests.unit.api.service import Site


class TestServiceInfo:
    def test_has_what_the_standard_requires(self, site: Site) -> None:
        assert site.get("/service-info").json() == {
            "id": "org.example.poiesis",
            "name": "Poiesis",
            "type": {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"},
            "description": "GA4GH Task Execution Service. Tasks run nowhere.",
            "organization": {"name": "Poiesis", "url": "https://example.org"},
            "version": __version__,
            "storage": ["http://", "https://", "s3://", "file:///srv/data"],
            "tesResources_backend_parameters": ["gpu", "time_limit"],
        }

    def test_has_the_settings_of_the_site(self) -> None:
        service = ServiceSettings(
            id="org.example.tes",
            name="TES of Example",
            description="For everybody!",
            organization_name="Example",
            organization_url="https://example.com",
            contact_url="mailto:help@example.com",
            documentation_url="https://example.com/tes",
            environment="test",
            storage=("s3://bucket/",),
        )
        info = Site(service=service, policy=Policy()).get("/service-info").json()
        assert info["description"] == "For everybody! Tasks run nowhere."
        assert info["organization"] == {"name": "Example", "url": "https://example.com"}
        assert info["contactUrl"] == "mailto:help@example.com"
        assert info["documentationUrl"] == "https://example.com/tes"
        assert info["environment"] == "test"
        assert info["storage"] == ["s3://bucket/"]

    def test_is_answered_while_the_store_is_down(self, site: Site) -> None:
        site.repository.down = True
        assert site.get("/service-info").status_code == 200

    def test_has_the_path_and_the_keys_of_tes_0_4_too(self) -> None:
        site = Site(validate_responses=False)
        info, old = site.get("/service-info").json(), site.get("/tasks/service-info").json()
        assert old == {"name": info["name"], "doc": info["description"], "storage": info["storage"]}
