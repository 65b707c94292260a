"""What a reader of one request sees."""

from __future__ import annotations

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.stream import RequestStream, merge
from service.types import FinishReason, SequenceTimings, TokenEvent, TokenLogprob
from tests.engine.fakes import request


def stream(aborted: list[str], n: int = 1) -> RequestStream:
    return RequestStream(request(request_id="x", n=n), asyncio.get_running_loop(), aborted.append)


def event(*token_ids: int, index: int = 0, finish_reason: FinishReason | None = None) -> TokenEvent:
    return TokenEvent(request_id="x", index=index, token_ids=token_ids, finish_reason=finish_reason)


async def test_events_come_in_order_and_end_after_the_last_sequence() -> None:
    """The stream is over when each of n sequences has ended, not before."""
    mine = stream([], n=2)
    for each in (event(1), event(2, index=1, finish_reason=FinishReason.STOP)):
        mine.push(each)
    seen = [await anext(mine), await anext(mine)]
    mine.push(event(3, finish_reason=FinishReason.LENGTH))
    seen += [each async for each in mine]

    assert [(each.index, each.token_ids) for each in seen] == [(0, (1,)), (1, (2,)), (0, (3,))]


async def test_a_slow_reader_gets_merged_events() -> None:
    """Nothing is lost, and one event per sequence is all that waits."""
    mine = stream([], n=2)
    for token_id in range(100):
        mine.push(event(token_id))
        mine.push(event(token_id + 1000, index=1))
    for index in range(2):
        mine.push(event(index=index, finish_reason=FinishReason.LENGTH))

    first, second = [each async for each in mine]

    assert first == event(*range(100), finish_reason=FinishReason.LENGTH)
    assert second == event(*range(1000, 1100), index=1, finish_reason=FinishReason.LENGTH)


async def test_what_comes_after_the_end_is_ignored() -> None:
    """Exactly one terminal event per sequence, also when the engine dies right after it."""
    mine = stream([])
    mine.push(event(1, finish_reason=FinishReason.STOP))
    mine.push(event(2))
    mine.end(FinishReason.ERROR, "too late")

    assert [each.token_ids async for each in mine] == [(1,)]


async def test_failure_ends_what_is_unfinished() -> None:
    """One error event for each sequence that has not ended."""
    mine = stream([], n=3)
    mine.push(event(1, index=1, finish_reason=FinishReason.STOP))
    mine.end(FinishReason.ERROR, "the engine is gone")

    ends = {each.index: (each.finish_reason, each.error) async for each in mine}

    gone = (FinishReason.ERROR, "the engine is gone")
    assert ends == {1: (FinishReason.STOP, None), 0: gone, 2: gone}


@pytest.mark.parametrize("num_read", [0, 1])
async def test_closing_aborts_what_is_unfinished(num_read: int) -> None:
    """Also where nothing has been read; once, however often it is closed; and reading on finds the end."""
    aborted: list[str] = []
    mine = stream(aborted)
    mine.push(event(1))
    for _ in range(num_read):
        await anext(mine)
    await mine.aclose()
    await mine.aclose()
    mine.push(event(2))

    assert aborted == ["x"]
    assert [each async for each in mine] == []


async def test_closing_after_the_end_aborts_nothing() -> None:
    """The request is over anyway."""
    aborted: list[str] = []
    mine = stream(aborted)
    mine.push(event(1, finish_reason=FinishReason.STOP))
    await mine.aclose()

    assert aborted == []


async def test_cancelling_a_read_aborts() -> None:
    """The client's task is gone."""
    aborted: list[str] = []
    mine = stream(aborted)
    reading = asyncio.ensure_future(anext(mine))
    await asyncio.sleep(0)
    reading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reading
    assert aborted == ["x"]


async def test_closing_wakes_a_reader() -> None:
    """A task that reads while another closes comes to an end."""
    mine = stream([])
    reading = asyncio.ensure_future(anext(mine, None))
    await asyncio.sleep(0)
    await mine.aclose()

    assert await reading is None


async def test_a_lost_stream_aborts() -> None:
    """Where nobody can read it any more, nobody needs the tokens."""
    aborted: list[str] = []
    mine = stream(aborted)
    del mine
    gc.collect()

    assert aborted == ["x"]


@given(parts=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=6), ends=st.booleans())
def test_merging_keeps_everything(parts: list[list[int]], ends: bool) -> None:
    """Tokens and log-probabilities add up; the first brings the prompt's, the last the end."""
    events = [
        TokenEvent(
            request_id="x",
            index=3,
            token_ids=tuple(part),
            logprobs=tuple(TokenLogprob(token_id, -1.0) for token_id in part),
            prompt_logprobs=(None,) if i == 0 else None,
            num_prefix_hit_tokens=16,
            timings=SequenceTimings(arrival_at=0.0, scheduled_at=1.0) if i == 0 else None,
        )
        for i, part in enumerate(parts)
    ]
    if ends:
        timings = SequenceTimings(arrival_at=0.0)
        events.append(TokenEvent(request_id="x", index=3, finish_reason=FinishReason.ERROR, error="e", timings=timings))

    merged = merge(events)

    token_ids = tuple(token_id for part in parts for token_id in part)
    assert merged == TokenEvent(
        request_id="x",
        index=3,
        token_ids=token_ids,
        logprobs=tuple(TokenLogprob(token_id, -1.0) for token_id in token_ids),
        prompt_logprobs=(None,),
        num_prefix_hit_tokens=events[-1].num_prefix_hit_tokens,
        finish_reason=FinishReason.ERROR if ends else None,
        error="e" if ends else None,
    )
    assert merged.timings == (events[-1].timings if ends else events[0].timings)
