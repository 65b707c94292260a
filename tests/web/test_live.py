"""The page against the real service: a fleet of none that wakes before one's eyes, and the default model's heads."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.fleet.server_process import ServerProcess, running_server
from tests.web.tab import TIMEOUT_MS, opened_tab

pytestmark = pytest.mark.cluster


@pytest.fixture
def empty_fleet() -> Iterator[ServerProcess]:
    with running_server("--runner", "synthetic", "--min-replicas", "0", "--max-replicas", "2") as running:
        yield running


def test_a_fleet_of_none_wakes_before_ones_eyes(browser: Browser, empty_fleet: ServerProcess) -> None:
    """Looking wakes nobody; a chat does, and the decision appears by itself."""
    url = f"{empty_fleet.url}/"
    with opened_tab(browser) as watcher, opened_tab(browser) as guest:
        watcher.open(url, "heads")
        watcher.find(".heads .quiet", "No replica is running: looking starts one.")
        watcher.open(url, "fleet")
        watcher.find(".fleet .quiet", "None, and nothing to pay, while nobody asks.")
        watcher.find(".fleet .quiet", "The number of replicas has not changed yet.")
        guest.open(url, "chat")
        guest.find("summary", "Parameters").click()
        guest.page.get_by_label("Most tokens").fill("20")
        guest.say("Is anybody there?")
        watcher.find(".changes .up", "0 → ")
        watcher.find(".replicas .ready")
        answer = guest.answer()
        answer.wait_for()
        assert "20 tokens" in answer.locator("footer").inner_text()


def test_the_default_model_answers(browser: Browser, server: ServerProcess) -> None:
    """Whoever types a question gets an answer, token by token."""
    with opened_tab(browser) as tab:
        tab.open(f"{server.url}/", "chat")
        tab.find("summary", "Parameters").click()
        tab.page.get_by_label("Temperature").fill("0")
        tab.say("What is the capital of France?")
        answer = tab.answer()
        answer.wait_for()
        assert answer.locator(".markdown").inner_text() == "The capital of France is Paris."
        tab.find("button", "Token probabilities").click()
        assert tab.page.locator(".token").count() > 6


def test_a_head_of_the_default_model_links_it_to_the_cat(browser: Browser, server: ServerProcess) -> None:
    """The example that is loaded shows a head that really gives most of its attention from the one to the other."""
    with opened_tab(browser) as tab:
        tab.open(f"{server.url}/", "heads")
        reading = tab.find(".reading").inner_text()
        found = re.fullmatch(r"Layer 13, head 8 gives (\d+) % of its attention from it to cat\.", reading)
        assert found is not None, reading
        assert int(found[1]) > 70
        assert tab.page.locator(".cell").count() == 30 * 9
        tab.page.locator(".word", has_text="tired").hover()
        expect(tab.page.locator(".word.source")).to_have_text("tired", timeout=TIMEOUT_MS)
        assert tab.page.locator(".sentence path").count() > 0


def test_the_example_of_the_document_shows_it_too(server: ServerProcess) -> None:
    """The command in docs/attention.md, as it is printed there."""
    document = (Path(__file__).parents[2] / "docs" / "attention.md").read_text()
    command = document.split("```sh\n")[1].split("```")[0]
    arguments = shlex.split(command.replace("http://127.0.0.1:8000", server.url).replace("\\\n", " "))
    answer = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert [token["text"] for token in answer["tokens"]][7] == " it"
    assert answer["weights"][0]["rows"][7][1] > 0.7
    assert answer["tokens"][1]["text"] == " cat"
    assert (len(answer["summaries"]), len(answer["summaries"][0])) == (30, 9)
