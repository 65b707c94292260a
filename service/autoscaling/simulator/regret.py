"""The published comparison: one setting of ours against the best that hindsight finds for every other policy.

Every trace of the matrix at every cold start; costs are replica-seconds plus the price of each miss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.simulator.fleet import Fleet, FleetConfig
from service.autoscaling.simulator.made_traces import made_trace
from service.autoscaling.simulator.measures import Summary, summarise
from service.autoscaling.simulator.policies import POLICIES, Choice, Setting, swept
from service.autoscaling.simulator.trace_files import read_trace
from service.autoscaling.simulator.workload import Workload
from service.errors import ConfigError

COLD_STARTS_S = (3.0, 15.0, 60.0)
INITIAL_REPLICAS = 4
_OURS, _PERFECT = "headcount", "perfect"


def matrix(traces_dir: Path) -> dict[str, Workload]:
    """The five workloads of the table. Raises ConfigError when a public trace is not in `traces_dir`."""
    return {
        "Azure conversation x 2": read_trace(traces_dir / "AzureLLMInferenceTrace_conv.csv").times(2),
        "Azure code": read_trace(traces_dir / "AzureLLMInferenceTrace_code.csv"),
        "Mooncake conversation": read_trace(traces_dir / "mooncake_conversation_trace.jsonl.gz"),
        "day with a flash crowd": made_trace("day"),
        "on and off": made_trace("on-off"),
    }


@dataclass(frozen=True, slots=True)
class Cell:
    """One trace at one cold start: what each choice of policy came to."""

    trace: str
    cold_start_s: float
    results: dict[str, Summary]

    def best(self, names: Callable[[str], bool]) -> tuple[str, Summary]:
        """The cheapest of the policies whose name passes."""
        passing = [(label, result) for label, result in self.results.items() if names(label.partition("=")[0])]
        return min(passing, key=lambda entry: entry[1].cost)

    @property
    def ours(self) -> Summary:
        return self.results[_OURS]


class Results:
    """Summaries by trace, cold start and choice, kept in a file so that a run can be taken up again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Summary] = {}
        if path is not None and path.exists():
            try:
                self._known = {key: Summary(**value) for key, value in json.loads(path.read_text()).items()}
            except (ValueError, TypeError) as error:
                raise ConfigError(f"The results in {path} cannot be read: {error}. Remove the file.") from None

    def get(self, key: str, compute: Callable[[], Summary]) -> Summary:
        if key not in self._known:
            self._known[key] = compute()
            if self._path is not None:
                self._path.write_text(json.dumps({k: asdict(v) for k, v in self._known.items()}))
        return self._known[key]


def run_matrix(
    workloads: dict[str, Workload], config: AutoscalingConfig, fleet: FleetConfig, results: Results
) -> Iterator[Cell]:
    """Each cell as soon as it is complete. A static fleet has no cold starts and is run once per trace."""
    choices = [choice for name in POLICIES for choice in swept(name)]
    for trace, workload in workloads.items():
        for cold_start_s in COLD_STARTS_S:
            here = replace(fleet, cold_start_s=cold_start_s, initial_replicas=INITIAL_REPLICAS)
            ours = replace(config, cold_start_prior_s=cold_start_s)
            setting = Setting(ours, here, workload)
            found = {}
            for choice in choices:
                is_static = choice.name == "static"
                key = f"{trace}|{'any' if is_static else f'{cold_start_s:g}'}|{choice.label}"
                found[choice.label] = results.get(key, lambda c=choice, s=setting: _run(c, s))  # type: ignore[misc]
            yield Cell(trace, cold_start_s, found)


def _run(choice: Choice, setting: Setting) -> Summary:
    fleet = setting.fleet
    if choice.name == "static":
        fleet = replace(fleet, initial_replicas=int(choice.parameter or 1))
    outcome = Fleet(fleet, choice.controller(setting)).run(setting.workload)
    return summarise(outcome, fleet, setting.config.replica_s_per_miss)


def table(cells: list[Cell]) -> str:
    """Markdown: costs in replica-hours, regret against the best tuned baseline and the perfect forecast; then every
    baseline held to the one setting that is best over all cells."""
    lines = [
        "| trace | cold start | headcount: SLO met | replica-h | J | best baseline in hindsight | its J | ratio "
        "| perfect forecast J | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        label, best = cell.best(_is_baseline)
        _, perfect = cell.best(lambda name: name == _PERFECT)
        ours = cell.ours
        lines.append(
            f"| {cell.trace} | {cell.cold_start_s:g} s | {ours.slo_attainment:.2%} | {ours.replica_seconds / 3600:.2f} "
            f"| **{ours.cost / 3600:.2f}** | {label} | {best.cost / 3600:.2f} | {ours.cost / best.cost:.2f} "
            f"| {perfect.cost / 3600:.2f} | {ours.cost / perfect.cost:.2f} |"
        )
    return "\n".join([*lines, "", "| one setting for all | Σ J |", "|---|---|", *_one_setting(cells)])


def _is_baseline(name: str) -> bool:
    return name not in (_OURS, _PERFECT)


def _one_setting(cells: list[Cell]) -> list[str]:
    """The best parameter of each policy over all cells, the cheapest policy first."""
    totals = {label: sum(cell.results[label].cost for cell in cells) for label in cells[0].results}
    rows = []
    for name in POLICIES:
        total, label = min((totals[choice.label], choice.label) for choice in swept(name))
        rows.append((total, label))
    return [f"| {label} | {total / 3600:.1f} |" for total, label in sorted(rows)]
