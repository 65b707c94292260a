"""What the fields of a request become: nothing that is asked for is dropped, and null is the default."""

from __future__ import annotations

import pytest

from tests.api.fakes import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    MODEL_ID,
    Json,
    ScriptedBackend,
    complaint,
    make_tokenizer,
    post,
)


@pytest.mark.parametrize(
    ("path", "prompt", "param"),
    [(CHAT, {"messages": MESSAGES}, "messages"), (COMPLETIONS, {"prompt": "12345678901234567"}, "prompt")],
)
async def test_more_tokens_than_the_context_has(path: str, prompt: Json, param: str) -> None:
    """The message has the numbers, in the words that clients look for."""
    answer = await post(path, {**prompt, "max_tokens": 239})

    assert answer.status_code == 400
    assert answer.json() == complaint(
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
async def test_how_many_tokens_are_generated(path: str, fields: Json, max_tokens: int) -> None:
    """Null is the default; the default is never more than fits; max_completion_tokens wins."""
    backend = ScriptedBackend()
    answer = await post(path, fields, backend)

    assert answer.status_code == 200
    assert backend.requests[0].sampling.max_tokens == max_tokens


async def test_a_prompt_that_fills_the_context_leaves_no_room() -> None:
    """Without a max_tokens one token at least must fit."""
    answer = await post(COMPLETIONS, {"prompt": [65] * 256})

    assert "256 in the prompt, 1 in the completion" in answer.json()["error"]["message"]


NEUTRAL_CHAT: Json = {
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
    request = backend.requests[0]

    assert {name: getattr(request.sampling, name) for name in fields} == fields
    assert request.n == 3
    assert request.sampling.logprobs == 4
    assert request.sampling.logit_bias == ((65, -5.0),)
    assert request.sampling.stop_token_ids == {66, 67}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_unknown_models(path: str) -> None:
    """Another model's name is a 404 that says which is served here; its own name and none are fine."""
    prompt: Json = {"messages": MESSAGES} if path == CHAT else {"prompt": "a"}
    unknown = await post(path, {**prompt, "model": "gpt-9"})

    assert unknown.status_code == 404
    message = f"The model 'gpt-9' does not exist. The model served here is '{MODEL_ID}'."
    assert unknown.json() == complaint(message, "model", "model_not_found")
    assert (await post(path, {**prompt, "model": MODEL_ID})).status_code == 200
    assert (await post(path, prompt)).status_code == 200


async def test_a_model_without_chat_template() -> None:
    """Chat needs a template; the answer names the endpoint that needs none."""
    answer = await post(CHAT, {"messages": MESSAGES}, tokenizer=make_tokenizer(with_template=False))

    assert answer.json() == complaint("This model has no chat template: use /v1/completions.", "messages")
