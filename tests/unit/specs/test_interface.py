"""The comparison: it reports every kind of change to an interface, and no change of text."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest

from tests.unit.specs.interface import Differences, Document, differences

NONE = Differences(missing={}, changed={}, added={})


def _schema(document: Document, name: str) -> Document:
    found: Document = document["components"]["schemas"][name]
    return found


def _operation(document: Document, path: str, method: str) -> Document:
    found: Document = document["paths"][path][method]
    return found


CHANGES: dict[str, Callable[[Document], object]] = {
    "a type": lambda d: _schema(d, "tesExecutorLog")["properties"]["exit_code"].update(type="string"),
    "a format": lambda d: _schema(d, "tesResources")["properties"]["ram_gb"].update(format="float"),
    "a format left out": lambda d: _schema(d, "tesResources")["properties"]["ram_gb"].pop("format"),
    "a required field more": lambda d: _schema(d, "tesTask")["required"].append("name"),
    "a required field less": lambda d: _schema(d, "tesOutput")["required"].remove("url"),
    "an enum value less": lambda d: _schema(d, "tesState")["enum"].remove("PREEMPTED"),
    "an enum value more": lambda d: _schema(d, "tesFileType")["enum"].append("LINK"),
    "a default": lambda d: _schema(d, "tesFileType").update(default="DIRECTORY"),
    "a default false that becomes 0": lambda d: _schema(d, "tesResources")["properties"][
        "backend_parameters_strict"
    ].update(default=0),
    "a default left out": lambda d: d["components"]["parameters"]["view"]["schema"].pop("default"),
    "readOnly left out": lambda d: _schema(d, "tesTask")["properties"]["logs"].pop("readOnly"),
    "nullable": lambda d: _schema(d, "tesTask")["properties"]["name"].update(nullable=True),
    "items": lambda d: _schema(d, "tesTask")["properties"]["volumes"].update(items={"type": "integer"}),
    "additionalProperties": lambda d: _schema(d, "tesTask")["properties"]["tags"].update(additionalProperties=False),
    "allOf": lambda d: _schema(d, "tesServiceInfo")["allOf"].pop(0),
    "a reference": lambda d: _schema(d, "tesInput")["properties"].update(
        type={"$ref": "#/components/schemas/tesState"}
    ),
    "a property left out": lambda d: _schema(d, "tesTask")["properties"].pop("creation_time"),
    "a property called description left out": lambda d: _schema(d, "tesTask")["properties"].pop("description"),
    "a property more": lambda d: _schema(d, "tesTask")["properties"].update(owner={"type": "string"}),
    "a schema left out": lambda d: d["components"]["schemas"].pop("tesCancelTaskResponse"),
    "a path left out": lambda d: d["paths"].pop("/tasks/{id}:cancel"),
    "a path renamed": lambda d: d["paths"].update({"/tasks/{task}": d["paths"].pop("/tasks/{id}")}),
    "an operation more": lambda d: d["paths"]["/tasks/{id}"].update(delete={"responses": {}}),
    "an operationId": lambda d: _operation(d, "/tasks", "get").update(operationId="List"),
    "a parameter left out": lambda d: _operation(d, "/tasks", "get")["parameters"].pop(0),
    "a parameter's reference left out": lambda d: _operation(d, "/tasks", "get")["parameters"].pop(),
    "a parameter's place": lambda d: _operation(d, "/tasks", "get")["parameters"][0].update({"in": "header"}),
    "a parameter that becomes required": lambda d: _operation(d, "/tasks", "get")["parameters"][0].update(
        required=True
    ),
    "a parameter's limit": lambda d: _operation(d, "/tasks", "get")["parameters"][4]["schema"].update(maximum=2047),
    "a body that becomes optional": lambda d: _operation(d, "/tasks", "post")["requestBody"].update(required=False),
    "a media type": lambda d: _operation(d, "/tasks", "post")["requestBody"]["content"].update(
        {"text/plain": {"schema": {"type": "string"}}}
    ),
    "a status code": lambda d: _operation(d, "/tasks", "post")["responses"].update(
        {"201": _operation(d, "/tasks", "post")["responses"].pop("200")}
    ),
    "a server": lambda d: d["servers"][0].update(url="/v1"),
    "the version": lambda d: d["info"].update(version="1.0.0"),
}

WORDS: dict[str, Callable[[Document], object]] = {
    "the title": lambda d: d["info"].update(title="Another", description="Another."),
    "a description": lambda d: _schema(d, "tesTask").update(description="Another."),
    "an example": lambda d: _schema(d, "tesState").update(example="QUEUED"),
    "an extension": lambda d: _schema(d, "tesTask").update({"x-anything": {"type": "object"}}),
    "the order of an enum": lambda d: _schema(d, "tesState")["enum"].reverse(),
    "the order of parameters": lambda d: _operation(d, "/tasks", "get")["parameters"].reverse(),
    "a false that goes without saying": lambda d: _operation(d, "/tasks", "get")["parameters"][0].update(
        required=False
    ),
    "status codes as numbers": lambda d: _operation(d, "/tasks", "get").update(
        responses={int(code): answer for code, answer in _operation(d, "/tasks", "get")["responses"].items()}
    ),
    "a remote reference to a schema of the same name": lambda d: _schema(d, "tesServiceInfo")["allOf"][0].update(
        {"$ref": "https://example.org/service-info.yaml#/components/schemas/Service"}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_to_the_interface_is_reported(ours: Document, change: Callable[[Document], object]) -> None:
    changed = deepcopy(ours)
    change(changed)
    assert differences(ours, changed) != NONE


@pytest.mark.parametrize("change", WORDS.values(), ids=WORDS.keys())
def test_a_change_of_text_is_not_a_difference(ours: Document, change: Callable[[Document], object]) -> None:
    changed = deepcopy(ours)
    change(changed)
    assert changed != ours or change is WORDS["a false that goes without saying"]
    assert differences(ours, changed) == NONE
