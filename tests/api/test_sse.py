"""Events are what clients parse: the same data comes out that went in."""

from __future__ import annotations

import json

import httpx
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from service.api import sse
from tests.api.fakes import ScriptedBackend, client_of, say

PAYLOADS = st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=3)


@given(st.lists(PAYLOADS))
def test_parsing_undoes_rendering(payloads: list[dict[str, object]]) -> None:
    """Line breaks of any alphabet in the data break no event."""
    stream = b"".join(map(sse.event, payloads)) + sse.DONE
    events = [event.data for event in SSEDecoder().iter_bytes(iter([stream]))]

    assert [json.loads(data) for data in events[:-1]] == payloads
    assert events[-1] == "[DONE]"


@given(st.text(), st.integers(1, 5))
def test_events_survive_any_cut_of_the_network(text: str, size: int) -> None:
    """Events are ASCII: a client may decode chunk by chunk, and split at every line break there is."""
    stream = sse.event({"text": text}) + sse.DONE
    chunks = [stream[start : start + size].decode() for start in range(0, len(stream), size)]
    first, blank, done, last = "".join(chunks).splitlines()

    assert json.loads(first.removeprefix("data: ")) == {"text": text}
    assert (blank, done, last) == ("", "data: [DONE]", "")


async def test_headers_of_a_stream() -> None:
    """Nothing on the way may cache or collect events, and their length is not known."""
    async with client_of(ScriptedBackend(say("é"))) as client:
        answer: httpx.Response = await client.post("/v1/completions", json={"prompt": "a", "stream": True})

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    assert answer.text.endswith("data: [DONE]\n\n")
