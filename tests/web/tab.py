"""A tab of a real browser, which remembers what its console said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from playwright.sync_api import Browser, Locator, Page
from playwright.sync_api import TimeoutError as TimeExpired

TIMEOUT_MS = 90_000.0  # these machines can be very slow for minutes

Scheme = Literal["light", "dark"]
DESKTOP = (1280, 860)
PHONE = (390, 844)


@dataclass
class Tab:
    page: Page
    complaints: list[str] = field(default_factory=list)

    def open(self, url: str, view: str) -> None:
        """A view of the page at `url`, which ends in a slash."""
        self.page.goto(f"{url}#{view}")

    def find(self, selector: str, text: str | None = None) -> Locator:
        """The first such element, once it is to be seen."""
        found = self.page.locator(selector, has_text=text).first
        try:
            found.wait_for()
        except TimeExpired:
            shown = self.page.locator("body").inner_text()
            raise AssertionError(f"no {selector} {text or ''} in {shown!r}; console: {self.complaints}") from None
        return found

    def say(self, text: str) -> None:
        self.find("textarea[aria-label='Your message']").fill(text)
        self.page.keyboard.press("Enter")

    def answer(self) -> Locator:
        """The latest answer, once it has ended."""
        return self.page.locator(".answer:is(.done, .failed)").last


@contextmanager
def opened_tab(browser: Browser, *, size: tuple[int, int] = DESKTOP, scheme: Scheme = "light") -> Iterator[Tab]:
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(TIMEOUT_MS)
    tab = Tab(context.new_page())
    tab.page.on("console", lambda message: tab.complaints.append(f"{message.type}: {message.text}"))
    tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    try:
        yield tab
        assert tab.complaints == []
    finally:
        context.close()


def accessibility_faults(tab: Tab, axe: str) -> list[str]:
    """What axe finds in the page as it is; `axe` is its source."""
    tab.page.evaluate(axe)
    found: list[dict[str, Any]] = tab.page.evaluate("async () => (await axe.run()).violations")
    return [f"{fault['id']}: {fault['help']} {[node['target'] for node in fault['nodes']]}" for fault in found]
