"""Streams are parsed the same however the network cuts them, and what is not a stream is reported."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.sse import Chunk, EventParser, MalformedStreamError, Usage, parse_chunk

# An event's payload as its data lines: most have one, the standard allows more.
_line = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20).map(
    lambda text: json.dumps({"t": text})
)
payloads = st.lists(st.lists(_line, min_size=1, max_size=3), max_size=6)


@given(payloads, st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(1, 9), min_size=1))
def test_events_survive_any_cut(events: list[list[str]], newline: str, sizes: list[int]) -> None:
    """Parsing what was rendered gives back the payloads, whatever the line ends and the pieces."""
    rendered = ("".join(f"data: {line}{newline}" for line in lines) for lines in events)
    stream = "".join(f": ping{newline}{event}{newline}" for event in rendered).encode()
    parser, found = EventParser(), []
    position, turn = 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        found += parser.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    found += parser.feed(b": end\n")  # a CR at the very end waits for what follows it

    assert [payload.decode() for payload in found] == ["\n".join(lines) for lines in events]
    assert not parser.has_unfinished_event


def test_data_lines_of_one_event_are_joined() -> None:
    """Two data lines are one payload with a newline in it; other fields are ignored."""
    assert EventParser().feed(b"event: x\ndata: a\ndata:b\nid: 3\n\n") == [b"a\nb"]


def test_an_unfinished_event_is_noticed() -> None:
    """An event without its blank line is not delivered, and known to be there."""
    parser = EventParser()

    assert parser.feed(b"data: {}\n") == []
    assert parser.has_unfinished_event


def test_lines_that_are_no_fields_are_malformed() -> None:
    """A gateway's HTML page is not an event stream."""
    with pytest.raises(MalformedStreamError, match="not a server-sent event"):
        EventParser().feed(b"<html>\n")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"choices": [{"delta": {"content": " a"}, "finish_reason": None}]}, Chunk(text=" a")),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, Chunk(text="hm")),
        ({"choices": [{"text": "b", "finish_reason": "stop"}]}, Chunk(text="b", finish_reason="stop")),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None}, Chunk()),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, Chunk(finish_reason="length")),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, Chunk(usage=Usage(3, 2))),
        (
            {
                "choices": [],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
            },
            Chunk(usage=Usage(3, 2, 1)),
        ),
        (
            {"error": {"message": "no", "type": "server_error", "code": None}},
            Chunk(error="no", error_code="server_error"),
        ),
        ({"error": "plain"}, Chunk(error="plain")),
    ],
)
def test_chunks(body: object, expected: Chunk) -> None:
    """Chat and text completions, usage and errors as servers send them."""
    assert parse_chunk(json.dumps(body).encode()) == expected


def test_tool_calls_are_output() -> None:
    """A tool call counts as something the model said."""
    body = {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]}

    assert parse_chunk(json.dumps(body).encode()).text


def test_done_ends_the_stream() -> None:
    """[DONE] is not JSON and not output."""
    assert parse_chunk(b"[DONE]") == Chunk(is_done=True)


@pytest.mark.parametrize(
    "payload", [b"{", b"[]", b'"x"', b'{"choices": [3]}', b'{"choices": [], "usage": {}}', b"\xff"]
)
def test_other_payloads_are_malformed(payload: bytes) -> None:
    """Anything else is reported, never raised as something unexpected."""
    with pytest.raises(MalformedStreamError, match="not a completion chunk"):
        parse_chunk(payload)
