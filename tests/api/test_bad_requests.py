"""Every complaint has the exact envelope, names the field, and is never a 422 or a 5xx."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from service.types import GenerateRequest
from tests.api.fakes import MODEL_ID, ScriptedBackend, client_of, make_tokenizer, say

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]

Body = dict[str, Any]


async def post(
    path: str, body: Body | bytes, backend: ScriptedBackend | None = None, **changes: object
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client_of(backend or ScriptedBackend(), **changes) as client:
        return await client.post(path, content=content, headers={"content-type": "application/json"})


def envelope(message: str, param: str | None, code: str | None = "invalid_value") -> Body:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


CHAT_FAULTS: list[tuple[Body, str, str | None]] = [
    ({"messages": None}, "Invalid type for 'messages': expected an array, but got null instead.", "messages"),
    ({"messages": "hi"}, "Invalid type for 'messages': expected an array, but got a string instead.", "messages"),
    (
        {"messages": []},
        "Invalid value for 'messages': it must not be empty.",
        "messages",
    ),
    ({"messages": [{"content": "x"}]}, "Missing required parameter: 'messages[0].role'.", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "Missing required parameter: 'messages[0].content'.", "messages[0].content"),
    (
        {"messages": [*MESSAGES, {"role": "assistant", "content": None}]},
        "Missing required parameter: 'messages[1].content'.",
        "messages[1].content",
    ),
    (
        {"messages": [{"role": "user", "content": 3}]},
        "Invalid value for 'messages[0].content': expected a string or an array of text parts.",
        "messages[0].content",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
        "Invalid type for 'messages[0].content[0].text': expected a string, but got an integer instead.",
        "messages[0].content[0].text",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "Invalid value for 'messages[0].content[0].type': Input should be 'text'.",
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "robot", "content": "x"}]},
        "Invalid value for 'messages[0].role': Input should be 'system', 'developer', 'user', 'assistant' or 'tool'.",
        "messages[0].role",
    ),
    (
        {"messages": [{"role": "user", "content": "x", "mood": "good"}]},
        "Unrecognized request argument supplied: messages[0].mood",
        "messages[0].mood",
    ),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "The model's chat template cannot render these messages: tools are not for this model",
        "messages",
    ),
    ({"temprature": 1}, "Unrecognized request argument supplied: temprature (did you mean temperature?)", "temprature"),
    ({"frobnicate": 1}, "Unrecognized request argument supplied: frobnicate", "frobnicate"),
    ({"max_tokens": 0}, "max_tokens must be at least 1.", "max_tokens"),
    ({"max_tokens": -5}, "max_tokens must be at least 1.", "max_tokens"),
    (
        {"max_tokens": True},
        "Invalid type for 'max_tokens': expected an integer, but got a boolean instead.",
        "max_tokens",
    ),
    (
        {"max_tokens": "9"},
        "Invalid type for 'max_tokens': expected an integer, but got a string instead.",
        "max_tokens",
    ),
    (
        {"max_tokens": 1.5},
        "Invalid type for 'max_tokens': expected an integer, but got a number instead.",
        "max_tokens",
    ),
    ({"max_completion_tokens": 0}, "max_completion_tokens must be at least 1.", "max_completion_tokens"),
    ({"max_tokens": 4, "min_tokens": 5}, "min_tokens must be between 0 and max_tokens.", "min_tokens"),
    ({"temperature": 2.5}, "temperature must be between 0 and 2, but is 2.5.", "temperature"),
    ({"temperature": float("nan")}, "Invalid value for 'temperature': Input should be a finite number.", "temperature"),
    ({"top_p": float("inf")}, "Invalid value for 'top_p': Input should be a finite number.", "top_p"),
    ({"top_p": 0}, "top_p must be greater than 0.", "top_p"),
    ({"top_k": -2}, "top_k must be 0 (off) or more.", "top_k"),
    ({"n": 0}, "n must be between 1 and 128.", "n"),
    ({"n": 10**30}, "Invalid value for 'n': Input should be less than 9223372036854775808.", "n"),
    ({"logprobs": 1}, "Invalid type for 'logprobs': expected a boolean, but got an integer instead.", "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs is only allowed when logprobs is true.", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be between 0 and 20, but is 21.", "top_logprobs"),
    ({"logit_bias": {"a": 1}}, "The keys of logit_bias must be token ids.", "logit_bias"),
    ({"logit_bias": {"9" * 5000: 1}}, "The keys of logit_bias must be token ids.", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias must be between -100 and 100, but is 101.", "logit_bias"),
    ({"logit_bias": [1]}, "Invalid type for 'logit_bias': expected an object, but got an array instead.", "logit_bias"),
    ({"stop": 3}, "Invalid value for 'stop': expected a string or an array of strings.", "stop"),
    ({"stop": ["a", 3]}, "Invalid type for 'stop[1]': expected a string, but got an integer instead.", "stop[1]"),
    ({"stop": ""}, "A stop string must not be empty.", "stop"),
    (
        {"stream_options": {"include_usage": True}},
        "stream_options is only allowed when stream is true.",
        "stream_options",
    ),
    (
        {"stream": True, "stream_options": {"include_usge": True}},
        "Unrecognized request argument supplied: stream_options.include_usge",
        "stream_options.include_usge",
    ),
    ({"tools": [{"type": "function"}]}, "'tools' is not supported.", "tools"),
    ({"response_format": {"type": "json_object"}}, "'response_format' is not supported.", "response_format"),
    ({"store": 0}, "'store' is not supported.", "store"),
    (
        {"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]},
        "'messages[0].refusal' is not supported.",
        "messages[0].refusal",
    ),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "'stream_options.include_obfuscation' is not supported.",
        "stream_options.include_obfuscation",
    ),
    (
        {"continue_final_message": True},
        "continue_final_message needs a last message of the assistant, with text that the template keeps.",
        "messages",
    ),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message and add_generation_prompt exclude each other.",
        "continue_final_message",
    ),
]


@pytest.mark.parametrize(("fields", "message", "param"), CHAT_FAULTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_faulty_chat_requests(fields: Body, message: str, param: str | None, stream: bool) -> None:
    """A faulty field is a 400 that names it, whether or not a stream was asked for."""
    streaming = {"stream": True} if stream and "stream_options" not in fields else {}
    answer = await post(CHAT, {"messages": MESSAGES, **streaming, **fields})

    assert answer.json() == envelope(message, param)
    assert answer.status_code == 400


COMPLETION_FAULTS: list[tuple[Body, str, str | None]] = [
    ({}, "Missing required parameter: 'prompt'.", "prompt"),
    (
        {"prompt": None},
        "Invalid value for 'prompt': expected a string, token ids or an array of either.",
        "prompt",
    ),
    ({"prompt": []}, "Invalid value for 'prompt': it must not be empty.", "prompt"),
    (
        {"prompt": [[]]},
        "Invalid value for 'prompt[0]': it must not be empty.",
        "prompt[0]",
    ),
    ({"prompt": ["a", 1]}, "Invalid type for 'prompt[1]': expected a string, but got an integer instead.", "prompt[1]"),
    ({"prompt": [1, "a"]}, "Invalid type for 'prompt[1]': expected an integer, but got a string instead.", "prompt[1]"),
    ({"prompt": [True]}, "Invalid type for 'prompt[0]': expected an integer, but got a boolean instead.", "prompt[0]"),
    (
        {"prompt": [[1], [2.5]]},
        "Invalid type for 'prompt[1][0]': expected an integer, but got a number instead.",
        "prompt[1][0]",
    ),
    ({"prompt": "", "add_special_tokens": False}, "The prompt has no tokens.", "prompt"),
    (
        {"prompt": ["a"] * 65, "n": 2},
        "65 prompts with n = 2 are more than 128 choices: send several requests.",
        "prompt",
    ),
    ({"prompt": ["a"] * 129}, "Invalid value for 'prompt': it must have at most 128 elements.", "prompt"),
    ({"prompt": "a", "stop": ["a"] * 17}, "Invalid value for 'stop': it must have at most 16 elements.", "stop"),
    ({"prompt": "a", "logprobs": 21}, "logprobs must be between 0 and 20, but is 21.", "logprobs"),
    ({"prompt": "a", "echo": True, "logprobs": -1}, "logprobs must be between 0 and 20, but is -1.", "logprobs"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens must be at least 1.", "max_tokens"),
    ({"prompt": "a", "suffix": "b"}, "'suffix' is not supported.", "suffix"),
    ({"prompt": "a", "best_of": 2}, "'best_of' is not supported.", "best_of"),
    ({"prompt": "a", "messages": []}, "Unrecognized request argument supplied: messages", "messages"),
]


@pytest.mark.parametrize(("body", "message", "param"), COMPLETION_FAULTS)
async def test_faulty_completion_requests(body: Body, message: str, param: str | None) -> None:
    """A faulty field is a 400 that names it."""
    answer = await post(COMPLETIONS, body)

    assert answer.json() == envelope(message, param)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "EOF while parsing a value at line 1 column 0"),
        (b"{", "EOF while parsing an object at line 1 column 1"),
        (b'{"prompt": "\xff"}', "invalid unicode code point at line 1 column 13"),
        (b'{"prompt": "\\ud800"}', "unexpected end of hex escape at line 1 column 19"),
        (b"[" * 100_000, "recursion limit exceeded at line 1 column 202"),
    ],
)
async def test_what_is_no_json(body: bytes, reason: str) -> None:
    """Malformed, cut, wrongly encoded and hostile JSON is a 400 that says where."""
    answer = await post(COMPLETIONS, body)

    assert answer.json() == envelope(f"We could not parse the JSON body of your request. ({reason})", None)
    assert answer.status_code == 400


async def test_json_that_is_no_object() -> None:
    """The body must be an object."""
    answer = await post(CHAT, b"[1]")

    assert answer.json() == envelope("The body of your request must be a JSON object.", None)


async def test_a_million_unknown_fields_cost_one_answer() -> None:
    """A body that is wrong everywhere is refused without a report of every place."""
    body = b"{" + b",".join(b'"f%d":1' % number for number in range(200_000)) + b"}"
    answer = await post(CHAT, body)

    assert answer.json() == envelope("The request is wrong in more than a thousand places.", None)


async def test_the_first_wrong_element_of_a_long_array_is_enough() -> None:
    """Elements after the first wrong one are not looked at."""
    answer = await post(COMPLETIONS, {"prompt": [1, *["x"] * 100_000]})

    assert answer.json()["error"]["param"] == "prompt[1]"


@pytest.mark.parametrize(
    ("path", "prompt", "param"),
    [(CHAT, {"messages": MESSAGES}, "messages"), (COMPLETIONS, {"prompt": "12345678901234567"}, "prompt")],
)
async def test_more_tokens_than_the_context_has(path: str, prompt: Body, param: str) -> None:
    """The message has the numbers, in the words that clients look for."""
    answer = await post(path, {**prompt, "max_tokens": 239})

    assert answer.status_code == 400
    assert answer.json() == envelope(
        f"This model's maximum context length is 256 tokens. However, you requested 257 tokens (18 in the {param}, "
        f"239 in the completion). Please reduce the length of the {param} or completion.",
        param,
        "context_length_exceeded",
    )


@pytest.mark.parametrize(
    ("path", "fields", "max_tokens"),
    [
        (CHAT, {"messages": MESSAGES}, 238),
        (CHAT, {"messages": MESSAGES, "max_tokens": None}, 238),
        (CHAT, {"messages": MESSAGES, "max_tokens": 238}, 238),
        (CHAT, {"messages": MESSAGES, "max_tokens": 7, "max_completion_tokens": 5}, 5),
        (COMPLETIONS, {"prompt": "abc"}, 16),
        (COMPLETIONS, {"prompt": "abc", "max_tokens": None}, 16),
        (COMPLETIONS, {"prompt": [65] * 250}, 6),
    ],
)
async def test_how_many_tokens_are_generated(path: str, fields: Body, max_tokens: int) -> None:
    """Null is the default; the default is never more than fits; max_completion_tokens wins."""
    backend = ScriptedBackend()
    answer = await post(path, fields, backend)

    assert answer.status_code == 200
    assert backend.requests[0].sampling.max_tokens == max_tokens


async def test_a_prompt_that_fills_the_context_leaves_no_room() -> None:
    """Without a max_tokens one token at least must fit."""
    answer = await post(COMPLETIONS, {"prompt": [65] * 256})

    assert "256 in the prompt, 1 in the completion" in answer.json()["error"]["message"]


NEUTRAL_CHAT: Body = {
    "audio": None,
    "chat_template_kwargs": {},
    "frequency_penalty": None,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "metadata": {"team": "a"},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "seed": None,
    "service_tier": "auto",
    "stop": None,
    "store": False,
    "stream": False,
    "tool_choice": "none",
    "tools": [],
    "top_k": -1,
    "user": "someone",
}


async def test_neutral_values_of_unsupported_fields_are_accepted() -> None:
    """A field that asks for nothing special is no reason to refuse."""
    answer = await post(CHAT, {"messages": MESSAGES, **NEUTRAL_CHAT})

    assert answer.status_code == 200


async def test_every_sampling_field_reaches_the_engine() -> None:
    """Nothing that the client asks for is dropped."""
    backend = ScriptedBackend()
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.5,
        "seed": -3,
        "min_tokens": 2,
        "ignore_eos": True,
    }
    await post(
        CHAT,
        {
            "messages": MESSAGES,
            "n": 3,
            "logprobs": True,
            "top_logprobs": 4,
            "logit_bias": {"65": -5},
            "stop_token_ids": [66, 67],
            **fields,
        },
        backend,
    )
    request: GenerateRequest = backend.requests[0]

    assert {name: getattr(request.sampling, name) for name in fields} == fields
    assert request.n == 3
    assert request.sampling.logprobs == 4
    assert request.sampling.logit_bias == ((65, -5.0),)
    assert request.sampling.stop_token_ids == {66, 67}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_unknown_models(path: str) -> None:
    """Another model's name is a 404 that says which is served here; its own name and none are fine."""
    prompt: Body = {"messages": MESSAGES} if path == CHAT else {"prompt": "a"}
    unknown = await post(path, {**prompt, "model": "gpt-9"})

    assert unknown.status_code == 404
    message = f"The model 'gpt-9' does not exist. The model served here is '{MODEL_ID}'."
    assert unknown.json() == envelope(message, "model", "model_not_found")
    assert (await post(path, {**prompt, "model": MODEL_ID})).status_code == 200
    assert (await post(path, prompt)).status_code == 200


async def test_a_model_without_chat_template() -> None:
    """Chat needs a template; the answer names the endpoint that needs none."""
    answer = await post(CHAT, {"messages": MESSAGES}, tokenizer=make_tokenizer(with_template=False))

    assert answer.json() == envelope("This model has no chat template: use /v1/completions.", "messages")


async def test_the_body_limit() -> None:
    """A body larger than the limit is a 413, in one part or in many; one of exactly the limit is read."""

    async def chunks() -> Any:
        for _ in range(3):
            yield b" " * 50

    body = json.dumps({"prompt": "a"}).encode().ljust(100)
    async with client_of(ScriptedBackend(), max_body_bytes=100) as client:
        headers = {"content-type": "application/json"}
        fits = await client.post(COMPLETIONS, content=body, headers=headers)
        whole = await client.post(COMPLETIONS, content=body + b" ", headers=headers)
        streamed = await client.post(COMPLETIONS, content=chunks(), headers=headers)

    assert fits.status_code == 200
    expected = envelope("The request body is larger than the limit of 100 bytes.", None, "request_too_large")
    assert (whole.status_code, whole.json()) == (413, expected)
    assert (streamed.status_code, streamed.json()) == (413, expected)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        (None, 200),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
    ],
)
async def test_content_types(content_type: str | None, status: int) -> None:
    """A body that is declared as anything but JSON is a 415; undeclared, it is taken for JSON."""
    headers = {} if content_type is None else {"content-type": content_type}
    async with client_of(ScriptedBackend(say("x"))) as client:
        answer = await client.post(COMPLETIONS, content=b'{"prompt": "a"}', headers=headers)

    assert answer.status_code == status
    if status == 415:
        message = "Unsupported content type: send JSON with the header Content-Type: application/json."
        assert answer.json() == envelope(message, None, "unsupported_media_type")
