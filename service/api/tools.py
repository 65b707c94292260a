"""The request fields about tools, and how a model is made to call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from service.api.fields import StrictModel, kind_of_text
from service.api.state import ApiState
from service.api.structured import ANY_OBJECT, RESPONSE_SCHEMA, Schema, StructuredFields, naming
from service.errors import InvalidRequestError
from service.text.grammar import check_schema, inline_schema, json_schema
from service.text.tokenizer import Tokenizer
from service.text.tool_format import ANY_TEXT, HERMES, ToolFormat, calls_grammar, tool_format
from service.types import TokenGrammar

MAX_TOOLS = 128


class FunctionDefinition(StrictModel):
    """A function. Its arguments always follow `parameters`, whatever `strict` says."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(StrictModel):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(StrictModel):
    name: str


class NamedTool(StrictModel):
    type: Literal["function"]
    function: FunctionName


def kind_of_choice(value: object) -> str | None:
    return "<object>" if isinstance(value, dict) else kind_of_text(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedTool, Tag("<object>")],
    Discriminator(
        kind_of_choice, custom_error_type="tool_choice", custom_error_message="expected a string or an object"
    ),
]


class ToolFields(StructuredFields):
    """Fields of an endpoint whose model may call tools."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = Field(
        None, description="none, auto (default), required, or the one function to call."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether there may be several calls. Default true.")

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise InvalidRequestError("The names of tools must differ.", param="tools")
        if self.must_call and not names:
            raise InvalidRequestError("tool_choice is only allowed when tools are specified.", param="tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise InvalidRequestError("tool_choice names a function that is not among tools.", param="tool_choice")
        if self.structured_outputs is not None and self.offered_tools:
            raise InvalidRequestError(
                "structured_outputs cannot be combined with tools: use response_format.", param="structured_outputs"
            )
        return self

    @property
    def must_call(self) -> bool:
        return self.tool_choice not in (None, "none", "auto")

    @property
    def offered_tools(self) -> list[Tool]:
        """Those that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools or []

    def for_template(self) -> list[dict[str, object]] | None:
        """Templates test for None."""
        return [tool.model_dump(exclude_none=True) for tool in self.offered_tools] or None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """How calls look in the output, which of its special tokens belong to them, and the grammar that makes them so."""

    form: ToolFormat
    names: tuple[str, ...]
    shown_token_ids: frozenset[int]
    grammar: TokenGrammar


def tool_use(fields: ToolFields, state: ApiState) -> ToolUse | None:
    """None when no tool may be called: none is offered, or the model speaks no format that is known and need not call.

    Raises InvalidRequestError, naming the field.
    """
    template = state.tokenizer.chat_template
    if not fields.offered_tools or template is None:
        return None
    form = tool_format(state.tool_parser, template)
    if form is None and not fields.must_call:
        return None
    form = form or HERMES  # what a model is made to write, it need not have learned
    schemas = _schemas(fields)
    special = (state.tokenizer.special_token_id(name) for name in form.special)
    return ToolUse(
        form=form,
        names=tuple(schemas),
        shown_token_ids=frozenset(token_id for token_id in special if token_id is not None),
        grammar=_grammar(fields, form, schemas, state.tokenizer),
    )


def _schemas(fields: ToolFields) -> Mapping[str, Schema]:
    """The schema of the arguments of each function that may be called."""
    only = fields.tool_choice.function.name if isinstance(fields.tool_choice, NamedTool) else None
    schemas: dict[str, Schema] = {}
    for index, tool in enumerate(fields.offered_tools):
        parameters = tool.function.parameters or {"properties": {}, "additionalProperties": False}
        schema = {"type": "object", **parameters}
        with naming(_path(index)):
            if schema["type"] != "object":
                raise InvalidRequestError("Its type must be object.")
            check_schema(schema)
        if only in (None, tool.function.name):
            schemas[tool.function.name] = schema
    return schemas


def _grammar(fields: ToolFields, form: ToolFormat, schemas: Mapping[str, Schema], tokenizer: Tokenizer) -> TokenGrammar:
    otherwise = None if fields.must_call else ANY_TEXT
    if otherwise is not None and fields.response_schema is not None:
        with naming(RESPONSE_SCHEMA):
            otherwise = inline_schema(fields.response_schema)
    many = fields.parallel_tool_calls is not False
    try:
        return tokenizer.grammars.compile(
            calls_grammar(form, schemas, tokenizer.special_token_id, many=many, otherwise=otherwise)
        )
    except InvalidRequestError as error:
        _blame(fields, tokenizer)
        raise InvalidRequestError(f"Invalid value for 'tools': {error}", param="tools") from None


def _blame(fields: ToolFields, tokenizer: Tokenizer) -> None:
    """Raise InvalidRequestError, naming its field, where one schema alone is at fault."""
    fields.output_grammar(tokenizer)
    for index, tool in enumerate(fields.offered_tools):
        with naming(_path(index)):
            tokenizer.grammars.compile(json_schema(tool.function.parameters or ANY_OBJECT))


def _path(index: int) -> str:
    return f"tools[{index}].function.parameters"
