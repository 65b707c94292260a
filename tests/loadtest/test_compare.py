"""Two runs are compared by ratios with intervals, and with the reasons why that may not be fair."""

from __future__ import annotations

import pytest

from loadtest.compare import caveats, compare
from loadtest.results import Quantile, RunResult
from tests.loadtest.fabricate import fabricate


def _scaled(result: RunResult, factor: float) -> RunResult:
    """The same run with every TTFT median multiplied."""
    p50 = result.latency.ttft_s.p50
    assert p50 is not None
    scaled = Quantile(value=p50.value * factor, low=p50.low * factor, high=p50.high * factor)
    ttft = result.latency.ttft_s.model_copy(update={"p50": scaled})
    return result.model_copy(update={"latency": result.latency.model_copy(update={"ttft_s": ttft})})


def test_a_run_equals_itself() -> None:
    """Every ratio is 1, none is real, and there is nothing to caution about."""
    result = fabricate()

    rows = compare(result, result)

    assert rows
    assert all(row.ratio == 1.0 for row in rows)
    assert not any(row.is_real for row in rows)
    assert caveats(result, result) == []


@pytest.mark.parametrize(("factor", "is_real"), [(1.02, False), (2.0, True), (0.5, True)])
def test_a_difference_is_real_when_its_interval_excludes_one(factor: float, is_real: bool) -> None:
    """2 % is within the error of these runs, half or double is not."""
    result = fabricate()

    row = next(row for row in compare(result, _scaled(result, factor)) if row.measure == "ttft_s p50")

    assert row.ratio == pytest.approx(factor)
    assert row.low is not None
    assert row.high is not None
    assert row.low < factor < row.high
    assert row.is_real is is_real


def test_swapping_the_runs_inverts_the_ratio() -> None:
    """B / A and A / B are reciprocal, intervals too."""
    result = fabricate()
    other = _scaled(result, 1.5)

    there, back = compare(result, other)[0], compare(other, result)[0]

    assert there.low is not None
    assert back.high is not None
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_caveats() -> None:
    """Invalid, partial, another load, another model: each is said."""
    good, bad = fabricate(), fabricate(seed=1)
    validity = bad.validity.model_copy(
        update={"is_valid": False, "is_partial": True, "reasons": ["The tester was late"]}
    )
    target = bad.target.model_copy(update={"model": "other"})

    found = " ".join(caveats(good, bad.model_copy(update={"validity": validity, "target": target})))

    for word in ("B is not valid: The tester was late", "stopped early", "hashes differ", "scripted-model and other"):
        assert word in found
