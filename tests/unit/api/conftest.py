"""A site with the default settings."""

from __future__ import annotations

import pytest

from tests.unit.api.service import Site


@pytest.fixture
def site() -> Site:
    return Site()
