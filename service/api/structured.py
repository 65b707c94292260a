"""The request fields that say what an output must look like, and the grammar that they ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from service.api.fields import GenerationFields, StrictModel, Unsupported
from service.errors import InvalidRequestError
from service.text.grammar import Grammars, choice, json_schema, lark, regex
from service.text.tokenizer import Tokenizer
from service.types import TokenGrammar

Schema = dict[str, JsonValue]
ANY_OBJECT: Schema = {"type": "object"}
RESPONSE_SCHEMA = "response_format.json_schema.schema"


class JsonSchema(StrictModel):
    """A schema with its name. It is always enforced, whatever `strict` says."""

    name: str
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            path = "response_format.json_schema"
            wrong = "Missing required parameter" if self.json_schema is None else "It is only for json_schema"
            raise InvalidRequestError(f"{wrong}: '{path}'.", param=path)
        return self


def _kind_of_schema(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None


SchemaOrText = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Schema, Tag("<object>")],
    Discriminator(
        _kind_of_schema,
        custom_error_type="schema",
        custom_error_message="expected a JSON schema, as an object or as text",
    ),
]


class StructuredOutputs(StrictModel):
    """One of the constraints that vLLM has under this name."""

    unsupported: ClassVar[Unsupported] = {
        "disable_additional_properties": (False,),
        "disable_any_whitespace": (False,),
        "disable_fallback": (False, True),
        "structural_tag": (),
        "whitespace_pattern": (),
    }

    json_: SchemaOrText | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    grammar: str | None = Field(None, description="In Lark's notation or in GBNF.")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = (self.json_, self.json_object or None, self.regex, self.choice, self.grammar)
        if sum(each is not None for each in given) != 1:
            raise InvalidRequestError(
                "structured_outputs takes exactly one of json, json_object, regex, choice and grammar.",
                param="structured_outputs",
            )
        return self

    def compiled_by(self, grammars: Grammars) -> TokenGrammar:
        """Raises InvalidRequestError, naming the field."""
        if self.json_ is not None:
            with naming("structured_outputs.json"):
                return grammars.compile(json_schema(_schema(self.json_)))
        if self.regex is not None:
            with naming("structured_outputs.regex"):
                return grammars.compile(regex(self.regex))
        if self.choice is not None:
            with naming("structured_outputs.choice"):
                return grammars.compile(choice(self.choice))
        if self.grammar is not None:
            with naming("structured_outputs.grammar"):
                return grammars.compile(lark(self.grammar))
        return grammars.compile(json_schema(ANY_OBJECT))


class StructuredFields(GenerationFields):
    """Fields of both endpoints, with those that constrain the output."""

    response_format: ResponseFormat | None = Field(None, description="text, json_object, or json_schema with a schema.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="Constrain the output by json, json_object, regex, choice or grammar."
    )

    @model_validator(mode="after")
    def _check_one_constraint(self) -> Self:
        if self.response_schema is not None and self.structured_outputs is not None:
            raise InvalidRequestError(
                "structured_outputs and response_format exclude each other.", param="structured_outputs"
            )
        return self

    @property
    def response_schema(self) -> Schema | None:
        """What `response_format` asks for, None for any text."""
        if self.response_format is None or self.response_format.type == "text":
            return None
        wanted = self.response_format.json_schema
        return ANY_OBJECT if wanted is None else wanted.schema_

    def output_grammar(self, tokenizer: Tokenizer) -> TokenGrammar | None:
        """The grammar of the whole output. Slow for a large one. Raises InvalidRequestError, naming the field."""
        if self.structured_outputs is not None:
            return self.structured_outputs.compiled_by(tokenizer.grammars)
        if self.response_schema is None:
            return None
        with naming(RESPONSE_SCHEMA):
            return tokenizer.grammars.compile(json_schema(self.response_schema))


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Say of what goes wrong within that it is about the field at `path`."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(f"Invalid value for '{path}': {error}", param=path) from None


def _schema(value: Schema | str) -> Schema:
    if not isinstance(value, str):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequestError("It must be a JSON schema, which is an object.")
    return schema
