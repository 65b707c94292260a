"""Who is measured: each contender prefills a batch of prompts, then takes decode steps, one after the other."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from service.engine.core import EngineCore
from service.errors import StartupError
from service.types import GenerateRequest, SamplingParams


class Contender(Protocol):
    """Greedy generation from the same weights."""

    def start(self, prompts: Sequence[Sequence[int]], num_steps: int) -> None:
        """Compute all prompts and each one's first token; `num_steps` more will be asked for."""

    def step(self) -> None:
        """One more token of each sequence."""

    def finish(self) -> None:
        """Forget the sequences."""


class Headcount:
    """Our engine, in this process, without HTTP."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._num_started = 0

    def start(self, prompts: Sequence[Sequence[int]], num_steps: int) -> None:
        sampling = SamplingParams(max_tokens=num_steps + 1, temperature=0.0, ignore_eos=True)
        for prompt in prompts:
            self._num_started += 1
            request_id = str(self._num_started)
            self._core.add(
                GenerateRequest(
                    request_id=request_id,
                    prompt_token_ids=tuple(prompt),
                    sampling=sampling,
                    arrival_at=time.monotonic(),
                )
            )
        num_waiting = len(prompts)
        while num_waiting > 0:
            num_waiting -= len(self._core.step().stats.ttft_s)

    def step(self) -> None:
        self._core.step()

    def finish(self) -> None:
        while self._core.has_work:
            self._core.step()


class Transformers:
    """`transformers` with its own key-value cache, all sequences in one batch: its `generate`, timed by step."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
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
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()
        self._cache: Any = None
        self._tokens = torch.empty(0)

    def start(self, prompts: Sequence[Sequence[int]], num_steps: int) -> None:  # noqa: ARG002
        self._cache = None
        self._forward(torch.tensor(prompts))

    def step(self) -> None:
        self._forward(self._tokens)

    def finish(self) -> None:
        self._cache = None

    @torch.inference_mode()
    def _forward(self, tokens: torch.Tensor) -> None:
        out = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        self._tokens = out.logits[:, -1:].argmax(-1)


CONTENDERS = {"transformers": Transformers}
