"""The operations below /poiesis/v1 (`specs/poiesis.openapi.yaml`), one module for each topic.

A module has one function `operations(context)` that returns its handlers by operation id. To add a topic: paths in the document, a module
here, its name in `_TOPICS`, and the service that it needs as a field of `Services`. A handler is a coroutine of the ASGI scope, in which it
finds what has been checked before: `scope[USER]`, `scope[PARAMETERS]` (of the query, by the types of the document), `scope[DOCUMENT]` (the
JSON body), `scope["path_params"]`. Errors are raised (`poiesis.api.errors`).
"""

from __future__ import annotations

from typing import Final

from poiesis.api.extensions import (
    bulk,
    capabilities,
    events,
    keys,
    logs,
    rerun,
    usage,
    validate,
    wait,
    webhooks,
    whoami,
    why,
)
from poiesis.api.extensions.context import Context, Handler

_TOPICS: Final = (bulk, capabilities, events, keys, logs, rerun, usage, validate, wait, webhooks, whoami, why)


def operations(context: Context) -> dict[str, Handler]:
    """The handlers of all operations by their ids."""
    return {name: handler for topic in _TOPICS for name, handler in topic.operations(context).items()}
