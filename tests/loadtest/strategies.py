"""Hypothesis strategies of the load tester's tests."""

from __future__ import annotations

from hypothesis import strategies as st

from loadtest.arrivals import RateSpec
from loadtest.kinds import Burst, ConstantRate, Gamma, Poisson, Ramp, Sinusoid, Step
from loadtest.records import Outcome, Record

_rates = st.floats(0.5, 50)
_durations = st.floats(5, 100)
_cvs = st.sampled_from([0.0, 0.5, 1.0, 2.0])


@st.composite
def _steps(draw: st.DrawFn) -> Step:
    gaps = draw(st.lists(st.floats(1, 20), min_size=1, max_size=5))
    starts = [sum(gaps[:index]) for index in range(len(gaps))]
    steps = tuple((start, draw(st.floats(0, 40))) for start in starts)
    return Step(kind="step", steps=steps, duration_s=sum(gaps), cv=draw(_cvs))


@st.composite
def _bursts(draw: st.DrawFn) -> Burst:
    every_s = draw(st.floats(2, 20))
    return Burst(
        kind="burst",
        base_rps=draw(st.floats(0, 10)),
        burst_rps=draw(_rates),
        every_s=every_s,
        burst_s=every_s * draw(st.floats(0.05, 0.9)),
        duration_s=draw(_durations),
        cv=draw(_cvs),
    )


def rate_specs() -> st.SearchStrategy[RateSpec]:
    """Every open-loop arrival kind."""
    return st.one_of(
        st.builds(ConstantRate, kind=st.just("constant"), rate_rps=_rates, duration_s=_durations),
        st.builds(Poisson, kind=st.just("poisson"), rate_rps=_rates, duration_s=_durations),
        st.builds(Gamma, kind=st.just("gamma"), rate_rps=_rates, cv=st.floats(0.2, 4), duration_s=_durations),
        st.builds(Ramp, kind=st.just("ramp"), from_rps=st.floats(0, 20), to_rps=_rates, duration_s=_durations, cv=_cvs),
        st.builds(
            Sinusoid,
            kind=st.just("sinusoid"),
            mean_rps=_rates,
            swing=st.floats(0, 1),
            period_s=st.floats(5, 100),
            duration_s=_durations,
            cv=_cvs,
        ),
        _steps(),
        _bursts(),
    )


@st.composite
def records(draw: st.DrawFn, index: int = 0) -> Record:
    """A record whose instants are in a possible order."""
    waits = draw(st.lists(st.floats(0, 2), min_size=5, max_size=5))
    intended = draw(st.floats(0, 100))
    instants = [intended + sum(waits[: place + 1]) for place in range(5)]
    outcome = draw(st.sampled_from(list(Outcome)))
    tokens = draw(st.integers(1, 50))
    is_ok = outcome is Outcome.OK
    return Record(
        index=index,
        tenant=draw(st.sampled_from(["a", "b"])),
        conversation=index,
        turn=0,
        intended_s=intended,
        sent_s=instants[0] if outcome.was_sent else None,
        first_s=instants[1] if is_ok else None,
        last_s=instants[2] if is_ok else None,
        end_s=instants[3] if outcome.was_sent else None,
        outcome=outcome,
        message=draw(
            st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20)
        ),
        planned_prompt_tokens=draw(st.none() | st.integers(1, 100)),
        planned_output_tokens=tokens,
        prompt_tokens=draw(st.integers(1, 100)) if is_ok else None,
        output_tokens=tokens if is_ok else None,
        num_events=tokens if is_ok else 0,
    )
