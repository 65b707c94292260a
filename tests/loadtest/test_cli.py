"""The commands do what their help says, and their exit codes can be built on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loadtest.cli import main
from loadtest.perform import exit_code
from loadtest.results import RunResult, load_result
from loadtest.scenario import parse_scenario
from loadtest.schedule import make_schedule
from loadtest.workers import suggest_workers
from tests.loadtest.fabricate import fabricate
from tests.loadtest.scripted import Reply, ScriptedServer, steady

ROOT = Path(__file__).parents[2]


PATIENT = "--set=limits.accepted_lateness_s=5"  # a busy test machine is not what these tests are about


@dataclass(frozen=True, slots=True)
class _Done:
    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., _Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs the command line in this process (its workers are real processes)."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> _Done:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return _Done(ended.value.code, out, err)

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    """Answers after 50 ms."""
    with ScriptedServer(steady(Reply(ttft_s=0.05))) as running:
        yield running


@pytest.mark.parametrize(("ttft", "code", "word"), [("2", 0, "SLO held"), ("0.01", 1, "SLO broken")])
def test_run_exits_by_the_slo(
    call: Call, tmp_path: Path, server: ScriptedServer, ttft: str, code: int, word: str
) -> None:
    """0 when the SLO held and 1 when not; the files asked for are there and readable."""
    out = [f"--{kind}={tmp_path / f'out.{kind}'}" for kind in ("json", "csv", "html")]
    done = call(
        "run", PATIENT, "--url", server.url, "--rate=10", "--duration=1", f"--slo=ttft={ttft}", "--seed=3", *out
    )

    assert (done.returncode, done.stderr) == (code, "")
    assert word in done.stdout
    result = load_result(tmp_path / "out.json")
    assert result.goodput is not None
    assert result.goodput.is_held is (code == 0)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == result.schedule.num_requests + 1
    assert result.schedule.sha256[:16] in (tmp_path / "out.html").read_text()


def test_the_smoke_scenario_runs(call: Call, server: ScriptedServer) -> None:
    """The shipped smoke scenario passes against a good server."""
    done = call("run", "smoke", PATIENT, "--url", server.url, "--duration=2")

    assert done.returncode == 0
    assert "4 of 4 the same text" in done.stdout


def test_replay_plays_a_trace(call: Call, tmp_path: Path, server: ScriptedServer) -> None:
    """A trace file becomes the load, scaled in time and tokens."""
    trace = tmp_path / "azure.csv"
    rows = "".join(f"2023-11-16 18:00:{second:02d},100,20\n" for second in range(20))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    out = tmp_path / "out.json"
    done = call(
        "replay", str(trace), PATIENT, "--url", server.url, "--speed=20", "--token-scale=0.1", "--json", str(out)
    )

    assert done.returncode == 0
    result = load_result(out)
    assert result.counts.ok == 20
    assert result.rates.asked_rps == pytest.approx(20, rel=0.05)
    assert result.reconciliation[2].client_low == 40


def test_sweep_prints_one_line_of_verdict(call: Call, tmp_path: Path) -> None:
    """A server that serves one request at a time for 40 ms holds something, and not 100 requests/s."""
    out = tmp_path / "sweep.json"
    with ScriptedServer(steady(Reply(ttft_s=0.04)), concurrency=1) as slow:
        done = call(
            "sweep", PATIENT, "--url", slow.url, "--duration=1", "--start=10", "--tolerance=1", "--max-steps=4",
            "--slo=ttft=0.3,share=0.5", "--set=workload.output_tokens=1", "--json", str(out),
        )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert 5 <= found["max_rate_rps"] <= 40
    assert found["verdict"].split()[0] == "Holds"
    assert found["verdict"][:40] in done.stdout


def test_report_and_compare(call: Call, tmp_path: Path) -> None:
    """A saved result can be drawn and compared later."""
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}.json").write_text(fabricate(seed).model_dump_json())
    a, b = (str(tmp_path / f"{name}.json") for name in ("a", "b"))

    assert call("report", a, "--html", str(tmp_path / "a.html")).returncode == 0
    done = call("compare", a, b, "--json", str(tmp_path / "ratios.json"))

    assert "<svg" in (tmp_path / "a.html").read_text()
    assert done.returncode == 0
    assert "ttft_s p50" in done.stdout
    assert "did not send the same requests" in done.stdout.replace("\n", " ")
    assert json.loads((tmp_path / "ratios.json").read_text())["ratios"][0]["measure"] == "ttft_s p50"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--url", "http://example.com"], "--target-host-ok"),
        (["run", "--url", "http://127.0.0.1:9"], "Is it started?"),
        (["run", "nonesuch"], "No scenario 'nonesuch'"),
        (["run", "--set", "workload.promt=1"], "unknown key"),
        (["run", "--slo", "ttft=fast"], "--slo: ttft_s"),
        (["run", "--json", "/no/such/folder/x.json"], "does not exist"),
        (["run", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
        (["sweep"], "needs an SLO"),
        (["sweep", "--rate", "1", "--slo", "ttft=1"], "chooses its rates"),
        (["sweep", "--html", "x.html", "--slo", "ttft=1"], "--json only"),
        (["sweep", "burst"], "needs constant, poisson or gamma"),
        (["report", "pyproject.toml", "--html", "x.html"], "is not a result"),
        (["replay", "pyproject.toml"], "none of the known formats"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(call: Call, arguments: list[str], says: str) -> None:
    """No traceback, ever."""
    done = call(*arguments)

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_finishes_the_report(tmp_path: Path, server: ScriptedServer) -> None:
    """Interrupted after the first requests: the result is written, marked partial, exit 3, no process left behind."""
    out = tmp_path / "out.json"
    server.has_been_asked.clear()
    command = [
        sys.executable,
        "-m",
        "loadtest",
        "run",
        "--url",
        server.url,
        "--rate=20",
        "--duration=500",
        "--slo=ttft=2",
        "--json",
        str(out),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert server.has_been_asked.wait(30)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        output, _ = process.communicate(timeout=30)

    assert process.returncode == 3
    assert "PARTIAL" in output
    assert load_result(out).validity.is_partial
    assert _alive_in_group(process.pid) == []


def _alive_in_group(group: int) -> list[str]:
    """Commands that run in this process group. Left out: zombies, which wait for the machine's init, and Python's
    resource tracker, which ends by itself when it notices that its parent has."""
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, process_group = (process / "stat").read_text().rpartition(") ")[2].split()[:3]
            command = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it ended while we looked
        if int(process_group) == group and state != "Z" and command and "resource_tracker" not in command:
            alive.append(command)
    return alive


@pytest.mark.parametrize(
    ("validity", "held", "code"),
    [({}, True, 0), ({}, False, 1), ({"is_valid": False}, True, 3), ({"is_partial": True}, True, 3)],
)
def test_exit_codes(validity: dict[str, bool], held: bool, code: int) -> None:
    """0 is only for a valid, whole run whose SLO held."""
    result: RunResult = fabricate()
    assert result.goodput is not None
    changed = result.model_copy(
        update={
            "validity": result.validity.model_copy(update={"reasons": ["late"], **validity}),
            "goodput": result.goodput.model_copy(update={"is_held": held}),
        }
    )

    assert exit_code(changed) == code


@pytest.mark.parametrize(("rate", "tokens", "workers"), [(1, 10, 1), (2000, 8, 2), (3000, 20, 4)])
def test_workers_follow_the_load(rate: float, tokens: int, workers: int) -> None:
    """One process where one is enough, more where the tokens of a second are too many, never more than cores."""
    scenario = parse_scenario(
        {"arrivals": {"kind": "constant", "rate_rps": rate, "duration_s": 3}, "workload": {"output_tokens": tokens}}
    )

    assert suggest_workers(scenario, make_schedule(scenario).requests, cores=4) == workers
