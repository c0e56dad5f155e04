"""TES over HTTP: Connexion builds the routes from `specs/`, handlers call the services, views render the responses.

Connexion is imported here first, so that deprecation warnings among its libraries are not shown.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jsonschema's RefResolver
    warnings.filterwarnings("ignore", "Using `httpx` with `starlette.testclient`")
    import connexion  # noqa: F401

from poiesis.api.app import create_app
from poiesis.api.services import Services

__all__ = ["Services", "create_app"]
