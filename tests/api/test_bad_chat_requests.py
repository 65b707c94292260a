"""Every complaint about a chat request is a 400 that names the field, in the exact envelope."""

from __future__ import annotations

import pytest

from tests.api.fakes import CHAT, MESSAGES, Json, complaint, post

CHAT_FAULTS: list[tuple[Json, str, str | None]] = [
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
    ({"bad_words": ["x"]}, "Unrecognized request argument supplied: bad_words", "bad_words"),
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
    ({"functions": [{"name": "f"}]}, "'functions' is not supported.", "functions"),
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
async def test_faulty_chat_requests(fields: Json, message: str, param: str | None, stream: bool) -> None:
    """A faulty field is a 400 that names it, whether or not a stream was asked for."""
    streaming = {"stream": True} if stream and "stream_options" not in fields else {}
    answer = await post(CHAT, {"messages": MESSAGES, **streaming, **fields})

    assert answer.json() == complaint(message, param)
    assert answer.status_code == 400
