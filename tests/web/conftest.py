"""A real Chromium, and the tools that npm brings; tests skip, with the reason, where they are not to be had."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

SOURCES = Path(__file__).parents[2] / "service" / "web"
NPM_TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium of the system: none is downloaded.

    For one module of tests at a time: while it is open its event loop runs, and others could not run theirs.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium: on Debian, apt-get install chromium")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"{path} does not start: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """What the lock file names, installed beside it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm, which builds the page and brings axe")
    installed, lock = SOURCES / "node_modules" / ".package-lock.json", SOURCES / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"],
            cwd=SOURCES,
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"npm ci does not work here: {done.stderr.strip().splitlines()[-1]}")
        installed.touch()
    return SOURCES / "node_modules"
