"""A request body to a checked model: every complaint names the field."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.errors import InvalidRequestError

M = TypeVar("M", bound=BaseModel)
V = TypeVar("V")

UNION_TAG = "<"  # tags of union members begin with it, so that they can be told from field names in an error's location
UNSUPPORTED = "unsupported"  # the type of an error at the object whose field `ctx["field"]` is refused
_MAX_REPORTED_ERRORS = 1000
_MAX_SHOWN_CHARS = 100
_JSON_NAMES = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model": "an object",
    "model_attributes": "an object",
}
_VALUE_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
}


def parse_body(model: type[M], body: bytes) -> M:
    """`body` as `model`. Raises InvalidRequestError, whose `param` is the path of the field at fault."""
    return _checked(model, model.model_validate_json, body)


def parse_object(model: type[M], values: Mapping[str, object]) -> M:
    """As `parse_body`, of a body that is read already."""
    return _checked(model, model.model_validate, values)


def _checked(model: type[M], validate: Callable[[V], M], body: V) -> M:
    try:
        return validate(body)
    except ValidationError as error:
        # A hostile body may be wrong in a million places: then not even the first of them is worth its cost.
        if error.error_count() > _MAX_REPORTED_ERRORS:
            raise InvalidRequestError("The request is wrong in more than a thousand places.") from None
        raise _complaint(error.errors(include_url=False)[0], model) from None


def _complaint(error: Any, model: type[BaseModel]) -> InvalidRequestError:
    kind: str = error["type"]
    location = (*error["loc"], error["ctx"]["field"]) if kind == UNSUPPORTED else error["loc"]
    if not location:
        return InvalidRequestError(_misread(error))
    path = _path(location)
    expected = _JSON_NAMES.get(kind.removesuffix("_type"))
    if kind == "missing":
        message = f"Missing required parameter: '{path}'."
    elif kind == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {path}{_suggestion(path, model.model_fields)}"
    elif kind == UNSUPPORTED:
        message = f"'{path}' is not supported."
    elif kind == "too_short":
        message = f"Invalid value for '{path}': it must not be empty."
    elif kind == "too_long":
        message = f"Invalid value for '{path}': it must have at most {error['ctx']['max_length']} elements."
    elif expected is not None:
        got = _VALUE_NAMES.get(type(error["input"]), "null")
        message = f"Invalid type for '{path}': expected {expected}, but got {got} instead."
    else:
        message = f"Invalid value for '{path}': {error['msg']}."
    return InvalidRequestError(message, param=path)


def _misread(error: Any) -> str:
    if error["type"] == "json_invalid":
        return f"We could not parse the JSON body of your request. ({error['ctx']['error']})"
    return "The body of your request must be a JSON object."


def _suggestion(path: str, known: Iterable[str]) -> str:
    close = [] if "." in path else difflib.get_close_matches(path, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _path(location: tuple[str | int, ...]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(UNION_TAG):
            path += f".{part[:_MAX_SHOWN_CHARS]}" if path else part[:_MAX_SHOWN_CHARS]
    return path
