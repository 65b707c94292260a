"""Peers are installed once, and a failure to do so is a sentence that stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.bench.peers.install import VLLM, Peer, llama_server, python_of, run
from service.errors import StartupError


@dataclass
class Commands:
    """Does nothing but take note; the command that has the word `broken` in it fails."""

    broken: str = "\0"
    seen: list[str] = field(default_factory=list)

    def __call__(self, command: Sequence[str], log: Path) -> None:
        self.seen.append(" ".join(command))
        if self.broken in self.seen[-1]:
            raise StartupError(f"no {self.broken} here")
        if "download" in command:
            (log.parent / "source.tar.gz").touch()


def test_a_peer_is_installed_once(tmp_path: Path) -> None:
    """The second time nothing is done, and the interpreter is that of its own environment."""
    commands = Commands()
    first = python_of(Peer("p", ("some-package",)), tmp_path, run=commands)
    assert [word in line for word, line in zip(("venv", "some-package"), commands.seen, strict=True)] == [True, True]
    assert python_of(Peer("p", ("some-package",)), tmp_path, run=Commands("venv")) == first
    assert first == tmp_path / "p" / "bin" / "python"


def test_what_breaks_a_peer_is_taken_out(tmp_path: Path) -> None:
    """After the installation that brought it."""
    commands = Commands()
    python_of(VLLM, tmp_path, run=commands)
    assert "uninstall" in commands.seen[-1]
    assert all(package in commands.seen[-1] for package in VLLM.unwanted)


def test_a_failure_is_said_again_and_not_repeated(tmp_path: Path) -> None:
    """The reason of the first try, without a second."""
    with pytest.raises(StartupError, match="no cmake here"):
        llama_server(tmp_path, run=Commands("cmake"))
    again = Commands()
    with pytest.raises(StartupError, match="no cmake here"):
        llama_server(tmp_path, run=again)
    assert again.seen == []


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    """The last line it wrote, and where the rest is."""
    log = tmp_path / "log"
    with pytest.raises(StartupError, match=r"the reason \(.*log\)"):
        run(["sh", "-c", "echo first; echo the reason >&2; exit 1"], log)
    run(["true"], log)
    with pytest.raises(FileNotFoundError):
        run(["no-such-program"], log)


def test_a_missing_program_is_a_reason(tmp_path: Path) -> None:
    """As where there is no cmake: not an error of its own kind."""

    def missing(command: Sequence[str], log: Path) -> None:
        raise FileNotFoundError(f"no {command[0]}")

    with pytest.raises(StartupError, match="no "):
        llama_server(tmp_path, run=missing)
