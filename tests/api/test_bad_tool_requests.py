"""Every complaint about tools is a 400 that names the field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.fakes import CHAT, MESSAGES, Json, complaint, post
from tests.api.obedient import NOW, WEATHER, tool_tokenizer


def ask(**fields: Any) -> Json:
    return {"messages": MESSAGES, "tools": [WEATHER, NOW], **fields}


def tool(name: str = "f", **function: Any) -> Json:
    return {"type": "function", "function": {"name": name, **function}}


FAULTS: list[tuple[Json, str, str]] = [
    ({"tools": [{"type": "function"}]}, "Missing required parameter: 'tools[0].function'.", "tools[0].function"),
    (
        {"tools": [{"type": "code_interpreter"}]},
        "Invalid value for 'tools[0].type': Input should be 'function'.",
        "tools[0].type",
    ),
    (
        {"tools": [tool("no spaces")]},
        "Invalid value for 'tools[0].function.name': String should match pattern '^[a-zA-Z0-9_-]{1,64}$'.",
        "tools[0].function.name",
    ),
    ({"tools": [tool(), tool()]}, "The names of tools must differ.", "tools"),
    (
        {"tools": [tool(parameters={"type": "string"})]},
        "Invalid value for 'tools[0].function.parameters': Its type must be object.",
        "tools[0].function.parameters",
    ),
    (
        {"tools": [NOW, tool(parameters={"properties": {"a": {"type": "array", "uniqueItems": True}}})]},
        "Invalid value for 'tools[1].function.parameters': Unimplemented keys: [\"uniqueItems\"].",
        "tools[1].function.parameters",
    ),
    (
        {"tools": [tool(parameters={"properties": {"a": {"type": "integer", "multipleOf": 999_983}}})]},
        "Invalid value for 'tools[0].function.parameters': multipleOf is too large: the least common multiple of all "
        "in a schema may be 10000 at most.",
        "tools[0].function.parameters",
    ),
    (
        {"tools": [tool(f"f{i}") for i in range(129)]},
        "Invalid value for 'tools': it must have at most 128 elements.",
        "tools",
    ),
    ({"tool_choice": "required", "tools": []}, "tool_choice is only allowed when tools are specified.", "tool_choice"),
    (
        {"tool_choice": tool("other")},
        "tool_choice names a function that is not among tools.",
        "tool_choice",
    ),
    (
        {"tool_choice": "sometimes"},
        "Invalid value for 'tool_choice': Input should be 'none', 'auto' or 'required'.",
        "tool_choice",
    ),
    ({"tool_choice": 3}, "Invalid value for 'tool_choice': expected a string or an object.", "tool_choice"),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "auto"}},
        "Invalid value for 'tool_choice.type': Input should be 'function'.",
        "tool_choice.type",
    ),
    (
        {"structured_outputs": {"regex": "a"}},
        "structured_outputs cannot be combined with tools: use response_format.",
        "structured_outputs",
    ),
    (
        {"ignore_eos": True},
        "ignore_eos cannot be combined with structured output or tools: their grammar says where the output ends.",
        "ignore_eos",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"not": {}}}}},
        "Invalid value for 'response_format.json_schema.schema': Unimplemented keys: [\"not\"].",
        "response_format.json_schema.schema",
    ),
]


@pytest.mark.parametrize(("fields", "message", "param"), FAULTS)
async def test_faulty_tools(fields: Json, message: str, param: str) -> None:
    """A 400 that names the field."""
    answer = await post(CHAT, ask(**fields), tokenizer=tool_tokenizer())

    assert answer.json() == complaint(message, param)
    assert answer.status_code == 400


async def test_a_schema_beside_tools_that_look_like_json() -> None:
    """Llama 3 writes its calls as bare JSON: they could not be told from the answer."""
    schema = {"response_format": {"type": "json_object"}}
    answer = await post(CHAT, ask(**schema), tokenizer=tool_tokenizer(), tool_parser="llama3")

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
