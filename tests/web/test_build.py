"""The built page in the repository is what its sources build."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from service.api.web import DIRECTORY
from tests.web.conftest import SOURCES

pytestmark = pytest.mark.cluster


def test_the_build_gives_the_committed_bytes(node_modules: Path, tmp_path: Path) -> None:
    """Whoever changes a source and forgets `npm run build` is told."""
    node = shutil.which("node")
    assert node is not None, "npm comes with it"
    subprocess.run([node, "build.mjs", str(tmp_path / "dist")], cwd=SOURCES, check=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "dist").iterdir()} == {
        path.name: path.read_bytes() for path in DIRECTORY.iterdir()
    }


def test_the_types_hold(node_modules: Path) -> None:
    """tsc, at its strictest, has nothing to say."""
    done = subprocess.run(
        [node_modules / ".bin" / "tsc", "--noEmit"], cwd=SOURCES, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0)


def test_nothing_comes_from_elsewhere() -> None:
    """The page names no other host: it works where there is no internet."""
    page = (DIRECTORY / "index.html").read_text() + (DIRECTORY / "style.css").read_text()
    assert "//" not in page.replace("<!doctype html>", "")
