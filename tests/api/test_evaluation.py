"""The exchange with EleutherAI's `lm_eval --model local-completions`, byte for byte what its parser reads."""

from __future__ import annotations

from typing import Any

import pytest

from service.types import FinishReason
from tests.api.fakes import COMPLETIONS, MODEL_ID, Json, Script, ScriptedBackend, client_of, logprob, post, say, step

CONTEXTS = [[*b"The sky is"], [*b"2 + 2 ="]]
ANSWERS = [[*b" blue"], [*b" 4"]]
PROMPTS = [context + answer for context, answer in zip(CONTEXTS, ANSWERS, strict=True)]


def nothing(request: Any) -> Any:
    """What the engine sends when a prompt is only scored."""
    yield step(request, [], finish=FinishReason.LENGTH)


def scores_of(body: Json, num_generated: int) -> list[tuple[float, bool]]:
    """For each choice the log-likelihood of its answer, and whether each token was the likeliest: as the harness
    adds them up, which leaves out the token that was generated."""
    scores = []
    for choice, context in zip(sorted(body["choices"], key=lambda choice: choice["index"]), CONTEXTS, strict=True):
        part = slice(len(context), -num_generated or None)
        chosen, top = choice["logprobs"]["token_logprobs"][part], choice["logprobs"]["top_logprobs"][part]
        scores.append((sum(chosen), all(one == max(among.values()) for one, among in zip(chosen, top, strict=True))))
    return scores


@pytest.mark.parametrize(
    ("max_tokens", "script"), [(1, say("!", finish=FinishReason.LENGTH)), (0, nothing)], ids=["one token", "no token"]
)
async def test_log_likelihoods(max_tokens: int, script: Script) -> None:
    """A batch of prompts as token ids, echoed with the log probability of each."""
    payload = {
        "model": MODEL_ID,
        "prompt": PROMPTS,
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = await post(COMPLETIONS, payload, ScriptedBackend(script))
    body = answer.json()

    assert answer.status_code == 200
    assert [len(choice["logprobs"]["tokens"]) for choice in body["choices"]] == [len(p) + max_tokens for p in PROMPTS]
    assert [choice["logprobs"]["token_logprobs"][0] for choice in body["choices"]] == [None, None]
    assert scores_of(body, max_tokens) == [
        (sum(logprob(token_id, 1).logprob for token_id in answer), False) for answer in ANSWERS
    ]


async def test_generation() -> None:
    """Until a string or the end of a text, greedily."""
    payload = {
        "prompt": PROMPTS,
        "model": MODEL_ID,
        "max_tokens": 8,
        "temperature": 0,
        "stop": [".", "<|end|>"],
        "seed": 1234,
    }
    answer = await post(COMPLETIONS, payload, ScriptedBackend(say(" green. Next")))

    assert [(choice["index"], choice["text"]) for choice in answer.json()["choices"]] == [(0, " green"), (1, " green")]


async def test_the_tokenizer_is_the_servers() -> None:
    """The harness finds its routes next to /v1, and needs no tokenizer of its own."""
    async with client_of(ScriptedBackend()) as client:
        info = (await client.get("/tokenizer_info")).json()
        payload = {"prompt": info["eos_token"], "add_special_tokens": False}
        end = (await client.post("/tokenize", json=payload)).json()["tokens"]
        text = (await client.post("/detokenize", json={"tokens": PROMPTS[0]})).json()["prompt"]

    assert end == [256]
    assert text == "The sky is blue"
