"""Adapters by name, as the API sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from service.types import Adapter


class AdapterView(Protocol):
    """The adapters that requests may ask for. Every method may read files: not for an event loop."""

    def names(self) -> Sequence[str]: ...

    def find(self, name: str) -> Adapter | None:
        """None where there is no such adapter. Raises UnavailableError while it is there but cannot be used."""
        ...

    def load(self, name: str, path: str) -> None:
        """Have all replicas serve the adapter in the directory `path` as `name`. Raises InvalidRequestError."""
        ...

    def unload(self, name: str) -> None:
        """Serve it to nobody new; who uses it goes on. Raises UnknownModelError or InvalidRequestError."""
        ...
