"""Every complaint about a completion request is a 400 that names the field, in the exact envelope."""

from __future__ import annotations

import pytest

from tests.api.fakes import COMPLETIONS, Json, complaint, post

COMPLETION_FAULTS: list[tuple[Json, str, str | None]] = [
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
async def test_faulty_completion_requests(body: Json, message: str, param: str | None) -> None:
    """A faulty field is a 400 that names it."""
    answer = await post(COMPLETIONS, body)

    assert answer.json() == complaint(message, param)
    assert answer.status_code == 400
