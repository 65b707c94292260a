"""The book of adapters: several processes with one list agree, and what is wrong is said by name."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import pytest

from service.config import Settings
from service.errors import ConfigError, InvalidRequestError, ModelError, UnavailableError, UnknownModelError
from service.fleet.adapters import AdapterBook, AdapterNames, Registry, adapters_of_front


@dataclass(frozen=True)
class FileAdapter:
    """The content of a file, for an adapter."""

    name: str
    key: bytes


def read(directory: Path, name: str) -> FileAdapter:
    try:
        content = (directory / "weights").read_bytes()
    except OSError:
        raise ModelError(f"{directory.name} has no weights.") from None
    return FileAdapter(name, blake2b(content).digest())


def book(directory: Path | None, *given: str, max_loras: int = 4) -> AdapterBook:
    """What a replica has of the adapters in `directory`."""
    registry = None if directory is None else Registry(directory / ".loaded.json")
    return AdapterBook(
        read, {name: FileAdapter(name, b"given") for name in given}, registry, max_loras=max_loras, reserved="base"
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three adapters, a directory without one, and a link that leads elsewhere."""
    root = tmp_path / "adapters"
    for name in ("one", "two", "deep/three"):
        (root / name).mkdir(parents=True)
        (root / name / "weights").write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights").write_text("secret")
    (root / "empty").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root / "circle")
    return root


def test_every_replica_follows(directory: Path) -> None:
    """What one is told, the others know when they are next asked, and those that start later as well."""
    told, other = book(directory), book(directory)
    assert other.names() == ()

    told.load("a", "one")
    told.load("b", str(directory / "deep" / "three"))
    later = book(directory)

    for each in (told, other, later):
        assert each.names() == ("a", "b")
        assert each.find("a") == read(directory / "one", "a")
    assert other.find("c") is None

    other.unload("a")
    for each in (told, other, later):
        assert each.names() == ("b",)
        assert each.find("a") is None


def test_who_holds_an_adapter_keeps_it(directory: Path) -> None:
    """A request that runs when its adapter is unloaded has what it needs; the book has forgotten it."""
    shelf = book(directory)
    shelf.load("a", "one")
    held = shelf.find("a")
    shelf.unload("a")
    assert held == read(directory / "one", "a")
    assert shelf.find("a") is None


def test_an_adapter_is_read_once(directory: Path) -> None:
    """To be asked for it costs a look at the list, not at its weights; one more adapter does not mean all again."""
    reads: list[str] = []

    def counting(directory: Path, name: str) -> FileAdapter:
        reads.append(name)
        return read(directory, name)

    shelf = AdapterBook(counting, {}, Registry(directory / ".loaded.json"), max_loras=4, reserved="base")
    shelf.load("a", "one")
    book(directory).load("b", "two")
    for _ in range(3):
        assert shelf.find("a") is not None
        assert shelf.find("b") is not None
    assert reads == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "path", "param", "message"),
    [
        ("a", "../elsewhere", "lora_path", "inside lora_dir"),
        ("a", "/etc", "lora_path", "inside lora_dir"),
        ("a", "link", "lora_path", "inside lora_dir"),
        ("a", "circle", "lora_path", "inside lora_dir"),
        ("a", "one/../../elsewhere", "lora_path", "inside lora_dir"),
        ("a", ".", "lora_path", "inside lora_dir"),
        ("a", "", "lora_path", "inside lora_dir"),
        ("a", "one\0", "lora_path", "inside lora_dir"),
        ("a", "x" * 5000, "lora_path", "inside lora_dir"),
        ("a", "empty", "lora_path", "empty has no weights"),
        ("a", "nowhere", "lora_path", "inside lora_dir"),
        ("", "one", "lora_name", "1 to 128"),
        ("a b", "one", "lora_name", "1 to 128"),
        ("a,b", "one", "lora_name", "1 to 128"),
        ("a\n", "one", "lora_name", "1 to 128"),
        ("x" * 129, "one", "lora_name", "1 to 128"),
        ("base", "one", "lora_name", "served already"),
        ("given", "one", "lora_name", "served already"),
        ("loaded", "one", "lora_name", "served already"),
    ],
)
def test_what_cannot_be_loaded(directory: Path, name: str, path: str, param: str, message: str) -> None:
    """Names that are no names or taken, places outside the directory, and what is no adapter; nothing changes."""
    shelf = book(directory, "given")
    shelf.load("loaded", "two")

    with pytest.raises(InvalidRequestError, match=message) as caught:
        shelf.load(name, path)

    assert caught.value.param == param
    assert shelf.names() == ("given", "loaded")


def test_no_more_than_agreed(directory: Path) -> None:
    """`max_loras` bounds those given at start and those loaded together, whichever replica is asked."""
    book(directory, "given", max_loras=2).load("a", "one")
    with pytest.raises(InvalidRequestError, match="max_loras = 2"):
        book(directory, "given", max_loras=2).load("b", "two")


def test_what_cannot_be_unloaded(directory: Path) -> None:
    """What was given at start stays; what is not there is not found."""
    shelf = book(directory, "given")
    with pytest.raises(InvalidRequestError, match="lora_modules"):
        shelf.unload("given")
    for each in (shelf, book(None)):
        with pytest.raises(UnknownModelError, match="no adapter 'a'"):
            each.unload("a")


def test_without_a_directory_nothing_is_loaded() -> None:
    """Then those of the start are all there are."""
    shelf = book(None, "given")
    with pytest.raises(InvalidRequestError, match="lora_dir"):
        shelf.load("a", "one")
    assert shelf.names() == ("given",)
    assert shelf.find("given") is not None


def test_a_directory_that_changed_is_not_served(directory: Path) -> None:
    """A replica that starts later serves what the others serve or nothing, and serves it when it is there again."""
    book(directory).load("a", "one")
    weights = directory / "one" / "weights"
    weights.write_text("other")
    later = book(directory)
    with pytest.raises(UnavailableError, match="'a' cannot be used"):
        later.find("a")
    weights.unlink()
    with pytest.raises(UnavailableError, match="'a' cannot be used"):
        later.find("a")
    weights.write_text("one")
    assert later.find("a") == read(directory / "one", "a")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"adapters": {"a": {"path": 1, "key": ""}}})])
def test_a_damaged_list(directory: Path, content: str) -> None:
    """It is neither believed nor overwritten, and the error names it."""
    path = directory / ".loaded.json"
    path.write_text(content)
    shelf = book(directory)
    with pytest.raises(UnavailableError, match=r"\.loaded\.json"):
        shelf.find("a")
    with pytest.raises(UnavailableError, match=r"\.loaded\.json"):
        shelf.load("a", "one")
    assert path.read_text() == content


def test_changes_at_one_time(directory: Path) -> None:
    """However many processes load at once, nothing is lost."""
    names = [f"n{i}" for i in range(16)]
    books = [book(directory, max_loras=16) for _ in names]
    barrier = threading.Barrier(len(names))

    def load(index: int) -> None:
        barrier.wait()
        books[index].load(names[index], "one")

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(load, range(len(names))))
    assert set(book(directory).names()) == set(names)


def test_the_front_knows_names(directory: Path) -> None:
    """Without a model there is nothing to read, and nothing to load into."""
    front = AdapterNames(["given"], Registry(directory / ".loaded.json"))
    book(directory).load("a", "one")
    found = front.find("a")
    assert front.names() == ("given", "a")
    assert found is not None
    assert found.name == "a"
    assert front.find("b") is None
    with pytest.raises(UnavailableError):
        front.load("b", "two")
    with pytest.raises(UnavailableError):
        front.unload("a")


def test_the_directory_must_be_there(tmp_path: Path) -> None:
    """A wrong lora_dir is an error of the start, not of the first request; without any setting there is no book."""
    with pytest.raises(ConfigError, match="lora_dir"):
        adapters_of_front(Settings(lora_dir=tmp_path / "nowhere"))
    assert adapters_of_front(Settings()) is None
