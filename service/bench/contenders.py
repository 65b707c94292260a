"""The contenders that run on PyTorch, in this environment: our engine, and `transformers`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from service.bench.contender import Asked, Prompt
from service.engine.core import EngineCore
from service.errors import StartupError
from service.types import GenerateRequest, SamplingParams, TokenEvent


class Headcount:
    """Our engine, in this process, without HTTP."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._num_started = 0
        self._request_ids: list[str] = []

    def start(self, prompts: Sequence[Prompt], num_steps: int) -> list[TokenEvent]:
        """The events of all steps. Sequences that are early go on while the others are computed, so they may have more
        tokens than `num_steps`: none ends before `finish`."""
        for prompt in prompts:
            self._num_started += 1
            self._request_ids.append(str(self._num_started))
            assert len(prompt) + num_steps < self._core.max_model_len
            sampling = SamplingParams(
                max_tokens=self._core.max_model_len - len(prompt), temperature=0.0, ignore_eos=True
            )
            self._core.add(
                GenerateRequest(
                    request_id=self._request_ids[-1],
                    prompt_token_ids=tuple(prompt),
                    sampling=sampling,
                    arrival_at=time.monotonic(),
                )
            )
        num_waiting = len(prompts)
        events: list[TokenEvent] = []
        while num_waiting > 0:
            output = self._core.step()
            num_waiting -= len(output.stats.ttft_s)
            assert not output.stats.finished, "a sequence ended that was to go on"
            events += output.events
        return events

    def step(self) -> list[TokenEvent]:
        events = self._core.step().events
        assert len(events) == len(self._request_ids), "every sequence takes part in every step"
        return events

    def finish(self) -> None:
        for request_id in self._request_ids:
            self._core.abort(request_id)
        self._request_ids.clear()
        while self._core.has_work:
            self._core.step()

    def answer(self, requests: Sequence[Asked]) -> None:
        for prompt, max_tokens in requests:
            self._add(prompt, max_tokens)
        while self._core.has_work:
            self._core.step()

    def _add(self, prompt: Prompt, max_tokens: int) -> str:
        self._num_started += 1
        request_id = str(self._num_started)
        self._core.add(
            GenerateRequest(
                request_id=request_id,
                prompt_token_ids=tuple(prompt),
                sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
                arrival_at=time.monotonic(),
            )
        )
        return request_id


class Transformers:
    """`transformers` with its own key-value cache, all sequences in one batch: its `generate`, timed by step."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self._model = load_transformers(path, dtype)
        self._cache: Any = None
        self._tokens = torch.empty(0)

    def start(self, prompts: Sequence[Prompt], num_steps: int) -> None:  # noqa: ARG002
        self._cache = None
        self._forward(torch.tensor(prompts))

    def step(self) -> None:
        self._forward(self._tokens)

    def finish(self) -> None:
        self._cache = None

    def answer(self, requests: Sequence[Asked]) -> None:
        """In one batch, padded on the left, for as long as the longest answer."""
        longest = max(len(prompt) for prompt, _ in requests)
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt, _ in requests]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in requests]
        most = max(max_tokens for _, max_tokens in requests)
        self._model.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            min_new_tokens=most,
            max_new_tokens=most,
            pad_token_id=0,
        )

    @torch.inference_mode()
    def _forward(self, tokens: torch.Tensor) -> None:
        out = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        self._tokens = out.logits[:, -1:].argmax(-1)


def load_transformers(path: Path, dtype: torch.dtype) -> Any:
    """Its model of the weights at `path`, dequantised. Raises StartupError."""
    try:
        transformers: Any = importlib.import_module("transformers")  # a peer, not a dependency
    except ImportError as error:
        raise StartupError("transformers is not installed: `pip install 'headcount[dev]'`.") from error
    transformers.logging.set_verbosity_error()
    options: dict[str, Any] = {"dtype": dtype}
    directory = path
    if path.is_file():
        directory = path.parent
        options |= {
            "gguf_file": path.name,
            "quantization_config": transformers.GgufConfig(gguf_file=path.name, dequantize=True),
        }
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()


CONTENDERS = {"transformers": Transformers}
