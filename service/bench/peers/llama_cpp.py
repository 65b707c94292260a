"""llama.cpp by its own C interface, as `llama-cpp-python` brings it: model.gguf, threads."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from service.bench.contender import Asked, Prompt, serve

MAX_SEQUENCES = 64
SHARE = 512  # tokens that each of so many sequences has room for
LONGEST = 4096  # tokens that a single sequence has room for
BATCH = 2048  # tokens of a call; the library cuts it into pieces of 512


class _Token(NamedTuple):
    token_id: int
    position: int
    sequence: int
    has_logits: bool


class LlamaCpp:
    """Two contexts, for many sequences and for a long one: sequences that share one cache look at each other's part of
    it too, which makes a large batch slow."""

    def __init__(self, path: str, num_threads: int) -> None:
        self._library: Any = importlib.import_module("llama_cpp.llama_cpp")
        self._numpy: Any = importlib.import_module("numpy")
        library = self._library
        library.llama_backend_init()
        model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        self._many = self._new_context(model, MAX_SEQUENCES, MAX_SEQUENCES * SHARE, num_threads)
        self._long = self._new_context(model, 1, LONGEST, num_threads)
        self._context = self._many
        self._vocab_size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._batch = library.llama_batch_init(BATCH, 0, 1)
        self._last: list[_Token] = []

    def start(self, prompts: Sequence[Prompt], num_steps: int) -> None:
        is_long = max(map(len, prompts)) + num_steps > SHARE
        self._context = self._long if is_long else self._many
        tokens = [token for sequence, prompt in enumerate(prompts) for token in _prompt(prompt, sequence)]
        self._last = self._decode(tokens)

    def step(self) -> None:
        self._last = self._decode(self._last)

    def finish(self) -> None:
        self._last = []
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), False)

    def answer(self, requests: Sequence[Asked]) -> None:
        """Every call computes a token of each sequence that runs, and as many prompts of the next ones as fit."""
        self._context = self._many
        waiting = list(requests)[::-1]
        memory = self._library.llama_get_memory(self._context)
        free = list(range(MAX_SEQUENCES))
        left: dict[int, int] = {}
        running: list[_Token] = []
        while waiting or running:
            tokens = list(running)
            while waiting and free and len(tokens) + len(waiting[-1][0]) <= BATCH:
                prompt, max_tokens = waiting.pop()
                sequence = free.pop()
                left[sequence] = max_tokens
                tokens += _prompt(prompt, sequence)
            running = []
            for token in self._decode(tokens):
                left[token.sequence] -= 1
                if left[token.sequence]:
                    running.append(token)
                else:
                    self._library.llama_memory_seq_rm(memory, token.sequence, -1, -1)
                    free.append(token.sequence)

    def _new_context(self, model: Any, num_sequences: int, num_tokens: int, num_threads: int) -> Any:
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = num_tokens
        parameters.n_batch = BATCH
        parameters.n_seq_max = num_sequences
        parameters.n_threads = parameters.n_threads_batch = num_threads
        return self._library.llama_init_from_model(model, parameters)

    def _decode(self, tokens: Sequence[_Token]) -> list[_Token]:
        """What follows each token that has logits."""
        following: list[_Token] = []
        for first in range(0, len(tokens), BATCH):
            part = tokens[first : first + BATCH]
            batch = self._batch
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i] = token.token_id, token.position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, token.sequence
                batch.logits[i] = token.has_logits
            status = self._library.llama_decode(self._context, batch)
            assert status == 0, f"llama_decode: {status}"
            asked = [token for token in part if token.has_logits]
            if asked:
                logits = ctypes.cast(self._library.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
                rows = self._numpy.ctypeslib.as_array(logits, (len(asked), self._vocab_size))
                best = rows.argmax(-1).tolist()
                following += [
                    _Token(token_id, token.position + 1, token.sequence, has_logits=True)
                    for token_id, token in zip(best, asked, strict=True)
                ]
        return following


def _prompt(prompt: Prompt, sequence: int) -> list[_Token]:
    last = len(prompt) - 1
    return [_Token(token_id, position, sequence, position == last) for position, token_id in enumerate(prompt)]


if __name__ == "__main__":
    serve(lambda: LlamaCpp(sys.argv[1], int(sys.argv[2])))
