"""`POST /v1/messages` and `/v1/messages/count_tokens`, Anthropic's API: its fields, and how they become a chat."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, model_validator

from service.api.body import parse_body, parse_object
from service.api.chat import ChatRequest, job_of, prompt_of
from service.api.conversation import NotUsed
from service.api.fields import MAX_STOPS, Int, StopString, StrictModel, Unsupported, kind_of_text
from service.api.generation import Job
from service.api.messages_render import MessageRenderer
from service.api.state import ApiState
from service.api.structured import Schema
from service.api.tools import MAX_TOOLS
from service.api.translate import as_sent, kind_among, only
from service.errors import InvalidRequestError

_NAMES = {
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    ".function.parameters": ".input_schema",
    ".function": "",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}


class TextBlock(StrictModel):
    unsupported: ClassVar[Unsupported] = {"citations": ([],)}

    type: Literal["text"]
    text: str
    cache_control: NotUsed = None


Text = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextBlock], Field(fail_fast=True), Tag("<list>")],
    Discriminator(kind_of_text, custom_error_type="text", custom_error_message="expected a string or text blocks"),
]


class ToolUseBlock(StrictModel):
    unsupported: ClassVar[Unsupported] = {"caller": ({"type": "direct"},), "toolset_name": ()}

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, JsonValue]
    cache_control: NotUsed = None


class ToolResultBlock(StrictModel):
    unsupported: ClassVar[Unsupported] = {"toolset_name": ()}

    type: Literal["tool_result"]
    tool_use_id: str
    content: Text | None = None
    is_error: bool | None = Field(None, description="Accepted and not used: the model reads the content.")
    cache_control: NotUsed = None


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    Discriminator(
        kind_among("text", "tool_use", "tool_result"),
        custom_error_type="block",
        custom_error_message="only blocks of type text, tool_use and tool_result are supported",
    ),
]
Blocks = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Block], Field(fail_fast=True), Tag("<list>")],
    Discriminator(
        kind_of_text, custom_error_type="content", custom_error_message="expected a string or an array of blocks"
    ),
]


class MessageParam(StrictModel):
    """A turn; a tool's result is in a turn of the user. Text blocks are joined."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @property
    def blocks(self) -> list[TextBlock | ToolUseBlock | ToolResultBlock]:
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    def misplaced(self) -> str | None:
        """The type of a block that may not be in a turn of this role."""
        allowed = {"assistant": ("text", "tool_use"), "user": ("text", "tool_result")}.get(self.role, ("text",))
        return next((block.type for block in self.blocks if block.type not in allowed), None)

    def for_chat(self) -> Iterator[dict[str, object]]:
        blocks = self.blocks
        calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
        for is_result, run in groupby(blocks, lambda block: isinstance(block, ToolResultBlock)):
            if not is_result:
                content = _joined(list(run)) or (None if calls else "")
                yield {"role": self.role, "content": content, "tool_calls": calls or None}
                continue
            for block in run:
                assert isinstance(block, ToolResultBlock)
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _joined(block.content)}
        if not blocks:
            yield {"role": self.role, "content": ""}


class CustomTool(StrictModel):
    """A function. Its input always follows `input_schema`, whatever `strict` says."""

    unsupported: ClassVar[Unsupported] = {
        "allowed_callers": (["direct"],),
        "defer_loading": (False,),
        "eager_input_streaming": (False, True),
        "input_examples": ([],),
    }

    type: Annotated[Literal["custom"] | None, BeforeValidator(only("custom"))] = None
    name: str
    description: str | None = None
    input_schema: Schema
    strict: bool | None = None
    cache_control: NotUsed = None

    def for_chat(self) -> dict[str, object]:
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": function}


class ToolChoice(StrictModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def for_chat(self) -> str | dict[str, object]:
        if self.type == "tool":
            if self.name is None:
                raise InvalidRequestError("Missing required parameter: 'tool_choice.name'.", param="tool_choice.name")
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class JsonFormat(StrictModel):
    type: Literal["json_schema"]
    schema_: Schema = Field(alias="schema")


class OutputConfig(StrictModel):
    unsupported: ClassVar[Unsupported] = {"effort": ("high",)}

    format: JsonFormat | None = None

    def for_chat(self) -> dict[str, object] | None:
        if self.format is None:
            return None
        return {"type": "json_schema", "json_schema": {"name": "output", "schema": self.format.schema_}}


class CountRequest(StrictModel):
    """What makes a prompt."""

    unsupported: ClassVar[Unsupported] = {
        "container": (),
        "context_management": (),
        "diagnostics": (),
        "inference_geo": (),
        "mcp_servers": ([],),
        "prefill": (),
        "service_tier": ("auto", "standard_only"),
        "speed": ("standard",),
        "thinking": ({"type": "disabled"},),
        "user_profile_id": (),
        "workspace_id": (),
    }

    model: str | None = Field(None, description="The model to use; by default the one that is served here.")
    messages: Annotated[list[MessageParam], Field(min_length=1, fail_fast=True)]
    system: Text | None = None
    tools: Annotated[list[CustomTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    cache_control: NotUsed = Field(None, description="Accepted and not used: prefixes are always shared.")

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        for index, message in enumerate(self.messages):
            if kind := message.misplaced():
                path = f"messages[{index}].content"
                raise InvalidRequestError(f"Invalid value for '{path}': {message.role} has no {kind}.", param=path)
        if self.goes_on and not _joined(self.messages[-1].content).strip():
            path = f"messages[{len(self.messages) - 1}].content"
            why = "the answer goes on with it, so it must have text."
            raise InvalidRequestError(f"Invalid value for '{path}': {why}", param=path)
        return self

    @property
    def goes_on(self) -> bool:
        """Whether the answer continues the last turn."""
        last = self.messages[-1]
        return last.role == "assistant" and all(isinstance(block, TextBlock) for block in last.blocks)

    def for_chat(self) -> dict[str, object]:
        """The fields of a chat request that asks for the same."""
        system = [] if self.system is None else [{"role": "system", "content": _joined(self.system)}]
        choice = self.tool_choice
        return {
            "model": self.model,
            "messages": [*system, *(turn for message in self.messages for turn in message.for_chat())],
            "continue_final_message": self.goes_on,
            "tools": None if self.tools is None else [tool.for_chat() for tool in self.tools],
            "tool_choice": None if choice is None else choice.for_chat(),
            "parallel_tool_calls": not (choice and choice.disable_parallel_tool_use),
            "response_format": self.output_config and self.output_config.for_chat(),
        }


class MessagesRequest(CountRequest):
    """A message. When the last turn is the assistant's, the answer goes on with it."""

    max_tokens: Int = Field(description="Most tokens to generate.")
    metadata: dict[str, JsonValue] | None = Field(None, description="Accepted and not used.")
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stream: bool | None = Field(None, description="Send events while the message is generated.")
    temperature: float | None = Field(None, description="0 is greedy. Default 1.")
    top_k: Int | None = None
    top_p: float | None = None

    def for_chat(self) -> dict[str, object]:
        names = {"max_tokens", "stream", "temperature", "top_k", "top_p"}
        return {**super().for_chat(), **self.model_dump(include=names), "stop": self.stop_sequences}


def prepare(state: ApiState, body: bytes, arrival_at: float) -> Job:
    """As `service.api.chat.prepare`. Raises RequestError."""
    fields = parse_body(MessagesRequest, body)
    answer_id, model = f"msg_{uuid.uuid4().hex}", fields.model or state.model_id
    with as_sent(_NAMES):
        chat = parse_object(ChatRequest, fields.for_chat())
        return job_of(state, chat, answer_id, arrival_at, lambda use: MessageRenderer(answer_id, model, use))


def count_tokens(state: ApiState, body: bytes) -> int:
    """How many tokens the prompt has. Slow, as `prepare`. Raises RequestError."""
    fields = parse_body(CountRequest, body)
    with as_sent(_NAMES):
        return len(prompt_of(state, parse_object(ChatRequest, fields.for_chat())))


def _call(block: ToolUseBlock) -> dict[str, object]:
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input)}}


def _joined(text: str | Sequence[TextBlock | ToolUseBlock | ToolResultBlock] | None) -> str:
    """The text of text blocks."""
    if isinstance(text, str):
        return text
    return "".join(block.text for block in text or () if isinstance(block, TextBlock))
