"""A contender that computes nothing, as a process: python -m tests.bench.peers.fake_contender [when it is to die]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from service.bench.contender import Asked, Prompt, serve


class FakeContender:
    """Checks that rounds are whole: a start, the steps that were announced, an end."""

    def __init__(self) -> None:
        self._left = -1

    def start(self, prompts: Sequence[Prompt], num_steps: int) -> None:
        assert prompts
        assert self._left == -1
        if "at-start" in sys.argv:
            raise MemoryError("no room for a prompt")
        self._left = num_steps

    def step(self) -> None:
        print("libraries say things on standard output")  # noqa: T201
        self._left -= 1

    def finish(self) -> None:
        assert self._left == 0
        self._left = -1

    def answer(self, requests: Sequence[Asked]) -> None:
        assert all(prompt and max_tokens for prompt, max_tokens in requests)


if __name__ == "__main__":
    assert "at-once" not in sys.argv, "cannot even load"
    serve(FakeContender)
