"""From a task document to the domain's `TaskSpec` (marshmallow). Types are strict: what is no text is not made one.

The document has gone through `tolerance` and the spec's validation before; a problem here names its place as a JSON path too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load

from poiesis.domain.errors import InvalidTask, Problem
from poiesis.domain.task import Executor, FileType, Input, Output, Resources, TaskSpec

_MISSING: Final = {"required": "is missing"}


class _Text(fields.String):
    default_error_messages = {"required": "is missing", "invalid": "has to be text", "null": "is null"}  # noqa: RUF012

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        return value


class _Truth(fields.Boolean):
    default_error_messages = {"invalid": "has to be true or false", "null": "is null"}  # noqa: RUF012

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid")
        return value


class _Number(fields.Float):
    default_error_messages = {"invalid": "has to be a number", "null": "is null"}  # noqa: RUF012

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.make_error("invalid")
        return float(value)


def _texts(**kwargs: Any) -> fields.List[Any]:
    return fields.List(_Text(), error_messages={"invalid": "has to be a list of texts", **_MISSING}, **kwargs)


def _text_map() -> fields.Dict:
    return fields.Dict(_Text(), _Text(), error_messages={"invalid": "has to be an object of texts"})


def _many(schema: type[Schema], **kwargs: Any) -> fields.List[Any]:
    return fields.List(
        fields.Nested(schema), error_messages={"invalid": "has to be a list of objects", **_MISSING}, **kwargs
    )


class _Object(Schema):
    class Meta:
        unknown = EXCLUDE

    error_messages = {"type": "has to be an object"}  # noqa: RUF012


class _ExecutorSchema(_Object):
    image = _Text(required=True)
    command = _texts(required=True)
    workdir = _Text()
    stdin = _Text()
    stdout = _Text()
    stderr = _Text()
    env = _text_map()
    ignore_error = _Truth()

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Executor:
        data["command"] = tuple(data["command"])
        return Executor(**data)


class _FileSchema(_Object):
    path = _Text(required=True)
    name = _Text()
    description = _Text()
    type = fields.Enum(FileType, by_value=True, error_messages={"unknown": "has to be FILE or DIRECTORY"})


class _InputSchema(_FileSchema):
    url = _Text()
    content = _Text()
    streamable = _Truth()

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Input:
        return Input(**data)


class _OutputSchema(_FileSchema):
    url = _Text(required=True)
    path_prefix = _Text()

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Output:
        return Output(**data)


class _ResourcesSchema(_Object):
    cpu_cores = _Number()
    ram_gb = _Number()
    disk_gb = _Number()
    preemptible = _Truth()
    zones = _texts()
    backend_parameters = _text_map()
    backend_parameters_strict = _Truth()

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Resources:
        data["zones"] = tuple(data.get("zones", ()))
        return Resources(**data)


class TaskSchema(_Object):
    """Spec: tesTask without the server's fields."""

    name = _Text()
    description = _Text()
    inputs = _many(_InputSchema)
    outputs = _many(_OutputSchema)
    resources = fields.Nested(_ResourcesSchema)
    executors = _many(_ExecutorSchema, required=True)
    volumes = _texts()
    tags = _text_map()

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> TaskSpec:
        for name in ("inputs", "outputs", "executors", "volumes"):
            data[name] = tuple(data.get(name, ()))
        return TaskSpec(**data)


_TASK: Final = TaskSchema()


def load_task(document: Any) -> TaskSpec:
    """Raises: InvalidTask with every problem of shape and its JSON path."""
    try:
        spec = _TASK.load(document)
    except ValidationError as error:
        raise InvalidTask(list(_problems(error.messages, "$"))) from None
    assert isinstance(spec, TaskSpec)
    return spec


def _problems(messages: Any, path: str) -> Iterator[Problem]:
    """marshmallow's messages are nested as the document is, lists by index, maps with `key` and `value` below their keys."""
    if isinstance(messages, Mapping):
        for key, below in messages.items():
            if key == "_schema" or (key in ("key", "value") and isinstance(below, list)):
                yield from _problems(below, path)
            else:
                yield from _problems(below, path + (f"[{key}]" if isinstance(key, int) else f".{str(key)[:40]}"))
    else:
        yield from (Problem(path, str(message)) for message in messages)
