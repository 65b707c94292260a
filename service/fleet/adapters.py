"""The adapters of a service: those that were given at start, and those that were loaded while it ran.

What was loaded is written in one file in `lora_dir`, beside the adapters themselves. Whoever is told to load or unload
one changes the file; every replica, and the front, looks whether it has changed before it answers for an adapter. So
all know the same, those that start later too, and what was loaded stays so over restarts.
"""

from __future__ import annotations

import fcntl
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from service.assembly import Engine
from service.config import Settings
from service.errors import ConfigError, InvalidRequestError, ModelError, UnavailableError, UnknownModelError
from service.fleet.brain import state_directory_of
from service.types import Adapter

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
Read = Callable[[Path, str], Adapter]
"""From a directory to the adapter in it, under a name. Raises ModelError."""


class Entry(BaseModel):
    """One adapter in the file: the absolute path of its directory, and the key, in hex, of what was found there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    key: str


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    adapters: dict[str, Entry]


class Registry:
    """The file of what was loaded; absent is empty. Changed by replacing it, one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def version(self) -> tuple[int, int] | None:
        """Changes with the file; None where there is none."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def read(self) -> Mapping[str, Entry]:
        """Raises UnavailableError."""
        try:
            return _File.model_validate_json(self.path.read_bytes()).adapters
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise UnavailableError(f"The list of loaded adapters {self.path} cannot be read: {error}") from None

    @contextmanager
    def changing(self) -> Iterator[dict[str, Entry]]:
        """What is in the file, for the block to change: written when it ends without an exception."""
        try:
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                adapters = dict(self.read())
                yield adapters
                partial = self.path.with_suffix(".partial")
                partial.write_text(_File(adapters=adapters).model_dump_json(indent=1))
                partial.replace(self.path)
        except OSError as error:
            raise UnavailableError(f"The list of loaded adapters {self.path} cannot be written: {error}.") from None


class _Held(NamedTuple):
    entry: Entry
    adapter: Adapter | None  # None where it could not be read


class AdapterBook:
    """Implements `AdapterView` for a replica. `given` are those of the start; without a `registry` there are no others.

    Others lie in the registry's own directory. `reserved` is a name that no adapter may have: the base model's.
    """

    def __init__(
        self, read: Read, given: Mapping[str, Adapter], registry: Registry | None, *, max_loras: int, reserved: str
    ) -> None:
        self._read = read
        self._given = given
        self._registry = registry
        self._max_loras = max_loras
        self._reserved = reserved
        self._lock = threading.Lock()  # guards what follows
        self._version: tuple[int, int] | None = None
        self._held: dict[str, _Held] = {}

    def names(self) -> Sequence[str]:
        with self._lock:
            self._catch_up()
            return (*self._given, *self._held)

    def find(self, name: str) -> Adapter | None:
        if name in self._given:
            return self._given[name]
        with self._lock:
            self._catch_up()
            held = self._held.get(name)
            if held is not None and held.adapter is None:  # perhaps its files are there by now
                held = self._held[name] = self._take(name, held.entry)
        if held is not None and held.adapter is None:
            raise UnavailableError(f"The adapter '{name}' cannot be used at the moment. Please retry later.")
        return None if held is None else held.adapter

    def load(self, name: str, path: str) -> None:
        if self._registry is None:
            raise InvalidRequestError("Only a server with lora_dir set can load adapters.", param="lora_path")
        if NAME.fullmatch(name) is None:
            raise InvalidRequestError(
                "lora_name must be 1 to 128 letters, digits or . _ : / @ - and begin with a letter or digit.",
                param="lora_name",
            )
        directory = _inside(self._registry.path.parent, path)
        with self._registry.changing() as adapters:
            self._check_new(name, adapters)
            try:
                adapter = self._read(directory, name)
            except ModelError as error:
                raise InvalidRequestError(str(error), param="lora_path") from None
            adapters[name] = entry = Entry(path=str(directory), key=adapter.key.hex())
        with self._lock:
            self._held[name] = _Held(entry, adapter)
        logger.info("the adapter %s is loaded from %s", name, directory)

    def unload(self, name: str) -> None:
        if name in self._given:
            raise InvalidRequestError(f"The adapter '{name}' is one of lora_modules and stays.", param="lora_name")
        if self._registry is None:
            raise _unknown(name)
        with self._registry.changing() as adapters:
            if adapters.pop(name, None) is None:
                raise _unknown(name)
        with self._lock:
            self._catch_up()
        logger.info("the adapter %s is unloaded", name)

    def _check_new(self, name: str, loaded: Mapping[str, Entry]) -> None:
        if name in {self._reserved, *self._given, *loaded}:
            raise InvalidRequestError(
                f"'{name}' is served already: unload it first, or choose another name.", param="lora_name"
            )
        if len(self._given) + len(loaded) >= self._max_loras:
            raise InvalidRequestError(
                f"max_loras = {self._max_loras} adapters are loaded: unload one first.", param="lora_name"
            )

    def _catch_up(self) -> None:
        """Hold what the file says, if it has changed."""
        version = None if self._registry is None else self._registry.version()
        if self._registry is None or version == self._version:
            return
        held = {}
        for name, entry in self._registry.read().items():
            known = self._held.get(name)
            held[name] = known if known is not None and known.entry == entry else self._take(name, entry)
        self._held, self._version = held, version

    def _take(self, name: str, entry: Entry) -> _Held:
        try:
            adapter = self._read(Path(entry.path), name)
        except ModelError as error:
            logger.error("the adapter %s cannot be used: %s", name, error)  # noqa: TRY400 - the sentence says it all
            return _Held(entry, None)
        if adapter.key.hex() != entry.key:
            logger.error("the adapter %s is not used: %s has changed since it was loaded", name, entry.path)
            return _Held(entry, None)
        return _Held(entry, adapter)


class _Named(NamedTuple):
    name: str
    key: bytes = b""


class AdapterNames:
    """Implements `AdapterView` where there is no model: adapters are names."""

    def __init__(self, given: Collection[str], registry: Registry | None) -> None:
        self._given = given
        self._registry = registry

    def names(self) -> Sequence[str]:
        return (*self._given, *(() if self._registry is None else self._registry.read()))

    def find(self, name: str) -> Adapter | None:
        return _Named(name) if name in self.names() else None

    def load(self, name: str, path: str) -> None:  # noqa: ARG002 - whatever it is
        raise UnavailableError("Adapters are not loaded at this address.")

    def unload(self, name: str) -> None:  # noqa: ARG002
        raise UnavailableError("Adapters are not unloaded at this address.")


def adapters_of_replica(settings: Settings, engine: Engine) -> AdapterBook | None:
    """None where none are served. Raises ConfigError."""
    read = engine.model.read_adapter
    if not settings.serves_adapters or read is None:
        return None
    book = AdapterBook(
        read, engine.adapters, _registry(settings), max_loras=settings.max_loras, reserved=settings.model_id
    )
    book.names()  # reads those that were loaded before
    return book


def adapters_of_front(settings: Settings) -> AdapterNames | None:
    """None where none are served. Raises ConfigError."""
    return AdapterNames(settings.lora_modules, _registry(settings)) if settings.serves_adapters else None


def _registry(settings: Settings) -> Registry | None:
    if settings.lora_dir is None:
        return None
    directory = settings.lora_dir.expanduser().resolve()
    if not directory.is_dir():
        raise ConfigError(f"lora_dir = {settings.lora_dir} is no directory.")
    return Registry(directory / f".loaded-{state_directory_of(settings).name}.json")


def _inside(directory: Path, path: str) -> Path:
    """`path`, absolute or within `directory`. Raises InvalidRequestError unless it leads to something below that."""
    try:
        resolved = (directory / path).resolve()
        is_inside = resolved != directory and resolved.is_relative_to(directory) and resolved.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
        is_inside = False
    if not is_inside:
        raise InvalidRequestError(
            "lora_path must be a directory inside lora_dir, relative to it or absolute.", param="lora_path"
        )
    return resolved


def _unknown(name: str) -> UnknownModelError:
    return UnknownModelError(f"There is no adapter '{name[:100]}' that could be unloaded.", param="lora_name")
