"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import main
from service.config import Settings


def run(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), env=environment, catch_exceptions=False)


def test_config_shows_each_setting_and_its_origin() -> None:
    """Every setting is listed with its value and the place the value came from."""
    shown = json.loads(run("config", "--json", "--port", "9", environment={"HEADCOUNT_HOST": "::1"}).stdout)
    assert shown.keys() == Settings.model_fields.keys()
    assert shown["port"] == {"value": 9, "from": "flag"}
    assert shown["host"] == {"value": "::1", "from": "environment"}
    assert shown["model"]["from"] == "default"


def test_config_is_readable_by_people() -> None:
    """The table names every setting."""
    table = run("config").stdout
    assert [key for key in Settings.model_fields if key not in table] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["config", "--prot", "1"], "--port"),
        (["config", "--port", "x"], "Error: port = 'x' (flag) is not valid"),
        (["config", "--config", "/nowhere.toml"], "Error: The configuration file /nowhere.toml does not exist."),
        (["generate", "hello", "--temperature", "5"], "Error: temperature must be between 0 and 2, but is 5."),
        (["generate", "hello", "--model", "/nowhere"], "/nowhere"),
        (["bench", "--runner", "synthetic"], "Error: bench measures the real model"),
    ],
)
def test_errors_are_sentences(arguments: list[str], sentence: str) -> None:
    """What is wrong and what to do, on standard error, with a status that is not 0."""
    result = run(*arguments)
    assert result.exit_code != 0
    assert sentence in result.stderr


@pytest.mark.integration
def test_a_longer_context_than_the_model_has_is_refused(default_model_path: Path) -> None:
    """It is not cut to what the model allows in silence."""
    assert default_model_path.exists()
    result = run("generate", "hello", "--max-model-len", "100000", "--kv-cache-gib", "0.1")
    assert result.exit_code == 1
    assert "Error: max_model_len = 100000 is more than the 8192 tokens that the model allows" in result.stderr


@pytest.mark.integration
def test_generate_answers_without_a_server(default_model_path: Path) -> None:
    """The offline door gives the model's greedy answer."""
    assert default_model_path.exists()
    result = run("generate", "What is the capital of France?", "--max-tokens", "20", "--kv-cache-gib", "0.1")
    assert result.stdout == "The capital of France is Paris.\n"
    assert result.stderr == ""
