"""The offline door: the same engine, without HTTP and without Ray.

llm = LLM.load(load_settings(flags={}, environment=os.environ).settings)
for piece in llm.chat([{"role": "user", "content": "Hello!"}], SamplingParams(max_tokens=50, temperature=0)):
    print(piece, end="")
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence

from service.assembly import Engine, load_engine
from service.config import Settings
from service.errors import EngineError, InvalidRequestError
from service.model.hub import Progress
from service.text.detokenizer import Detokenizer
from service.types import FinishReason, GenerateRequest, SamplingParams


class LLM:
    """Generates text with one engine, in the calling thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._request_ids = map(str, itertools.count())

    @classmethod
    def load(cls, settings: Settings, progress: Progress | None = None) -> LLM:
        """Raises ConfigError, StartupError or ModelError."""
        return cls(load_engine(settings, progress=progress))

    def chat(self, messages: Sequence[Mapping[str, object]], sampling: SamplingParams) -> Iterator[str]:
        """The assistant's answer, piece by piece."""
        template = self._engine.tokenizer.chat_template
        if template is None:
            raise InvalidRequestError("This model has no chat template: use `complete`.", param="messages")
        return self._stream(template.render(messages), is_chat=True, sampling=sampling)

    def complete(self, prompt: str, sampling: SamplingParams) -> Iterator[str]:
        """The text that continues `prompt`, piece by piece."""
        return self._stream(prompt, is_chat=False, sampling=sampling)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[list[int]]:
        """The output tokens of each prompt, all batched together. Raises EngineError if one fails."""
        core = self._engine.core
        outputs: dict[str, list[int]] = {}
        for prompt, request_id in zip(prompts, self._request_ids, strict=False):
            outputs[request_id] = []
            core.add(
                GenerateRequest(
                    request_id=request_id,
                    prompt_token_ids=tuple(prompt),
                    sampling=sampling,
                    arrival_at=time.monotonic(),
                )
            )
        while core.has_work:
            for event in core.step().events:
                if event.error is not None:
                    raise EngineError(event.error)
                outputs[event.request_id] += event.token_ids
        return list(outputs.values())

    def _stream(self, text: str, *, is_chat: bool, sampling: SamplingParams) -> Iterator[str]:
        core, tokenizer = self._engine.core, self._engine.tokenizer
        prompt = tuple(tokenizer.encode(text, add_special_tokens=not is_chat))
        request = GenerateRequest(
            request_id=next(self._request_ids),
            prompt_token_ids=prompt,
            sampling=sampling,
            arrival_at=time.monotonic(),
        )
        core.add(request)
        detokenizer = Detokenizer(tokenizer, continues_text=not is_chat)
        try:
            while core.has_work:
                for event in core.step().events:
                    if event.error is not None:
                        raise EngineError(event.error)
                    shown = event.token_ids[:-1] if event.finish_reason is FinishReason.STOP else event.token_ids
                    yield "".join(map(detokenizer.push, shown))
            yield detokenizer.finish()
        finally:
            core.abort(request.request_id)
            while core.has_work:
                core.step()
