"""`POST /v1/responses`: its fields, and how they become a chat. Nothing is stored: a conversation is sent whole."""

from __future__ import annotations

import uuid
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from service.api.body import parse_body, parse_object
from service.api.chat import ChatRequest, job_of
from service.api.fields import Int, StrictModel, Unsupported
from service.api.generation import Job
from service.api.render import Json
from service.api.responses_input import Input, as_messages
from service.api.responses_render import ResponseRenderer
from service.api.state import ApiState
from service.api.structured import Schema
from service.api.tools import MAX_TOOLS, kind_of_choice
from service.api.translate import as_sent, only
from service.errors import InvalidRequestError

_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format.json_schema": "text.format",
    ".function": "",
}
ENCRYPTED_REASONING = "reasoning.encrypted_content"  # asked for by agents of every model; there is none to include


class FunctionTool(StrictModel):
    """A function. Its arguments always follow `parameters`, whatever `strict` says."""

    unsupported: ClassVar[Unsupported] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "defer_loading": (False,),
        "output_schema": (),
    }

    type: Annotated[Literal["function"], BeforeValidator(only("function"))]
    name: str
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class NamedFunction(StrictModel):
    type: Annotated[Literal["function"], BeforeValidator(only("function"))]
    name: str


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedFunction, Tag("<object>")],
    Discriminator(
        kind_of_choice, custom_error_type="tool_choice", custom_error_message="expected a string or an object"
    ),
]


class Format(StrictModel):
    """A schema is always enforced, whatever `strict` says."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Schema | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        for field, value in (("name", self.name), ("schema", self.schema_)):
            if (self.type == "json_schema") != (value is not None):
                path = f"text.format.{field}"
                wrong = "Missing required parameter" if value is None else "It is only for json_schema"
                raise InvalidRequestError(f"{wrong}: '{path}'.", param=path)
        return self

    def for_chat(self) -> Json:
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"name": self.name, "schema": self.schema_}}


class TextOptions(StrictModel):
    unsupported: ClassVar[Unsupported] = {"verbosity": ("medium",)}

    format: Format | None = None


class ResponsesRequest(StrictModel):
    """A response."""

    unsupported: ClassVar[Unsupported] = {
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "include": ([], [ENCRYPTED_REASONING]),
        "max_tool_calls": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory", "in-memory"),
        "reasoning": ({}, {"effort": None}, {"effort": "none"}),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "stream_options": ({}, {"include_obfuscation": False}),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    model: str | None = Field(None, description="The model to use; by default the one that is served here.")
    input: Input
    instructions: str | None = Field(None, description="Put before the input, as a system message.")
    max_output_tokens: Int | None = Field(None, description="Most tokens to generate; default: all that fit.")
    metadata: dict[str, str] | None = Field(None, description="Given back, and not used.")
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = Field(None, description="Accepted and not used: prefixes are always shared.")
    safety_identifier: str | None = Field(None, description="Accepted and not used.")
    stream: bool | None = Field(None, description="Send events while the response is generated.")
    temperature: float | None = Field(None, description="0 is greedy; up to 2. Default 1.")
    text: TextOptions | None = None
    tool_choice: ToolChoice | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    top_p: float | None = None
    user: str | None = Field(None, description="Accepted and not used.")

    def for_chat(self) -> Json:
        """The fields of a chat request that asks for the same."""
        system = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        choice = self.tool_choice
        same = self.model_dump(include={"model", "parallel_tool_calls", "stream", "temperature", "top_p"})
        return {
            **same,
            "messages": [*system, *as_messages(self.input)],
            "max_completion_tokens": self.max_output_tokens,
            "response_format": self.text and self.text.format and self.text.format.for_chat(),
            "tools": self.tools and [_tool(tool) for tool in self.tools],
            "tool_choice": {"type": "function", "function": {"name": choice.name}}
            if isinstance(choice, NamedFunction)
            else choice,
        }

    def echo(self) -> Json:
        """What a response repeats of its request, with the defaults that are in force."""
        choice = self.tool_choice
        text = self.text and self.text.format and self.text.format.model_dump(by_alias=True, exclude_none=True)
        given = self.model_dump(
            include={"instructions", "max_output_tokens", "prompt_cache_key", "safety_identifier", "user"}
        )
        return {
            **given,
            "background": False,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": text or {"type": "text"}},
            "tool_choice": choice.model_dump() if isinstance(choice, NamedFunction) else choice or "auto",
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_logprobs": 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
        }


def prepare(state: ApiState, body: bytes, arrival_at: float) -> Job:
    """As `service.api.chat.prepare`. Raises RequestError."""
    fields = parse_body(ResponsesRequest, body)
    answer_id = f"resp_{uuid.uuid4().hex}"
    head = {"id": answer_id, "object": "response", "created_at": int(state.wall_clock())}
    head["model"] = fields.model or state.model_id
    with as_sent(_NAMES):
        chat = parse_object(ChatRequest, fields.for_chat())
        return job_of(state, chat, answer_id, arrival_at, lambda use: ResponseRenderer({**head, **fields.echo()}, use))


def _tool(tool: FunctionTool) -> Json:
    return {"type": "function", "function": tool.model_dump(include={"name", "description", "parameters"})}
