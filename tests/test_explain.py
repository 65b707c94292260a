"""`headcount explain`, on a record and on a service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from service.cli import main

DECISIONS = [
    {"number": 1, "at": 10.0, "current": 1, "desired": 1, "reason": "1 stay: idle.", "terms": {"work": 0.1}},
    {"number": 2, "at": 11.0, "current": 1, "desired": 3, "reason": "1 → 3: a burst.", "terms": {"work": 2.6}},
    {"number": 3, "at": 12.0, "current": 3, "desired": 2, "reason": "3 → 2: it is over.", "terms": {"work": None}},
    {"number": 4, "at": 13.0, "current": 2, "desired": 2, "reason": "2 stay: enough.", "terms": {"work": 1.2}},
]


def explain(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", *arguments])


def reasons(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [line.partition("  ")[2] for line in result.output.splitlines()]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in DECISIONS))
    return path


class Service(BaseHTTPRequestHandler):
    """Answers as `/fleet/decisions` does; behind /closed, to who has the key."""

    def do_GET(self) -> None:
        if self.path.startswith("/closed") and self.headers["authorization"] != "Bearer the-key":
            self.send_error(401)
            return
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        found = [each for each in DECISIONS if each["number"] > int(query.get("since", 0))]  # type: ignore[operator]
        if query.get("changes") == "true":
            found = [each for each in found if each["current"] != each["desired"]]
        if query.get("stream") == "true":
            late = {"number": 5, "at": 14.0, "current": 2, "desired": 4, "reason": "2 → 4: again.", "terms": {}}
            body = f": quiet\n\ndata: {json.dumps(late)}\n\n"
        else:
            body = json.dumps({"decisions": found[-int(query.get("limit", 100)) :]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: object) -> None:
        """Not in the output of tests."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


CHANGES = ["1 → 3: a burst.", "3 → 2: it is over.", "2 stay: enough."]


def test_a_record_is_explained(record: Path) -> None:
    """The changes, and how things stand."""
    assert reasons(explain("--file", str(record))) == CHANGES


def test_a_service_is_explained_alike(url: str) -> None:
    """Over HTTP."""
    assert reasons(explain("--url", url)) == CHANGES


def test_only_the_last_ones(record: Path, url: str) -> None:
    """As many as asked for, the newest included."""
    assert reasons(explain("--file", str(record), "--last", "2")) == CHANGES[1:]
    assert reasons(explain("--url", url, "--last", "1")) == CHANGES[2:]


def test_every_decision_and_every_number(record: Path) -> None:
    """What is unknown is said to be."""
    output = explain("--file", str(record), "--every", "--terms").output
    assert output.count("work") == 4
    assert "unknown" in output
    assert "idle" in output


def test_json_lines(url: str) -> None:
    """For other programs."""
    lines = explain("--url", url, "--json").output.splitlines()
    assert [json.loads(line)["number"] for line in lines] == [2, 3, 4]


def test_following_goes_on(url: str) -> None:
    """Until the service ends the stream."""
    assert reasons(explain("--url", url, "--follow")) == [*CHANGES, "2 → 4: again."]


def test_a_service_that_wants_a_key_gets_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, where other users of the machine do not see it; for what comes later as well."""
    monkeypatch.setenv("THE_KEY", "the-key")
    told = [*CHANGES, "2 → 4: again."]

    assert reasons(explain("--url", f"{url}/closed", "--api-key-env", "THE_KEY", "--follow")) == told
    refused = explain("--url", f"{url}/closed")
    assert refused.exit_code != 0
    assert "401" in refused.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--api-key-env", "NOWHERE"], "The environment variable NOWHERE is not set"),
        (["--file", "nowhere.jsonl"], "nowhere.jsonl is not a record of decisions"),
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not tell its decisions"),
        (["--file", "x", "--follow"], "--follow is for a running service"),
        (["--file", "README.md"], "README.md is not a record of decisions"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], said: str) -> None:
    """On standard error, with a status."""
    result = explain(*arguments)
    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output
