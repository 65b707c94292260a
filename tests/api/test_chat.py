"""How the messages of a chat become the prompt that the engine sees."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.fakes import ScriptedBackend, client_of, in_turn, make_tokenizer, say

USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}


async def prompt_of(body: dict[str, Any], backend: ScriptedBackend | None = None) -> str:
    """The prompt with its special tokens spelled out."""
    backend = backend or ScriptedBackend()
    async with client_of(backend) as client:
        answer = await client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 200, answer.text
    return make_tokenizer().decode(backend.requests[0].prompt_token_ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"messages": [USER]}, "user:hi<|end|>assistant:"),
        (
            {"messages": [{"role": "developer", "content": "be brief"}, USER]},
            "system:be brief<|end|>user:hi<|end|>assistant:",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]},
            "user:hi<|end|>assistant:",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            "assistant:<|end|>assistant:",
        ),
        ({"messages": [USER], "add_generation_prompt": False}, "user:hi<|end|>"),
        ({"messages": [USER], "add_special_tokens": True}, "<|begin|>user:hi<|end|>assistant:"),
        (
            {"messages": [USER, {"role": "assistant", "content": "Well, "}], "continue_final_message": True},
            "user:hi<|end|>assistant:Well,",
        ),
    ],
)
async def test_prompts(fields: dict[str, Any], prompt: str) -> None:
    """The template is rendered once, with special tokens only where it or the client put them."""
    assert await prompt_of(fields) == prompt


@pytest.mark.parametrize("arguments", ["", "[]", "{", "{" * 10_000, 3])
async def test_arguments_of_tool_calls_that_are_no_json_object(arguments: object) -> None:
    """They are refused by name before the template sees them."""
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    async with client_of(ScriptedBackend()) as client:
        answer = await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
        )

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].tool_calls[0].function.arguments"


async def test_every_choice_of_a_stream_begins_with_its_role() -> None:
    """Also when the engine goes on with another choice first."""
    body = {"messages": [USER], "n": 2, "stream": True}
    async with client_of(ScriptedBackend(in_turn(say("b", index=1), say("a", index=0)))) as client:
        answer = await client.post("/v1/chat/completions", json=body)

    assert answer.text.count('"role":"assistant"') == 2
    assert answer.text.index('"index":1,"delta":{"role"') < answer.text.index('"index":1,"delta":{"content":"b"')
    assert answer.text.index('"index":0,"delta":{"role"') < answer.text.index('"index":0,"delta":{"content":"a"')


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "ab.")])
async def test_stop_strings_are_shown_only_on_request(include: bool, text: str) -> None:
    """A stop string ends the message, across tokens too, and is part of it only with include_stop_str_in_output."""
    body = {"messages": [USER], "stop": [".", "cd"], "include_stop_str_in_output": include}
    async with client_of(ScriptedBackend(say("ab.cd"))) as client:
        answer = await client.post("/v1/chat/completions", json=body)

    assert answer.json()["choices"][0]["message"]["content"] == text
    assert answer.json()["usage"]["completion_tokens"] == 3
