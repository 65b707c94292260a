"""The page in a real browser, over fakes: what it shows, what it never does, and that everybody can use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.api.fakes import MODEL_ID, ScriptedBackend, in_turn, say, tokens, wait
from tests.api.tenants import entry, key_of, ring
from tests.web.service import BEST, FakeFleet, RoomyBackend, running
from tests.web.tab import DESKTOP, PHONE, Scheme, Tab, accessibility_faults, opened_tab

pytestmark = pytest.mark.cluster

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"> <script>document.title='owned'</script> "
    "[link](javascript:document.title='owned') **bold**"
)
MARKDOWN = "# Title\n\nText with `code`, [a link](https://example.org) and\n\n- one\n- two\n\n```\nx = 1\n```\n"


@pytest.fixture
def backend() -> ScriptedBackend:
    return RoomyBackend()


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
def url(backend: ScriptedBackend, fleet: FakeFleet) -> Iterator[str]:
    with running(backend, fleet) as url:
        yield url


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Tab]:  # `url`: it is closed before the service is
    """A desktop tab whose console must be clean at the end."""
    with opened_tab(browser) as tab:
        yield tab


def test_what_is_being_typed_stands_while_the_page_follows_the_fleet(tab: Tab, url: str) -> None:
    """A parameter survives what comes in before the field is left; what makes no sense is taken back then."""
    tab.open(url, "chat")
    tab.find("summary", "Parameters").click()
    field = tab.page.get_by_label("Most tokens")
    field.fill("20")
    for _ in range(2):
        with tab.page.expect_response(lambda response: "/fleet" in response.url):
            pass
    assert field.input_value() == "20"
    field.fill("-1")
    field.blur()
    assert field.input_value() == "20"


def test_a_chat_streams_and_is_markdown(tab: Tab, url: str, backend: ScriptedBackend) -> None:
    """An answer is shown as it comes and set as markdown; what was said before is part of the next question."""
    backend.play(say(MARKDOWN), say("Again."))
    tab.open(url, "chat")
    tab.say("Hello")
    answer = tab.answer()
    answer.wait_for()
    assert answer.locator("code").all_inner_texts() == ["code", "x = 1"]
    assert answer.locator("li").all_inner_texts() == ["one", "two"]
    assert answer.locator("a").get_attribute("href") == "https://example.org"
    assert "tokens · " in answer.locator("footer").inner_text()
    tab.say("Once more")
    tab.find(".answer.done", "Again.")
    prompt = bytes(token_id for token_id in backend.requests[1].prompt_token_ids if token_id < 256).decode()
    assert prompt == f"user:Hello{'assistant:'}{MARKDOWN}user:Once moreassistant:"


def test_what_a_model_says_is_never_markup(tab: Tab, url: str, backend: ScriptedBackend) -> None:
    """Tags stay text, and a link that would run something is none."""
    backend.play(say(HOSTILE))
    tab.open(url, "chat")
    tab.say("Be evil")
    answer = tab.answer()
    answer.wait_for()
    shown = answer.locator(".markdown")
    assert "<img src=x onerror=" in shown.inner_text()
    assert shown.locator("img, script, a").count() == 0
    assert shown.locator("strong").inner_text() == "bold"
    assert tab.page.title() == "Chat · Headcount"


@pytest.mark.parametrize(
    "attack",
    [
        "document.body.innerHTML = '<b>'",
        "document.body.setAttribute('onclick', 'document.title = 1')",
        "document.createElement('script').textContent = 'document.title = 1'",
        "document.createElement('script').src = 'https://example.org'",
    ],
)
def test_the_policy_is_enforced(browser: Browser, url: str, attack: str) -> None:
    """Even code that got into the page could not make markup or scripts out of text."""
    with opened_tab(browser) as tab:
        tab.open(url, "chat")
        tab.find(".lead")
        outcome = tab.page.evaluate(f"() => {{ try {{ {attack} }} catch (error) {{ return error.name }} }}")
        assert outcome == "TypeError"
        assert "This document requires" in tab.complaints.pop()


def test_an_answer_can_be_stopped(tab: Tab, url: str, backend: ScriptedBackend) -> None:
    """What was said so far stays, and nothing goes on in the backend."""
    backend.play(in_turn(tokens(b"So far"), wait))
    tab.open(url, "chat")
    tab.say("Go on")
    tab.find(".answer.running", "So far")
    tab.find("button", "Stop").click()
    answer = tab.answer()
    answer.wait_for()
    assert "So far" in answer.inner_text()
    assert "stopped by you" in answer.inner_text()
    tab.find("button", "Send")


def test_every_token_has_its_probability(tab: Tab, url: str, backend: ScriptedBackend) -> None:
    """By pointing, or with the arrow keys."""
    backend.play(say("ABC"))
    tab.open(url, "chat")
    tab.say("Spell")
    tab.answer().wait_for()
    tab.find("button", "Token probabilities").click()
    tab.page.locator(".token").nth(1).hover()
    assert tab.find(".bar.chosen dt").inner_text() == "B"
    tab.page.locator(".token").nth(1).focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.find(".bar.chosen dt").inner_text() == "C"
    assert tab.page.locator(".bar").count() == 5


def test_an_error_is_told(browser: Browser, url: str, backend: ScriptedBackend) -> None:
    """In the words of the service."""
    with opened_tab(browser) as tab:
        tab.open(url, "chat")
        tab.say("x" * 5000)
        answer = tab.answer()
        answer.wait_for()
        assert "maximum context length" in answer.locator("[role=alert]").inner_text()
        assert tab.complaints == [  # the browser's own line for any failed request
            "error: Failed to load resource: the server responded with a status of 400 (Bad Request)"
        ]
        tab.complaints.clear()


def test_a_key_is_asked_for_where_one_is_needed(
    browser: Browser, backend: ScriptedBackend, fleet: FakeFleet, tmp_path: Path
) -> None:
    """Once, not with every request; a wrong one is asked for again; it stays in the tab and is nowhere to be seen."""
    backend.play(say("Hello."))
    with running(backend, fleet, ring(tmp_path, entry("alice"))) as url, opened_tab(browser) as tab:
        tab.open(url, "chat")
        tab.find(".key-form", "asks for an API key")
        tab.page.get_by_label("API key").fill("wrong")
        tab.find("button", "Use it").click()
        tab.find(".key-form", "is not known here")
        num_refused = len(tab.complaints)
        tab.page.get_by_label("API key").fill(key_of("alice"))
        tab.find("button", "Use it").click()
        tab.find(".model", MODEL_ID)
        tab.page.reload()
        tab.find(".model", MODEL_ID)
        tab.say("Hi")
        tab.find(".answer.done", "Hello.")
        assert tab.page.locator(".key-form").count() == 0
        assert key_of("alice") not in tab.page.content() + tab.page.url
        assert len(tab.complaints) == num_refused
        tab.complaints.clear()  # the browser's own lines for failed requests


def test_the_fleet_is_shown_as_it_changes(tab: Tab, url: str, fleet: FakeFleet) -> None:
    """A decision appears by itself, with its reason."""
    tab.open(url, "fleet")
    assert tab.find(".replicas .ready").inner_text().split("\n")[0].strip() == "abc ready"
    assert tab.find(".figures dd").inner_text().split("\n")[0] == "1"
    tab.find(".changes .up", "0 → 1")
    fleet.decide(1, 3, "1 → 3: 2.2 replicas of work now, 2.8 with its bursts.")
    tab.find(".changes .up", "1 → 3: 2.2 replicas of work now")
    fleet.decide(3, 2, "3 → 2: 1.1 replicas of work now, 1.6 with its bursts.")
    tab.find(".changes .down", "3 → 2")
    assert tab.page.locator(".changes li").count() == 3
    assert "2 asked for" in (tab.find(".timeline svg").get_attribute("aria-label") or "")


def test_heads_are_drawn_and_chosen(tab: Tab, url: str) -> None:
    """The strongest head of the example's link is found; another token and another head are a click or a key away."""
    tab.open(url, "heads")
    layer, head = BEST
    tab.page.get_by_label("A sentence").fill("abcdefgh")
    tab.find("button", "Look").click()
    reading = tab.find(".reading", "from h to")
    assert reading.inner_text() == f"Layer {layer}, head {head} gives 75 % of its attention from h to c."
    assert tab.page.locator(".cell").count() == 12
    assert tab.page.locator(".sentence path").count() == 2
    tab.page.get_by_role("button", name="Layer 0, head 0: 0 %").click()
    tab.find(".reading", "Layer 0, head 0 gives")
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Enter")
    tab.find(".reading", "Layer 1, head 1 gives")
    tab.page.locator(".word").nth(7).click()
    tab.find(".reading", "from g to b")


@pytest.mark.parametrize(
    ("size", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "dark")], ids=["desktop", "dark", "phone"]
)
def test_everybody_can_use_it(
    browser: Browser, url: str, backend: ScriptedBackend, node_modules: Path, size: tuple[int, int], scheme: Scheme
) -> None:
    """axe finds nothing to complain about, in any view, and nothing sticks out sideways."""
    axe = (node_modules / "axe-core" / "axe.min.js").read_text()
    backend.play(say(MARKDOWN))
    with opened_tab(browser, size=size, scheme=scheme) as tab:
        for view, shown in (("chat", ".lead"), ("fleet", ".changes li"), ("heads", ".cell")):
            tab.open(url, view)
            tab.find(shown)
            assert accessibility_faults(tab, axe) == []
            assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.open(url, "chat")
        tab.find("summary", "Parameters").click()
        tab.say("Hello")
        tab.answer().wait_for()
        assert accessibility_faults(tab, axe) == []
        tab.find("button", "Token probabilities").click()
        assert accessibility_faults(tab, axe) == []
