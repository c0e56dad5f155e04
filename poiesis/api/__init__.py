"""TES over HTTP: Connexion builds the routes from `specs/`, handlers call the services, views render the answers.

Imports of Connexion happen here first, so that what it and its libraries deprecate of each other is said to nobody.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jsonschema's RefResolver
    warnings.filterwarnings("ignore", "Using `httpx` with `starlette.testclient`")
    import connexion  # noqa: F401

from poiesis.api.app import Services, create_app

__all__ = ["Services", "create_app"]
