"""What needs the tokenizer alone: tokens of texts and conversations, and back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.fakes import (
    BEGIN,
    CHAT,
    END,
    MAX_MODEL_LEN,
    MESSAGES,
    MODEL_ID,
    VOCAB_SIZE,
    Json,
    ScriptedBackend,
    client_of,
    complaint,
    make_tokenizer,
    post,
)
from tests.api.obedient import WEATHER, tool_tokenizer

TURN = [*b"user:hi", END]


async def tokens_of(**fields: Any) -> list[int]:
    answer = await post("/tokenize", fields, tokenizer=tool_tokenizer())
    assert answer.status_code == 200, answer.text
    token_ids: list[int] = answer.json()["tokens"]
    assert answer.json()["count"] == len(token_ids)
    return token_ids


async def test_the_tokens_of_a_text() -> None:
    """With the model's begin, unless told otherwise, and what clients ask besides."""
    answer = await post("/tokenize", {"prompt": "hi", "model": MODEL_ID})

    assert answer.json() == {
        "count": 3,
        "max_model_len": MAX_MODEL_LEN,
        "tokens": [BEGIN, *b"hi"],
        "token_strs": None,
    }
    assert await tokens_of(prompt="hi", add_special_tokens=False) == [*b"hi"]


@pytest.mark.parametrize(
    ("fields", "token_ids"),
    [
        ({}, [*TURN, *b"assistant:"]),
        ({"add_special_tokens": True}, [BEGIN, *TURN, *b"assistant:"]),
        ({"tools": [WEATHER]}, [*b"<tool_call>get_weather;", *TURN, *b"assistant:"]),
    ],
)
async def test_the_tokens_of_a_conversation(fields: Json, token_ids: list[int]) -> None:
    """As the template writes it."""
    assert await tokens_of(messages=MESSAGES, **fields) == token_ids


async def test_a_conversation_that_is_not_to_be_answered_or_goes_on() -> None:
    """The assistant's turn is begun only where it is wanted."""
    closed = (await post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False})).json()["tokens"]
    turns = [*MESSAGES, {"role": "assistant", "content": "We"}]
    open_ = await post("/tokenize", {"messages": turns, "add_generation_prompt": False, "continue_final_message": True})

    assert closed == TURN
    assert open_.json()["tokens"] == [*TURN, *b"assistant:We"]


async def test_the_names_of_tokens() -> None:
    """Parts of characters and special tokens have names too."""
    answer = await post("/tokenize", {"prompt": "aö", "return_token_strs": True})

    assert answer.json()["token_strs"] == ["<|begin|>", "a", "bytes:\\xc3", "bytes:\\xb6"]


@pytest.mark.parametrize("text", ["", "hi", "wörld 😀", "a<|end|>b"])
async def test_there_and_back(text: str) -> None:
    """The text of the tokens of a text is the text."""
    token_ids = await tokens_of(prompt=text, add_special_tokens=False)
    answer = await post("/detokenize", {"tokens": token_ids})

    assert answer.json() == {"prompt": text}


async def test_ids_beyond_the_tokenizer_add_nothing() -> None:
    """A model may have more of them than its tokenizer."""
    assert (await post("/detokenize", {"tokens": [BEGIN, 104, 10**6]})).json() == {"prompt": "<|begin|>h"}


async def test_the_prompt_of_a_chat() -> None:
    """Is what the engine gets for the same body."""
    body = {"messages": MESSAGES, "temperature": 0.5, "max_tokens": 4}
    rendered = (await post(f"{CHAT}/render", body)).json()
    backend = ScriptedBackend()
    await post(CHAT, body, backend)

    assert tuple(rendered["token_ids"]) == backend.requests[0].prompt_token_ids
    assert rendered["prompt"] == "user:hi<|end|>assistant:"
    assert rendered["model"] == MODEL_ID


async def test_what_harnesses_ask_about_the_tokenizer() -> None:
    """Its begin and end by name, and the template."""
    async with client_of(ScriptedBackend()) as client:
        info = (await client.get("/tokenizer_info")).json()
    async with client_of(ScriptedBackend(), tokenizer=make_tokenizer(with_template=False)) as client:
        bare = (await client.get("/tokenizer_info")).json()

    assert (info["bos_token"], info["eos_token"]) == ("<|begin|>", "<|end|>")
    assert "add_generation_prompt" in info["chat_template"]
    assert info["vocab_size"] == VOCAB_SIZE
    assert bare["chat_template"] is None


@pytest.mark.parametrize(
    ("path", "fields", "message", "param"),
    [
        ("/tokenize", {}, "Send either prompt or messages.", "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "Send either prompt or messages.", "prompt"),
        (
            "/tokenize",
            {"prompt": 3},
            "Invalid type for 'prompt': expected a string, but got an integer instead.",
            "prompt",
        ),
        (
            "/tokenize",
            {"prompt": "a", "tools": [WEATHER]},
            "tools is only allowed together with messages.",
            "tools",
        ),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "'chat_template' is not supported.", "chat_template"),
        (
            "/tokenize",
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message and add_generation_prompt exclude each other.",
            "continue_final_message",
        ),
        (
            "/detokenize",
            {"tokens": [-1]},
            "Invalid value for 'tokens[0]': Input should be greater than or equal to 0.",
            "tokens[0]",
        ),
        ("/detokenize", {}, "Missing required parameter: 'tokens'.", "tokens"),
        (f"{CHAT}/render", {"messages": []}, "Invalid value for 'messages': it must not be empty.", "messages"),
    ],
)
async def test_faulty_requests(path: str, fields: Json, message: str, param: str) -> None:
    """Each is a 400 that names the field."""
    answer = await post(path, fields)

    assert answer.status_code == 400
    assert answer.json() == complaint(message, param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_another_model(path: str) -> None:
    """Is not there."""
    fields: Json = {"prompt": "a"} if path == "/tokenize" else {"tokens": []}
    answer = await post(path, {"model": "gpt-9", **fields})

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
