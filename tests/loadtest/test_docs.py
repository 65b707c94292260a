"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtest.cli import cli
from loadtest.records import DERIVED
from loadtest.results import Latencies, schema_table
from loadtest.spec import Limits, Workload

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "loadtest.md").read_text()


def test_the_schema_table_is_the_schema() -> None:
    """The table in the page is the one that the code makes."""
    table = re.search(r"<!-- schema -->\n(.*)\n<!-- /schema -->", PAGE, re.DOTALL)

    assert table is not None
    assert table[1].splitlines()[2:] == schema_table(), "paste the output of: headcount-loadtest schema"


@pytest.mark.parametrize("name", [*cli.commands, *Workload.model_fields])
def test_commands_and_workload_keys_are_explained(name: str) -> None:
    """Nothing a user can write is left out."""
    assert re.search(rf"headcount-loadtest {name}|`{name}[`:]", PAGE)


def test_limits_are_shown_with_their_defaults() -> None:
    """The example holds the true defaults of the bounds."""
    defaults = Limits().model_dump(exclude={"accepted_lateness_s"})

    assert all(f"{name}: {value:.0f}" in PAGE for name, value in defaults.items())
    assert f"{1000 * Limits().accepted_lateness_s:.0f} ms, what timers" in PAGE.replace("\n   ", " ")


def test_every_measure_has_a_formula() -> None:
    """Each latency of the result is in the table of formulas."""
    text = (DOCS / "metrics.md").read_text().partition("## Client side")[2].partition("\n## ")[0]

    names = {
        "ttft_s": "TTFT (headline)",
        "ttft_from_send_s": "TTFT from send",
        "itl_s": "ITL",
        "tpot_s": "TPOT",
        "e2e_s": "E2E (headline)",
        "e2e_from_send_s": "E2E from send",
        "lateness_s": "lateness",
    }

    assert set(names) == set(Latencies.model_fields)
    assert all(f"| {name} |" in text for name in names.values())
    assert set(DERIVED) == set(names) - {"itl_s"}
