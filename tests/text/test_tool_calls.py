"""Tool calls in every format: what the grammar lets a model write is what the reader reads, however it is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from service.errors import InvalidRequestError
from service.text.chat_template import ChatTemplate
from service.text.detokenizer import Detokenizer
from service.text.grammar import Source, inline_schema
from service.text.parts import TokenizerParts
from service.text.tokenizer import Tokenizer
from service.text.tool_calls import ToolCallReader, ToolDelta
from service.text.tool_format import (
    ANY_TEXT,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    ToolFormat,
    ToolParser,
    calls_grammar,
    tool_format,
)
from tests.text.strategies import byte_level_tokenizer
from tests.text.walk import follows, walk

TOOLS: dict[str, dict[str, Any]] = {
    "get": {"type": "object", "properties": {}, "additionalProperties": False},
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 5}, "day": {"enum": ["mon", "tue", 'a"}{\\']}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "add": {
        "type": "object",
        "properties": {"terms": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
        "required": ["terms"],
        "additionalProperties": False,
    },
}
FORMATS = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL, "mistral-args": MISTRAL_ARGS}
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>\n<tool_call>\n'
    '{"name": "add", "arguments": {"terms": [1, 2]}}\n</tool_call>',
    "llama3": '{"name": "get", "parameters": {}}; {"name": "add", "parameters": {"terms": [1, 2]}}',
    "mistral": '[TOOL_CALLS][{"name": "get", "arguments": {}}, {"name": "add", "arguments": {"terms": [1, 2]}}]',
    "mistral-args": '[TOOL_CALLS]get[ARGS]{}[TOOL_CALLS]add[ARGS]{"terms": [1, 2]}',
}
EACH_FORMAT = pytest.mark.parametrize("name", FORMATS)


def tokenizer_with(*special: str) -> Tokenizer:
    """The byte-level tokenizer with some special tokens more."""
    plain = byte_level_tokenizer()
    plain._backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return Tokenizer(TokenizerParts(backend=plain._backend, eos_token_ids=plain.eos_token_ids))


PLAIN = tokenizer_with()
SPECIAL = tokenizer_with("[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>", "<|python_tag|>")
EACH_VOCABULARY = pytest.mark.parametrize("tokenizer", [PLAIN, SPECIAL], ids=["as-text", "as-tokens"])


def source(tokenizer: Tokenizer, name: str, *, many: bool = True, otherwise: str | None = ANY_TEXT) -> Source:
    return calls_grammar(FORMATS[name], TOOLS, tokenizer.special_token_id, many=many, otherwise=otherwise)


def text_of(tokenizer: Tokenizer, name: str, token_ids: list[int]) -> str:
    """With the markers of the format, whether or not they are special tokens."""
    special = {tokenizer.special_token_id(each) for each in FORMATS[name].special}
    shown = frozenset(token_id for token_id in special if token_id is not None)
    detokenizer = Detokenizer(tokenizer, shown_token_ids=shown, continues_text=True)
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()


def added_up(deltas: list[ToolDelta]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and name and arguments of each call; checks that every call begins once, with its name."""
    content, calls = "", list[tuple[str, str]]()
    for delta in deltas:
        content += delta.content
        if delta.call is None:
            assert delta.content
            assert not calls
        elif delta.name is not None:
            assert delta.call == len(calls)
            calls.append((delta.name, delta.arguments))
        else:
            assert delta.call == len(calls) - 1
            assert delta.arguments
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return content, calls


def read(name: str, pieces: list[str]) -> tuple[str, list[tuple[str, str]], bool]:
    reader = ToolCallReader(FORMATS[name], TOOLS)
    deltas = [delta for piece in pieces for delta in reader.push(piece)] + reader.finish()
    return *added_up(deltas), reader.has_called


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]


@EACH_FORMAT
@given(data=st.data())
def test_calls_are_read_however_they_are_cut(name: str, data: st.DataObject) -> None:
    """Content, names and arguments are the same for any pieces, one character at a time too."""
    content = "" if name == "llama3" else data.draw(st.sampled_from(["", "Let me see.\n", "<tool_ca [TOOL_ {", "<<[["]))
    text = content + WRITTEN[name]
    expected = (content, [("get", "{}"), ("add", '{"terms": [1, 2]}')], True)

    assert read(name, data.draw(cut(text))) == read(name, list(text)) == expected


@EACH_FORMAT
@given(text=st.text('<tool_cal>{"nme: g[TOLCALS', max_size=40), data=st.data())
def test_text_without_calls_is_content(name: str, text: str, data: st.DataObject) -> None:
    """Nothing is lost of what only looks like the beginning of a call."""
    assert read(name, data.draw(cut(text))) == (text, [], False)


@EACH_FORMAT
@EACH_VOCABULARY
@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_model_must_call_is_a_call(tokenizer: Tokenizer, name: str, seed: int) -> None:
    """Each names a tool and has arguments that validate under its schema."""
    text = text_of(tokenizer, name, walk(tokenizer, source(tokenizer, name, otherwise=None), seed))
    content, calls, has_called = read(name, [text])

    assert (content, has_called) == ("", True)
    for tool, arguments in calls:
        jsonschema.validate(json.loads(arguments), TOOLS[tool])


@EACH_FORMAT
@EACH_VOCABULARY
@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_whatever_a_model_may_say_is_content_or_calls(tokenizer: Tokenizer, name: str, seed: int) -> None:
    """No text that is left to itself turns into half a call."""
    text = text_of(tokenizer, name, walk(tokenizer, source(tokenizer, name), seed))
    content, calls, has_called = read(name, list(text))

    assert has_called == bool(calls)
    assert content or calls or not text
    for tool, arguments in calls:
        jsonschema.validate(json.loads(arguments), TOOLS[tool])


@EACH_FORMAT
@EACH_VOCABULARY
def test_what_the_grammars_allow(tokenizer: Tokenizer, name: str) -> None:
    """Text or calls, calls alone, one call alone, or calls and JSON of another schema."""
    form = FORMATS[name]
    one = form.marker + form.before + form.opening_of("get") + "{}" + form.closing + form.after
    texts = ["", "Hello", one, WRITTEN[name], '{"x": 1}', form.marker + form.before + form.opening_of("nothing")]
    other = inline_schema({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})

    def allowed(**options: Any) -> list[bool]:
        return [follows(tokenizer, source(tokenizer, name, **options), text) for text in texts]

    assert allowed() == [True, True, True, True, True, False]
    assert allowed(many=False) == [True, True, True, False, True, False]
    assert allowed(otherwise=None) == [False, False, True, True, False, False]
    if not form.marker:
        with pytest.raises(InvalidRequestError, match="cannot be told from JSON"):
            allowed(otherwise=other)
        return
    assert allowed(otherwise=other) == [False, False, True, True, True, False]


def test_a_python_tag_before_a_call_means_nothing() -> None:
    """Llama 3 may begin its calls with it; it is a special token and not seen."""
    tagged = "<|python_tag|>" + WRITTEN["llama3"]

    assert follows(SPECIAL, source(SPECIAL, "llama3"), tagged)
    assert text_of(SPECIAL, "llama3", SPECIAL.encode(tagged)) == WRITTEN["llama3"]


@EACH_FORMAT
def test_a_call_that_is_cut_is_no_call_yet(name: str) -> None:
    """What there is of its arguments is passed on; that they are incomplete is told."""
    form = FORMATS[name]
    text = form.marker + form.before + form.opening_of("get_weather") + '{"city": "a}'

    assert read(name, [text]) == ("", [("get_weather", '{"city": "a}')], False)


@pytest.mark.parametrize(
    ("template", "parser", "expected"),
    [
        ("{{ messages }}", "auto", None),
        ("{% if tools %}<tool_call>{% endif %}", "auto", HERMES),
        ("{% if tools %}<tool_call><function=f>{% endif %}", "auto", None),
        ("{% if tools %}<tool_call><arg_key>{% endif %}", "auto", None),
        ("{{ '[TOOL_CALLS]' }}", "auto", MISTRAL),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "auto", MISTRAL_ARGS),
        ('ipython {{ \'{"name": "f", "parameters": \' }}', "auto", LLAMA3),
        ("{{ messages }}", "hermes", HERMES),
        ("{% if tools %}<tool_call>{% endif %}", "none", None),
        ("{% if tools %}<tool_call>{% endif %}", "mistral", MISTRAL),
    ],
)
def test_the_format_is_that_of_the_chat_template(
    template: str, parser: ToolParser, expected: ToolFormat | None
) -> None:
    """Unless a setting names another; formats that are not known are none."""
    assert tool_format(parser, ChatTemplate(template)) is expected
