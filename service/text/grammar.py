"""What an output must look like, as masks over the vocabulary: JSON schemas, regular expressions, grammars.

The functions write the `Source` that llguidance compiles. Their errors name no field: whoever read the field knows its
name. Everything is bounded (size, time and memory of a compiled grammar, time of a mask), so that no schema can hold up
the engine: what exceeds a bound is refused, or fails its own sequence.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from

from service.errors import GrammarError, InvalidRequestError

MAX_CHARS = 128 * 1024
MAX_PATTERN_CHARS = 4096
MAX_MULTIPLE = 10_000
_MAX_CACHED = 32
_MAX_COMPLAINT_CHARS = 300
# Between two tokens of JSON. Without a bound, small models fill their whole budget with it.
_JSON_OPTIONS: Mapping[str, object] = {"whitespace_pattern": r"\n?[ ]{0,16}", "lenient": False}
# What the automaton of one grammar may cost before its first token. A regular expression of 20,000 optional letters
# would take 6 s and 1.6 GB; schemas with long enumerations need more, and have short patterns.
_LITTLE_FUEL, _FUEL = 20_000, 100_000


class Source(NamedTuple):
    """A grammar in llguidance's own notation, and what it may cost to compile."""

    text: str
    fuel: int


def json_schema(schema: Mapping[str, object]) -> Source:
    """JSON that `schema` accepts. Raises InvalidRequestError."""
    check_schema(schema)
    try:
        # The library's type for the options misses that it takes any mapping.
        text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=dict(_JSON_OPTIONS))  # type: ignore[arg-type]
    except ValueError as error:
        raise _refusal(str(error)) from None
    return Source(text, _FUEL)


def inline_schema(schema: Mapping[str, object]) -> str:
    """The same as a part of a Lark grammar. Raises InvalidRequestError."""
    check_schema(schema)
    return "%json " + json.dumps({**schema, "x-guidance": _JSON_OPTIONS})


def lark_with_schemas(text: str) -> Source:
    """A Lark grammar of our own, whose schemas come from `inline_schema`. Raises InvalidRequestError."""
    _check_size(text)
    return Source(LLMatcher.grammar_from_lark(text), _FUEL)


def regex(pattern: str) -> Source:
    """A text that the whole of `pattern` matches, in the syntax of Rust's regex crate. Raises InvalidRequestError."""
    _check_pattern(pattern)
    return Source(LLMatcher.grammar_from_regex(pattern), _LITTLE_FUEL)


def choice(options: Iterable[str]) -> Source:
    """One of several texts. Raises InvalidRequestError."""
    return lark("start: " + " | ".join(map(quoted, options)))


def lark(text: str) -> Source:
    """A grammar in Lark's notation, or in the GBNF of llama.cpp, which is told by its `::=`. Raises
    InvalidRequestError."""
    _check_size(text)
    if "%json" in text:
        raise InvalidRequestError("%json is not supported within a grammar.")  # nobody checks the schemas in it
    try:
        return Source(grammar_from("grammar" if "::=" in text else "lark", text), _LITTLE_FUEL)
    except (ValueError, RecursionError) as error:
        raise _refusal(str(error)) from None


def quoted(text: str) -> str:
    """As a Lark grammar writes it: JSON, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_schema(schema: Mapping[str, object]) -> None:
    """Refuse what the compiler's own limits do not catch. Raises InvalidRequestError."""
    _check_size(json.dumps(schema))
    multiple = 1
    for key, value in _keywords(schema):
        if key == "multipleOf" and isinstance(value, int | float) and value > 0:
            # Its automaton has a state for each remainder.
            multiple = math.lcm(multiple, _digits(value))
        if key == "pattern" and isinstance(value, str):
            _check_pattern(value)
        if key == "patternProperties" and isinstance(value, Mapping):
            for pattern in value:
                _check_pattern(pattern)
    if multiple > MAX_MULTIPLE:
        raise InvalidRequestError(
            f"multipleOf is too large: the least common multiple of all in a schema may be {MAX_MULTIPLE} at most."
        )


def _keywords(schema: object) -> Iterator[tuple[str, object]]:
    """Every key of every object within, with its value: a property of that name too, which does no harm."""
    if isinstance(schema, list):
        for each in schema:
            yield from _keywords(each)
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            yield key, value
            yield from _keywords(value)


def _digits(value: float) -> int:
    """Its significant digits: 250 of 0.025."""
    return int("".join(map(str, Decimal(str(value)).normalize().as_tuple().digits)))


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidRequestError(f"A pattern may have {MAX_PATTERN_CHARS} characters at most.")


def _check_size(text: str) -> None:
    if len(text) > MAX_CHARS:
        raise InvalidRequestError(f"It is too large: {MAX_CHARS} characters are the most.")


def _refusal(complaint: str) -> InvalidRequestError:
    words = " ".join(complaint.split())
    return InvalidRequestError(words[:_MAX_COMPLAINT_CHARS].rstrip(".") + ".")


def _limits(fuel: int) -> LLParserLimits:
    """At the worst about 20 ms for a mask, and half a second and 50 MB for a grammar."""
    return LLParserLimits(
        max_items_in_row=1000,
        initial_lexer_fuel=fuel,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=20_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


class _Vocabulary:
    """What llguidance asks of a tokenizer; it calls it to tokenise what a grammar forces."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: Iterable[int],
        eos_token_ids: Iterable[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self.eos_token_id = min(eos_token_ids)
        self.bos_token_id = None
        self.tokens = list(pieces)
        self.special_token_ids = sorted(special)
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text is wanted")  # how the library finds out that bytes are not
        return self._encode(text)


class Grammars:
    """Compiles grammars for one vocabulary, and keeps the latest. Safe to use from several threads.

    `pieces` are the bytes of each token, `special` the ids that are never part of a text.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: frozenset[int],
        eos_token_ids: frozenset[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        if not eos_token_ids:
            raise InvalidRequestError("This model has no end-of-sequence token: its output cannot be constrained.")
        wrapper = TokenizerWrapper(_Vocabulary(pieces, special, eos_token_ids, encode))
        self._tokenizer = LLTokenizer(wrapper, eos_token=sorted(eos_token_ids))
        self._cache: OrderedDict[Source, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, source: Source) -> Grammar:
        """Takes half a second at the worst, in which the interpreter lock is free. Raises InvalidRequestError."""
        with self._lock:
            found = self._cache.get(source)
            if found is not None and not found.is_worn:
                self._cache.move_to_end(source)
                return found
        prototype = LLMatcher(self._tokenizer, source.text, log_level=0, limits=_limits(source.fuel))
        _try(prototype)
        grammar = Grammar(prototype)
        with self._lock:
            self._cache[source] = grammar
            self._cache.move_to_end(source)
            while len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar


def _try(prototype: LLMatcher) -> None:
    """Raise InvalidRequestError for what cannot be compiled, and for what shows at its first tokens that it is too
    complex or allows nothing."""
    probe = prototype.deep_copy()
    if not probe.is_error():
        probe.compute_bitmask()
        probe.consume_tokens(probe.compute_ff_tokens())
        probe.compute_bitmask()
    if probe.is_error():
        raise _refusal(probe.get_error())


class Grammar:
    """Implements `TokenGrammar`.

    All matchers share an automaton that grows with what they meet. `is_worn` once one of them failed, which may be
    because it is full: then it serves no new request.
    """

    def __init__(self, prototype: LLMatcher) -> None:
        self._prototype = prototype
        self.is_worn = False

    def matcher(self) -> Matcher:
        return Matcher(self, self._prototype.deep_copy())


class Matcher:
    """Implements `TokenMatcher`."""

    def __init__(self, grammar: Grammar, state: LLMatcher) -> None:
        self._grammar = grammar
        self._state = state
        self._num_consumed = 0

    def mask(self, output_token_ids: Sequence[int]) -> bytes:
        if len(output_token_ids) < self._num_consumed:
            self._state.rollback(self._num_consumed - len(output_token_ids))
        self._state.consume_tokens(list(output_token_ids[self._num_consumed :]))
        self._num_consumed = len(output_token_ids)
        mask = self._state.compute_bitmask()
        if self._state.is_error():
            self._grammar.is_worn = True
            reason = self._state.get_error().split("\n")[0]
            raise GrammarError(f"The output cannot go on under its grammar: {reason[:_MAX_COMPLAINT_CHARS]}.")
        return mask
