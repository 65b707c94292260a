"""vLLM's CPU build, its engine in this process: a Hugging Face directory, threads."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from service.bench.contender import Asked, Prompt, serve

MAX_LENGTH = 4096
MAX_SEQUENCES = 64
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


class Vllm:
    """One engine, stepped by hand."""

    def __init__(self, path: str, num_threads: int) -> None:
        os.environ |= ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads - 1}"}
        self._vllm: Any = importlib.import_module("vllm")
        options: dict[str, Any] = {"dtype": "bfloat16", "skip_tokenizer_init": True, "enable_prefix_caching": False}
        llm = self._vllm.LLM(path, max_model_len=MAX_LENGTH, max_num_seqs=MAX_SEQUENCES, **options)
        self._engine = llm.llm_engine
        self._num_requests = 0
        self._running: list[str] = []

    def start(self, prompts: Sequence[Prompt], num_steps: int) -> None:  # noqa: ARG002
        self._running = [self._add(prompt, MAX_LENGTH - len(prompt)) for prompt in prompts]
        waiting = set(self._running)
        while waiting:
            waiting -= {output.request_id for output in self._engine.step()}

    def step(self) -> None:
        self._engine.step()

    def finish(self) -> None:
        self._engine.abort_request(self._running)
        self._running = []
        self._drain()

    def answer(self, requests: Sequence[Asked]) -> None:
        for prompt, max_tokens in requests:
            self._add(prompt, max_tokens)
        self._drain()

    def _drain(self) -> None:
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def _add(self, prompt: Prompt, max_tokens: int) -> str:
        self._num_requests += 1
        request_id = str(self._num_requests)
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(request_id, {"prompt_token_ids": list(prompt)}, sampling)
        return request_id


if __name__ == "__main__":
    serve(lambda: Vllm(sys.argv[1], int(sys.argv[2])))
