"""An engine that says anything that the grammar of a request allows, and a model that knows tools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from service.text.chat_template import ChatTemplate
from service.text.tokenizer import Tokenizer
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import Json, Script, make_parts, make_tokenizer, say, step
from tests.text.walk import walk_under

TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}<tool_call>{{ tool.function.name }};{% endfor %}"
    "{% for message in messages %}{{ message.role }}:{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.city }}){% endfor %}"
    "{{ eos_token }}{% endfor %}assistant:"
)
WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW: Json = {"type": "function", "function": {"name": "now"}}
CALLS = (
    'Wait.<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def tool_tokenizer(template: str = TOOL_TEMPLATE) -> Tokenizer:
    chat_template = ChatTemplate(template, special_tokens={"eos_token": "<|end|>"})
    return Tokenizer(replace(make_parts(), chat_template=chat_template))


def obey(seed: int) -> Script:
    """For each sequence a random walk through the request's grammar, one token per step."""
    tokenizer = make_tokenizer()

    def script(request: GenerateRequest) -> Iterator[TokenEvent]:
        assert request.grammar is not None
        for index in range(request.n):
            token_ids = walk_under(tokenizer, request.grammar, seed + index)[: request.sampling.max_tokens]
            has_ended = token_ids[-1] in tokenizer.eos_token_ids
            for position, token_id in enumerate(token_ids, start=1):
                reason = FinishReason.STOP if has_ended else FinishReason.LENGTH
                yield step(request, [token_id], index=index, finish=reason if position == len(token_ids) else None)

    return script


def follow(text: str) -> Script:
    """Say `text`, and fail unless the request's grammar allows it and its end."""

    def script(request: GenerateRequest) -> Iterator[TokenEvent | None]:
        assert request.grammar is not None
        matcher = request.grammar.matcher()
        output: list[int] = []
        for event in say(text)(request):
            assert event is not None
            for token_id in event.token_ids:
                assert matcher.mask(output)[token_id // 8] >> token_id % 8 & 1, bytes(output)
                output.append(token_id)
            yield event

    return script
