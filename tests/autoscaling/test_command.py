"""`headcount simulate` from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.autoscaling.command import parse_slo, simulate
from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.simulator.fleet import Fleet, FleetConfig
from service.autoscaling.simulator.made_traces import Shape, make
from service.autoscaling.simulator.measures import summarise
from service.autoscaling.simulator.policies import POLICIES, Choice, Setting
from service.autoscaling.simulator.regret import Results, run_matrix, table
from service.errors import ConfigError

LINES = "".join(
    f'{{"timestamp": {200 * i}, "input_length": 600, "output_length": 40, "hash_ids": [{i}]}}\n' for i in range(1500)
)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Five minutes of five requests a second."""
    path = tmp_path / "five.jsonl"
    path.write_text(LINES)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(simulate, arguments)


def test_the_json_says_what_each_policy_came_to(trace: str) -> None:
    """One object on standard output with trace, cold start and a summary per policy."""
    result = run("--trace", trace, "--policy", "headcount", "--policy", "static=3", "--cold-start", "5", "--json")
    document = json.loads(result.stdout)
    assert (document["trace"], document["cold_start_s"]) == ("five", 5.0)
    assert document["policies"].keys() == {"headcount", "static=3"}
    static = document["policies"]["static=3"]
    assert static["replica_seconds"] == pytest.approx(3 * 299, abs=3)
    assert static["cost"] == static["replica_seconds"] + 30.0 * static["num_missed"]
    assert static["scale_events"] == 0
    assert {"slo_attainment", "ttft_p99_s"} <= static.keys()


def test_the_table_and_the_page_show_every_policy(trace: str, tmp_path: Path) -> None:
    """A row each; the page has a plot each and asks nothing of the network."""
    page = tmp_path / "page.html"
    result = run("--trace", trace, "--policy", "kpa=8", "--policy", "ray", "--html", str(page))
    assert result.exit_code == 0
    assert "kpa=8" in result.stdout
    html = page.read_text()
    assert html.count("<svg") == 4
    assert "<script" not in html
    assert "http" not in html


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "Say which demand"),
        (("--trace", "none.csv"), "cannot be read"),
        (("--trace", "steady", "--policy", "kubernetes"), "no policy 'kubernetes'"),
        (("--trace", "steady", "--policy", "kpa=many"), "must be a number"),
        (("--trace", "steady", "--policy", "headcount=2"), "no parameter"),
        (("--trace", "steady", "--slo", "e2e=3"), "ttft and tpot"),
        (("--trace", "steady", "--slo", "ttft=soon"), "ttft_s must be"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: tuple[str, ...], why: str) -> None:
    """Each is a ConfigError that says what is wrong."""
    error = run(*arguments).exception
    assert isinstance(error, ConfigError)
    assert why in str(error)


def test_targets_are_parsed_one_by_one() -> None:
    """What is not given keeps its default."""
    assert parse_slo("tpot=0.05").ttft_s == 2.0
    assert parse_slo("ttft=1, tpot=0.05").tpot_s == 0.05


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_serves_a_quiet_trace(name: str) -> None:
    """Each at its makers' default loses nothing and stays within bounds."""
    workload = make("quiet", Shape(duration_s=150, rate=lambda _: 4.0))
    config = AutoscalingConfig(max_replicas=8)
    fleet = FleetConfig(cold_start_s=5.0, initial_replicas=2)
    outcome = Fleet(fleet, Choice.parse(name).controller(Setting(config, fleet, workload))).run(workload)
    assert len(outcome.finished) == len(workload.requests)
    assert all(1 <= sample.desired <= 8 for sample in outcome.samples)


def test_the_matrix_can_be_taken_up_again_and_tells_the_regret(tmp_path: Path) -> None:
    """Results are kept as they come; the table compares ours with the best of the others and with one setting."""
    path = tmp_path / "results.json"
    workload = make("short", Shape(duration_s=60, rate=lambda _: 2.0))
    config, fleet = AutoscalingConfig(), FleetConfig()
    cells = list(run_matrix({"short": workload}, config, fleet, Results(path)))
    again = list(run_matrix({"short": workload}, config, fleet, Results(path)))
    assert cells == again
    text = table(cells)
    assert text.count("| short | ") == 3
    assert "| static=4 | " in text
    path.write_text("{")
    with pytest.raises(ConfigError, match="Remove the file"):
        Results(path)


def test_misses_before_the_warm_up_do_not_count() -> None:
    """Long traces are judged from their fourth minute on, short ones as a whole."""
    workload = make("long", Shape(duration_s=600, rate=lambda second: 20.0 if second < 30 else 1.0))
    config = FleetConfig(initial_replicas=2)
    outcome = Fleet(config, Choice.parse("static=2").controller(Setting(AutoscalingConfig(), config, workload))).run(
        workload
    )
    summary = summarise(outcome, config, 30.0)
    assert summary.slo_attainment == 1.0
    assert summarise(outcome, config, 30.0, warmup_s=0.0).num_missed > 100
    assert replace(summary, cost=0.0).replica_seconds == pytest.approx(2 * 420, abs=5)
