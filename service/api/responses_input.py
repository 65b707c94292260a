"""The input of a response: items of a conversation, and how they become the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Json, JsonValue, Tag

from service.api.conversation import NotUsed
from service.api.fields import StrictModel, Unsupported, kind_of_text
from service.api.translate import kind_among


class InputText(StrictModel):
    type: Literal["input_text"]
    text: str


class OutputText(StrictModel):
    """A part of an answer that goes back."""

    type: Literal["output_text"]
    text: str
    annotations: NotUsed = None
    logprobs: NotUsed = None
    parsed: NotUsed = None


Part = Annotated[
    Annotated[InputText, Tag("<input_text>")] | Annotated[OutputText, Tag("<output_text>")],
    Discriminator(
        kind_among("input_text", "output_text"),
        custom_error_type="part",
        custom_error_message="only parts of type input_text and output_text are supported",
    ),
]
Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(fail_fast=True), Tag("<list>")],
    Discriminator(
        kind_of_text, custom_error_type="content", custom_error_message="expected a string or an array of text parts"
    ),
]


class MessageItem(StrictModel):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: NotUsed = None
    phase: NotUsed = None
    status: NotUsed = None


class FunctionCallItem(StrictModel):
    unsupported: ClassVar[Unsupported] = {"async": (False,), "caller": (), "namespace": ()}

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: Json[dict[str, JsonValue]]
    id: NotUsed = None
    status: NotUsed = None
    parsed_arguments: NotUsed = None


class FunctionOutputItem(StrictModel):
    unsupported: ClassVar[Unsupported] = {"caller": ()}

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: NotUsed = None
    status: NotUsed = None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")],
    Discriminator(
        kind_among("message", "function_call", "function_call_output", default="message"),
        custom_error_type="item",
        custom_error_message="only items of type message, function_call and function_call_output are supported",
    ),
]
Input = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Item], Field(min_length=1, fail_fast=True), Tag("<list>")],
    Discriminator(
        kind_of_text, custom_error_type="input", custom_error_message="expected a string or an array of items"
    ),
]


def as_messages(given: str | list[MessageItem | FunctionCallItem | FunctionOutputItem]) -> Iterable[dict[str, object]]:
    """The messages of a chat: a call belongs to the assistant's message before it."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, object]] = []
    for item in given:
        if isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": _joined(item.content)})
        elif isinstance(item, FunctionOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            calls = messages[-1].setdefault("tool_calls", [])
            assert isinstance(calls, list)
            function = {"name": item.name, "arguments": json.dumps(item.arguments)}
            calls.append({"id": item.call_id, "type": "function", "function": function})
    return messages


def _joined(content: str | list[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
