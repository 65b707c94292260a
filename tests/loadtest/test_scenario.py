"""Scenarios are read strictly: what is wrong is named, with a hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.errors import ScenarioError
from loadtest.scenario import SCENARIOS, load_scenario, parse_scenario, parse_slo
from loadtest.schedule import make_schedule
from loadtest.spec import Slo, Tenant

POISSON: dict[str, Any] = {"arrivals": {"kind": "poisson", "rate_rps": 2, "duration_s": 5}}


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid_reasoned_and_bounded(path: Path) -> None:
    """Each says why it exists, has an SLO, and plans a sensible number of requests."""
    scenario = load_scenario(path.stem)

    assert scenario.name == path.stem
    assert len(scenario.reason) > 60
    assert scenario.slo is not None
    assert 10 <= len(make_schedule(scenario).requests) <= 5000


def test_the_scenarios_asked_for_are_shipped() -> None:
    """The set is complete."""
    names = {path.stem for path in SCENARIOS.glob("*.yaml")}

    assert names == {"smoke", "steady", "burst", "day", "shared-prefix", "noisy-neighbour", "disconnects"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"verify": 0.1}, "verify: unknown key. Did you mean 'verify_share'"),
        ({"workload": {"promt_tokens": 3}}, "workload.promt_tokens: unknown key. Did you mean 'prompt_tokens'"),
        ({"arrivals": {"kind": "poison"}}, "arrivals: .*'poison'"),
        (
            {"arrivals": {"kind": "poisson", "rate_rps": -1, "duration_s": 5}},
            "rate_rps: Input should be greater than 0",
        ),
        ({"arrivals": {"kind": "step", "steps": [[1, 2]], "duration_s": 5}}, "begin at 0"),
        (
            {"arrivals": {"kind": "burst", "base_rps": 1, "burst_rps": 2, "every_s": 2, "burst_s": 2, "duration_s": 5}},
            "below",
        ),
        ({"workload": {"prompt_tokens": {"kind": "uniform", "low": 5, "high": 1}}}, "low must not be above high"),
        ({"workload": {"output_tokens": {"kind": "choice", "values": [1], "weights": [0]}}}, "positive sum"),
        ({"workload": {"tenants": []}}, "at least one"),
        ({"workload": {"tenants": [{"name": "a"}, {"name": "a"}]}}, "distinct names"),
        ({"workload": {"tenants": [{"name": "a", "api_key": "x", "api_key_env": "Y"}]}}, "not both"),
        ({"slo": {"share": 0.9}}, "at least one of ttft_s"),
        ({"slo": {"ttft_s": 1, "share": 1}}, "share"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], says: str) -> None:
    """One sentence with the field, and the closest known key where it is a slip."""
    with pytest.raises(ScenarioError, match=says):
        parse_scenario({**POISSON, **changes})


def test_overrides_reach_into_the_scenario() -> None:
    """A dotted key changes one value and leaves its neighbours; values are YAML."""
    scenario = parse_scenario(
        POISSON,
        ["arrivals.rate_rps=7", "workload.prompt_tokens={kind: uniform, low: 1, high: 2}", "limits.max_retries=2"],
    )

    assert scenario.arrivals.model_dump() == {"kind": "poisson", "rate_rps": 7.0, "duration_s": 5.0}
    assert scenario.workload.prompt_tokens.kind == "uniform"
    assert scenario.limits.max_retries == 2
    assert POISSON["arrivals"]["rate_rps"] == 2
    with pytest.raises(ScenarioError, match="not key=value"):
        parse_scenario(POISSON, ["rate"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, text: str) -> None:
    """Lists, broken YAML and empty files are told apart from scenarios."""
    path = tmp_path / "x.yaml"
    path.write_text(text)

    with pytest.raises(ScenarioError):
        load_scenario(str(path))


def test_an_unknown_scenario_lists_the_known_ones() -> None:
    """A wrong name shows the right ones."""
    with pytest.raises(ScenarioError, match=r"burst, day, disconnects"):
        load_scenario("smok")


def test_keys_do_not_leave_the_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dumped scenario masks its API keys; the tenants still have them."""
    scenario = parse_scenario({**POISSON, "workload": {"tenants": [{"name": "a", "api_key": "top-secret"}]}})
    monkeypatch.setenv("SOME_KEY", "from-env")

    assert "top-secret" not in yaml.safe_dump(scenario.model_dump(mode="json"))
    assert scenario.workload.tenants[0].key() == "top-secret"
    assert Tenant(name="b", api_key_env="SOME_KEY").key() == "from-env"
    with pytest.raises(ScenarioError, match="NOT_SET_KEY is not set"):
        Tenant(name="b", api_key_env="NOT_SET_KEY").key()


def test_slo_option() -> None:
    """Short names, seconds, and the share."""
    assert parse_slo("ttft=0.5, tpot=0.05,e2e=10,share=0.99") == Slo(ttft_s=0.5, tpot_s=0.05, e2e_s=10, share=0.99)
    for text, says in (("ttft", "not key=value"), ("latency=3", "unknown key"), ("share=0.9", "at least one")):
        with pytest.raises(ScenarioError, match=says):
            parse_slo(text)
