"""`headcount key`: what it prints is what the server takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.api.keys import KeyRing
from service.cli import main


def make(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["key", *arguments])


def test_entries_add_up_to_a_file_of_tenants(tmp_path: Path) -> None:
    """Each key is known by its name, with the limits that were given; the file does not have it."""
    more = ["--weight", "2", "--priority", "-1", "--tokens-per-minute", "5000", "--concurrent", "3"]
    made = [make("alice"), make("bob", "--role", "admin", "--requests-per-minute", "60", *more)]
    path = tmp_path / "keys.toml"
    path.write_text("".join(result.stdout for result in made))
    secrets = [result.stderr.split()[-1] for result in made]

    alice, bob = (KeyRing(path).tenant_of(secret.encode()) for secret in secrets)

    assert alice is not None
    assert bob is not None
    assert (alice.name, alice.role, alice.requests_per_minute) == ("alice", "user", None)
    assert (bob.name, bob.role, bob.weight, bob.priority) == ("bob", "admin", 2.0, -1)
    assert (bob.requests_per_minute, bob.tokens_per_minute, bob.concurrent) == (60, 5000, 3)
    assert [secret for secret in secrets if secret in path.read_text()] == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a b"], "Error: name is not valid"),
        (['a"\nkeys = []'], "Error: name is not valid"),
        (["alice", "--weight", "0"], "Error: weight is not valid"),
        (["alice", "--concurrent", "0"], "Error: concurrent is not valid"),
    ],
)
def test_what_the_server_would_not_take_is_not_made(arguments: list[str], complaint: str) -> None:
    """The mistake is named, and nothing is printed that could end up in the file."""
    result = make(*arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert complaint in result.stderr
