"""The native kernels: built once for every processor that can run them, and done without anywhere else."""

from __future__ import annotations

import importlib.util
import logging
import platform
import shutil
from pathlib import Path

import pytest

from service.errors import StartupError
from service.model import native_build

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are for x86-64")


def cpuinfo(path: Path, *features: str) -> Path:
    path.write_text(f"processor\t: 0\nflags\t\t: fpu sse2 {' '.join(features)}\n\n")
    return path


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of programs, and there are none in it."""
    if importlib.util.find_spec("ziglang"):
        pytest.skip("there is always a compiler: the ziglang package")
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.delenv("CC", raising=False)
    return path


def test_an_older_processor_does_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where an instruction is missing nothing is built or loaded, and one line names what is missing."""
    caplog.set_level(logging.INFO)
    old = cpuinfo(tmp_path / "cpuinfo", "avx2", "fma", "avx512f", "avx512bw", "avx512dq")
    assert native_build.load(native_build.OPERATORS, tmp_path, old) is None
    assert caplog.messages == ["This processor has no avx512vl: plain PyTorch operators."]
    assert not (tmp_path / "native").exists()


def test_what_is_not_known_of_a_processor_it_has_not(tmp_path: Path) -> None:
    """Without /proc/cpuinfo no instruction is taken for granted."""
    assert native_build.load(native_build.OPERATORS, tmp_path, tmp_path / "nowhere") is None


def test_a_library_built_elsewhere_needs_no_compiler(
    model_cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An image's build compiles, the image runs: the file is found again by its source and flags alone."""
    if native_build.find_compiler() is None:
        pytest.skip("no C compiler here")
    built = native_build.build(model_cache)
    request.getfixturevalue("bare_path")
    assert native_build.build(model_cache) == built
    with pytest.raises(StartupError):
        native_build.build(tmp_path)


def test_a_library_that_was_installed_with_the_code_serves_any_cache(
    model_cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A volume in place of an image's own cache does not take the kernels away."""
    if native_build.find_compiler() is None:
        pytest.skip("no C compiler here")
    folder = tmp_path / "installed"
    folder.mkdir()
    for file in (*native_build.FOLDER.glob("*.c"), native_build.FOLDER / native_build.HEADER):
        shutil.copy(file, folder)
    installed = tuple(Path(shutil.copy(library, folder)) for library in native_build.build(model_cache))
    request.getfixturevalue("bare_path")
    assert native_build.build(tmp_path / "volume", folder) == installed


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        (None, "No C compiler was found"),
        ("#!/bin/sh\necho cc: unknown option -mfma >&2\nexit 1\n", "failed: cc: unknown option -mfma."),
    ],
)
def test_a_build_that_fails_is_one_line(
    compiler: str | None, said: str, bare_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica says why and goes on with plain PyTorch; an image's build stops."""
    if compiler is not None:
        (bare_path / "cc").write_text(compiler)
        (bare_path / "cc").chmod(0o755)
    with pytest.raises(StartupError, match=said):
        native_build.build(tmp_path)
    processor = cpuinfo(tmp_path / "cpuinfo", *native_build.LINEAR.features)
    assert native_build.load(native_build.LINEAR, tmp_path, processor) is None
    (message,) = caplog.messages
    assert said in message
    assert message.endswith("This is slower: PyTorch's linear layers.")
