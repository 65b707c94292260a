"""OpenVINO GenAI's continuous batching on the CPU: model (a .gguf or a converted directory), threads."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from service.bench.contender import Asked, Prompt, serve

CACHE_GB = 2
MAX_TOKENS = 4096  # more than is ever asked for: sequences end by `finish`


class OpenVino:
    """One pipeline, stepped by hand."""

    def __init__(self, path: str, num_threads: int) -> None:
        self._genai: Any = importlib.import_module("openvino_genai")
        self._openvino: Any = importlib.import_module("openvino")
        self._numpy: Any = importlib.import_module("numpy")
        scheduling = self._genai.SchedulerConfig()
        scheduling.cache_size = CACHE_GB
        scheduling.enable_prefix_caching = False
        scheduling.max_num_batched_tokens = 512
        options = {"INFERENCE_NUM_THREADS": num_threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = self._genai.ContinuousBatchingPipeline(path, scheduling, "CPU", options)
        self._num_requests = 0
        self._handles: list[Any] = []

    def start(self, prompts: Sequence[Prompt], num_steps: int) -> None:  # noqa: ARG002
        self._handles = [self._add(prompt, MAX_TOKENS) for prompt in prompts]
        waiting = self._handles
        while waiting:
            self._pipeline.step()
            waiting = [handle for handle in waiting if not handle.can_read()]

    def step(self) -> None:
        self._pipeline.step()

    def finish(self) -> None:
        for handle in self._handles:
            handle.cancel()
        self._handles = []
        self._drain()

    def answer(self, requests: Sequence[Asked]) -> None:
        handles = [self._add(prompt, max_tokens) for prompt, max_tokens in requests]
        self._drain()
        assert all(handle.can_read() for handle in handles)

    def _drain(self) -> None:
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _add(self, prompt: Prompt, max_tokens: int) -> Any:
        self._num_requests += 1
        config = self._genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        token_ids = self._openvino.Tensor(self._numpy.array([list(prompt)], dtype="int64"))
        return self._pipeline.add_request(self._num_requests, token_ids, config)


if __name__ == "__main__":
    serve(lambda: OpenVino(sys.argv[1], int(sys.argv[2])))
