"""Scripts of what an engine may do, and bodies of what a client may send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from hypothesis import strategies as st

from service.api.chat import ChatRequest
from service.api.completions import CompletionRequest
from service.api.fields import GenerationFields
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import END, step

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "robot"]),
        "content": st.text(max_size=8),
    },
    optional={"name": st.text(max_size=4), "tool_calls": JSON, "tool_call_id": JSON, "mood": JSON},
) | st.fixed_dictionaries({"role": st.just("user"), "content": JSON})
VALUE = (
    JSON
    | st.integers(-2, 20)
    | st.booleans()
    | st.lists(MESSAGE, max_size=3)
    | st.lists(st.integers(0, 257), max_size=4)
)


LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "echo": st.booleans(),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.integers(-100, 100), max_size=2),
    "max_tokens": st.integers(0, 40),
    "min_tokens": st.integers(0, 2),
    "n": st.integers(1, 3),
    "parallel_tool_calls": st.booleans(),
    "response_format": st.sampled_from(
        [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": [1, "b"]}}},
            {"type": "json_schema", "json_schema": {"name": "s", "schema": {"uniqueItems": True}}},
        ]
    ),
    "seed": st.integers(),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=3),
    "stream": st.booleans(),
    "structured_outputs": st.sampled_from([{"regex": "a+"}, {"choice": ["a"]}, {"grammar": "start:"}, {"json": {}}]),
    "temperature": st.floats(0, 2.1),
    "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
    "tools": st.lists(
        st.builds(
            lambda name, parameters: {"type": "function", "function": {"name": name, "parameters": parameters}},
            st.sampled_from(["f", "g"]),
            st.sampled_from([None, {}, {"type": "object"}, {"type": "array"}, {"not": {}}]),
        ),
        max_size=2,
    ),
}


def bodies(model: type[GenerationFields], prompt: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Bodies for one endpoint: noise, any JSON, and objects whose fields have likely values, but for a few at times."""
    name = "messages" if "messages" in model.model_fields else "prompt"
    likely = {field: values for field, values in LIKELY.items() if field in model.model_fields}
    fields = st.fixed_dictionaries({name: prompt}, optional=likely)
    known = st.sampled_from([*model.model_fields, *model.unsupported])
    spoilt = st.builds(lambda body, others: {**body, **others}, fields, st.dictionaries(known, VALUE, max_size=2))
    return st.binary(max_size=40) | (JSON | fields | spoilt).map(lambda value: json.dumps(value).encode())


CHAT_BODIES = bodies(ChatRequest, st.lists(MESSAGE, max_size=3))
COMPLETION_BODIES = bodies(CompletionRequest, st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=3) | VALUE)


@dataclass(frozen=True)
class Sequences:
    """What the engine generates for each sequence of a request, and in which portions it arrives."""

    token_ids: list[list[int]]
    finish: list[FinishReason]
    portions: list[tuple[int, int]]  # (sequence, number of tokens), in order; what is left over comes at the end

    def __call__(self, request: GenerateRequest) -> Iterator[TokenEvent]:
        left = [
            [*ids] + ([END] if end is FinishReason.STOP else [])
            for ids, end in zip(self.token_ids, self.finish, strict=True)
        ]
        for index, size in [*self.portions, *((index, 1000) for index in range(len(left)))]:
            if left[index]:
                taken, left[index] = left[index][:size], left[index][size:]
                yield step(request, taken, index=index, finish=None if left[index] else self.finish[index])


@st.composite
def sequences(draw: st.DrawFn) -> Sequences:
    n = draw(st.integers(1, 3))
    # Few characters, one of them of three bytes, so that stop strings occur and characters are cut.
    text = st.text("ab€", max_size=8).map(lambda text: [*text.encode()])
    parts = st.lists(text | st.lists(st.integers(0, 255), max_size=3), min_size=1, max_size=3)
    ids = parts.map(lambda parts: [*chain.from_iterable(parts)])
    return Sequences(
        token_ids=draw(st.lists(ids.filter(bool), min_size=n, max_size=n)),
        finish=draw(st.lists(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]), min_size=n, max_size=n)),
        # The first sequence is the first to go on.
        portions=[(0, 1), *draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(1, 3)), max_size=12))],
    )


def text_fields() -> st.SearchStrategy[dict[str, Any]]:
    """Fields that decide what is shown of the tokens."""
    return st.fixed_dictionaries(
        {},
        optional={
            "stop": st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3),
            "min_tokens": st.integers(0, 6),
            "include_stop_str_in_output": st.booleans(),
            "logprobs": st.integers(0, 2),
            "echo": st.booleans(),
        },
    )
