"""What a body of the extensions may contain, whatever the operation."""

from __future__ import annotations

import pytest

from tests.unit.api.service import Site, assert_error


@pytest.mark.parametrize("body", [b'{"ids": ["\\ud800"]}', b'{"ids": ["a\xed\xa0\x80"]}', b'{"ids": [], "\\udc00": 1}'])
@pytest.mark.parametrize("path", ["/tasks:states", "/tasks:cancel", "/tasks:validate", "/tasks:wait"])
def test_text_that_is_not_unicode_is_refused(site: Site, path: str, body: bytes) -> None:
    response = site.client.post(f"/poiesis/v1{path}", content=body, headers={"Content-Type": "application/json"})
    assert_error(response, 400)
