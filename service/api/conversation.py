"""The messages of a conversation, as chat requests bring them and as chat templates take them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Json, JsonValue, Tag

from service.api.fields import StrictModel, Unsupported, kind_of_text

# What the `openai` client adds to an answer that it has parsed, and sends along when the answer goes back.
NotUsed = Annotated[JsonValue, Field(exclude=True)]


class TextPart(StrictModel):
    type: Literal["text"]
    text: str


class FunctionCall(StrictModel):
    name: str
    arguments: Json[dict[str, JsonValue]]
    parsed_arguments: NotUsed = None


class ToolCall(StrictModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("<list>")],
    Discriminator(
        kind_of_text, custom_error_type="content", custom_error_message="expected a string or an array of text parts"
    ),
]


class Message(StrictModel):
    """One message of the conversation. `developer` is the newer name of `system`; text parts are joined."""

    unsupported: ClassVar[Unsupported] = {"annotations": ([],), "audio": (), "function_call": (), "refusal": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    parsed: NotUsed = None

    def for_template(self) -> dict[str, object]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        given = self.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
        return {"role": "system" if self.role == "developer" else self.role, "content": text, **given}
