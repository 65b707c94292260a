"""How models write tool calls: three families, each with the grammar of its calls.

Wherever a model may call a tool, the grammar sees to it that a call is well formed, names a tool that exists and has
arguments that follow its schema; what reads the calls (`service.text.tool_calls`) has nothing to guess or repair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.errors import InvalidRequestError
from service.text.chat_template import ChatTemplate
from service.text.grammar import Source, inline_schema, lark_with_schemas, quoted

ToolParser = Literal["auto", "hermes", "llama3", "mistral", "mistral-args", "none"]
SpecialTokenId = Callable[[str], int | None]
"""The id of a special token by its name, None when a tokenizer has no such special token."""

ANY_TEXT = "/(?s:.*)/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """Calls are `marker`, `before`, call `between` call, `after`; a call is its opening, its arguments, `closing`.

    `opening` has NAME where the tool's name is. A text that has `marker` in it goes on as calls; without a marker only
    the whole output can be calls. `special` are the names in it that tokenizers may have as special tokens; `prelude`
    is a special token that may come first and means nothing.
    """

    marker: str
    before: str
    opening: str
    closing: str
    between: str
    after: str
    special: tuple[str, ...] = ()
    prelude: str | None = None

    def opening_of(self, name: str) -> str:
        return self.opening.replace("NAME", name)


HERMES = ToolFormat(
    marker="<tool_call>",
    before="\n",
    opening='{"name": "NAME", "arguments": ',
    closing="}",
    between="\n</tool_call>\n<tool_call>\n",
    after="\n</tool_call>",
    special=("<tool_call>", "</tool_call>"),
)
LLAMA3 = ToolFormat(
    marker="",
    before="",
    opening='{"name": "NAME", "parameters": ',
    closing="}",
    between="; ",
    after="",
    prelude="<|python_tag|>",
)
MISTRAL = ToolFormat(
    marker="[TOOL_CALLS]",
    before="[",
    opening='{"name": "NAME", "arguments": ',
    closing="}",
    between=", ",
    after="]",
    special=("[TOOL_CALLS]",),
)
MISTRAL_ARGS = ToolFormat(  # since its tokenizer v11
    marker="[TOOL_CALLS]",
    before="",
    opening="NAME[ARGS]",
    closing="",
    between="[TOOL_CALLS]",
    after="",
    special=("[TOOL_CALLS]", "[ARGS]"),
)
_FORMATS = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL, "mistral-args": MISTRAL_ARGS}


def tool_format(parser: ToolParser, template: ChatTemplate) -> ToolFormat | None:
    """The format that `parser` names; with auto the one that the model's chat template speaks, if it is known."""
    if parser != "auto":
        return _FORMATS.get(parser)
    source = template.source
    if "[TOOL_CALLS]" in source:
        return MISTRAL_ARGS if "[ARGS]" in source else MISTRAL
    if "<tool_call>" in source:
        is_xml = "<function=" in source or "<arg_key>" in source
        return None if is_xml else HERMES
    return LLAMA3 if '"parameters": ' in source and "ipython" in source else None


def calls_grammar(
    form: ToolFormat,
    tools: Mapping[str, Mapping[str, object]],
    special_token_id: SpecialTokenId,
    *,
    many: bool,
    otherwise: str | None,
) -> Source:
    """Calls of `tools` (the schema of the arguments by name), several with `many`.

    `otherwise` is what the output may be instead (ANY_TEXT or an inline schema), None when there must be a call. Raises
    InvalidRequestError.
    """

    def literal(text: str) -> str:
        return _literal(text, form.special, special_token_id)

    prelude_id = special_token_id(form.prelude) if form.prelude else None
    prelude = "" if prelude_id is None else f"<[{prelude_id}]>?"
    more = f"({literal(form.between)} call)*" if many else ""
    rules = [
        *_start(form, literal(form.marker), otherwise),
        f"calls: {prelude} {literal(form.before)} call {more} {literal(form.after)}",
        f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}",
    ]
    for i, (name, schema) in enumerate(tools.items()):
        rules.append(f"call_{i}: {literal(form.opening_of(name))} {inline_schema(schema)} {literal(form.closing)}")
    return lark_with_schemas("\n".join(rules))


def _start(form: ToolFormat, marker: str, otherwise: str | None) -> Sequence[str]:
    """The rules for what comes before the calls, or instead of them; `marker` is as the grammar writes it."""
    if otherwise is None:
        return [f"start: {marker} calls"]
    if otherwise != ANY_TEXT:
        if not marker:
            raise InvalidRequestError("This model's tool calls cannot be told from JSON: send tools or a schema.")
        return [f"start: other | {marker} calls", f"other: {otherwise}"]
    if not marker:
        common = form.opening.partition("NAME")[0]
        pattern = "".join(f"\\x{byte:02x}" for byte in common.encode())
        return ["start: TEXT | calls", f"TEXT: {ANY_TEXT} & ~/{pattern}(?s:.*)/"]
    if marker.startswith('"'):  # lazy: the text ends where the marker first occurs
        return ["start: TEXT | head calls", f"TEXT: {ANY_TEXT}", f"head[lazy]: TEXT {marker}"]
    return [f"start: TEXT | TEXT {marker} calls", f"TEXT: {ANY_TEXT}"]


def _literal(text: str, special: Sequence[str], special_token_id: SpecialTokenId) -> str:
    """`text` as Lark writes it; the names that are special tokens here as those tokens."""
    for name in special:
        before, found, after = text.partition(name)
        token_id = special_token_id(name)
        if found and token_id is not None:
            parts = (_literal(before, special, special_token_id), f"<[{token_id}]>")
            return " ".join([*parts, _literal(after, special, special_token_id)])
    return quoted(text) if text else ""
