"""Output that must follow a schema, an expression, a choice or a grammar: in bodies and streams, for every choice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.text.chat_template import ChatTemplate
from service.text.parts import TokenizerParts
from service.text.tokenizer import Tokenizer
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import CHAT, COMPLETIONS, MESSAGES, Json, ScriptedBackend, complaint, post, step
from tests.api.obedient import NOW, WEATHER, follow, obey, tool_tokenizer
from tests.api.sse_bodies import added_up, essence, events_of
from tests.text.strategies import byte_fallback_tokenizer

SCHEMA: Json = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def json_schema(schema: Json, **more: Any) -> Json:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, **more}}}


def structured(**constraint: Any) -> Json:
    return {"structured_outputs": constraint}


@pytest.mark.parametrize(("path", "prompt"), [(CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "p"})])
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 3),
    constraint=st.sampled_from(
        [json_schema(SCHEMA, strict=True), structured(json=SCHEMA), structured(regex="[a-z]{3}é")]
    ),
    with_logprobs=st.booleans(),
)
@settings(deadline=None, max_examples=25)
async def test_a_stream_adds_up_to_the_body_and_both_follow(
    path: str, prompt: Json, seed: int, n: int, constraint: Json, with_logprobs: bool
) -> None:
    """Each of n choices validates, with log probabilities and without."""
    body = {**prompt, **constraint, "n": n, "max_tokens": 200}
    if with_logprobs:
        body["logprobs"] = True if path == CHAT else 1
    whole = await post(path, body, ScriptedBackend(obey(seed)))
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await post(path, {**body, **streaming}, ScriptedBackend(obey(seed)))

    assert whole.status_code == 200, whole.text
    assert added_up(events_of(stream)) == essence(whole.json())
    for choice in essence(whole.json())["choices"]:
        assert choice["finish_reason"] == "stop"
        if constraint == structured(regex="[a-z]{3}é"):
            assert re.fullmatch("[a-z]{3}é", choice["text"])
        else:
            jsonschema.validate(json.loads(choice["text"]), SCHEMA)


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        ({"response_format": {"type": "json_object"}}, '{"any": ["thing"]}'),
        (json_schema(SCHEMA), '{"name": "Ada", "age": 7}'),
        (json_schema(SCHEMA, strict=False, description="d"), '{"name":"Ada","age":7}'),
        (structured(json=json.dumps(SCHEMA)), '{"name": "Ada", "age": 7}'),
        (structured(json_object=True), '{"any": ["thing"]}'),
        (structured(choice=["yes", "no"]), "no"),
        (structured(choice=[" a", ""]), " a"),
        (structured(regex=r"\d+/x"), "12/x"),
        (structured(grammar='start: "a" "b"+'), "abb"),
        (structured(grammar='root ::= "a" "b"+', regex=None), "abb"),
    ],
)
@pytest.mark.parametrize(("path", "prompt"), [(CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "p"})])
async def test_each_constraint_reaches_the_engine(path: str, prompt: Json, constraint: Json, text: str) -> None:
    """As a grammar that allows the text, and its end."""
    answer = await post(path, {**prompt, **constraint}, ScriptedBackend(follow(text)))

    assert answer.status_code == 200, answer.text
    assert essence(answer.json())["choices"][0]["text"] == text


@pytest.mark.parametrize("neutral", [None, {"type": "text"}])
async def test_text_is_not_constrained(neutral: Json | None) -> None:
    """Null and text are the default."""
    backend = ScriptedBackend()
    await post(CHAT, {"messages": MESSAGES, "response_format": neutral}, backend)

    assert backend.requests[0].grammar is None


async def test_a_leading_space_that_was_asked_for_is_kept() -> None:
    """Also where the vocabulary begins every text with one, which decoding takes away again."""
    fallback = byte_fallback_tokenizer()
    parts = TokenizerParts(
        backend=fallback._backend,
        eos_token_ids=fallback.eos_token_ids,
        chat_template=ChatTemplate("{{ messages[0].content }}"),
    )

    def script(request: GenerateRequest) -> Iterator[TokenEvent]:
        yield step(request, [*fallback.encode_continuation(" he"), *fallback.eos_token_ids], finish=FinishReason.STOP)

    asked = {"messages": MESSAGES, **structured(choice=[" he"])}
    answer = await post(CHAT, asked, ScriptedBackend(script), tokenizer=Tokenizer(parts))

    assert answer.json()["choices"][0]["message"]["content"] == " he"


async def test_stop_strings_cut_structured_output_too() -> None:
    """They were asked for."""
    body = {"messages": MESSAGES, **structured(regex="[a-z]+"), "stop": "c"}
    answer = await post(CHAT, body, ScriptedBackend(follow("abcd")))

    assert answer.json()["choices"][0]["message"]["content"] == "ab"


async def test_output_that_is_cut_ends_with_length() -> None:
    """It is then no valid JSON, and the reason says so."""
    answer = await post(CHAT, {"messages": MESSAGES, **json_schema(SCHEMA), "max_tokens": 5}, ScriptedBackend(obey(1)))

    assert answer.json()["choices"][0]["finish_reason"] == "length"


FAULTS: list[tuple[Json, str, str]] = [
    (
        json_schema({"type": "array", "uniqueItems": True}),
        "Invalid value for 'response_format.json_schema.schema': Unimplemented keys: [\"uniqueItems\"].",
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "Missing required parameter: 'response_format.json_schema'.",
        "response_format.json_schema",
    ),
    (
        {"response_format": {"type": "json_object", "json_schema": {"name": "s", "schema": {}}}},
        "It is only for json_schema: 'response_format.json_schema'.",
        "response_format.json_schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}},
        "Missing required parameter: 'response_format.json_schema.schema'.",
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "xml"}},
        "Invalid value for 'response_format.type': Input should be 'text', 'json_object' or 'json_schema'.",
        "response_format.type",
    ),
    (
        {"response_format": "json_object"},
        "Invalid type for 'response_format': expected an object, but got a string instead.",
        "response_format",
    ),
    (
        structured(json="{"),
        "Invalid value for 'structured_outputs.json': It must be a JSON schema, which is an object.",
        "structured_outputs.json",
    ),
    (
        structured(json=[1]),
        "Invalid value for 'structured_outputs.json': expected a JSON schema, as an object or as text.",
        "structured_outputs.json",
    ),
    (
        structured(regex="(a", choice=None),
        "",
        "structured_outputs.regex",
    ),
    (structured(regex="a\\b"), "", "structured_outputs.regex"),
    (structured(grammar="start: nothing"), "", "structured_outputs.grammar"),
    (
        structured(choice=[]),
        "Invalid value for 'structured_outputs.choice': it must not be empty.",
        "structured_outputs.choice",
    ),
    (
        structured(regex="a", choice=["a"]),
        "structured_outputs takes exactly one of json, json_object, regex, choice and grammar.",
        "structured_outputs",
    ),
    (
        structured(json_object=False),
        "structured_outputs takes exactly one of json, json_object, regex, choice and grammar.",
        "structured_outputs",
    ),
    (
        structured(regex="a", structural_tag="x"),
        "'structured_outputs.structural_tag' is not supported.",
        "structured_outputs.structural_tag",
    ),
    (
        {**structured(regex="a"), **json_schema(SCHEMA)},
        "structured_outputs and response_format exclude each other.",
        "structured_outputs",
    ),
    (
        {**structured(regex="a"), "min_tokens": 1},
        "min_tokens cannot be combined with structured output or tools: their grammar says where the output ends.",
        "min_tokens",
    ),
    (
        {**json_schema(SCHEMA), "ignore_eos": True},
        "ignore_eos cannot be combined with structured output or tools: their grammar says where the output ends.",
        "ignore_eos",
    ),
    (
        {"guided_json": SCHEMA},
        "Unrecognized request argument supplied: guided_json",
        "guided_json",
    ),
]


@pytest.mark.parametrize(("fields", "message", "param"), FAULTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_faulty_constraints(fields: Json, message: str, param: str, stream: bool) -> None:
    """A 400 that names the field, before anything is generated; the words on syntax are the library's."""
    answer = await post(CHAT, {"messages": MESSAGES, "stream": stream, **fields})

    assert answer.status_code == 400
    assert answer.json() == complaint(message or answer.json()["error"]["message"], param)


async def test_a_response_format_beside_tools_leaves_the_choice() -> None:
    """The model answers by the schema, or calls."""
    body = {"messages": MESSAGES, "tools": [WEATHER, NOW], **json_schema(SCHEMA)}
    answers = [
        await post(CHAT, body, ScriptedBackend(follow(text)), tokenizer=tool_tokenizer())
        for text in ('{"name": "a", "age": 1}', '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    ]

    assert [answer.json()["choices"][0]["finish_reason"] for answer in answers] == ["stop", "tool_calls"]
