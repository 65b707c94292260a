"""The page opens with no network and no script, shows its plots, and escapes what it is given."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.plots import Axis, Plot, Series, log_ticks, ticks
from loadtest.report import plots, render_html
from loadtest.results import RunResult, load_result
from tests.loadtest.fabricate import fabricate


def test_the_page_is_self_contained_and_escaped() -> None:
    """Nothing is fetched, nothing runs, and texts from outside stay texts."""
    page = render_html(fabricate())

    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert "&lt;everything&gt; &amp; more" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "top-secret" not in page


def test_the_page_says_what_matters() -> None:
    """Verdict, each latency, errors, tenants, both sides' counts, the repeated answers, the decisions."""
    page = render_html(fabricate())

    for text in ("SLO broken", "TTFT from actual send", "Lateness of the tester", "fairness (Jain)", "Do both sides",
                 "Same text alone?", "Scaling decisions", "work arrives faster", "Request 4"):  # fmt: skip
        assert text in page


def test_a_page_is_drawn_from_its_json_alone(tmp_path: Path) -> None:
    """Written and read back, the result gives the same page."""
    result = fabricate()
    path = tmp_path / "result.json"
    path.write_text(result.model_dump_json())

    assert render_html(load_result(path)) == render_html(result)


def test_every_plot_is_well_formed_and_bounded() -> None:
    """Each drawing is XML, and a minute at 20 requests/s stays under half a megabyte."""
    result = fabricate()
    drawn = [plot.svg() for plot in plots(result)]

    assert len(drawn) == 7
    for drawing in drawn:
        ElementTree.fromstring(f"<div>{drawing}</div>")  # noqa: S314 - our own drawing
        assert "<svg" in drawing
    assert len(render_html(result)) < 500_000


def test_an_empty_run_has_a_page(empty_result: RunResult) -> None:
    """A run in which nothing was answered is reported too."""
    page = render_html(empty_result)

    assert "no data" in page


@pytest.fixture
def empty_result() -> RunResult:
    """No request answered, no metrics, no SLO."""
    result = fabricate()
    nothing = {"count": 0, "mean": None, "max": None, "p50": None, "p90": None, "p99": None, "p99_9": None}
    return RunResult.model_validate(
        {
            **result.model_dump(),
            "latency": dict.fromkeys(type(result.latency).model_fields, nothing),
            **dict.fromkeys(("goodput", "fairness_jain", "queue_time", "verification")),
            **{name: [] for name in ("errors", "tenants", "reconciliation", "intervals", "scatter", "decisions")},
            "cdf": {},
        }
    )


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    """Between three and twelve, whatever the range."""
    found = ticks(low, low + width)

    assert 2 <= len(found) <= 13
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)


@given(st.floats(1e-5, 1e3), st.floats(1.02, 1e6))
def test_log_axes_map_ends_to_ends(low: float, factor: float) -> None:
    """The smallest value is at the start, the largest at the end, and there are marks to read it by."""
    axis = Axis(low, low * factor, 0, 100, is_log=True)

    assert (axis(low), axis(low * factor)) == (0.0, 100.0)
    assert log_ticks(low, low * factor)


def test_a_plot_without_points_says_so() -> None:
    """No data is no drawing."""
    plot = Plot(title="<t>", x_label="x", y_label="y", series=[Series("s", [])])

    assert plot.svg() == '<p class="empty">&lt;t&gt;: no data.</p>'


def test_in_chromium(tmp_path: Path) -> None:
    """A real browser without network draws every plot and has nothing to complain about."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    path = tmp_path / "report.html"
    # What the browser itself measures is left in the title for --dump-dom to bring back.
    path.write_text(render_html(fabricate()))

    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1300,2400", f"--screenshot={tmp_path / 'shot.png'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip

    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == 7
    assert "SLO broken" in done.stdout
    # A page whose plots were blank would compress to far less.
    assert (tmp_path / "shot.png").stat().st_size > 80_000
