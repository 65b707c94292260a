"""Whatever a model would say, what comes out follows its schema, expression or grammar; nothing is unbounded."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import GrammarError, InvalidRequestError
from service.text.grammar import (
    MAX_CHARS,
    MAX_PATTERN_CHARS,
    Source,
    choice,
    inline_schema,
    json_schema,
    lark,
    lark_with_schemas,
    regex,
)
from service.text.parts import TokenizerParts
from service.text.tokenizer import Tokenizer
from tests.text.strategies import byte_fallback_tokenizer, byte_level_tokenizer
from tests.text.walk import allowed_in, follows, walk

BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
FAMILIES = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])

Schema = dict[str, Any]
seeds = st.integers(0, 2**32)
names = st.sampled_from(["a", "b", "é", 'quo"te'])
leaves: st.SearchStrategy[Schema] = st.one_of(
    st.sampled_from([{"type": kind} for kind in ("boolean", "null", "string")]),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-99, 99),
        st.integers(0, 999),
    ),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.sampled_from(
        [
            {"type": "string", "pattern": "^[a-c]{2,4}(-[0-9]+)?$"},
            {"type": "string", "format": "date"},
            {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
            {"const": {"x": [1, None]}},
        ]
    ),
    st.lists(st.text(max_size=4) | st.integers(-5, 5) | st.none(), min_size=1, max_size=4, unique_by=repr).map(
        lambda values: {"enum": values}
    ),
)


def _objects(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.dictionaries(names, inner, max_size=3).flatmap(
        lambda properties: st.builds(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            },
            st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
        )
    )


schemas = st.recursive(
    leaves,
    lambda inner: (
        _objects(inner)
        | st.builds(
            lambda items, low: {"type": "array", "items": items, "minItems": low, "maxItems": low + 2},
            inner,
            st.integers(0, 2),
        )
        | st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    ),
    max_leaves=6,
)


def text_of(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """The text as a client gets it, where the output goes on from a prompt."""
    return b"".join(map(tokenizer.token_bytes, token_ids)).decode()


@FAMILIES
@given(schema=schemas, seed=seeds)
@settings(deadline=None)
def test_json_validates_under_its_schema(tokenizer: Tokenizer, schema: Schema, seed: int) -> None:
    """By the reference implementation of JSON Schema."""
    text = text_of(tokenizer, walk(tokenizer, json_schema(schema), seed))

    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@FAMILIES
@pytest.mark.parametrize("seed", range(20))
def test_any_object(tokenizer: Tokenizer, seed: int) -> None:
    """The schema of json_object mode allows any JSON within an object."""
    assert isinstance(json.loads(text_of(tokenizer, walk(tokenizer, json_schema({"type": "object"}), seed))), dict)


@FAMILIES
@given(
    pattern=st.recursive(
        st.sampled_from(["a", "[b-d]", "é", "你", "[0-9]{1,3}", r"\.", "[^x]", " "]),
        lambda inner: (
            st.builds("({})({})".format, inner, inner)
            | st.builds("({}|{})".format, inner, inner)
            | st.builds("({})?".format, inner)
            | st.builds("({}){{0,3}}".format, inner)
        ),
        max_leaves=6,
    ),
    seed=seeds,
)
@settings(deadline=None)
def test_a_regular_expression_matches_the_whole_text(tokenizer: Tokenizer, pattern: str, seed: int) -> None:
    """By Python's own engine."""
    text = text_of(tokenizer, walk(tokenizer, regex(pattern), seed))

    assert re.fullmatch(pattern, text), text


@FAMILIES
@given(options=st.lists(st.text(max_size=8), min_size=1, max_size=5), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_a_choice_is_one_of_the_options(tokenizer: Tokenizer, options: list[str], seed: int) -> None:
    """Quotes, controls and characters of several bytes among them."""
    assert text_of(tokenizer, walk(tokenizer, choice(options), seed)) in options


@pytest.mark.parametrize(
    ("grammar", "accepted", "refused"),
    [
        ('start: "a" b+\nb: "b" | "c"', ["ab", "acbc"], ["a", "b", "abd"]),
        ('root ::= "a" b+\nb ::= "b" | "c"', ["ab", "acbc"], ["a", "b", "abd"]),
        ('start: e\ne: e "+" e | "(" e ")" | /[0-9]+/', ["1", "(1+22)+3"], ["(1", "+", ")"]),
    ],
)
def test_both_notations(grammar: str, accepted: list[str], refused: list[str]) -> None:
    """Lark and GBNF are told apart by `::=`."""
    assert [text for text in [*accepted, *refused] if follows(BYTE_LEVEL, lark(grammar), text)] == accepted


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ('{"a":[1,2]}', True),
        ('{"a": [1, 2]}', True),
        ('{\n  "a": [\n    1,\n    2\n  ]\n}', True),
        ('{\n\n"a": [1]}', False),
        ('{"a":' + " " * 17 + "[1]}", False),
        (' {"a": [1]}', False),
        ('{"a": [1]} ', False),
    ],
)
def test_whitespace_is_bounded(text: str, is_allowed: bool, inline: bool) -> None:
    """A small model cannot fill its budget with it, whatever the schema's own options say."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}},
        "x-guidance": {"whitespace_pattern": "[ \\n]*"},
    }
    source = lark_with_schemas(f"start: {inline_schema(schema)}") if inline else json_schema(schema)

    assert follows(BYTE_LEVEL, source, text) is is_allowed


@FAMILIES
def test_no_special_token_is_ever_allowed_but_the_end(tokenizer: Tokenizer) -> None:
    """Any text is any text that a client can see."""
    allowed = allowed_in(tokenizer.grammars.compile(regex("(?s:.*)")).matcher().mask([]))

    assert {token_id for token_id in allowed if not tokenizer.token_bytes(token_id)} == tokenizer.eos_token_ids


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, '"not"'),
        ({"if": {}, "then": {}}, '"if"'),
        ({"type": "strng"}, "strng"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"$ref": "#/nope"}, "/nope"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(schema: Schema, complaint: str) -> None:
    """The words name the keyword or the value at fault; nothing is ignored in silence."""
    with pytest.raises(InvalidRequestError, match=re.escape(complaint)):
        BYTE_LEVEL.grammars.compile(json_schema(schema))


def nested(depth: int) -> Schema:
    return {"type": "integer"} if depth == 0 else {"type": "array", "items": nested(depth - 1)}


HOSTILE = {
    "deep": lambda: json_schema(nested(300)),
    "huge": lambda: json_schema({"enum": [f"value {i}" for i in range(20_000)]}),
    "many properties": lambda: json_schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}
    ),
    "many products": lambda: json_schema(
        {"allOf": [{"anyOf": [{"properties": {f"k{i}{j}": {}}} for j in range(4)]} for i in range(14)]}
    ),
    "remainders": lambda: json_schema({"type": "integer", "multipleOf": 999_983}),
    "common multiples": lambda: json_schema(
        {"allOf": [{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]}
    ),
    "pattern": lambda: json_schema({"type": "string", "pattern": "a?" * MAX_PATTERN_CHARS}),
    "property pattern": lambda: json_schema({"patternProperties": {"a?" * MAX_PATTERN_CHARS: {}}}),
    "patterns": lambda: json_schema({"properties": {f"p{i}": {"pattern": "a?" * 2000 + str(i)} for i in range(20)}}),
    "expression": lambda: regex("a?" * MAX_PATTERN_CHARS),
    "groups": lambda: regex("(" * 1000 + "a" + ")" * 1000),
    "loop": lambda: lark("start: start"),
    "rules": lambda: lark(
        "\n".join(["start: " + " ".join(f"x{i}" for i in range(5000)), *(f'x{i}: "a"?' for i in range(5000))])
    ),
    "terminal": lambda: lark('start: A\nB: "a"?\nA: ' + "B " * 15_000),
    "parentheses": lambda: lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "gbnf parentheses": lambda: lark("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "size": lambda: lark('start: "' + "a" * MAX_CHARS + '"'),
    "smuggled schema": lambda: lark('start: %json {"type": "integer", "multipleOf": 999983}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_cost_too_much_is_refused(name: str) -> None:
    """In bounded time and memory: each would take seconds and gigabytes, or overflow a stack, without a limit."""
    with pytest.raises(InvalidRequestError):
        BYTE_LEVEL.grammars.compile(HOSTILE[name]())


def test_an_automaton_that_is_full_fails_its_sequence_and_serves_no_other() -> None:
    """A pathological expression meets its limit in use; a new request begins with an empty automaton."""
    source = regex(r".*a.{200}")
    failed = used = BYTE_LEVEL.grammars.compile(source)
    for seed in range(400):
        try:
            walk_some(used, seed)
        except GrammarError:
            break
    else:
        raise AssertionError("it never filled up")

    fresh = BYTE_LEVEL.grammars.compile(source)
    assert fresh is not failed
    assert fresh.matcher().mask([])


def walk_some(grammar: Any, seed: int) -> None:
    matcher = grammar.matcher()
    letters = BYTE_LEVEL.encode("".join(random.Random(seed).choices("ab", k=250)))
    for length in range(len(letters)):
        matcher.mask(letters[:length])


def test_compiled_grammars_are_kept_up_to_a_number() -> None:
    """The latest used stay."""
    grammars = byte_level_tokenizer().grammars
    first = grammars.compile(regex("first"))
    for i in range(31):
        grammars.compile(regex(f"other{i}"))
    assert grammars.compile(regex("first")) is first
    for i in range(32):
        grammars.compile(regex(f"more{i}"))

    assert grammars.compile(regex("first")) is not first


def test_without_an_end_token_nothing_can_be_constrained() -> None:
    """The output could not end."""
    endless = Tokenizer(TokenizerParts(backend=BYTE_LEVEL._backend))

    with pytest.raises(InvalidRequestError, match="no end-of-sequence token"):
        endless.grammars.compile(Source("", 0))
