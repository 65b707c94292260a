"""Who is accepted, and when the others may come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.admission import Admission
from service.engine.forecast import Ahead, EngineRoom, Forecast
from service.engine.synthetic import StepCost
from service.errors import OverloadedError
from service.types import Claim, FinishReason, SequenceTimings, StepStats
from tests.engine.fakes import FakeClock, HistoryRunner, request
from tests.engine.serving import GatedRunner, read, serving

COST = StepCost(base_s=0.1, per_prefill_token_s=0.01)
ROOM = EngineRoom(max_num_seqs=4, max_num_batched_tokens=100, num_kv_tokens=10**6)
A_STEP = StepStats(duration_s=0.1, num_running=1, num_waiting=0, kv_usage=0.0, num_scheduled=1)
ENDED = SequenceTimings(arrival_at=0.0, scheduled_at=0.0, num_prompt_tokens=10, num_output_tokens=20)


def learned(slowdown: float = 1.0) -> Forecast:
    """Of an engine whose steps take `slowdown` times as long as they should, with outputs of 20 tokens."""
    forecast = Forecast(COST, ROOM)
    done = ((FinishReason.LENGTH, ENDED),)
    for _ in range(2000):
        forecast.learn(replace(A_STEP, duration_s=0.1 * slowdown, finished=done))
    return forecast


LEARNED = learned()


def admission(
    *, queue_timeout_s: float = 10.0, max_sequences: int = 100, forecast: Forecast | None = None
) -> Admission:
    return Admission(
        forecast or learned(), max_sequences=max_sequences, queue_timeout_s=queue_timeout_s, clock=FakeClock()
    )


def fill(accepting: Admission, tenant: str, *, num_begun: int = 0, num_waiting: int = 0, priority: int = 0) -> None:
    account = accepting.account_of(Claim(tenant=tenant, priority=priority))
    account.num_begun, account.num_waiting = num_begun, num_waiting
    account.num_prompt_tokens, account.num_output_tokens = 10.0 * num_waiting, 20.0 * num_waiting


class TestForecast:
    def test_nothing_ahead_is_no_wait(self) -> None:
        """An idle engine begins at once."""
        assert learned().wait_s(Ahead()) == 0.0

    @pytest.mark.parametrize("slowdown", [1.0, 3.0])
    def test_prompts_ahead_take_their_steps_and_tokens(self, slowdown: float) -> None:
        """Two steps of 100 tokens, times how much longer steps have taken."""
        wait_s = learned(slowdown).wait_s(Ahead(num_prompt_tokens=200.0))

        assert wait_s == pytest.approx(slowdown * (2 * 0.1 + 200 * 0.01), rel=0.01)

    def test_where_all_places_are_taken_outputs_must_end(self) -> None:
        """Four run for 20 steps each, evenly spread: one ends every five steps."""
        wait_s = learned().wait_s(Ahead(num_running=4, num_staying=4))

        assert wait_s == pytest.approx(5 * 0.1, rel=0.05)

    def test_drafts_that_come_true_bring_outputs_to_their_end_sooner(self) -> None:
        """Three tokens in a step that costs half as much again: outputs take half the time, prompts what they took."""
        forecast = learned()
        drafted = replace(A_STEP, duration_s=0.15, num_output_tokens=3, drafts=((5, 2),))
        for _ in range(2000):
            forecast.learn(drafted)

        assert forecast.wait_s(Ahead(num_running=4, num_staying=4)) == pytest.approx(5 * 0.1 / 2, rel=0.05)
        assert forecast.wait_s(Ahead(num_prompt_tokens=200.0)) == pytest.approx(2 * 0.1 + 200 * 0.01, rel=0.01)

    def test_an_unknown_law_forecasts_nothing(self) -> None:
        """Nobody is refused on a guess."""
        assert Forecast(StepCost(), ROOM).wait_s(Ahead(num_running=100, num_waiting=100)) == 0.0

    @given(
        few=st.tuples(*[st.floats(0, 1000)] * 4),
        more=st.tuples(*[st.floats(0, 1000)] * 4),
    )
    def test_more_ahead_is_never_a_shorter_wait(
        self, few: tuple[float, float, float, float], more: tuple[float, float, float, float]
    ) -> None:
        """Whatever it is."""
        sums = [a + b for a, b in zip(few, more, strict=True)]

        assert LEARNED.wait_s(Ahead(sums[0], sums[0], *sums[1:])) >= LEARNED.wait_s(Ahead(few[0], few[0], *few[1:])) * (
            1 - 1e-9
        )


class TestDeadlines:
    def test_what_would_be_begun_too_late_is_refused_with_the_time_to_come_back(self) -> None:
        """The time is the forecast: when what waits now will have been begun."""
        accepting = admission(queue_timeout_s=1.0)
        fill(accepting, "", num_begun=4, num_waiting=8)

        with pytest.raises(OverloadedError) as caught:
            accepting.check(Claim(), 10)

        assert caught.value.retry_after_s == pytest.approx(accepting.wait_s(Claim()))
        assert 1.0 < caught.value.retry_after_s < 10.0

    def test_who_says_that_it_waits_longer_is_accepted(self) -> None:
        """And who waits for less is not."""
        accepting = admission(queue_timeout_s=1.0)
        fill(accepting, "", num_begun=4, num_waiting=8)

        accepting.check(Claim(deadline_at=200.0), 10)
        with pytest.raises(OverloadedError):
            accepting.check(Claim(deadline_at=100.5), 10)

    def test_a_long_prompt_on_an_idle_engine_is_accepted(self) -> None:
        """Its own time is not waiting."""
        admission(queue_timeout_s=0.1).check(Claim(), 5000)

    def test_refusals_are_counted_with_their_tokens(self) -> None:
        """Those that nobody has read yet with a mean prompt; each once."""
        accepting = admission(queue_timeout_s=0.01)
        fill(accepting, "", num_begun=4, num_waiting=8)
        for num_prompt_tokens in (50, None):
            with pytest.raises(OverloadedError):
                accepting.check(Claim(), num_prompt_tokens)

        stats, after = accepting.completed(A_STEP), accepting.completed(A_STEP)

        assert (stats.num_refused, stats.num_refused_prompt_tokens) == (2, 60)
        assert after.num_refused == 0


class TestTenants:
    def test_a_full_queue_refuses_who_filled_it(self) -> None:
        """The other has its share."""
        accepting = admission(max_sequences=10, queue_timeout_s=1e9)
        fill(accepting, "flood", num_begun=4, num_waiting=6)

        with pytest.raises(OverloadedError, match="full"):
            accepting.check(Claim(tenant="flood"), 10)
        accepting.check(Claim(tenant="quiet"), 10)
        assert not accepting.is_overloaded()

        fill(accepting, "quiet", num_waiting=5)
        with pytest.raises(OverloadedError, match="full"):
            accepting.check(Claim(tenant="quiet"), 10)

    def test_the_wait_of_a_tenant_is_its_own(self) -> None:
        """Who floods waits for its own flood; others go before most of it, and lower priorities after all of it."""
        accepting = admission()
        fill(accepting, "flood", num_begun=4, num_waiting=90)

        flood, quiet = accepting.wait_s(Claim(tenant="flood")), accepting.wait_s(Claim(tenant="quiet"))

        assert quiet < 0.1 * flood
        assert accepting.wait_s(Claim(tenant="quiet", priority=1)) == 0.0
        assert accepting.wait_s(Claim(tenant="quiet", priority=-1)) >= flood


class TestLoop:
    async def test_there_is_no_room_before_a_request_is_made(self) -> None:
        """Who would be refused whatever it asks is told so before it is read; with room it may come."""
        runner = GatedRunner()
        async with serving(runner, max_waiting=0) as backend:
            backend.check_room(Claim())
            streams = [backend.generate(request(i, max_tokens=1)) for i in range(2)]
            with pytest.raises(OverloadedError):
                backend.check_room(Claim())
            backend.check_room(Claim(tenant="other"))
            runner.free_run()
            for stream in streams:
                await read(stream)
            backend.check_room(Claim())

    async def test_the_books_are_empty_when_all_has_ended(self) -> None:
        """Whatever became of it."""
        async with serving(HistoryRunner()) as backend:
            for i in range(5):
                stream = backend.generate(replace(request(i, n=2), claim=Claim(tenant=str(i % 2))))
                await (stream.aclose() if i == 3 else read(stream))
            await read(backend.generate(request(1)))
            await read(backend.generate(request(1)))

            admission_of = backend._live.admission
            assert (admission_of.num_waiting, backend.health().wait_s) == (0, 0.0)
            assert all(account.num_sequences == 0 for account in admission_of._accounts.values())
