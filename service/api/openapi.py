"""What `/openapi.json` says of the bodies that the routes parse and render themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.auth import is_public
from service.api.errors import ANTHROPIC_OVERLOADED, is_anthropic_path

Responses = dict[int | str, dict[str, Any]]

_REF = "#/components/schemas/{model}"
_ERRORS = {
    HTTPStatus.BAD_REQUEST: "A field is missing, malformed, out of range or unsupported, or the context too long.",
    HTTPStatus.NOT_FOUND: "The model is not served here.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than the limit.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not declared as JSON.",
    HTTPStatus.TOO_MANY_REQUESTS: "It would not be begun in time: Retry-After says when to come back.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The server failed.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The server is starting, draining or dead.",
    HTTPStatus.GATEWAY_TIMEOUT: "The answer was not complete in the time that the request gave it.",
}
_KEY_ERRORS = {
    HTTPStatus.UNAUTHORIZED: "No API key, or one that is not known.",
    HTTPStatus.FORBIDDEN: "Not with this key.",
    HTTPStatus.TOO_MANY_REQUESTS: "A limit of the tenant is reached: Retry-After says when to come back.",
}
MODEL_ID_PARAMETER = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}


class ErrorDetail(BaseModel):
    """What went wrong: `code` is stable, `param` is the path of the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class AnthropicErrorDetail(BaseModel):
    type: str
    message: str


class AnthropicErrorEnvelope(BaseModel):
    """The same where Anthropic's API is served."""

    type: Literal["error"]
    error: AnthropicErrorDetail


class ErrorEnvelope(BaseModel):
    """The body of every failed answer, and the data of the event that ends a stream which fails."""

    error: ErrorDetail


def request_body(model: type[BaseModel], example: dict[str, object]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def answers(example: dict[str, object], *, stream: bool = False) -> Responses:
    """The documented responses of a route: 200 with `example`, and the errors."""
    return {200: _answer(example, stream=stream), **errors(*_ERRORS)}


def anthropic_answers(example: dict[str, object], *, stream: bool = False) -> Responses:
    """As `answers`, of a route of Anthropic's API."""
    documented: Responses = {200: _answer(example, stream=stream)}
    for status, description in _ERRORS.items():
        number = ANTHROPIC_OVERLOADED if status is HTTPStatus.TOO_MANY_REQUESTS else int(status)
        documented[number] = {"model": AnthropicErrorEnvelope, "description": description}
    return documented


def errors(*statuses: HTTPStatus) -> Responses:
    return {
        int(status): {"model": ErrorEnvelope, "description": {**_KEY_ERRORS, **_ERRORS}[status]} for status in statuses
    }


def _answer(example: dict[str, object], *, stream: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}, "example": example}}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string"}, "example": 'data: {"id": "…", …}\n\n'}
    return {"description": "The answer.", "content": content}


def openapi_of(app: FastAPI, models: Sequence[type[BaseModel]], *, with_keys: bool) -> Callable[[], dict[str, Any]]:
    """FastAPI's description of `app` and our request `models`; made once, as it never changes."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(
                get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            )
            _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
            made["components"]["schemas"].update(schemas["$defs"])
            if with_keys:
                _ask_for_keys(made)
        return made

    return openapi


def _ask_for_keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    for path, operations in document["paths"].items():
        envelope = AnthropicErrorEnvelope if is_anthropic_path(path) else ErrorEnvelope
        schema = {"$ref": _REF.format(model=envelope.__name__)}
        for operation in operations.values() if not is_public(path) else ():
            operation["security"] = [{"bearer": []}, {"x-api-key": []}]
            for status, description in _KEY_ERRORS.items():
                content = {"application/json": {"schema": schema}}
                operation["responses"].setdefault(str(int(status)), {"description": description, "content": content})
